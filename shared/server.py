"""A gRPC server as every service runs it: health, reflection, limits, errors, draining."""

import contextlib
import ctypes
import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from types import MappingProxyType
from typing import Any, Final

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cra.shared import calls, rpc, tracing
from cra.shared.errors import (
    CraError,
    FailedPreconditionError,
)
from cra.shared.metrics import READY, CallMetrics
from cra.shared.settings import Settings
from cra.shared.telemetry import configure_logging


def run_service(name: str, main: Callable[[Settings], None]) -> None:
    """Read settings, set up logs and run a service; what keeps it from starting is one line.

    It then exits with CANNOT_START if starting it again would end the same way, else with 1.

    Args:
        name: of the service, in its log lines.
        main: serves until SIGTERM.
    """
    configure_logging(name)
    _give_back_large_blocks()
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

QUIET: Final = 30.0
"""Seconds of silence after which a server asks whether a caller who awaits an answer is there."""

SWEPT_EVERY: Final = 0.5
"""Seconds between two looks at the calls whose message is awaited."""

TOLD_EVERY: Final = 10.0
"""Seconds between two log lines of how many calls were refused."""

REFUSING: Final = 1024
"""Calls beyond `max_calls` that may wait to be refused in words; more are, without any."""

MAX_CONNECTIONS: Final = 1000
"""Connections at once; more are closed as they come."""

CONNECTION_LASTS: Final = 45.0
"""Seconds for which a connection takes calls."""

GARBAGE: Final = 20_000
"""Objects that are allocated, and not freed, before cycles are looked for."""

M_MMAP_THRESHOLD: Final = -3
"""Of malloc.h."""

LARGE_BLOCK: Final = 2**20
"""Bytes of memory from which on it is mapped by itself."""

LAST_BYTES: Final = 0.5
"""Seconds for the answers of the last calls to leave."""

_log = structlog.get_logger()


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


def _give_back_large_blocks() -> None:
    """Have what is large go back to the system when it is freed, where malloc is glibc's.

    By itself it keeps ever larger blocks, in each thread's own heap: a gateway that eight
    callers had asked with pictures of 5.5 MiB kept 300 MiB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


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
        kind: name of what the message of a call of such a method has. How long an answer takes is
            learnt of each kind by itself, so that slow calls of one have none of another refused.
        shares: by kind, the share of `max_calls` that its calls may take; all, unless given.

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
        kind: Callable[[Any], str] = lambda _request: "",
        shares: Mapping[str, float] = MappingProxyType({}),
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
        self._boundary = calls.Boundary(
            max_calls, tokens or {}, check, longest or {}, kind, shares, metrics
        )
        self._health = _Health(futures.ThreadPoolExecutor(4, "health"), self._what_is_stuck)
        self._set_health(serving=False)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, "call"),
            interceptors=[self._boundary],
            options=[
                ("grpc.max_send_message_length", limit),
                ("grpc.max_receive_message_length", limit),
                # A connection that says nothing, at its start or later, is no connection.
                ("grpc.server_handshake_timeout_ms", round(calls.ARRIVES_WITHIN * 1000)),
                ("grpc.keepalive_time_ms", round(QUIET * 1000)),
                ("grpc.keepalive_timeout_ms", round(calls.ARRIVES_WITHIN * 1000)),
                ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
                # Our own channels ask so often; a server ends the connection of one that asks more.
                ("grpc.http2.min_ping_interval_without_data_ms", round(rpc.KEEPALIVE * 500)),
                # Clients look up replicas again only when a connection ends. It takes no new calls
                # then, and is there for as long as those that it has: a stream may last for days.
                ("grpc.max_connection_age_ms", round(CONNECTION_LASTS * 1000)),
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
        told, tell = 0, -math.inf
        while not self._stopping.wait(SWEPT_EVERY):
            self._boundary.arrivals.sweep()
            refused, now = self._boundary.refused, time.monotonic()
            if refused != told and now > tell:
                _log.warning("refused", calls=refused - told, last=self._boundary.last_refusal)
                told, tell = refused, now + TOLD_EVERY

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
