"""What operators see of the search page: its metrics and traces, over real HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from cra.services.cli.traces import Span, by_trace, read_spans
from cra.shared import tracing
from cra.shared.settings import Settings
from tests.fakes import COLOURS, picture
from tests.page import Page, serving
from tests.servers import wait_until

TEXT = "蓝色的盝顶"


@pytest.fixture(scope="module")
def page(
    s3: Settings, milvus_lite: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page over one picture."""
    with serving(s3, milvus_lite, redis_url, tmp_path_factory.mktemp("page")) as page:
        page.put("blue.png", picture(COLOURS["蓝"], (64, 48)))
        page.work()
        wait_until(lambda: bool(page.search(text="蓝").json()["hits"]), "it can be found")
        yield page


def value(name: str, **labels: str) -> float:
    """Return a sample of this process, in which the page runs; 0 where there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def wait_until_idle() -> None:
    """Return when all requests have ended: they are counted after they are answered."""
    wait_until(lambda: value("cra_http_requests_in_flight") == 0, "all have ended")


def requests(method: str, route: str, code: str) -> float:
    """Return how many such requests have ended."""
    return value("cra_http_requests_total", method=method, route=route, code=code)


def test_requests_are_counted_by_route_and_status(page: Page) -> None:
    """Good and refused ones each count, with their time; afterwards none is in flight.

    Break: count before the application has routed the request.
    """
    kinds = [("POST", "/api/search", "200"), ("POST", "/api/search", "400"), ("GET", "/", "200")]
    wait_until_idle()
    before = [requests(*kind) for kind in kinds]
    timed = value("cra_http_request_seconds_count", method="POST", route="/api/search")
    page.search(text=TEXT)
    page.search(text=TEXT, top_k=1_000)
    page.client.get("/")
    wait_until_idle()
    assert [requests(*kind) for kind in kinds] == [one + 1 for one in before]
    name = "cra_http_request_seconds_count"
    assert value(name, method="POST", route="/api/search") == timed + 2


def test_what_callers_make_up_makes_no_labels(page: Page) -> None:
    """Paths, methods and tokens of pictures that are not there share a few labels.

    Break: label with the path as it came.
    """
    for number in range(3):
        page.client.get(f"/made-up/{number}")
        page.client.request(f"MADEUP{number}", "/")
        page.client.get(f"/static/made-up-{number}")
        page.client.get(f"/pictures/thumbnail/made-up-{number}")
    wait_until_idle()
    shown = {
        text
        for family in REGISTRY.collect()
        if family.name.startswith("cra_http")
        for sample in family.samples
        for text in sample.labels.values()
    }
    assert "/pictures/{kind}/{token}" in shown
    assert not {text for text in shown if "made" in text.lower()}


def test_thumbnails_count_as_made_once_and_kept_then(page: Page) -> None:
    """The first request for one is a miss with its time, the second a hit; their bytes show."""
    (hit, *_) = page.search(text="蓝", top_k=1).json()["hits"]

    def counts() -> list[float]:
        results = [value("cra_thumbnails_total", result=result) for result in ("miss", "hit")]
        return [*results, value("cra_thumbnail_seconds_count")]

    before = counts()
    sizes = [len(page.client.get(hit["thumbnail"]).content) for _ in range(2)]
    assert [new - old for new, old in zip(counts(), before, strict=True)] == [1, 1, 1]
    assert value("cra_thumbnails_bytes") >= sizes[0] > 0


def test_a_trace_goes_from_the_page_to_the_index(page: Page, tmp_path: Path) -> None:
    """A search is one trace from HTTP over gRPC to Milvus, inside of its caller's own.

    Its text is nowhere. Pictures are traced too, the page's files and checks of readiness are not.

    Break: leave `client_span` out of `SearchClient.answer`, or trace `/readyz`.
    """
    file = tmp_path / "traces"
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    tracing.configure("tests", Settings(trace_file=str(file)))
    try:
        asked = page.client.post("/api/search", json={"text": TEXT}, headers={"traceparent": given})
        page.client.get(asked.json()["hits"][0]["view"])
        for path in ("/", "/healthz", "/readyz"):
            assert page.client.get(path).status_code == 200
        wait_until_idle()
    finally:
        tracing.close()
    with file.open(encoding="utf-8") as lines:
        traces = list(by_trace(read_spans(lines)).values())
    found = {spans[0].name: spans for spans in traces}
    assert set(found) == {"POST /api/search", "GET /pictures/{kind}/{token}"}
    searched = found["POST /api/search"]
    assert searched[0].trace_id == given[3:35]
    search = "cra.search.v1.SearchService/Search"
    assert _path(searched) == ["POST /api/search", search, search, "milvus search"]
    assert searched[0].attributes["cra.request_id"] == asked.json()["request_id"]
    assert [span.name for span in found["GET /pictures/{kind}/{token}"]][1:] == ["make small"]
    assert "\\u84dd" not in file.read_text()
    assert asked.json()["hits"][0]["view"].rpartition("/")[2] not in file.read_text()


def _path(spans: list[Span]) -> list[str]:
    """Return the names of spans of which each is the only one inside of the one before."""
    names, inside = [spans[0].name], spans[0].span_id
    while found := [span for span in spans if span.parent_id == inside]:
        (one,) = found
        names.append(one.name)
        inside = one.span_id
    return names
