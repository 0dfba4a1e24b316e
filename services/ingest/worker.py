"""Wiring of the Celery worker and beat: `celery -A cra.services.ingest.worker worker`."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cra.services.ingest import pooled_metrics  # isort: skip - before anything makes a metric

import structlog
from celery import bootsteps
from celery.beat import PersistentScheduler
from celery.signals import (
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
)
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from cra.services.ingest import tasks
from cra.services.ingest.heartbeat import PERIOD, Heartbeat
from cra.services.ingest.ledger import Ledger
from cra.services.ingest.metrics import TASK_SECONDS
from cra.services.ingest.reconcile import Reconciler
from cra.services.ingest.sync import Synchronizer
from cra.shared import budget, rpc, tracing
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.errors import AbortedError, CraError, UnavailableError
from cra.shared.settings import Settings
from cra.shared.telemetry import configure_logging, serve_metrics

settings = Settings.load()
app = tasks.create_app(settings)


class _Parts:
    """Connections of one worker process, made after the fork."""

    def __init__(self) -> None:
        self.ledger = Ledger(settings.redis_url.get_secret_value(), settings.lease_seconds)
        self.objects = S3ObjectStore(settings)
        self.size = tasks.ClaimSize(settings.ingest_batch)
        vectors = MilvusVectorStore(settings)
        encoder = RemoteEncoder.of(settings)
        self.synchronizer = Synchronizer(
            self.objects, vectors, encoder, settings.max_object_bytes, settings.buckets
        )
        self.reconciler = Reconciler(
            self.objects,
            vectors,
            encoder,
            self.ledger,
            settings.buckets,
            settings.max_deletion_share,
            wake=lambda: tasks.wake(app, self.ledger),
        )


@functools.cache
def _parts() -> _Parts:
    return _Parts()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _setup_logging(**_: Any) -> None:
    configure_logging("worker", settings.log_format, settings.log_level)
    # A line for each task and tick says nothing; our own lines say what was done.
    for name in ("celery.app.trace", "celery.worker.strategy", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin(**_: Any) -> None:
    budget.give_way()
    tracing.configure("worker", settings)
    tracing.mute()  # ticks that nobody asked for: tasks and objects bring their own places


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    tracing.close()


@worker_ready.connect  # type: ignore[untyped-decorator]
def _show_metrics(**_: Any) -> None:
    """Show, in the parent, what its processes count together."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, pooled_metrics.FOLDER)  # type: ignore[no-untyped-call]
    serve_metrics(settings.host, settings.worker_metrics_port, registry)


@contextlib.contextmanager
def _task(task: Any) -> Iterator[None]:
    """Give what a task does its ids in logs, its place in a trace, and its time in metrics."""
    rpc.request_id.set(task.request.id)
    with (
        structlog.contextvars.bound_contextvars(**tasks.task_context(task)),
        tracing.shared_span(task.name, [task.request.get("traceparent") or ""], id=task.request.id),
        TASK_SECONDS.labels(task.name).time(),
    ):
        yield


def _heartbeat(name: str) -> Heartbeat:
    """Begin to show that the process of this name works."""
    ledger = Ledger(settings.redis_url.get_secret_value(), settings.lease_seconds)
    heartbeat = Heartbeat(Path(settings.heartbeat_folder) / name, ledger.ping)
    heartbeat.start()
    return heartbeat


class _WorkerTurns(bootsteps.StartStopStep):  # type: ignore[misc]
    """Notes that the worker's loop turns; starts anew with each connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    heartbeat: Heartbeat | None = None

    def start(self, consumer: Any) -> None:
        if settings.heartbeat_folder:
            if _WorkerTurns.heartbeat is None:
                _WorkerTurns.heartbeat = _heartbeat("worker")
            _WorkerTurns.heartbeat.turn()
            consumer.timer.call_repeatedly(PERIOD, _WorkerTurns.heartbeat.turn)


class Scheduler(PersistentScheduler):  # type: ignore[misc]
    """Beat's own, which shows that it turns."""

    heartbeat: Heartbeat | None = None

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is due; return the seconds until something is."""
        if settings.heartbeat_folder:
            if self.heartbeat is None:
                self.heartbeat = _heartbeat("beat")
            self.heartbeat.turn()
        return super().tick(*args, **kwargs)


app.steps["consumer"].add(_WorkerTurns)
app.conf.beat_scheduler = Scheduler


@app.task(name=tasks.DRAIN, bind=True, time_limit=tasks.drain_limit(settings))  # type: ignore[untyped-decorator]
def drain(self: Any) -> None:
    """Work off the line."""
    with _task(self):
        parts = _parts()
        try:
            if tasks.drain(
                parts.ledger, parts.synchronizer, parts.objects, settings, size=parts.size
            ):
                tasks.wake(app, parts.ledger)
        except UnavailableError as error:
            # What was held goes back in line when its lease is over.
            structlog.get_logger().warning("the line does not answer", problem=error.message)


@app.task(  # type: ignore[untyped-decorator]
    name=tasks.RECONCILE,
    bind=True,
    # Not given to another worker before it ends; if this one dies, beat asks for the next.
    acks_late=False,
    time_limit=tasks.LONGEST_RECONCILE,
)
def reconcile(self: Any) -> None:
    """Compare buckets and index."""
    with _task(self):
        parts = _parts()
        try:
            if not tasks.reconcile(parts.ledger, parts.reconciler, settings):
                structlog.get_logger().info("not reconciled", problem="another worker is at it")
        except AbortedError as error:
            structlog.get_logger().error("reconcile stopped", problem=error.message)
        except CraError as error:
            structlog.get_logger().warning("not reconciled", problem=error.message)
