"""What surrounds every call of a server: credentials, bounds, ids in logs, errors to statuses."""

import hmac
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from grpc_status import rpc_status

from cra.shared import rpc, tracing
from cra.shared.errors import (
    CraError,
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from cra.shared.metrics import OTHER, CallMetrics
from cra.shared.telemetry import new_id

ARRIVES_WITHIN: Final = 10.0
"""Seconds within which the message of a call has to be here; then the call is cancelled."""

PATIENCE: Final = 1.0
"""Seconds that a message may take however many others are awaited."""

BUSY: Final = 8
"""Calls of a method at once from which on they show how fast it is; fewer are always taken."""

LEAST_PAUSE: Final = 0.5
"""Seconds until a call may come again that was one too many of its kind."""

SOON: Final = 1.0
"""Seconds within which a call that was UNAVAILABLE may be tried again by the channel itself."""

_OUR_FAULT: Final = {"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"}
"""Codes of calls that are errors in a trace: not those that tell a caller of its own mistake."""

_ENDED: Final = "the call ended before its message was here"
_MISSING: Final = "is missing"
"""What else gRPC makes of some of these calls: as if their callers had ended their side."""

_log = structlog.get_logger()


class Pace:
    """How fast calls of one method and kind are answered, and so how long another one would take.

    Args:
        longest: seconds that an answer may be expected to take when its call is taken.
        most: calls at once.
        kind: of calls, for messages.
    """

    def __init__(self, longest: float, most: int, kind: str = "") -> None:
        self._longest, self._most = longest, most
        self._kind = f" with {kind}" if kind else ""
        self._running = 0
        self._apart = 0.0
        """Mean seconds between two answers while there is much to do."""
        self._last = 0.0

    def begin(self) -> None:
        """Note a call that is taken.

        Raises:
            ResourceExhaustedError: its answer would take too long, or too many are running.
        """
        wait = (self._running + 1) * self._apart
        if self._running >= self._most:
            raise ResourceExhaustedError(
                f"too many calls{self._kind} at once; at most {self._most} are taken",
                retry_after=max(LEAST_PAUSE, wait) * random.uniform(1, 1.5),  # noqa: S311
            )
        if self._running >= BUSY and wait > self._longest:
            raise ResourceExhaustedError(
                f"an answer would take about {wait:.1f} s; at most {self._longest:g} are accepted",
                # Not all that are refused now are to come back at once.
                retry_after=wait * random.uniform(1, 1.5),  # noqa: S311 - no secret
            )
        if self._running == 0:
            self._last = time.monotonic()
        self._running += 1

    def end(self, *, worked: bool = True) -> None:
        """Note that a call has ended.

        Args:
            worked: False if it was refused: how soon that is says nothing of the others.
        """
        busy = self._running >= BUSY
        self._running -= 1
        if not worked:
            return
        now = time.monotonic()
        if busy:
            # One that took very long waited for something that hung, or the machine stood still:
            # that is no pace. At `most` already the fewest calls that may be refused are.
            most = min(SOON, self._longest / BUSY)
            self._apart += (min(now - self._last, most) - self._apart) / 50
        self._last = now


class _Arrivals:
    """Calls whose message is awaited, bounded in number and in time.

    Each holds a thread: calls that are opened and not filled must not take all of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._awaited: dict[object, tuple[float, grpc.ServicerContext]] = {}
        """The oldest first."""

    def receive(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Return the one message of a call."""
        key = object()
        with self._lock:
            self._awaited[key] = (time.monotonic(), context)
        try:
            return next(messages)
        except StopIteration:
            if not context.is_active():  # so may a call end that was cancelled
                raise DeadlineExceededError(_ENDED) from None
            raise InvalidArgumentError("request", _MISSING) from None
        except grpc.RpcError as error:
            raise DeadlineExceededError(_ENDED) from error
        finally:
            with self._lock:
                del self._awaited[key]

    def sweep(self) -> None:
        """Cancel the calls whose time is up: sooner if there are too many."""
        now = time.monotonic()
        with self._lock:
            excess = len(self._awaited) - self._most
            for number, (since, context) in enumerate(self._awaited.values()):
                if since < now - (PATIENCE if number < excess else ARRIVES_WITHIN):
                    context.cancel()


@dataclass(frozen=True)
class _Malformed:
    """What stands for a message that cannot be read."""

    problem: str


@dataclass(frozen=True)
class Unfit:
    """What stands in a stream for a message that is none of its call; the others are no worse."""

    error: InvalidArgumentError
    message: Any
    """As far as it can be read; None if not at all."""


class Boundary(grpc.ServerInterceptor):
    """Around every call: credentials, bounds on calls at once, ids in logs, errors to statuses."""

    def __init__(
        self,
        max_calls: int,
        tokens: Mapping[str, str],
        check: Callable[[str, str], object],
        longest: Mapping[str, float],
        kind: Callable[[Any], str],
        shares: Mapping[str, float],
        metrics: CallMetrics,
    ) -> None:
        self.metrics = metrics
        self._max_calls = max_calls
        # A stream stays for as long as its caller likes; they must not be all there is.
        self._max_streams = max(1, max_calls // 2)
        self._running = self._streams = 0
        self._changed = threading.Condition()
        self._tokens = tokens
        self._check = check
        self._longest, self._kind, self._shares = longest, kind, shares
        self._paces: dict[tuple[str, str], Pace] = {}
        self._handlers: dict[str, Any] = {}
        """Of the methods that there are, each made once."""
        self.arrivals = _Arrivals(max(1, max_calls // 2))
        self.refused = 0
        """Calls that were too many; about, since nothing guards it."""
        self.last_refusal = ""
        """Of the last one: its method and why."""

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call, surrounded; one that refuses it if it may not be."""
        method: str = details.method
        if not method.startswith("/cra."):
            return continuation(details)
        try:
            self._authenticate(method, authorization_of(details.invocation_metadata))
        except CraError as error:
            return self._refusal(error, method)
        if method not in self._handlers:
            handler = continuation(details)
            if handler is None:
                return None
            self._handlers[method] = self._surround(handler, method)
        return self._handlers[method]

    def _surround(self, handler: Any, method: str) -> Any:
        # gRPC awaits a single message before it calls anything of ours, for as long as that takes.
        # As a stream of one, it is awaited here.
        wrap, make = (
            (self._around_stream, grpc.stream_stream_rpc_method_handler)
            if handler.response_streaming
            else (self._around, grpc.stream_unary_rpc_method_handler)
        )
        return make(
            wrap(handler, method),
            request_deserializer=_reader(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _around(self, handler: Any, method: str) -> Any:
        name = self.metrics.name_of(method)

        def call(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with _Call(self, method, name, context) as admit:
                request = _readable(self.arrivals.receive(messages, context))
                admit(request)
                return handler.unary_unary(request, context)

        return call

    def _around_stream(self, handler: Any, method: str) -> Any:
        name = self.metrics.name_of(method)

        def call(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with _Call(self, method, name, context, stream=handler.request_streaming) as admit:
                if handler.request_streaming:
                    admit(None)
                    yield from handler.stream_stream(map(_fit, messages), context)
                else:
                    request = _readable(self.arrivals.receive(messages, context))
                    admit(request)
                    yield from handler.unary_stream(request, context)

        return call

    def _authenticate(self, method: str, authorization: str) -> None:
        token = self._tokens.get(method.split("/")[1]) or self._tokens.get(method)
        if token and not hmac.compare_digest(
            authorization.encode(errors="replace"), f"Bearer {token}".encode()
        ):
            raise UnauthenticatedError("service credentials are needed")
        self._check(method, authorization)

    def _refusal(self, error: CraError, method: str) -> Any:
        """Return a handler that answers an error, whatever the method and without reading on.

        Who may not call has no message read, which may be large or broken.
        """

        def refuse(_requests: object, context: grpc.ServicerContext) -> Iterator[Any]:
            call = _Call(self, method, self.metrics.name_of(method), context)
            call.begin()
            call.abort(error)
            yield

        return grpc.stream_stream_rpc_method_handler(refuse)

    def check_room(self) -> None:
        """Refuse a call for which there is no slot, before its message is read."""
        with self._changed:
            self._check_room()

    def admit(self, method: str, stream: bool, request: Any) -> Pace | None:
        """Take a slot; return what `release` is to be given."""
        pace = self._pace_of(method, request)
        with self._changed:
            self._check_room()
            if stream and self._streams >= self._max_streams:
                raise ResourceExhaustedError(
                    f"too many streams at once; at most {self._max_streams} are taken"
                )
            if pace is not None:
                pace.begin()
            self._running += 1
            self._streams += stream
        return pace

    def _pace_of(self, method: str, request: Any) -> Pace | None:
        if method not in self._longest:
            return None
        kind = self._kind(request)
        pace = self._paces.get((method, kind))
        if pace is None:
            most = max(1, int(self._max_calls * self._shares.get(kind, 1.0)))
            # Two that come at once make one, since `setdefault` lets nobody in between.
            pace = self._paces.setdefault((method, kind), Pace(self._longest[method], most, kind))
        return pace

    def _check_room(self) -> None:
        if self._running >= self._max_calls:
            raise ResourceExhaustedError(
                f"too many calls at once; at most {self._max_calls} are taken"
            )

    def release(self, pace: Pace | None, stream: bool, *, worked: bool) -> None:
        """Give the slot back."""
        with self._changed:
            self._running -= 1
            self._streams -= stream
            if pace is not None:
                pace.end(worked=worked)
            self._changed.notify_all()

    def wait_idle(self, seconds: float) -> None:
        """Return when no call is running, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0, seconds)


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that leaves it to `_readable` to say what is wrong."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception as error:  # of whichever implementation of protobuf
            return _Malformed(str(error))

    return read


def _readable(message: Any) -> Any:
    if isinstance(message, _Malformed):
        raise InvalidArgumentError("request", f"is no message of this call: {message.problem}")
    rpc.check_types(message)
    return message


def _fit(message: Any) -> Any:
    try:
        return _readable(message)
    except InvalidArgumentError as error:
        return Unfit(error, None if isinstance(message, _Malformed) else message)


class _Call:
    """One call, as a context: what leaves it as an exception leaves as a status.

    What it yields takes a slot for the call, once its message is here.
    """

    def __init__(
        self,
        boundary: Boundary,
        method: str,
        name: str,
        context: grpc.ServicerContext,
        stream: bool = False,
    ) -> None:
        self._boundary, self._method, self._context = boundary, method, context
        self._name = name
        self._stream = stream
        self._admitted = False
        self._pace: Pace | None = None
        self._span = tracing.Scope()

    def begin(self) -> None:
        """Bind what the log lines of the call have in common, and begin to count and trace it."""
        self._start = time.perf_counter()
        self._boundary.metrics.begin(self._name)
        # Each call has a context of its own, of gRPC, in which nothing is bound yet.
        metadata = dict(self._context.invocation_metadata())
        given = metadata.get("x-request-id")
        request_id = str(given)[:128] if given else new_id()
        rpc.request_id.set(request_id)
        if tracing.is_on():
            self._begin_span(str(metadata.get("traceparent", "")), request_id)
        rpc.caller.set(rpc.caller_of(self._context))
        structlog.contextvars.bind_contextvars(method=self._method, request_id=request_id)

    def _begin_span(self, parent: str, request_id: str) -> None:
        service, _, method = self._method.removeprefix("/").rpartition("/")
        if self._name == OTHER:
            method = OTHER
        self._span = tracing.span(
            f"{service}/{method}",
            parent,
            "SERVER",
            request_id=request_id,
            **{"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        self._span.__enter__()

    def _end(self, code: str) -> None:
        """Count the call as ended; after the last log line, which names its span."""
        seconds = time.perf_counter() - self._start
        self._boundary.metrics.end(self._name, code, seconds)
        self._span.note(**{"rpc.grpc.status": code})
        if code in _OUR_FAULT:
            self._span.fail(code)
        self._span.__exit__(None, None, None)
        # It knows of the call, whose context knows of it: in a ring, both would stay until cycles
        # are looked for, and each call would be made in memory that no other has warmed.
        rpc.caller.set(None)

    def __enter__(self) -> Callable[[Any], None]:
        self.begin()
        try:
            self._boundary.check_room()
        except CraError as error:
            self.abort(error)
        return self._admit

    def _admit(self, request: Any) -> None:
        self._pace = self._boundary.admit(self._method, self._stream, request)
        self._admitted = True

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._admitted:
            worked = not isinstance(error, ResourceExhaustedError)
            self._boundary.release(self._pace, self._stream, worked=worked)
        if isinstance(error, CraError):
            self.abort(error)
        elif error is None or isinstance(error, GeneratorExit):
            code = "OK" if error is None else "CANCELLED"  # who called reads no further
            seconds = round(time.perf_counter() - self._start, 4)
            _log.debug("call", code=code, seconds=seconds)
            self._end(code)
        elif code := self._context.code():  # type: ignore[attr-defined]
            self._end(code.name)
        else:
            # No status was set on purpose: it is a bug of ours.
            _log.exception("call failed", exc_info=error)
            self._end("INTERNAL")
            self._context.abort(grpc.StatusCode.INTERNAL, "internal error; see the service's log")

    def abort(self, error: CraError) -> None:
        """Log an error and end the call with it."""
        if isinstance(error, ResourceExhaustedError):
            self._boundary.last_refusal = f"{self._method}: {error.message[:500]}"
            self._boundary.refused += 1
        never_came = not self._admitted and (
            isinstance(error, DeadlineExceededError)
            or (isinstance(error, InvalidArgumentError) and error.problem == _MISSING)
        )
        # Of these there may be thousands a second, and each line costs.
        log = _log.debug if never_came or isinstance(error, ResourceExhaustedError) else _log.info
        code = rpc.code_of(error).name
        seconds = round(time.perf_counter() - self._start, 4)
        log("call", code=code, problem=error.message[:500], seconds=seconds)
        self._end(code)
        status: Any = rpc_status.to_status(rpc.to_status(error))
        if isinstance(error, UnavailableError) and seconds > SOON:
            # Once more would take as long again, until the caller's deadline hides the reason.
            never = ("grpc-retry-pushback-ms", "-1")
            status = status._replace(trailing_metadata=(*status.trailing_metadata, never))
        self._context.abort_with_status(status)


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the `authorization` header among a call's metadata; empty if there is none."""
    given = dict(metadata or ()).get("authorization", "")
    return given.decode(errors="replace") if isinstance(given, bytes) else given
