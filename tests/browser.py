"""A real Chromium for tests of the search page, and what they ask of every view."""

import base64
import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from tests.servers import ROOT

SCREENSHOTS = ROOT / ".data" / "screenshots"
DESKTOP: Final[ViewportSize] = {"width": 1360, "height": 860}
PHONE: Final[ViewportSize] = {"width": 390, "height": 844}


def chromium() -> str:
    """Return a Chromium's path; skip the test if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CRA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("SKIPPED: no Chromium; install one, or name it with CRA_CHROMIUM")
    return found


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser."""
    path = chromium()
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container does not give; it opens our own page only.
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


class View:
    """One tab, in which nothing may go wrong unseen.

    Attributes:
        page: playwright's.
        errors: what its console has said of errors and warnings, and what was thrown.
    """

    def __init__(self, running: Browser, url: str, **options: Any) -> None:
        self.context = running.new_context(
            **{"viewport": DESKTOP, "locale": "zh-CN", "base_url": url, **options}
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.page.on(
            "console",
            lambda said: (
                self.errors.append(said.text) if said.type in {"error", "warning"} else None
            ),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, path: str = "/") -> None:
        """Go somewhere and wait for pictures."""
        self.page.goto(path)
        self.settled()

    def settled(self) -> None:
        """Wait until the last search is answered and shown, and its first pictures with it."""
        self.page.wait_for_selector(".column:not([aria-busy]):not(.stale)")
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.tile img')].slice(0, 6)"
            ".every((one) => one.complete)"
        )

    def shown(self, wall: int = 0) -> list[str]:
        """Return the keys of the pictures on a wall, in order."""
        found: list[str] = self.page.evaluate(
            "(wall) => [...document.querySelectorAll('.wall')[wall].children]"
            ".map((tile) => tile.hit?.key).filter(Boolean)",
            wall,
        )
        return found

    def type(self, text: str) -> None:
        """Write a query as a person does, and wait for what it finds."""
        box = self.page.get_by_role("searchbox")
        box.fill("")
        with self.page.expect_response(lambda answer: answer.url.endswith("/api/search")):
            box.press_sequentially(text, delay=20)
        self.page.wait_for_function(
            "(text) => new URL(location).searchParams.get('q') === text", arg=text
        )
        self.settled()

    def drop(self, selector: str, name: str, content: bytes, kind: str = "image/jpeg") -> None:
        """Drop a file from outside the browser onto an element."""
        transfer = self.page.evaluate_handle(
            "([name, content, kind]) => {"
            " const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));"
            " const transfer = new DataTransfer();"
            " transfer.items.add(new File([bytes], name, { type: kind }));"
            " return transfer; }",
            [name, base64.b64encode(content).decode(), kind],
        )
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event(selector, event, {"dataTransfer": transfer})

    def shoot(self, name: str) -> None:
        """Keep a screenshot for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(350)  # for fades, which no condition shows
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def check(self) -> None:
        """Fail on anything that axe finds, on a page wider than its window, and on errors."""
        # Colours in the middle of a fade are nobody's.
        self.page.wait_for_function(
            "() => document.getAnimations().every((one) => one.playState !== 'running'"
            " || one.effect.getTiming().iterations === Infinity)"
        )
        found = Axe().run(self.page)
        assert not found.response["violations"], found.generate_report()
        widths = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], f"the page is wider than its window: {widths}"
        assert not self.errors, self.errors

    def close(self) -> None:
        """Close the tab."""
        self.context.close()


def score_of(label: str) -> float:
    """Return the score in a picture's label."""
    found = re.search(r"-?\d\.\d{3}$", label)
    assert found, label
    return float(found[0])
