"""The search page in a real Chromium, in short: on real servers, with a model of colours."""

import io
import re
from collections.abc import Iterator

import pytest
from PIL import Image

from cra.shared.settings import Settings
from tests.browser import View, browser
from tests.fakes import COLOURS, picture
from tests.page import Page, serving
from tests.servers import wait_until

GREYS = 50
"""As many as a relevance needs."""


@pytest.fixture(scope="module")
def page(
    s3: Settings, milvus_lite: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page over a few pictures of colours, and greys that are copies of one another."""
    with serving(s3, milvus_lite, redis_url, tmp_path_factory.mktemp("page")) as page:
        for number, (name, colour) in enumerate(COLOURS.items()):
            page.put(f"{name}.png", picture(colour, (90 + 30 * number, 100)), {"caption": name})
        for number in range(GREYS):
            page.put(f"灰/{number:02}.png", picture((180 + number,) * 3))
        page.work()
        wait_until(
            lambda: len(page.search(text="红", top_k=200).json()["hits"]) == GREYS + len(COLOURS),
            "all are searchable",
        )
        yield page


def test_typing_moving_opening_uploading(page: Page) -> None:
    """What is typed is found, keys alone reach more like it, an upload shows once it is indexed.

    Nothing is said on the console, and axe finds nothing, on each view.
    """
    with browser() as running:
        view = View(running, page.url)
        view.open()
        view.check()
        view.type("蓝色的房子")
        assert view.shown()[0] == "蓝.png"
        view.page.keyboard.press("ArrowDown")
        view.page.keyboard.press("m")
        view.page.wait_for_url("**like=images**")
        view.settled()
        assert "蓝.png" not in view.shown()
        focused = "() => document.activeElement.closest('.tile')?.hit?.rank === 1"
        view.page.wait_for_function(focused)
        view.page.keyboard.press("Enter")
        view.page.locator("#viewer[open]").wait_for()
        before = view.page.url
        view.page.keyboard.press("m")
        view.page.wait_for_url(lambda url: url != before)
        view.settled()
        view.page.wait_for_function(focused)
        view.check()
        with page.working():
            view.page.get_by_role("button", name="上传").click()
            content = picture((30, 30, 120), (120, 80))
            files = [{"name": "深蓝.png", "mimeType": "image/png", "buffer": content}]
            view.page.locator("#upload-files").set_input_files(files)  # type: ignore[arg-type]
            view.page.get_by_text("已收录").wait_for()
        view.check()
        view.page.get_by_role("button", name="关闭").click()
        view.type("蓝")
        assert any(key.endswith("深蓝.png") for key in view.shown())
        view.close()


def test_an_upload_that_is_taken_away_is_followed_no_more(page: Page) -> None:
    """What was deleted before it was indexed fails in its row, and is not asked for any more.

    Break: leave NOT_FOUND out of `follow`.
    """
    with browser() as running:
        view = View(running, page.url)
        view.open()
        view.page.get_by_role("button", name="上传").click()
        content = picture((30, 120, 30), (120, 80))
        files = [{"name": "gone.png", "mimeType": "image/png", "buffer": content}]
        view.page.locator("#upload-files").set_input_files(files)  # type: ignore[arg-type]
        view.page.get_by_text("已上传").wait_for()
        there = page.store.list_objects("images", prefix="uploads/", recursive=True)
        (key,) = [one.object_name or "" for one in there if "gone.png" in (one.object_name or "")]
        page.store.remove_object("images", key)
        view.page.locator("li.failed").get_by_text("找不到了").wait_for()
        view.close()


def test_an_address_of_nothing_leads_to_the_search(page: Page) -> None:
    """It is a page like the others, and its button opens the wall."""
    with browser() as running:
        view = View(running, page.url)
        view.page.goto("/nope")
        assert all("404" in one for one in view.errors), view.errors
        view.errors.clear()
        view.shoot("18-missing")
        view.check()
        view.page.get_by_role("link", name="去检索").click()
        view.settled()
        view.check()
        view.close()


def test_a_picture_that_cannot_be_read_says_why_in_the_language_of_the_page(page: Page) -> None:
    """On the wall and in the status: by the same words, with no English among the Chinese.

    There is nothing to try again.
    Break: show the service's message as it is.
    """
    large = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(large, "PNG")
    whole = picture(COLOURS["红"], (90, 80))
    too_many = "像素太多（12000 × 12000），最多 89,478,485 个。"
    page.put("大.png", large.getvalue())
    page.work()
    with browser() as running:
        view = View(running, page.url)
        view.open()
        said = view.page.locator(".state")
        for name, content, chinese, english in (
            ("notes.txt", b"text", "这不是能认出的图片格式。", "not an image of a known format"),
            ("broken.png", whole[: len(whole) // 2], "图片不完整", "the image cannot be decoded"),
            ("large.png", large.getvalue(), too_many, "too many pixels: 12000 x 12000"),
            ("empty.png", b"", "文件是空的。", "the file is empty"),
        ):
            view.drop("#box", name, content)
            said.get_by_text(chinese).wait_for()
            assert said.get_by_role("button").count() == 0
            assert not re.search("[A-Za-z]", said.inner_text())
            view.page.get_by_role("button", name="English").click()
            said.get_by_text(english).wait_for()
            assert not re.search("[\u4e00-\u9fff]", said.inner_text())
            view.page.get_by_role("button", name="中文").click()
            said.get_by_text(chinese).wait_for()
        view.shoot("14-bad-picture")
        view.page.get_by_role("button", name="状态").click()
        view.page.locator(".failures").get_by_text(too_many).wait_for()
        view.shoot("15-bad-picture-status")
        assert all("400" in one for one in view.errors), view.errors
        view.errors.clear()
        view.check()
        view.close()
    page.store.remove_object("images", "大.png")
    page.work()


def test_copies_other_names_and_relevance_are_a_choice_that_stands_in_the_address(
    page: Page,
) -> None:
    """Keys alone fold copies and look for other names; another tab has the same choices.

    The page says what was cut, what else was looked for, how relevant a picture is, and which
    copies it stands for.
    """
    wait_until(
        lambda: page.search(text="红").json()["hits"][0]["relevance"] is not None,
        "hits have a relevance",
    )
    with browser() as running:
        view = View(running, page.url)
        view.open("/?q=红")
        assert len(view.shown()) == 40
        assert "相关度 " in (view.page.locator(".score").first.get_attribute("title") or "")
        view.page.get_by_label("合并重复图片").focus()
        view.page.keyboard.press("Space")
        view.page.wait_for_url("**fold=1**")
        view.settled()
        assert sum(key.startswith("灰/") for key in view.shown()) == 1
        tile = view.page.locator(".tile", has_text=f"+{GREYS - 1}")
        view.page.get_by_label("同义词扩展").focus()
        view.page.keyboard.press("ArrowDown")
        view.page.wait_for_url("**expand=1**")
        view.type("飞扶壁")
        view.page.get_by_text("也按这些说法找：").wait_for()
        view.shoot("16-options")
        view.check()
        other = View(running, page.url)
        other.open(view.page.url)
        other.page.get_by_text("也按这些说法找：").wait_for()
        assert other.page.get_by_label("合并重复图片").is_checked()
        assert other.page.get_by_label("同义词扩展").input_value() == "1"
        assert other.shown() == view.shown()
        other.close()
        tile.get_by_role("button").first.click()
        about = view.page.locator(".about")
        about.get_by_text(re.compile(r"相关度 \d\.\d\d")).wait_for()
        assert about.get_by_text("images/灰/").count() == GREYS
        view.shoot("17-copies")
        view.check()
        view.page.keyboard.press("Escape")
        view.page.get_by_label("同义词扩展").select_option("0")
        view.page.wait_for_url("**expand=0**")
        view.page.get_by_text("也按这些说法找：").wait_for(state="hidden")
        view.page.get_by_role("searchbox").fill("红" * 51)
        view.page.get_by_text("只用了前 52 个词元").wait_for()
        view.page.get_by_role("button", name="English").click()
        view.page.get_by_label("Fold copies").wait_for()
        view.check()
        view.open("/?q=红&in=红.png")
        view.page.get_by_text("1 picture in all").wait_for()
        view.open("/?q=红&in=灰/0")
        view.page.get_by_text("10 pictures in all").wait_for()
        view.close()
