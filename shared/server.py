"""A gRPC server as every service runs it: health, reflection, limits, errors, draining."""

import gc
import hmac
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from cra.shared import rpc
from cra.shared.errors import (
    CraError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
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
        main(settings)
    except CraError as error:
        _log.error("cannot start", problem=error.message)
        sys.exit(CANNOT_START if isinstance(error, FailedPreconditionError) else 1)


CANNOT_START: Final = 78
"""Exit code of a service whose settings or model are at fault; EX_CONFIG of sysexits.h."""

READINESS_PERIOD: Final = 2.0
"""Seconds between two checks of readiness."""

SOON: Final = 1.0
"""Seconds within which a call that was UNAVAILABLE may be tried again by the channel itself."""

GARBAGE: Final = 20_000
"""Objects that are allocated, and not freed, before cycles are looked for."""

LAST_BYTES: Final = 0.5
"""Seconds for the answers of the last calls to leave."""

_log = structlog.get_logger()


class _Boundary(grpc.ServerInterceptor):
    """Around every call: credentials, a bound on calls at once, ids in logs, errors to statuses."""

    def __init__(
        self, max_calls: int, tokens: Mapping[str, str], check: Callable[[str, str], object]
    ) -> None:
        self._max_calls = max_calls
        self._running = 0
        self._changed = threading.Condition()
        self._tokens = tokens
        self._check = check

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        method: str = details.method
        if not method.startswith("/cra."):
            return continuation(details)
        try:
            self._authenticate(method, authorization_of(details.invocation_metadata))
        except CraError as error:
            return self._refusal(error, method)
        handler = continuation(details)
        if handler is None:
            return None
        if handler.response_streaming:
            return handler._replace(
                **{_kind(handler): self._around_stream(getattr(handler, _kind(handler)), method)}
            )
        return handler._replace(unary_unary=self._around(handler.unary_unary, method))

    def _around(self, behavior: Any, method: str) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _Call(self, method, context):
                return behavior(request, context)

        return call

    def _around_stream(self, behavior: Any, method: str) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Call(self, method, context):
                yield from behavior(request, context)

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
            call = _Call(self, method, context)
            call.begin()
            call.abort(error)
            yield

        return grpc.stream_stream_rpc_method_handler(refuse)

    def admit(self) -> None:
        """Take a slot."""
        with self._changed:
            if self._running >= self._max_calls:
                raise ResourceExhaustedError(
                    f"too many calls at once; at most {self._max_calls} are taken"
                )
            self._running += 1

    def release(self) -> None:
        """Give the slot back."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def wait_idle(self, seconds: float) -> None:
        """Return when no call is running, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0, seconds)


class _Call:
    """One call, as a context: what leaves it as an exception leaves as a status."""

    def __init__(self, boundary: _Boundary, method: str, context: grpc.ServicerContext) -> None:
        self._boundary, self._method, self._context = boundary, method, context
        self._admitted = False

    def begin(self) -> None:
        """Bind what the log lines of the call have in common."""
        self._start = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        given = dict(self._context.invocation_metadata()).get("x-request-id")
        request_id = str(given)[:128] if given else new_id()
        rpc.request_id.set(request_id)
        structlog.contextvars.bind_contextvars(method=self._method, request_id=request_id)

    def __enter__(self) -> None:
        self.begin()
        try:
            self._boundary.admit()
        except CraError as error:
            self.abort(error)
        self._admitted = True

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._admitted:
            self._boundary.release()
        seconds = round(time.perf_counter() - self._start, 4)
        if error is None or isinstance(error, GeneratorExit):
            _log.debug("call", code="OK", seconds=seconds)
        elif isinstance(error, CraError):
            self.abort(error, seconds)
        elif not self._context.code():  # type: ignore[attr-defined]
            # No status was set on purpose: it is a bug of ours.
            _log.exception("call failed", seconds=seconds, exc_info=error)
            self._context.abort(grpc.StatusCode.INTERNAL, "internal error; see the service's log")

    def abort(self, error: CraError, seconds: float = 0.0) -> None:
        """Log an error and end the call with it."""
        _log.info(
            "call", code=rpc.code_of(error).name, problem=error.message[:500], seconds=seconds
        )
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


def _complain(problem: str) -> None:
    _log.error("changed certificate files are not used; the last good ones are", problem=problem)


def _kind(handler: Any) -> str:
    return "stream_stream" if handler.request_streaming else "unary_stream"


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
    ) -> None:
        limit = rpc.MAX_MESSAGE_BYTES[service]
        threads = settings.max_calls + 8  # room for health checks and for refusing
        self._settings = settings
        self._service = service
        self._ready = ready
        self._stopping = threading.Event()
        self._boundary = _Boundary(settings.max_calls, tokens or {}, check)
        self._health = health.HealthServicer(
            experimental_non_blocking=True,
            experimental_thread_pool=futures.ThreadPoolExecutor(4, "health"),
        )
        self._set_health(serving=False)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, "call"),
            interceptors=[self._boundary],
            options=[
                ("grpc.max_send_message_length", limit),
                ("grpc.max_receive_message_length", limit),
                # Clients look up replicas again only when a connection ends.
                ("grpc.max_connection_age_ms", 45_000),
                ("grpc.max_connection_age_grace_ms", 60_000),
                # Two servers on one port would share its calls in silence.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=threads,
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
        threading.Thread(target=self._watch, name="readiness", daemon=True).start()

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
        was_ready: bool | None = None
        while not self._stopping.is_set():
            try:
                self._ready()
                problem = ""
            except CraError as error:
                problem = error.message
            except Exception as error:  # a bug in the check must show as not ready, not as silence
                _log.exception("readiness check failed")
                problem = repr(error)
            if self._stopping.is_set():
                return
            ready = not problem
            self._set_health(serving=ready)
            if ready != was_ready:
                _log.info("ready" if ready else "not ready", problem=problem or None)
            was_ready = ready
            self._stopping.wait(READINESS_PERIOD)

    def _set_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving else states.NOT_SERVING
        for name in ("", self._service):
            self._health.set(name, state)
