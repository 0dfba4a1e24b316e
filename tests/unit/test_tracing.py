"""Spans and their places, written by the real SDK to a file."""

import gzip
import io
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError

from cra.services.cli.traces import Span, by_trace, read_spans, tree
from cra.shared import tracing
from cra.shared.settings import Settings
from cra.shared.telemetry import configure_logging
from tests.servers import free_ports

ELSEWHERE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ALSO = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-01"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file that this process is traced to."""
    tracing.configure("tests", Settings(trace_file=str(tmp_path / "traces")))
    yield tmp_path / "traces"
    tracing.close()
    tracing._current.set(None)


def spans(file: Path) -> dict[str, Span]:
    """End tracing; return the spans that were written, by name."""
    tracing.close()
    with file.open(encoding="utf-8") as lines:
        return {span.name: span for span in read_spans(lines)}


def test_off_nothing_is_traced_and_nothing_is_made() -> None:
    """Without settings a block is the same object every time, and has no place.

    Break: a default for CRA_TRACE_FILE.
    """
    tracing.configure("tests", Settings())
    assert tracing.span("one", "") is tracing.span("two", "") is tracing.shared_span("x", [ALSO])
    with tracing.span("one", "") as span:
        span.note(items=1)
        assert (tracing.current(), tracing.ids(), span.traceparent) == ("", {}, "")


def test_spans_nest_within_a_process_and_across(file: Path) -> None:
    """A span belongs to the one around it; a root to the traceparent that came with the call."""
    with tracing.span("outer", ELSEWHERE, "SERVER", items=3) as outer:
        with tracing.span("inner"):
            assert tracing.current() != outer.traceparent
        assert tracing.current() == outer.traceparent
    assert tracing.current() == ""
    found = spans(file)
    assert found["outer"].trace_id == found["inner"].trace_id == ELSEWHERE[3:35]
    assert found["outer"].parent_id == ELSEWHERE[36:52]
    assert found["inner"].parent_id == found["outer"].span_id
    assert found["outer"].attributes["cra.items"] == 3


@pytest.mark.parametrize("broken", ["", "x", "00-0-0-01", ELSEWHERE[:-1], "é" * 55, "0" * 10_000])
def test_a_broken_place_begins_a_trace(file: Path, broken: str) -> None:
    """What a caller or Redis hands over is no traceparent: a new trace, and no error.

    Break: `_context_of` without the propagator's checks.
    """
    with tracing.span("outer", broken):
        assert len(tracing.current()) == 55
    assert spans(file)["outer"].parent_id == ""


def test_a_call_that_starts_no_trace_is_none(file: Path) -> None:
    """Outside of a trace a client's span is none: what nobody asked for is not traced."""
    with tracing.span("alone", kind="CLIENT"):
        assert tracing.current() == ""
    assert not file.exists()


def test_what_is_done_for_several_traces_is_in_each(file: Path) -> None:
    """A batch is a span in the first trace, with what it calls, and linked from the others.

    Break: leave out `record` in `_Span.end`.
    """
    with tracing.shared_span("batch", [ELSEWHERE, "", ALSO, ALSO], items=4), tracing.span("deep"):
        pass
    tracing.close()
    with file.open(encoding="utf-8") as lines:
        traces = by_trace(read_spans(lines))
    names = {trace_id: [span.name for span in found] for trace_id, found in traces.items()}
    assert names == {ELSEWHERE[3:35]: ["batch", "deep"], ALSO[3:35]: ["batch"]}


def test_what_was_not_sampled_stays_so(tmp_path: Path) -> None:
    """A share of none keeps none, but for callers who keep theirs; and says so to those called."""
    tracing.configure("t", Settings(trace_file=str(tmp_path / "traces"), trace_sample=0))
    try:
        with tracing.span("ours", ""):
            assert len(tracing.current()) == 55
            assert tracing.sampled() == ""
            assert tracing.shared_span("batch", [tracing.current()]) is tracing._NO_SPAN
        with tracing.span("theirs", ELSEWHERE):
            assert tracing.sampled()
    finally:
        assert set(spans(tmp_path / "traces")) == {"theirs"}


def test_muted_threads_are_not_traced(file: Path) -> None:
    """What a thread does for nobody is kept nowhere, here or where it calls."""
    seen: list[str] = []

    def run() -> None:
        tracing.mute()
        with tracing.span("asked", kind="CLIENT"):
            seen.append(tracing.current())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen[0].endswith("-00")
    tracing.close()
    assert not file.exists()


def test_an_error_shows_as_one_without_its_words(file: Path) -> None:
    """A message may hold what a query said: a span has the kind of the error alone."""
    with pytest.raises(ValueError, match="庑殿顶"), tracing.span("fails", ""):
        raise ValueError("no 庑殿顶")
    assert spans(file)["fails"].error == "ValueError"
    assert "\\u" not in file.read_text()
    assert "no " not in file.read_text()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_log_lines_name_their_span(file: Path, log_format: str) -> None:
    """Inside of a span a line has its ids, outside none.

    Break: `tracing.ids` out of `add_origin`.
    """
    configure_logging("tests", log_format)
    stream = io.StringIO()
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    log = structlog.get_logger("a new one")
    with tracing.span("outer", ELSEWHERE):
        log.info("inside")
    log.info("outside")
    inside, outside = stream.getvalue().splitlines()
    assert ELSEWHERE[3:35] in inside
    assert "span_id" in inside
    assert "trace_id" not in outside


def test_a_trace_is_shown_as_a_tree(file: Path) -> None:
    """Each step stands under the one that it belongs to, with its service and its time."""
    with tracing.span("outer", "", items=2), tracing.span("inner"):
        pass
    tracing.close()
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    with file.open(encoding="utf-8") as lines:
        for found in by_trace(read_spans(lines)).values():
            console.print(tree(found))
    printed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert printed[0].startswith("trace ")
    assert printed[1].startswith("└── outer  tests  ")
    assert printed[1].endswith("items=2")
    assert printed[2].startswith("    └── inner  tests  ")


class Collector(ThreadingHTTPServer):
    """Takes traces by OTLP over HTTP, as real ones do."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []
        """Path, service and name of each."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    facts = {
                        one.key: one.value.string_value for one in resource.resource.attributes
                    }
                    for scope in resource.scope_spans:
                        outer.spans += [
                            (self.path, facts["service.name"], span.name) for span in scope.spans
                        ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)


def test_a_collector_gets_the_spans() -> None:
    """With CRA_OTLP_ENDPOINT spans leave by OTLP over HTTP, the last when the process ends.

    Break: `tracing.close` without `shutdown`.
    """
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        tracing.configure(
            "tests", Settings(otlp_endpoint=f"http://127.0.0.1:{collector.server_port}")
        )
        with tracing.span("outer", ""):
            pass
        tracing.close()
        collector.shutdown()
        thread.join()
    assert collector.spans == [("/v1/traces", "tests", "outer")]


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    """Spans are dropped; neither what makes them nor the end of the process waits long."""
    tracing.configure("tests", Settings(otlp_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}"))
    began = time.monotonic()
    for _ in range(600):
        with tracing.span("outer", ""):
            pass
    made = time.monotonic()
    tracing.close()
    assert made - began < 5
    assert time.monotonic() - made < 6 * tracing.EXPORTED_WITHIN


def test_a_collector_is_named_as_a_url() -> None:
    """Where traces go to is checked at the start."""
    with pytest.raises(ValidationError, match="is not of the form http://HOST:PORT"):
        Settings(otlp_endpoint="collector:4318")
