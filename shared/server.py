"""A gRPC server as every service runs it: health, reflection, limits, errors, draining."""

import gc
import hmac
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from cra.shared import rpc, tracing
from cra.shared.errors import (
    CraError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from cra.shared.metrics import OTHER, READY, CallMetrics
from cra.shared.settings import Settings
from cra.shared.telemetry import configure_logging, new_id


def run_service(name: str, main: Callable[[Settings], None]) -> None:
    """Read settings, set up logs and run a service; what keeps it from starting is one line.

    It then exits with CANNOT_START if starting it again would end the same way, else with 1.

    Args:
        name: of the service, in its log lines.
        main: serves until SIGTERM.
    """
    configure_logging(name)
    try:
        settings = Settings.load()
        configure_logging(name, settings.log_format, settings.log_level)
        tracing.configure(name, settings)
        main(settings)
    except CraError as error:
        _log.error("cannot start", problem=error.message)
        sys.exit(CANNOT_START if isinstance(error, FailedPreconditionError) else 1)
    finally:
        tracing.close()


CANNOT_START: Final = 78
"""Exit code of a service whose settings or model are at fault; EX_CONFIG of sysexits.h."""

READINESS_PERIOD: Final = 2.0
"""Seconds between two checks of readiness."""

READY_WITHIN: Final = 20.0
"""Seconds that one check of readiness may take; what it asks is told so."""

STUCK: Final = 90.0
"""Seconds after which a check of readiness that has not ended shows that this process is stuck."""

ARRIVES_WITHIN: Final = 10.0
"""Seconds within which the message of a call has to be here; then the call is cancelled."""

PATIENCE: Final = 1.0
"""Seconds that a message may take however many others are awaited."""

QUIET: Final = 30.0
"""Seconds of silence after which a server asks whether a caller who awaits an answer is there."""

SWEPT_EVERY: Final = 0.5
"""Seconds between two looks at the calls whose message is awaited."""

REFUSING: Final = 256
"""Calls beyond `max_calls` that may wait to be refused in words; more are, without any."""

BUSY: Final = 8
"""Calls of a method at once from which on they show how fast it is; fewer are always taken."""

MAX_CONNECTIONS: Final = 1000
"""Connections at once; more are closed as they come."""

SOON: Final = 1.0
"""Seconds within which a call that was UNAVAILABLE may be tried again by the channel itself."""

GARBAGE: Final = 20_000
"""Objects that are allocated, and not freed, before cycles are looked for."""

LAST_BYTES: Final = 0.5
"""Seconds for the answers of the last calls to leave."""

_OUR_FAULT: Final = {"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"}
"""Codes of calls that are errors in a trace: not those that tell a caller of its own mistake."""

_log = structlog.get_logger()


class _Pace:
    """How fast calls of one method are answered, and so how long another one would take.

    Args:
        longest: seconds that an answer may be expected to take when its call is taken.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._running = 0
        self._apart = 0.0
        """Mean seconds between two answers while there is much to do."""
        self._last = 0.0

    def begin(self) -> None:
        """Note a call that is taken.

        Raises:
            ResourceExhaustedError: its answer would take too long.
        """
        wait = (self._running + 1) * self._apart
        if self._running >= BUSY and wait > self._longest:
            raise ResourceExhaustedError(
                f"an answer would take about {wait:.1f} s; at most {self._longest:g} are accepted",
                # Not all that are refused now are to come back at once.
                retry_after=wait * random.uniform(1, 1.5),  # noqa: S311 - no secret
            )
        if self._running == 0:
            self._last = time.monotonic()
        self._running += 1

    def end(self) -> None:
        """Note that a call has ended."""
        self._running -= 1
        now = time.monotonic()
        if self._running >= BUSY:
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
            raise InvalidArgumentError("request", "is missing") from None
        except grpc.RpcError as error:
            raise DeadlineExceededError("the call ended before its message was here") from error
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


class _Boundary(grpc.ServerInterceptor):
    """Around every call: credentials, bounds on calls at once, ids in logs, errors to statuses."""

    def __init__(
        self,
        max_calls: int,
        tokens: Mapping[str, str],
        check: Callable[[str, str], object],
        longest: Mapping[str, float],
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
        self._paces = {method: _Pace(seconds) for method, seconds in longest.items()}
        self._handlers: dict[str, Any] = {}
        """Of the methods that there are, each made once."""
        self.arrivals = _Arrivals(max(1, max_calls // 2))
        self.refused = 0
        """Calls that were too many; about, since nothing guards it."""

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
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
                admit()
                return handler.unary_unary(request, context)

        return call

    def _around_stream(self, handler: Any, method: str) -> Any:
        name = self.metrics.name_of(method)

        def call(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with _Call(self, method, name, context, stream=handler.request_streaming) as admit:
                if handler.request_streaming:
                    admit()
                    yield from handler.stream_stream(map(_readable, messages), context)
                else:
                    request = _readable(self.arrivals.receive(messages, context))
                    admit()
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

    def admit(self, method: str, stream: bool) -> None:
        """Take a slot."""
        with self._changed:
            self._check_room()
            if stream and self._streams >= self._max_streams:
                raise ResourceExhaustedError(
                    f"too many streams at once; at most {self._max_streams} are taken"
                )
            if method in self._paces:
                self._paces[method].begin()
            self._running += 1
            self._streams += stream

    def _check_room(self) -> None:
        if self._running >= self._max_calls:
            raise ResourceExhaustedError(
                f"too many calls at once; at most {self._max_calls} are taken"
            )

    def release(self, method: str, stream: bool) -> None:
        """Give the slot back."""
        with self._changed:
            self._running -= 1
            self._streams -= stream
            if method in self._paces:
                self._paces[method].end()
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


class _Call:
    """One call, as a context: what leaves it as an exception leaves as a status.

    What it yields takes a slot for the call, once its message is here.
    """

    def __init__(
        self,
        boundary: _Boundary,
        method: str,
        name: str,
        context: grpc.ServicerContext,
        stream: bool = False,
    ) -> None:
        self._boundary, self._method, self._context = boundary, method, context
        self._name = name
        self._stream = stream
        self._admitted = False
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

    def __enter__(self) -> Callable[[], None]:
        self.begin()
        try:
            self._boundary.check_room()
        except CraError as error:
            self.abort(error)
        return self._admit

    def _admit(self) -> None:
        self._boundary.admit(self._method, self._stream)
        self._admitted = True

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._admitted:
            self._boundary.release(self._method, self._stream)
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
            self._boundary.refused += 1
            log = _log.debug  # there may be thousands a second, and each line costs
        else:
            log = _log.info
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


class _Health(health.HealthServicer):
    """Standard health, which under the name of liveness is worked out when it is asked for.

    Args:
        pool: threads that nothing else takes.
        problem: tells what is wrong with this process; empty if it works.
    """

    def __init__(self, pool: futures.ThreadPoolExecutor, problem: Callable[[], str]) -> None:
        super().__init__(experimental_non_blocking=True, experimental_thread_pool=pool)
        self._problem = problem
        self._told = ""

        def check(request: Any, context: grpc.ServicerContext) -> Any:
            if request.service == rpc.LIVENESS:
                return self._liveness()
            return health.HealthServicer.Check(self, request, context)

        # Of this object, not of the class: each server asks its own threads.
        check.experimental_thread_pool = pool  # type: ignore[attr-defined]
        self.Check = check  # type: ignore[method-assign]

    def _liveness(self) -> Any:
        problem = self._problem()
        if problem != self._told:
            _log.error("wedged" if problem else "works again", problem=problem or None)
            self._told = problem
        states = health_pb2.HealthCheckResponse
        return states(status=states.NOT_SERVING if problem else states.SERVING)


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the `authorization` header among a call's metadata; empty if there is none."""
    given = dict(metadata or ()).get("authorization", "")
    return given.decode(errors="replace") if isinstance(given, bytes) else given


def _complain(problem: str) -> None:
    _log.error("changed certificate files are not used; the last good ones are", problem=problem)


class Server:
    """A gRPC server of one service beside standard health and reflection.

    Args:
        settings: host, limits and drain time.
        service: full name of the service, such as `cra.search.v1.SearchService`.
        port: port to listen on; 0 takes a free one, see `port`.
        add: registers the servicer, such as `add_SearchServiceServicer_to_server` bound to it.
        ready: does the service's own job once and raises if it cannot.
        tokens: bearer token by full service name or method (`/pkg.Service/Method`).
        check: raises a domain error for a method and an `authorization` header if the call may
            not be; asked before the request is read, it must not take long.
        works: tells what is wrong with this process itself, whatever it depends on, so that it has
            to be started again; empty if nothing is. What every server has is checked beside it.
        max_calls: at once; those of the settings unless given.
        longest: by method (`/pkg.Service/Method`), seconds that the answer may be expected to take
            when a call is taken; a call whose answer would take longer is refused at once.

    Raises:
        FailedPreconditionError: the port is taken, or a file of TLS does not hold what it should.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        port: int,
        add: Callable[[grpc.Server], None],
        ready: Callable[[], None],
        tokens: Mapping[str, str] | None = None,
        check: Callable[[str, str], object] = lambda _method, _authorization: None,
        works: Callable[[], str] = str,
        longest: Mapping[str, float] | None = None,
        max_calls: int | None = None,
    ) -> None:
        limit = rpc.MAX_MESSAGE_BYTES[service]
        max_calls = max_calls or settings.max_calls
        threads = max_calls + 8  # room for health checks and for refusing
        self._settings = settings
        self._service = service
        self._ready = ready
        self._stopping = threading.Event()
        self._works = works
        self._checking_since: float | None = None
        self._watcher = threading.Thread(target=self._watch, name="readiness", daemon=True)
        methods = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        metrics = CallMetrics(service, methods)
        self._boundary = _Boundary(max_calls, tokens or {}, check, longest or {}, metrics)
        self._health = _Health(futures.ThreadPoolExecutor(4, "health"), self._what_is_stuck)
        self._set_health(serving=False)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, "call"),
            interceptors=[self._boundary],
            options=[
                ("grpc.max_send_message_length", limit),
                ("grpc.max_receive_message_length", limit),
                # A connection that says nothing, at its start or later, is no connection.
                ("grpc.server_handshake_timeout_ms", round(ARRIVES_WITHIN * 1000)),
                ("grpc.keepalive_time_ms", round(QUIET * 1000)),
                ("grpc.keepalive_timeout_ms", round(ARRIVES_WITHIN * 1000)),
                ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
                # Our own channels ask so often; a server ends the connection of one that asks more.
                ("grpc.http2.min_ping_interval_without_data_ms", round(rpc.KEEPALIVE * 500)),
                # Clients look up replicas again only when a connection ends.
                ("grpc.max_connection_age_ms", 45_000),
                ("grpc.max_connection_age_grace_ms", 60_000),
                # Two servers on one port would share its calls in silence.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=threads + REFUSING,
        )
        add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"{settings.host}:{port}"
        tls = settings.server_tls
        try:
            self.port: int = (
                self._server.add_secure_port(address, tls.credentials(_complain))
                if tls
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise FailedPreconditionError(
                f"cannot listen on {settings.host}:{port}; is it taken?"
            ) from error

    def start(self) -> None:
        """Serve, not ready until the first check of readiness has passed."""
        self._server.start()
        _log.info("listening", host=self._settings.host, port=self.port)
        self._watcher.start()
        threading.Thread(target=self._sweep, name="arrivals", daemon=True).start()

    def stop(self) -> None:
        """Stop taking calls, let running ones end, then return."""
        if not self._stopping.is_set():
            self._stopping.set()
            # For good, whatever the watcher still says; and nobody's Watch holds up the end.
            self._health.enter_graceful_shutdown()
            _log.info("draining", seconds=self._settings.drain_seconds)
        self._server.stop(self._settings.drain_seconds)
        self._boundary.wait_idle(self._settings.drain_seconds)
        # What is left are watchers of the health, who would stay as long as they may.
        self._server.stop(LAST_BYTES).wait()

    def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain."""
        asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.set())
        # Calls leave hardly any cycles behind, and looking for them in all that was imported took a
        # twentieth of the gateway's time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        self.start()
        asked.wait()
        self.stop()
        _log.info("stopped")

    def _watch(self) -> None:
        tracing.mute()
        was_ready: bool | None = None
        while not self._stopping.is_set():
            self._checking_since = time.monotonic()
            rpc.caller.set(
                rpc.Caller(self._checking_since + READY_WITHIN, lambda: True, lambda _: True)
            )
            try:
                self._ready()
                problem = ""
            except CraError as error:
                problem = error.message
            except Exception as error:  # a bug in the check must show as not ready, not as silence
                _log.exception("readiness check failed")
                problem = repr(error)
            self._checking_since = None
            if self._stopping.is_set():
                return
            ready = not problem
            self._set_health(serving=ready)
            if ready != was_ready:
                _log.info("ready" if ready else "not ready", problem=problem or None)
            was_ready = ready
            self._stopping.wait(READINESS_PERIOD)

    def _sweep(self) -> None:
        told = 0
        while not self._stopping.wait(SWEPT_EVERY):
            self._boundary.arrivals.sweep()
            if (refused := self._boundary.refused) != told:
                _log.warning("refused", calls=refused - told)
                told = refused

    def _what_is_stuck(self) -> str:
        if self._stopping.is_set():
            return ""
        if self._watcher.ident is not None and not self._watcher.is_alive():
            return "the thread that checks readiness has died"
        since = self._checking_since
        if since is not None and since < time.monotonic() - STUCK:
            return f"a check of readiness has not ended for {time.monotonic() - since:.0f} s"
        return self._works()

    def _set_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving else states.NOT_SERVING
        READY.labels(self._service).set(serving)
        for name in ("", self._service):
            self._health.set(name, state)
