"""Traces through a real server: client, call, line and batch; only the model is a fake."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cra.embedding.v1 import embedding_pb2 as pb
from cra.services.cli.traces import Span, by_trace, read_spans
from cra.shared import errors, rpc, tracing
from cra.shared.adapters.remote_encoder import SERVICE
from cra.shared.settings import Settings
from tests.embedding import SOON, Service, wait_until


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file that this process is traced to."""
    tracing.configure("tests", Settings(trace_file=str(tmp_path / "traces")))
    yield tmp_path / "traces"
    tracing.close()


def traces(file: Path) -> list[list[Span]]:
    """End tracing; return what was written."""
    tracing.close()
    with file.open(encoding="utf-8") as lines:
        return list(by_trace(read_spans(lines)).values())


def shape(spans: list[Span], span_id: str = "") -> list[object]:
    """Return names of spans, each followed by those inside of it, by their beginning."""
    ids = {span.span_id for span in spans}
    found: list[object] = []
    for span in spans:
        if (span.parent_id if span.parent_id in ids else "") == span_id:
            inside = shape(spans, span.span_id)
            found += [span.name, inside] if inside else [span.name]
    return found


def ended(service: Service) -> None:
    """Wait until no call is in flight: a client has its answer before the span of the call ends."""
    wait_until(lambda: service.server._boundary._running == 0)


def test_a_call_is_one_trace_from_client_to_batch(service: Service, file: Path) -> None:
    """The server's span stands inside of the client's, its wait and batch inside of that.

    Break: leave `traceparent` out of the metadata, or `_Waiting.trace`.
    """
    with tracing.span("query", ""):
        service.encoder.embed_texts(["红"])
    ended(service)
    (spans,) = traces(file)
    call = f"{SERVICE}/EmbedTexts"
    assert shape(spans) == ["query", [call, [call, ["text queue", "text batch"]]]]
    assert [span.attributes.get("rpc.grpc.status") for span in spans if span.name == call] == [
        None,
        "OK",
    ]


def test_calls_that_share_a_batch_each_have_it(own: Service, file: Path) -> None:
    """While a tower is busy, what waits is encoded together, and seen in each of the traces.

    Break: `shared_span` with the first of its parents alone.
    """
    with own.towers.held() as wait_until_busy:
        pending = [own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["红"]))]
        wait_until_busy()
        pending += [
            own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=[text])) for text in "绿蓝"
        ]
        own.wait_in_line(texts=2)
    for call in pending:
        call.result(SOON)
    ended(own)
    call_name = f"{SERVICE}/EmbedTexts"
    found = [shape(spans) for spans in traces(file)]
    assert found == [[call_name, ["text queue", "text batch"]]] * 3


def test_a_call_that_fails_is_marked_where_it_is_our_fault(own: Service, file: Path) -> None:
    """A caller's own mistake is no error of the server's; a broken tower is. Neither has words.

    Break: `fail` for every code.
    """
    with pytest.raises(grpc.RpcError):
        own.stub.EmbedTexts(pb.EmbedTextsRequest(texts=["庑殿顶" * 400]))
    own.towers.broken = errors.UnavailableError("it died over 庑殿顶")
    with pytest.raises(grpc.RpcError):
        own.stub.EmbedTexts(pb.EmbedTextsRequest(texts=["庑殿顶"]), timeout=SOON)
    own.towers.broken = None
    ended(own)
    marked = {
        span.attributes["rpc.grpc.status"]: span.error
        for spans in traces(file)
        for span in spans
        if "rpc.grpc.status" in span.attributes
    }
    assert marked == {"INVALID_ARGUMENT": "", "UNAVAILABLE": "UNAVAILABLE"}
    assert "\\u5e91" not in file.read_text()


def test_checks_of_readiness_begin_no_trace(own: Service, file: Path) -> None:
    """What a server asks of itself is not traced, and what it then asks of others is not kept.

    Break: `tracing.mute` in `Server._watch`.
    """
    with tracing.span("query", ""):
        own.encoder.models()
    tracing.mute()
    own.encoder.models()
    tracing._current.set(None)
    ended(own)
    (spans,) = traces(file)
    assert spans[0].name == "query"
    assert rpc.caller.get() is None
