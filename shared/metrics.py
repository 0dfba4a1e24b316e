"""What more than one service counts: its gRPC calls, errors of what it stands on, the release."""

import threading
from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds."""

OTHER: Final = "other"
"""Stands for methods that there are not: callers must not decide how many labels there are."""

READY: Final = Gauge("cra_ready", "Whether the service has just done its job: 1 or 0", ["service"])
DEPENDENCY_ERRORS: Final = Counter(
    "cra_dependency_errors",
    "Calls to a part that failed because it did not answer, or not as it should",
    ["dependency"],
)
# Not an Info, which shows a sample without labels as long as there is nothing to say.
_ACTIVE_RELEASE: Final = Gauge(
    "cra_active_release_info",
    "The text release that queries are encoded with, and its image tower: 1",
    ["release", "image_tower"],
)
_CALLS: Final = Counter(
    "cra_grpc_server_calls", "Calls that have ended, by status code", ["service", "method", "code"]
)
_SECONDS: Final = Histogram(
    "cra_grpc_server_call_seconds",
    "Time of a call from its start to its end",
    ["service", "method"],
    buckets=BUCKETS,
)
_RUNNING: Final = Gauge(
    "cra_grpc_server_calls_in_flight", "Calls that have begun and not ended", ["service", "method"]
)

_showing = threading.Lock()
_shown: tuple[str, str] | None = None


def show_release(release: str, image_tower: str) -> None:
    """Have this process say which text release is active, and no other."""
    global _shown
    with _showing:
        before, _shown = _shown, (release, image_tower)
        _ACTIVE_RELEASE.labels(release, image_tower).set(1)
        if before is not None and before != _shown:
            _ACTIVE_RELEASE.remove(*before)


class CallMetrics:
    """Counts the calls of one service.

    Args:
        service: its full name.
        methods: their short names.
    """

    def __init__(self, service: str, methods: Iterable[str]) -> None:
        self._service = service
        names = [*methods, OTHER]
        # Looked up once: `labels` is most of what counting would cost a call.
        self._seconds = {name: _SECONDS.labels(service, name) for name in names}
        self._running = {name: _RUNNING.labels(service, name) for name in names}
        self._calls = {(name, "OK"): _CALLS.labels(service, name, "OK") for name in names}

    def name_of(self, method: str) -> str:
        """Return the label of a method, given as `/pkg.Service/Method`."""
        name = method.rpartition("/")[2]
        known = name in self._seconds and method == f"/{self._service}/{name}"
        return name if known else OTHER

    def begin(self, name: str) -> None:
        """Note that a call has begun; `name` is of `name_of`."""
        self._running[name].inc()

    def end(self, name: str, code: str, seconds: float) -> None:
        """Note how a call has ended."""
        self._running[name].dec()
        self._seconds[name].observe(seconds)
        calls = self._calls.get((name, code))
        if calls is None:
            calls = self._calls[name, code] = _CALLS.labels(self._service, name, code)
        calls.inc()
