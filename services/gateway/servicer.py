"""The gateway's calls: messages to queries, rankings to messages."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace
from typing import Final

import grpc
import structlog

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.keys import KeyRing
from cra.services.gateway.metrics import SEARCHES, note_search
from cra.services.gateway.pictures import Pictures
from cra.services.gateway.query import MAX_TERMS, parse
from cra.services.gateway.search import RankedImage, Ranking, SearchEngine
from cra.shared import rpc, tracing
from cra.shared.api_keys import ApiKey
from cra.shared.calls import Unfit, authorization_of
from cra.shared.errors import (
    CraError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from cra.shared.telemetry import new_id

STREAM_PARALLEL: Final = 8
"""Queries of one stream that are worked on at once; the next is read when one is done."""

_STREAM: Final = "/cra.search.v1.SearchService/SearchStream"

PARTS_TAKE: Final = 0.9
"""Share of a caller's time that parts may take; in the rest the caller is told which one did."""

_log = structlog.get_logger()


class _Callers:
    """Whoever waits for the answers of a stream, each for as long as its query is worked on.

    What gRPC is to call at the end of a stream it keeps until then, and a stream may last for days.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._at_end: dict[object, list[Callable[[], None]]] = {}
        """By query."""
        self._ended = not context.add_callback(self._end)

    @contextmanager
    def of_one(self) -> Iterator[rpc.Caller]:
        """Give whoever waits for the answer to one query."""
        query = object()

        def at_end(function: Callable[[], None]) -> bool:
            with self._lock:
                if not self._ended:
                    self._at_end.setdefault(query, []).append(function)
                return not self._ended

        try:
            yield replace(rpc.caller_of(self._context), at_end=at_end)
        finally:
            with self._lock:
                self._at_end.pop(query, None)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            functions = [one for of_query in self._at_end.values() for one in of_query]
        for function in functions:
            function()


class SearchServicer(pb_grpc.SearchServiceServicer):
    """See proto/cra/search/v1."""

    def __init__(
        self,
        engine: SearchEngine,
        max_calls: int,
        keys: KeyRing | None = None,
        *,
        expand: bool = False,
    ) -> None:
        self._engine = engine
        self._expand = expand
        self._keys = keys
        self._pictures = Pictures()
        self._workers = ThreadPoolExecutor(max_calls, "stream")

    def check(self, method: str, authorization: str) -> None:
        """Refuse who may not call, and a search that is over its key's rate; see `Server`."""
        if self._keys is None:
            return
        if method == _STREAM:  # each of its requests counts, when it comes
            self._keys.authenticate(authorization)
        else:
            self._keys.admit(authorization)

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchResponse:
        key = None
        if self._keys:
            key = self._keys.authenticate(authorization_of(context.invocation_metadata()))
        return self._answer(request, key)

    def SearchStream(
        self, request_iterator: Iterator[pb.SearchStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SearchStreamResponse]:
        answers: queue.SimpleQueue[pb.SearchStreamResponse | Exception | None] = queue.SimpleQueue()
        # Given back when an answer has left, so that who asks and does not read is not worked for.
        slots = threading.Semaphore(STREAM_PARALLEL)

        def end() -> None:
            # Somebody who stops reading must hold neither this thread nor the reader for ever.
            answers.put(None)
            slots.release(2 * STREAM_PARALLEL)

        context.add_callback(end)
        callers = _Callers(context)
        authorization = authorization_of(context.invocation_metadata())
        stream = tracing.current()

        def answer(message: pb.SearchStreamRequest | Unfit) -> None:
            try:
                with tracing.span("search", stream) as span, callers.of_one() as caller:
                    rpc.caller.set(caller)
                    answered = self._stream_answer(message, authorization)
                    if answered.HasField("error"):
                        span.fail(answered.error.code)
                answers.put(answered)
            except Exception as error:  # a bug, or a revoked key: it ends the stream, is logged
                answers.put(error)

        def read() -> None:
            try:
                for message in request_iterator:
                    slots.acquire()
                    # In a context of its own: its thread has worked for other queries.
                    self._workers.submit(Context().run, answer, message)
                for _ in range(STREAM_PARALLEL):
                    slots.acquire()
            except grpc.RpcError:
                _log.info("stream ended by the caller")
            except Exception as error:  # ends the stream, instead of leaving it open for ever
                answers.put(error)
            answers.put(None)

        threading.Thread(target=read, name="stream-reader", daemon=True).start()
        while (item := answers.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            slots.release()

    def _stream_answer(
        self, message: pb.SearchStreamRequest | Unfit, authorization: str
    ) -> pb.SearchStreamResponse:
        read = message.message if isinstance(message, Unfit) else message
        request = read.request if read is not None else pb.SearchRequest()
        try:
            key = self._keys.admit(authorization) if self._keys else None
            if isinstance(message, Unfit):
                # Named as in every other answer: from the query on.
                field = message.error.field.removeprefix("request.")
                raise InvalidArgumentError(field, message.error.problem)
            response = self._answer(request, key)
        except UnauthenticatedError:
            raise
        except CraError as error:
            problem = pb.SearchError(code=rpc.code_of(error).name, message=error.message)
            if isinstance(error, InvalidArgumentError):
                problem.field = error.field
            if isinstance(error, ResourceExhaustedError | UnavailableError):
                problem.retry_after.CopyFrom(rpc.duration(error.retry_after))
            return pb.SearchStreamResponse(request_id=request.request_id, error=problem)
        return pb.SearchStreamResponse(request_id=response.request_id, response=response)

    def _answer(self, request: pb.SearchRequest, key: ApiKey | None) -> pb.SearchResponse:
        try:
            return self._search(request, key)
        except CraError as error:
            SEARCHES.labels(rpc.code_of(error).name).inc()
            raise
        except Exception:
            SEARCHES.labels("INTERNAL").inc()
            raise

    def _search(self, request: pb.SearchRequest, key: ApiKey | None) -> pb.SearchResponse:
        start = time.perf_counter()
        asked_by = rpc.caller.get()
        if asked_by is not None:
            now = time.monotonic()
            deadline = now + PARTS_TAKE * (asked_by.deadline - now)
            rpc.caller.set(rpc.Caller(deadline, asked_by.waits, asked_by.at_end))
        # Of more terms there may be millions, which are refused unread.
        terms = request.terms[:MAX_TERMS]
        size = len(request.image) + sum(len(term.image) for term in terms)
        if not size:
            return self._find(request, key, start)
        with self._pictures.hold(size):
            return self._find(request, key, start)

    def _find(
        self, request: pb.SearchRequest, key: ApiKey | None, start: float
    ) -> pb.SearchResponse:
        query = parse(request, key.buckets if key else (), expand=self._expand)
        bound = rpc.request_id.get()
        request_id = request.request_id or bound or new_id()
        if request_id != bound:
            rpc.request_id.set(request_id)
            # For the lines of this query, which has a context of its own: it need not be undone.
            structlog.contextvars.bind_contextvars(request_id=request_id)
        if key:
            structlog.contextvars.bind_contextvars(api_key=key.name)
        ranking = self._engine.search(query)
        total = time.perf_counter() - start
        encode = ranking.encode
        tracing.note(request_id=request_id, release=ranking.text_release, hits=len(ranking.hits))
        note_search(encode.queue, encode.encode, ranking.search_seconds, total)
        _log.debug("search", hits=len(ranking.hits), release=ranking.text_release)
        return _response(request_id, ranking, total)


def _response(request_id: str, ranking: Ranking, total: float) -> pb.SearchResponse:
    response = pb.SearchResponse(
        request_id=request_id,
        next_page_token=ranking.next_page_token,
        text_release=ranking.text_release,
        image_tower=ranking.image_tower,
        truncated=ranking.truncated,
        timing=pb.Timing(
            queue=rpc.duration(ranking.encode.queue),
            encode=rpc.duration(ranking.encode.encode),
            search=rpc.duration(ranking.search_seconds),
            total=rpc.duration(total),
        ),
        expanded_texts=ranking.expanded_texts,
    )
    for hit in ranking.hits:
        _add_hit(response, hit)
    return response


def _add_hit(response: pb.SearchResponse, hit: RankedImage) -> None:
    record = hit.image.record
    ref = record.ref
    # Field by field and in its place: what is made elsewhere is copied, and arguments by name and
    # `update` are more Python, which is cold when a query comes to it.
    added = response.hits.add()
    added.rank = hit.rank
    added.image_id = ref.image_id
    added.score = max(-1.0, min(1.0, hit.image.score))
    added.bucket = ref.bucket
    added.key = ref.key
    added.etag = record.version.etag
    added.width = record.width
    added.height = record.height
    added.url = hit.url
    if hit.relevance is not None:
        added.relevance = hit.relevance
    milliseconds = round(record.ingested_at * 1000)
    ingested_at = added.ingested_at
    ingested_at.seconds = milliseconds // 1000
    ingested_at.nanos = milliseconds % 1000 * 1_000_000
    metadata = added.metadata
    for name, value in record.metadata.items():
        metadata[name] = value
    if hit.duplicates:
        added.duplicates.extend(hit.duplicates)
