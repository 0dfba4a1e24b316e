"""The search page in a real Chromium: first paint, answers while typing, thumbnails.

On the local stack with the model that ships, the Milvus server and rendered buildings.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import Browser, Page

from tests.bench.measure import Comparison, percentile, seconds_of, times
from tests.browser import DESKTOP, browser
from tests.gallery import gallery
from tests.stack import Stack

IMAGES: Final = 2000
VISITS: Final = 5
"""Of each round, each in a browser profile of its own."""
CALLS: Final = 40
PAUSE: Final = 200.0
"""Milliseconds that the page waits for the next key stroke."""
QUERIES: Final = (
    "红色木房子",
    "灰砖房子",
    "石头房子",
    "白墙房子",
    "玻璃房子",
    "黄墙房子",
    "圆顶",
    "尖顶",
)
PICTURES: Final = 6
"""On the wall: then there is something to look at."""

_SHOWN: Final = f"""() => {{
  const shown = [...document.querySelectorAll('.column:not(.stale) .tile img')];
  return shown.length >= {PICTURES}
    && shown.slice(0, {PICTURES}).every((one) => one.complete && one.naturalWidth);
}}"""


def run(rounds: int) -> list[Comparison]:
    """Measure; limits are what people take for at once (100 ms) and for soon (1 s)."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        browser() as running,
        gallery(Path(folder), "server", IMAGES) as (stack, _),
    ):
        url = f"http://127.0.0.1:{stack.settings.web_port}"
        with httpx.Client(base_url=url, timeout=20) as client:
            api = _Calls(stack, client)
            fresh = [one for _ in range(rounds) for one in api.thumbnails()]
            columns: dict[str, list[float]] = {}
            for _ in range(rounds):
                found = {
                    "paint": _visits(running, url, _first_paint),
                    "pictures": _visits(running, url, _first_pictures),
                    "typed": _typed(running, url),
                    "api": times(api.search, CALLS),
                    "grpc": times(api.grpc, CALLS),
                    "kept": times(api.kept, CALLS),
                }
                for name, taken in found.items():
                    columns.setdefault(name, []).append(statistics.median(taken))
    limit = [1000.0] * rounds
    notes = {"a thumbnail made, p50": f"{statistics.median(fresh):.0f} ms",
             "p95": f"{percentile(fresh, 0.95):.0f} ms"}  # fmt: skip
    return [
        Comparison("first paint, nothing cached", columns["paint"], limit, "1 s", "ms", 1.0),
        Comparison(
            f"first {PICTURES} pictures on the wall, browser cache empty",
            columns["pictures"], limit, "1 s", "ms", 1.0,
        ),
        Comparison(
            f"from the last key to {PICTURES} pictures of the answer",
            columns["typed"], [PAUSE + 300] * rounds, f"the pause of {PAUSE:g} ms + 300 ms",
            "ms", 1.0,
        ),
        Comparison(
            "POST /api/search, 40 hits, a text asked before", columns["api"],
            [one + 10 for one in columns["grpc"]], "Search over gRPC + 10 ms", "ms", 1.0,
        ),
        Comparison(
            "a thumbnail that is kept", columns["kept"], [10.0] * rounds, "10 ms", "ms", 1.0, notes
        ),
    ]  # fmt: skip


class _Calls:
    """The page's own part of the answers, without a browser."""

    def __init__(self, stack: Stack, client: httpx.Client) -> None:
        self._stack, self._client = stack, client
        self._seen: set[str] = set()
        self._kept = self._addresses(QUERIES[0])[0]

    def search(self) -> None:
        """Search over HTTP."""
        answer = self._client.post("/api/search", json={"text": QUERIES[0], "top_k": 40})
        answer.raise_for_status()

    def grpc(self) -> None:
        """Search over gRPC."""
        self._stack.search.search(QUERIES[0], top_k=40)

    def kept(self) -> None:
        """Fetch a thumbnail that was made before."""
        self._client.get(self._kept).raise_for_status()

    def thumbnails(self) -> list[float]:
        """Return the milliseconds of thumbnails that were not made before."""
        taken = []
        for text in QUERIES:
            for address in self._addresses(text):
                if address not in self._seen:
                    self._seen.add(address)
                    taken.append(seconds_of(lambda: self._client.get(address)) * 1000)  # noqa: B023
        return taken

    def _addresses(self, text: str) -> list[str]:
        answer = self._client.post("/api/search", json={"text": text, "top_k": 40}).json()
        return [hit["thumbnail"] for hit in answer["hits"]]


def _visits(running: Browser, url: str, measure: Callable[[Page, str], float]) -> list[float]:
    taken = []
    for _ in range(VISITS):
        context = running.new_context(viewport=DESKTOP, locale="zh-CN")
        taken.append(measure(context.new_page(), url))
        context.close()
    return taken


def _first_paint(page: Page, url: str) -> float:
    page.goto(url)
    page.wait_for_function(
        "() => performance.getEntriesByName('first-contentful-paint').length > 0"
    )
    paint: float = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    return paint


def _first_pictures(page: Page, url: str) -> float:
    page.goto(url, wait_until="commit")
    page.wait_for_function(_SHOWN, polling="raf")
    shown: float = page.evaluate("performance.now()")
    return shown


def _typed(running: Browser, url: str) -> list[float]:
    context = running.new_context(viewport=DESKTOP, locale="zh-CN")
    page = context.new_page()
    page.goto(url)
    page.wait_for_function(_SHOWN)
    taken = []
    for text in QUERIES:
        box = page.get_by_role("searchbox")
        box.fill("")
        page.wait_for_function("() => !new URL(location).searchParams.get('q')")
        page.wait_for_function(_SHOWN)
        # From the last input event, which `fill` makes one of.
        page.evaluate(
            "() => addEventListener('input', () => { window.typed = performance.now(); },"
            " { capture: true, once: true })"
        )
        box.fill(text)
        page.wait_for_function(
            "(text) => new URL(location).searchParams.get('q') === text", arg=text, polling="raf"
        )
        page.wait_for_function(_SHOWN, polling="raf")
        taken.append(page.evaluate("performance.now() - window.typed"))
    context.close()
    return taken
