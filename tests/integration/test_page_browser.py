"""The search page in a real Chromium, in short: on real servers, with a model of colours."""

from collections.abc import Iterator

import pytest

from cra.shared.settings import Settings
from tests.browser import View, browser
from tests.fakes import COLOURS, picture
from tests.page import Page, serving
from tests.servers import wait_until


@pytest.fixture(scope="module")
def page(
    s3: Settings, milvus_lite: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page over a few pictures of colours."""
    with serving(s3, milvus_lite, redis_url, tmp_path_factory.mktemp("page")) as page:
        for number, (name, colour) in enumerate(COLOURS.items()):
            page.put(f"{name}.png", picture(colour, (90 + 30 * number, 100)), {"caption": name})
        page.work()
        wait_until(
            lambda: len(page.search(text="红").json()["hits"]) == len(COLOURS), "all are searchable"
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
