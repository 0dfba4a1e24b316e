"""The search page in a real Chromium, on the whole stack with rendered buildings and a real model.

Each view leaves a screenshot in `.data/screenshots`, for people to look at.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from cra.services.training.buildings.dataset import Picture, read_dataset, write_dataset
from tests.browser import PHONE, View, browser
from tests.gallery import gallery
from tests.servers import wait_until
from tests.stack import Stack

pytestmark = pytest.mark.slow

COUNT = 360


class World:
    """The stack, its pictures and a browser."""

    def __init__(self, stack: Stack, pictures: dict[str, Picture], running: Browser) -> None:
        self.stack, self.pictures, self.running = stack, pictures, running
        self.url = f"http://127.0.0.1:{stack.settings.web_port}"

    def view(self, **options: object) -> View:
        """Return a fresh tab."""
        return View(self.running, self.url, **options)

    def pid(self, part: str) -> int:
        """Return the process of a part."""
        state = json.loads((Path(self.stack.env["CRA_DATA_DIR"]) / "run/stack.json").read_text())
        (pid,) = [one["pid"] for one in state["parts"] if one["name"] == part]
        return int(pid)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Pictures in two folders, indexed, and the release that ships beside the base."""
    folder = tmp_path_factory.mktemp("page")
    with browser() as running, gallery(folder, "lite", COUNT) as (stack, pictures):
        yield World(stack, pictures, running)


@pytest.fixture
def view(world: World) -> Iterator[View]:
    """A tab of a desktop."""
    tab = world.view()
    yield tab
    tab.close()


def test_the_first_view_invites_and_shows(view: View) -> None:
    """Before anything is asked there are examples and pictures."""
    view.open()
    assert len(view.shown()) >= 20
    view.shoot("01-first")
    view.check()


def test_typing_shows_the_right_pictures_first(view: View, world: World) -> None:
    """Of the first eight for red wooden houses at least six are such, as they were drawn."""
    view.open()
    view.type("红色木房子")
    first = [world.pictures[key] for key in view.shown()[:8]]
    assert sum("wall=red_wood" in one.facts for one in first) >= 6
    view.shoot("02-results")
    view.check()


def test_more_like_this_leads_on(view: View) -> None:
    """A picture's button asks for what is like it; back returns to the query."""
    view.open("/?q=红色木房子")
    before = view.shown()
    tile = view.page.locator(".tile").first
    tile.hover()
    tile.get_by_role("button", name="更多相似").click()
    view.page.wait_for_url("**like=**")
    view.settled()
    assert before[0] not in view.shown()
    view.shoot("03-like")
    view.check()
    view.page.go_back()
    view.page.wait_for_url("**q=**")
    view.settled()
    view.page.wait_for_function(
        "(key) => document.querySelector('.tile')?.hit?.key === key", arg=before[0]
    )
    assert view.shown()[: len(before)] == before


def test_a_dropped_picture_finds_itself(view: View, world: World) -> None:
    """Dropping on the search box searches; the note says that the address leaves it out."""
    key, picture = list(world.pictures.items())[7]
    view.open()
    view.drop("#box", "我的.jpg", picture.file.read_bytes())
    view.page.wait_for_function(
        "(key) => document.querySelector('.tile')?.hit?.key === key", arg=key
    )
    view.settled()
    assert "不在网址里" in view.page.locator("#note").inner_text()
    view.shoot("04-dropped")
    view.check()


def test_dragging_shows_both_targets(view: View, world: World) -> None:
    """While a file is dragged over the page it says what each half would do."""
    picture = next(iter(world.pictures.values()))
    view.open()
    view.drop("#drop-search", "a.jpg", picture.file.read_bytes())
    view.settled()
    transfer = view.page.evaluate_handle(
        "() => { const one = new DataTransfer();"
        " one.items.add(new File(['x'], 'a.jpg', { type: 'image/jpeg' })); return one; }"
    )
    view.page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    view.page.locator("#drop-upload").wait_for()
    view.shoot("05-dragging")
    view.check()


def test_an_upload_is_found_once_it_is_indexed(view: View, world: World, tmp_path: Path) -> None:
    """By the button, with its progress and its caption, until it is on the wall."""
    write_dataset(tmp_path, "validation", 2)
    one, other = read_dataset(tmp_path)
    view.open()
    view.page.get_by_role("button", name="上传").click()
    view.page.get_by_label("说明").fill("新来的房子")
    view.page.locator("#upload-files").set_input_files([one.file, other.file])
    view.page.get_by_text("已收录").nth(1).wait_for(timeout=60_000)
    view.drop(".zone", "坏.jpg", b"this is no picture")
    view.page.get_by_text("没能收录").wait_for(timeout=60_000)
    view.shoot("06-upload")
    view.check()
    view.page.get_by_role("button", name="找相似的").first.click()
    view.page.wait_for_url("**like=images**uploads**")
    view.settled()
    view.drop("#box", "again.jpg", one.file.read_bytes())
    view.page.wait_for_function(
        "() => document.querySelector('.tile')?.hit?.key.startsWith('uploads/')"
    )
    assert view.page.locator(".tile .caption").first.inner_text() == "新来的房子"


def test_what_failed_is_shown_and_tried_again(view: View, world: World) -> None:
    """The status counts it and says why; once the object is mended, trying again clears it."""
    world.stack.put("坏/文字.jpg", b"this is text")
    wait_until(lambda: world.stack.status().failed >= 1, "it has failed")
    view.open()
    view.page.get_by_role("button", name="状态").click()
    row = view.page.locator(".failures li", has_text="坏/文字.jpg")
    row.get_by_text("这不是能认出的图片格式").wait_for()
    view.shoot("07-status")
    view.check()
    with view.page.expect_response("**/api/failures/retry") as answered:
        row.get_by_role("button", name="再试一次").click()
    assert answered.value.json()["retried"] == 1
    view.page.get_by_text("1 张重新排队了").wait_for()
    world.stack.bucket.remove_object("images", "坏/文字.jpg")
    row.wait_for(state="detached", timeout=60_000)
    view.check()


def test_the_wall_goes_on_for_200_pictures(view: View) -> None:
    """Scrolling down fetches page after page, none twice, in the order of their scores."""
    view.open("/?q=房子")
    while len(view.shown()) < 200:
        before = len(view.shown())
        view.page.mouse.wheel(0, 4000)
        view.page.wait_for_function(
            "(before) => document.querySelectorAll('.tile').length > before", arg=before
        )
    keys = view.shown()
    assert len(set(keys)) == len(keys)
    scores = [float(one) for one in view.page.locator(".tile .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    view.check()


def test_everything_is_reached_by_keys_alone(view: View) -> None:
    """Search, move, open, step, close, more like this: without a mouse."""
    view.open()
    keyboard = view.page.keyboard
    keyboard.press("/")
    keyboard.insert_text("灰砖房子")
    view.page.wait_for_url("**q=**")
    view.settled()
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    focused = "document.activeElement.closest('.tile')?.hit?.rank"
    assert view.page.evaluate(focused) == 2
    keyboard.press("ArrowDown")
    below = view.page.evaluate(focused)
    assert below > 2
    keyboard.press("ArrowUp")
    view.page.wait_for_function(f"() => {focused} < {below}")
    keyboard.press("Home")
    keyboard.press("Enter")
    view.page.locator("#viewer[open]").wait_for()
    keyboard.press("ArrowRight")
    view.page.get_by_text("#2 ·").wait_for()
    view.page.wait_for_function("() => document.querySelector('.stage img').complete")
    view.shoot("08-viewer")
    view.check()
    keyboard.press("Escape")
    view.page.locator("#viewer").wait_for(state="hidden")
    assert view.page.evaluate(focused) == 2
    keyboard.press("m")
    view.page.wait_for_url("**like=**")
    view.settled()


def test_plus_minus_and_filters_narrow_and_stand_in_the_address(view: View) -> None:
    """A term less and a value of metadata change the wall, and another tab sees the same."""
    view.open("/?q=房子")
    view.page.get_by_role("button", name="少一点").click()
    view.page.get_by_label("少一点什么？").fill("夜里")
    view.page.keyboard.press("Enter")
    view.page.wait_for_url("**t=-0.5**")
    view.settled()
    view.page.get_by_role("button", name="重一点").click()
    view.page.wait_for_url("**t=-0.75**")
    value = view.page.locator(".facets li button").first
    value.wait_for()
    value.click()
    view.page.wait_for_url("**f=**")
    view.settled()
    pressed = view.page.locator('.facets li button[aria-pressed="true"] span').inner_text()
    shown = view.page.evaluate(
        "[...document.querySelectorAll('.tile')].map((one) => Object.values(one.hit.metadata))"
    )
    assert shown
    assert all(pressed in values for values in shown)
    view.page.mouse.move(0, 0)
    view.shoot("09-terms-and-filters")
    view.check()
    keys = view.shown()
    other = View(view.context.browser, view.page.url.split("/?")[0])  # type: ignore[arg-type]
    other.open(view.page.url)
    assert other.shown() == keys
    other.close()


def test_two_releases_side_by_side(view: View) -> None:
    """The base beside the tuned tower, each picture with its place among the other's."""
    view.open("/?q=庑殿顶、朱漆木构的殿宇")
    select = view.page.get_by_label("对比")
    select.wait_for()
    options = select.locator("option").all_inner_texts()
    select.select_option(label=next(one for one in options if "cra-miniature" in one))
    view.page.wait_for_function("() => document.querySelectorAll('.moved').length > 20")
    view.settled()
    headings = view.page.locator(".column h2").all_inner_texts()
    assert len({*headings}) == 2
    assert view.shown(0) != view.shown(1)
    view.shoot("10-comparison")
    view.check()


def test_nothing_found_says_what_to_do(view: View) -> None:
    """Filters that let nothing through are named as the reason."""
    view.open("/?q=房子&f=roof:没有这种")
    view.page.get_by_text("去掉几个筛选再看看").wait_for()
    view.shoot("11-empty")
    view.check()
    view.page.locator(".state").get_by_role("button", name="去掉全部筛选").click()
    view.page.wait_for_function("() => document.querySelectorAll('.tile').length > 10")


def test_a_slow_and_a_broken_gateway_are_told_apart_and_recovered_from(
    view: View, world: World
) -> None:
    """Slow: it is still looking. Gone: it says so, and shows pictures once it is back."""
    view.open()
    gateway = world.pid("gateway")
    os.kill(gateway, signal.SIGSTOP)
    try:
        view.page.get_by_role("searchbox").fill("石头房子")
        view.page.get_by_text("还在找。").wait_for()
        view.shoot("12-slow")
    finally:
        os.kill(gateway, signal.SIGCONT)
    view.settled()
    view.check()
    os.kill(gateway, signal.SIGKILL)
    view.page.get_by_role("searchbox").fill("玻璃房子")
    view.page.get_by_text("检索服务暂时没有应答。").wait_for()
    view.shoot("13-error")
    view.page.locator(".tile").first.wait_for(timeout=60_000)
    view.settled()
    assert all("503" in one for one in view.errors), view.errors


def test_a_phone_has_room_for_all_of_it(world: World) -> None:
    """At 390 pixels nothing is wider than the screen, and every part can be used."""
    view = world.view(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    view.open()
    view.shoot("20-phone-first")
    view.check()
    view.type("有圆顶的白房子")
    view.shoot("21-phone-results")
    view.check()
    view.page.locator(".tile .open").first.tap()
    view.page.wait_for_function("() => document.querySelector('.stage img').complete")
    view.shoot("22-phone-viewer")
    view.check()
    view.page.get_by_role("button", name="关闭").tap()
    view.page.locator("#open-status").tap()
    view.page.locator(".figure.indexed").wait_for()
    view.shoot("23-phone-status")
    view.check()
    view.close()


def test_dark_and_english(world: World) -> None:
    """Both hold on every view, and the choice stays for the next visit."""
    view = world.view(color_scheme="dark")
    view.open("/?q=红色木房子")
    view.shoot("30-dark-results")
    view.check()
    view.page.locator(".tile .open").first.click()
    view.page.wait_for_function("() => document.querySelector('.stage img').complete")
    view.check()
    view.page.keyboard.press("Escape")
    view.page.get_by_role("button", name="状态").click()
    view.page.locator(".figure.indexed").wait_for()
    view.shoot("31-dark-status")
    view.check()
    view.page.keyboard.press("Escape")
    view.page.locator("#theme").click()
    view.page.get_by_role("button", name="English").click()
    view.settled()
    assert view.page.evaluate("document.documentElement.lang") == "en"
    view.open("/")
    assert view.page.evaluate("document.documentElement.lang") == "en"
    assert view.page.evaluate("document.documentElement.dataset.theme") == "light"
    view.shoot("32-english")
    view.check()
    view.close()
