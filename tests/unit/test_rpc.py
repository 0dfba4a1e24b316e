"""gRPC's edge: errors cross a real channel as what they are, and calls carry what they should."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from cra.embedding.v1 import embedding_pb2
from cra.ingest.v1 import ingest_pb2
from cra.search.v1 import search_pb2
from cra.services.web.http import STATUS
from cra.shared import errors, rpc

SERVICE = "cra.search.v1.SearchService"
SOON = 20.0

Behavior = Callable[[grpc.ServicerContext], None]


class Peer:
    """A server whose one call, bytes to bytes, does what the test says."""

    def __init__(self) -> None:
        self.behavior: Behavior = lambda _: None
        self.metadata: list[dict[str, str | bytes]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler: Any = grpc.unary_unary_rpc_method_handler(self._call)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Search": handler}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.target = f"127.0.0.1:{port}"
        self._plain = grpc.insecure_channel(self.target)

    def _call(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        self.behavior(context)
        return b"done"

    def call(
        self, channel: grpc.Channel | None = None, timeout: float = SOON, message: bytes = b""
    ) -> Any:
        """Make the call, over a channel that never tries again unless another is given."""
        method: Any = (channel or self._plain).unary_unary(f"/{SERVICE}/Search")
        return method(message, timeout=timeout)

    def fail_with(self, error: errors.CraError) -> errors.CraError:
        """Return what the client makes of a domain error of the server."""
        self.behavior = lambda context: context.abort_with_status(
            rpc_status.to_status(rpc.to_status(error))
        )
        with pytest.raises(grpc.RpcError) as caught:
            self.call()
        return rpc.from_rpc_error(caught.value, "the server")

    def close(self) -> None:
        """Stop."""
        self._plain.close()
        self._server.stop(None).wait()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """A server."""
    peer = Peer()
    yield peer
    peer.close()


_KINDS = sorted(rpc.CODES, key=lambda kind: kind.__name__)


def _subclasses(kind: type[Any]) -> set[type[Any]]:
    direct = set(kind.__subclasses__())
    return direct.union(*map(_subclasses, direct))


def test_the_table_is_complete() -> None:
    """Every domain error has a status code of its own."""
    shared = {one for one in _subclasses(errors.CraError) if one.__module__ == errors.__name__}
    assert set(rpc.CODES) == shared
    # One that is no part of the contract over gRPC is at least told over HTTP.
    assert set(rpc.CODES) | set(STATUS) == _subclasses(errors.CraError)
    assert set(rpc.CODES) <= set(STATUS)
    assert len(set(rpc.CODES.values())) == len(rpc.CODES)
    assert rpc.code_of(errors.CraError("?")) is grpc.StatusCode.INTERNAL


# What fits in `MAX_PROBLEM` and `MAX_FIELD`.
_messages = st.text(min_size=1, max_size=200)
_fields = st.text(min_size=1, max_size=50)


@given(st.sampled_from([k for k in _KINDS if k is not errors.InvalidArgumentError]), _messages)
def test_every_error_comes_back_as_it_was(
    peer: Peer, kind: type[errors.CraError], message: str
) -> None:
    """Kind and message survive the wire, whatever the message holds."""
    back = peer.fail_with(kind(message))
    assert type(back) is kind
    assert back.message == message


@given(_fields, _messages)
def test_an_invalid_argument_keeps_its_field(peer: Peer, field: str, problem: str) -> None:
    """The field at fault and its problem survive the wire apart."""
    back = peer.fail_with(errors.InvalidArgumentError(field, problem))
    assert isinstance(back, errors.InvalidArgumentError)
    assert (back.field, back.problem) == (field, problem)


@given(
    st.sampled_from([errors.ResourceExhaustedError, errors.UnavailableError]),
    st.floats(0, 1e6),
)
def test_a_retry_delay_survives(peer: Peer, kind: Any, seconds: float) -> None:
    """How long to wait survives the wire, to the nanosecond."""
    back = peer.fail_with(kind("later", retry_after=seconds))
    assert back.retry_after == pytest.approx(seconds, abs=1e-9, rel=1e-12)  # type: ignore[attr-defined]


@pytest.mark.parametrize("letter", ["x", "门", "🏯", "\n", "%"], ids=ascii)
@pytest.mark.parametrize("kind", [errors.NotFoundError, errors.InvalidArgumentError])
def test_a_long_message_is_cut_and_not_lost(
    kind: type[errors.CraError], letter: str, peer: Peer
) -> None:
    """However long a message or a field is, the client gets the right error, cut at a letter."""
    long = letter * 50_000
    error = kind(long, long) if kind is errors.InvalidArgumentError else kind(long)
    back = peer.fail_with(error)
    assert type(back) is kind
    shown = back.problem if isinstance(back, errors.InvalidArgumentError) else back.message
    assert shown.startswith(letter * 100)
    assert shown.lstrip(letter) == "…"
    status = rpc.to_status(error)
    # Trailers hold the message escaped, up to threefold, and the status in base64.
    assert 3 * len(status.message.encode()) + len(status.SerializeToString()) * 4 / 3 < 8 * 1024


def test_details_are_the_standard_ones() -> None:
    """Clients in any language find ErrorInfo, BadRequest and RetryInfo where they look for them."""
    status = rpc.to_status(errors.InvalidArgumentError("top_k", "is 0"))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "cra")
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "top_k"
    retry = error_details_pb2.RetryInfo()
    assert rpc.to_status(errors.UnavailableError("x", 2.5)).details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (2, 500_000_000)


@pytest.mark.parametrize(
    "details",
    [
        status_pb2.Status(code=3, message="another code").SerializeToString(),
        status_pb2.Status(code=5, message="another message").SerializeToString(),
        b"\xff\xff",
    ],
)
def test_a_status_that_was_changed_on_its_way(details: bytes, peer: Peer) -> None:
    """Details that do not fit the status, as a proxy may leave them, do not hide the status."""

    def behave(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.NOT_FOUND, "not here")

    peer.behavior = behave
    with pytest.raises(grpc.RpcError) as caught:
        peer.call()
    back = rpc.from_rpc_error(caught.value, "the server")
    assert type(back) is errors.NotFoundError
    assert back.message == "not here"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNKNOWN, errors.CraError),
        (grpc.StatusCode.INTERNAL, errors.CraError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.CraError),
        (grpc.StatusCode.CANCELLED, errors.UnavailableError),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgumentError),
    ],
)
def test_a_status_of_others(code: grpc.StatusCode, kind: type[errors.CraError], peer: Peer) -> None:
    """A status without our details, from a proxy or a bug, is a domain error all the same."""
    peer.behavior = lambda context: context.abort(code, "")
    with pytest.raises(grpc.RpcError) as caught:
        peer.call()
    back = rpc.from_rpc_error(caught.value, "the server")
    assert type(back) is kind
    assert code.name in back.message


def test_a_deadline_and_a_missing_server_are_told_apart(peer: Peer) -> None:
    """No answer in time is DeadlineExceededError, nobody there UnavailableError; both name it."""
    over = threading.Event()
    peer.behavior = lambda _: (over.wait(SOON), None)[1]
    with pytest.raises(grpc.RpcError) as caught:
        peer.call(timeout=0.05)
    over.set()
    late = rpc.from_rpc_error(caught.value, "the server at X")
    assert isinstance(late, errors.DeadlineExceededError)
    assert late.message == "the server at X did not answer in time"
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        peer.call(channel)
    gone = rpc.from_rpc_error(caught.value, "the server at X")
    assert isinstance(gone, errors.UnavailableError)
    assert gone.message == "the server at X does not answer"


@pytest.mark.parametrize("size", [0, 2**20])
def test_a_server_that_is_away_for_a_moment_is_tried_again(peer: Peer, size: int) -> None:
    """Our channel repeats what was UNAVAILABLE, or ended by the server, up to four times.

    A message as large as a picture too. Break: leave out `grpc.per_rpc_retry_buffer_size`.
    """
    channel = rpc.open_channel(peer.target, SERVICE)
    codes = [*[grpc.StatusCode.UNAVAILABLE] * 3, grpc.StatusCode.CANCELLED]

    def behave(context: grpc.ServicerContext) -> None:
        if codes:
            context.abort(codes.pop(), "a moment")

    peer.behavior = behave
    assert peer.call(channel, message=bytes(size)) == b"done"
    codes = [grpc.StatusCode.RESOURCE_EXHAUSTED]
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
        peer.call(channel)
    assert not codes
    channel.close()


def test_calls_carry_token_and_request_id(peer: Peer) -> None:
    """A channel sends its token with each call, and the id of the request that is worked on."""
    peer.behavior = lambda _: None
    channel = rpc.open_channel(peer.target, SERVICE, "t0ken")
    token = rpc.request_id.set("request-7")
    try:
        peer.call(channel)
    finally:
        rpc.request_id.reset(token)
    assert peer.metadata[-1]["authorization"] == "Bearer t0ken"
    assert peer.metadata[-1]["x-request-id"] == "request-7"
    channel.close()


@pytest.mark.parametrize("request_id", ["", "请求", "a\nb", "a\0b", "\x7f"], ids=ascii)
def test_an_id_that_no_header_takes_is_left_out(request_id: str, peer: Peer) -> None:
    """A caller's request id that is no header value goes with no call, and breaks none."""
    peer.behavior = lambda _: None
    channel = rpc.open_channel(peer.target, SERVICE)
    token = rpc.request_id.set(request_id)
    try:
        assert peer.call(channel) == b"done"
    finally:
        rpc.request_id.reset(token)
    assert "x-request-id" not in peer.metadata[-1]
    assert "authorization" not in peer.metadata[-1]
    channel.close()


def test_every_service_has_its_message_limit() -> None:
    """The limits of messages are set for the services of the contract, and for no other."""
    services = {
        service.full_name
        for module in (embedding_pb2, ingest_pb2, search_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert set(rpc.MAX_MESSAGE_BYTES) == services


def test_millions_of_entries_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a field with too many entries only the first are checked; of as many as it may have, all.

    Break: `check_types` without a bound.
    """
    looked = 0
    unknown_numbers = rpc.unknown_numbers

    def count(message: Message) -> list[int]:
        nonlocal looked
        looked += 1
        return unknown_numbers(message)

    monkeypatch.setattr(rpc, "unknown_numbers", count)
    rpc.check_types(search_pb2.SearchRequest(terms=[search_pb2.Term()] * 100_000))
    assert looked == 1 + rpc.MOST_CHECKED
    looked = 0
    strange = search_pb2.SearchRequest.FromString(b"\xa0\x06\x01" * 1000)
    with pytest.raises(errors.InvalidArgumentError, match=r"has 1000 fields .*; at most 256 are"):
        rpc.check_types(strange)
    assert looked == 1
    wrong = search_pb2.Term.FromString(b"\x08\x01")  # its first field, as a number
    request = search_pb2.SearchRequest(terms=[*[search_pb2.Term(text="红")] * 15, wrong])
    with pytest.raises(errors.InvalidArgumentError, match=r"terms\[15\]\.text"):
        rpc.check_types(request)
