"""Callers that connect and say nothing, begin and do not go on, or ask and do not read."""

import contextlib
import functools
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import structlog

from cra.embedding.v1 import embedding_pb2 as pb
from cra.search.v1 import search_pb2, search_pb2_grpc
from cra.services.gateway.query import Query
from cra.services.gateway.search import RankedImage, Ranking
from cra.services.gateway.servicer import _Callers
from cra.shared import calls as calls_module
from cra.shared import errors, rpc
from cra.shared import server as server_module
from cra.shared.adapters.remote_encoder import SERVICE
from cra.shared.client import SearchClient
from cra.shared.domain import ImageRecord, ObjectRef, ScoredImage, Version
from cra.shared.ports import EncodeTiming
from cra.shared.server import Server
from tests.embedding import SOON, Service, running, wait_until
from tests.gateway import serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""An empty frame of settings, without which a server does not take a connection as made."""


def _answers(service: Service) -> None:
    assert service.encoder.embed_texts(["红"], timeout=SOON).vectors


@contextlib.contextmanager
def _sockets(service: Service, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", service.server.port), SOON)
            made.append(stack.enter_context(one))
            one.sendall(first)
        yield made


def _is_closed(one: socket.socket) -> bool:
    """Tell whether the server has ended a connection; what it says before is skipped."""
    one.setblocking(False)
    try:
        while one.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize(
    "first", [b"", PREFACE[:7], PREFACE], ids=["silent", "half a preface", "no settings"]
)
def test_connections_that_say_nothing_are_closed(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 of them hold no thread, keep nobody waiting, and are gone within their time.

    Broken on purpose: without `server_handshake_timeout_ms` they stay for two minutes.
    """
    monkeypatch.setattr(calls_module, "ARRIVES_WITHIN", 1.0)
    with running(max_calls=4) as own:
        _answers(own)
        before = threading.active_count()
        with _sockets(own, 200, first) as made:
            for _ in range(20):
                _answers(own)
            assert threading.active_count() <= before + 2
            wait_until(lambda: all(map(_is_closed, made)))
        _answers(own)


def test_a_preface_byte_by_byte_keeps_nobody_waiting(own: Service) -> None:
    """Each of 50 connections sends a byte now and then, and between two of them calls go on."""
    with _sockets(own, 50, b"") as made:
        for byte in PREFACE + SETTINGS:
            for one in made:
                with contextlib.suppress(ConnectionError):
                    one.sendall(bytes([byte]))
            _answers(own)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a connection is closed as it comes; those that are there are served.

    Broken on purpose: without `max_allowed_incoming_connections` all of them stay.
    """
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 20)
    with running() as own:
        _answers(own)
        with _sockets(own, 100, PREFACE + SETTINGS) as made:
            wait_until(lambda: sum(map(_is_closed, made)) >= 80)
            _answers(own)


@contextlib.contextmanager
def _unfilled(service: Service, count: int) -> Iterator[list[Any]]:
    """Open calls whose message never comes."""
    go = threading.Event()

    def never() -> Iterator[bytes]:
        go.wait(SOON)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{service.server.port}") as channel:
        method: Any = channel.stream_unary(f"/{SERVICE}/EmbedTexts")
        try:
            yield [method.future(never()) for _ in range(count)]
        finally:
            go.set()


def test_calls_without_a_message_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads keep others waiting for moments only.

    Broken on purpose: with `unary_unary` handlers, where gRPC awaits the message, every thread is
    held for as long as the connection lasts, and the call here fails at its deadline.
    """
    with running(max_calls=8) as own, _unfilled(own, 60) as calls:
        began = time.monotonic()
        _answers(own)
        assert time.monotonic() - began < SOON / 2
        monkeypatch.setattr(calls_module, "ARRIVES_WITHIN", 0.5)
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call.result(SOON)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        _answers(own)


def test_calls_that_end_before_their_message_fill_no_log(own: Service) -> None:
    """They are counted, and no line is written of each above debug.

    Break: `abort` logs them as info.
    """
    with structlog.testing.capture_logs() as log, _unfilled(own, 5) as calls:
        wait_until(lambda: len(own.server._boundary.arrivals._awaited) == 5)
        for call in calls:
            call.cancel()
        # gRPC tells of some as if their callers had ended their side without a message.
        ends = ("before its message", "request: is missing")
        wait_until(
            lambda: sum(any(end in one.get("problem", "") for end in ends) for one in log) == 5
        )
    assert {one["log_level"] for one in log if "problem" in one} == {"debug"}


def test_a_call_without_any_message_is_refused(own: Service) -> None:
    """A caller that ends its side at once is told what is missing."""
    method: Any = own.channel.stream_unary(f"/{SERVICE}/EmbedTexts")
    with pytest.raises(grpc.RpcError) as caught:
        method(iter(()), timeout=SOON)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request: is missing" in (caught.value.details() or "")


HITS = 200


class Generous:
    """Answers each query with many hits, and counts."""

    def __init__(self) -> None:
        self.answered = itertools.count()
        record = ImageRecord(
            ObjectRef("images", "k" * 1000), Version("e", 1), "", {"note": "x" * 1000}, 1, 1, 0.0
        )
        hits = [RankedImage(n + 1, ScoredImage(record, 0.5), "") for n in range(HITS)]
        self._ranking = Ranking(hits, "", "release", "tower", False, EncodeTiming(), 0.0)

    def search(self, query: Query) -> Ranking:
        """See `SearchEngine`."""
        next(self.answered)
        return self._ranking


@pytest.fixture
def gateway() -> Iterator[tuple[Generous, Server]]:
    """An engine, and a gateway in front of it."""
    engine = Generous()
    with serving(engine, max_calls=8, drain_seconds=1) as server:
        yield engine, server


def test_a_stream_that_nobody_reads_is_not_worked_for(gateway: tuple[Generous, Server]) -> None:
    """Of 2,000 queries whose answers stay unread only a few are answered; others are served.

    When the caller goes, its threads end. Broken on purpose: with the slot given back when an
    answer is ready, and not when it has left, all 2,000 answers are made and kept.
    """
    engine, server = gateway
    # So that not all the answers fit into what the connection buffers.
    options = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
    before = threading.active_count()
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel,
        SearchClient(f"127.0.0.1:{server.port}") as client,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        request = search_pb2.SearchStreamRequest(request=search_pb2.SearchRequest(text="红"))
        stream = stub.SearchStream(itertools.repeat(request, 2000))
        seen = -1

        def at_rest() -> bool:
            nonlocal seen
            before, seen = seen, int(repr(engine.answered)[6:-1])
            return before == seen > 0

        _wait_long(at_rest)
        assert seen < 200
        assert len(client.search("红").hits) == HITS
        stream.cancel()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name == "stream-reader"])
    assert threading.active_count() <= before + 24


def _wait_long(at_rest: Any) -> None:
    pause, end = threading.Event(), time.monotonic() + SOON
    while not at_rest():
        assert time.monotonic() < end
        pause.wait(0.5)


def test_streams_never_take_every_slot(gateway: tuple[Generous, Server]) -> None:
    """Half of the calls at once may be streams; one more is refused, and a single call served."""
    _, server = gateway
    go = threading.Event()

    def never() -> Iterator[search_pb2.SearchStreamRequest]:
        go.wait(SOON)
        yield from ()

    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        SearchClient(f"127.0.0.1:{server.port}") as client,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        streams = [stub.SearchStream(never()) for _ in range(4)]
        wait_until(lambda: server._boundary._streams == 4)
        with pytest.raises(errors.ResourceExhaustedError, match="too many streams"):
            list(client.stream([]))
        assert client.search("红").hits
        go.set()
        for stream in streams:
            assert list(stream) == []


def test_a_quiet_stream_is_not_ended_by_its_own_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client asks now and then whether the server is there, which the server does not resent.

    Broken on purpose: with gRPC's default, pings more often than in five minutes, the stream ends
    with `too_many_pings`.
    """
    monkeypatch.setattr(rpc, "KEEPALIVE", 0.2)
    go = threading.Event()

    def late() -> Iterator[search_pb2.SearchStreamRequest]:
        yield search_pb2.SearchStreamRequest(request=search_pb2.SearchRequest(text="红"))
        assert not go.wait(2.5), "nobody sets it: this is the silence"
        yield search_pb2.SearchStreamRequest(request=search_pb2.SearchRequest(text="绿"))

    # As our own channel, in a hurry: gRPC asks twice without being told anything, then rarely.
    options = [("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0)]
    with (
        serving(Generous()) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel,
    ):
        assert len(list(search_pb2_grpc.SearchServiceStub(channel).SearchStream(late()))) == 2


def test_a_stream_outlasts_its_connections_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection takes no new calls after a while, and ends with those that it has, not before.

    Broken on purpose: with a `grpc.max_connection_age_grace_ms` of 100 the stream is cut.
    """
    monkeypatch.setattr(server_module, "CONNECTION_LASTS", 0.3)
    queries: queue.SimpleQueue[search_pb2.SearchStreamRequest] = queue.SimpleQueue()
    query = search_pb2.SearchStreamRequest(request=search_pb2.SearchRequest(text="红"))
    ended = threading.Semaphore(0)

    def note(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.IDLE:
            ended.release()

    with (
        serving(Generous()) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        stream = stub.SearchStream(iter(queries.get, None))
        queries.put(query)
        assert next(stream).response.hits
        channel.subscribe(note)
        assert ended.acquire(timeout=SOON)
        for _ in range(3):  # others, each as old by now as this one was
            assert stub.Search(query.request, timeout=SOON).hits
            assert ended.acquire(timeout=SOON)
        queries.put(query)
        assert next(stream).response.hits
        stream.cancel()


class _Context:
    """What gRPC keeps of a call."""

    def __init__(self) -> None:
        self.at_end: list[Callable[[], None]] = []

    def add_callback(self, function: Callable[[], None]) -> bool:
        """See `grpc.RpcContext`."""
        self.at_end.append(function)
        return True

    def time_remaining(self) -> None:
        """See `grpc.RpcContext`."""

    def is_active(self) -> bool:
        """See `grpc.RpcContext`."""
        return True


def test_queries_leave_nothing_in_their_stream() -> None:
    """What is to be done when a stream ends is kept for queries under way, and done for those.

    Broken on purpose: with `context.add_callback` as each query's `at_end` a thousand stay.
    """
    context = _Context()
    called: list[int] = []
    callers = _Callers(context)  # type: ignore[arg-type]
    for number in range(1000):
        with callers.of_one() as caller:
            assert caller.at_end(functools.partial(called.append, number))
    assert (len(context.at_end), callers._at_end) == (1, {})
    with callers.of_one() as caller:
        assert caller.at_end(lambda: called.append(-1))
        context.at_end[0]()
        assert called == [-1]
        assert not caller.at_end(lambda: called.append(-2))


def test_what_is_no_message_is_an_invalid_argument(own: Service) -> None:
    """Bytes that are no protobuf, or a text that is no UTF-8, are the caller's fault and told so.

    Broken on purpose: without `_reader`, gRPC answers INTERNAL and says nothing of the request.
    """
    method: Any = own.channel.unary_unary(f"/{SERVICE}/EmbedTexts")
    for bad in (b"\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"):
        with pytest.raises(grpc.RpcError) as caught:
            method(bad, timeout=SOON)
        error = rpc.from_rpc_error(caught.value, "the server")
        assert isinstance(error, errors.InvalidArgumentError)
        assert (error.field, "no message of this call" in error.problem) == ("request", True)
    assert method(pb.EmbedTextsRequest(texts=["红"]).SerializeToString(), timeout=SOON)
