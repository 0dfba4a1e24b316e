"""What ingest counts beside its calls: events, objects, and the stages of their way.

Counters and times are kept by the process that does the work. How many objects there are, wait or
failed is asked of those who know when Prometheus asks: see `StateMetrics`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cra.shared import tracing
from cra.shared.errors import CraError, UnavailableError

if TYPE_CHECKING:
    from cra.services.ingest.ledger import Ledger, Line
    from cra.services.ingest.reconcile import Status

COUNTING_SHARE: Final = 0.1
"""Most of the time that is spent on counting: each count lists every object."""

_EVENTS: Final = Counter(
    "cra_events", "Bucket events that came, by what became of them", ["outcome"]
)
# Every outcome is there from the start: Prometheus sees no growth in what begins with 1.
EVENTS: Final = {
    outcome: _EVENTS.labels(outcome)
    for outcome in (
        "accepted", "ignored", "unauthenticated", "malformed", "too_large", "unavailable",
    )
}  # fmt: skip
_PROCESSED: Final = Counter(
    "cra_ingest_objects_processed", "Objects that a worker let go of, by how", ["outcome"]
)
PROCESSED: Final = {name: _PROCESSED.labels(name) for name in ("done", "failed", "put_back")}
FAILURES: Final = Counter(
    "cra_ingest_failures", "Objects that came onto the failure list, by reason", ["reason"]
)
LOST_LEASES: Final = Counter(
    "cra_ingest_lost_leases", "Objects that went back in line because their worker died or hung"
)
_RECONCILES: Final = Counter(
    "cra_ingest_reconciles", "Comparisons of buckets and index, by how they ended", ["outcome"]
)
RECONCILES: Final = {name: _RECONCILES.labels(name) for name in ("done", "stopped", "failed")}
WAIT_SECONDS: Final = Histogram(
    "cra_ingest_wait_seconds",
    "Time that an object was in line until a worker took it",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200),
)
LAG_SECONDS: Final = Histogram(
    "cra_ingest_lag_seconds",
    "Time from the modification of an object until it is in the index",
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 86400),
)
_STAGES: Final = Histogram(
    "cra_ingest_stage_seconds",
    "Time of a stage: look, download and decode for an object, embed and upsert for a batch",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STAGES: Final = {
    name: _STAGES.labels(name) for name in ("look", "download", "decode", "embed", "upsert")
}
TASK_SECONDS: Final = Histogram(
    "cra_ingest_task_seconds",
    "Time of a Celery task",
    ["task"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 20, 60, 120),
)

_COUNTED: Final = {
    "objects": "Objects in the buckets, when last counted",
    "indexed": "Objects that are in the index as they are",
    "unaccounted": "Objects neither indexed nor in line nor on the failure list",
    "stale": "Vectors of objects that have changed",
    "orphaned": "Vectors of objects that are gone",
}

_log = structlog.get_logger()


@contextmanager
def stage(name: str, traces: Iterable[str]) -> Iterator[None]:
    """Time a stage, which is a span too.

    Args:
        name: one of `STAGES`.
        traces: places of the objects that it is done for.
    """
    began = time.perf_counter()
    with tracing.shared_span(name, traces):
        yield
    STAGES[name].observe(time.perf_counter() - began)


class StateMetrics(Collector):
    """How much is open and how far the index is; what nobody can tell is absent.

    Args:
        ledger: is asked when Prometheus asks.
        last_count: returns what was last counted.
    """

    def __init__(self, ledger: "Ledger", last_count: "Callable[[], Status | None]") -> None:
        self._ledger, self._last_count = ledger, last_count

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        status = self._last_count()
        if status is not None:
            yield from _of_status(status)
        try:
            line, last = self._ledger.line(), self._ledger.last_reconcile()
        except UnavailableError:
            return
        yield from _of_line(line)
        if last is not None:
            yield from _of_reconcile(last)


def _of_status(status: "Status") -> Iterator[Metric]:
    for name, meaning in _COUNTED.items():
        count = getattr(status, name)
        if count is not None:
            yield GaugeMetricFamily(f"cra_ingest_{name}", meaning, count)
    yield GaugeMetricFamily(
        "cra_ingest_counted_timestamp_seconds",
        "When objects and index were last counted",
        status.as_of,
    )


def _of_line(line: "Line") -> Iterator[Metric]:
    yield GaugeMetricFamily("cra_ingest_waiting", "Objects in line", line.waiting)
    yield GaugeMetricFamily("cra_ingest_processing", "Objects that a worker holds", line.claimed)
    yield GaugeMetricFamily("cra_ingest_failed", "Objects on the failure list", line.failed)
    yield GaugeMetricFamily(
        "cra_ingest_oldest_waiting_seconds",
        "Time that the object which is open longest has been so; 0: none is",
        line.oldest_seconds,
    )


def _of_reconcile(last: Mapping[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "cra_ingest_reconcile_timestamp_seconds",
        "When the last comparison of buckets and index ended",
        last["finished_at"],
    )
    yield GaugeMetricFamily(
        "cra_ingest_reconcile_stopped",
        "Whether it was stopped, because it would have removed too much: 1 or 0",
        float(bool(last["stopped"])),
    )
    found = GaugeMetricFamily(
        "cra_ingest_reconcile_objects", "What it found that differs", labels=["kind"]
    )
    for kind in ("missing", "stale", "orphaned"):
        found.add_metric([kind], last[kind])
    yield found


class Counting:
    """Counts objects and index now and then, for metrics.

    Args:
        count: does it, and keeps it.
        seconds: from one count to the next; longer if a count takes more than a tenth of it.
    """

    def __init__(self, count: Callable[[], object], seconds: float) -> None:
        self._count, self._seconds = count, seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counting", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def close(self) -> None:
        """Count no more; a count that is under way is not waited for."""
        self._closing.set()

    def _run(self) -> None:
        tracing.mute()
        pause = 0.0
        while not self._closing.wait(pause):
            began = time.monotonic()
            try:
                self._count()
            except CraError as error:
                _log.warning("not counted", problem=error.message)
            except Exception:  # a bug must not end the thread
                _log.exception("counting failed")
            pause = max(self._seconds, (time.monotonic() - began) / COUNTING_SHARE)
