"""The Celery application: one task that works off the line, one that reconciles.

A task carries no names of objects: what is to be done stands in the ledger, so that a task that
is lost, repeated or late does no harm, and a batch is as full as the line allows.
"""

import time
from typing import Any, Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from cra.services.ingest.ledger import Claim, Failure, Ledger
from cra.services.ingest.sync import Synchronizer
from cra.shared import budget
from cra.shared.domain import ObjectRef, Version
from cra.shared.errors import CraError, UnavailableError
from cra.shared.ports import ObjectStore
from cra.shared.settings import Settings

DRAIN: Final = "cra.drain"
RECONCILE: Final = "cra.reconcile"
TICK_SECONDS: Final = 3.0
"""Time between two looks at the line that no event asked for: retries and lost leases."""
LONGEST_TASK: Final = 10.0
"""Seconds after which a task hands over to the next; well under the visibility timeout."""

_log = structlog.get_logger()


def create_app(settings: Settings) -> Celery:
    """Return the Celery application; it connects when first used."""
    app = Celery("cra", broker=settings.redis_url.get_secret_value())
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        task_time_limit=120,
        worker_prefetch_multiplier=1,
        worker_concurrency=budget.worker_processes(settings.worker_processes),
        worker_hijack_root_logger=False,
        broker_transport_options={"visibility_timeout": 60, "socket_timeout": 5},
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        beat_schedule={
            "drain": {
                "task": DRAIN,
                "schedule": TICK_SECONDS,
                "options": {"expires": TICK_SECONDS},
            },
            "reconcile": {
                "task": RECONCILE,
                "schedule": float(settings.reconcile_seconds),
                "options": {"expires": float(settings.reconcile_seconds)},
            },
        },
    )
    return app


def wake(app: Celery) -> None:
    """Ask for the line to be worked off.

    Raises:
        UnavailableError: the broker did not take it.
    """
    try:
        app.send_task(DRAIN, ignore_result=True, retry=False)
    except (OperationalError, OSError) as error:
        raise UnavailableError(f"the broker does not answer: {error}") from error


def drain(
    ledger: Ledger,
    synchronizer: Synchronizer,
    objects: ObjectStore,
    settings: Settings,
    seconds: float = LONGEST_TASK,
) -> bool:
    """Work off the line for up to `seconds`; return whether there may be more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        claim = ledger.claim(settings.ingest_batch)
        if not claim.refs:
            return False
        if claim.losses >= settings.max_losses:
            ledger.fail([_lost(claim, objects)])
            continue
        try:
            outcome = synchronizer.sync(claim.refs, alive=_Leases(ledger, claim.refs, settings))
        except CraError as error:
            _log.warning("put back in line", objects=len(claim.refs), problem=error.message)
            ledger.put_back(claim.refs)
            return False  # the next tick tries again; going on would only meet the same outage
        ledger.done(outcome.done)
        ledger.fail(outcome.failed)
        ledger.put_back(outcome.unsettled)
        for failure in outcome.failed:
            _log.warning("failed", image_id=failure.ref.image_id, reason=failure.reason)
    return True


class _Leases:
    """Extends the leases of a claim when called, as often as is needed and no more."""

    def __init__(self, ledger: Ledger, refs: list[ObjectRef], settings: Settings) -> None:
        self._ledger, self._refs = ledger, refs
        self._apart = settings.lease_seconds / 10
        self._renewed = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._renewed > self._apart:
            self._ledger.renew(self._refs)
            self._renewed = time.monotonic()


def _lost(claim: Claim, objects: ObjectStore) -> Failure:
    (ref,) = claim.refs
    details = objects.look(ref)
    version = details.version if details else Version("", 0)
    message = f"{claim.losses} workers died or hung while they worked on it"
    return Failure(ref, "worker_lost", message, version, claim.losses, time.time())


def retry(ledger: Ledger, refs: list[ObjectRef] | None) -> tuple[int, list[ObjectRef]]:
    """Put failed objects back in line: all, or those named.

    Returns:
        how many, and which of those named are no failures.
    """
    failed = {failure.ref for failure in ledger.failures()}
    named = failed if refs is None else set(refs)
    ledger.add(sorted(named & failed))
    return len(named & failed), sorted(named - failed)


def task_context(task: Any) -> dict[str, str]:
    """Return what a task's log lines carry."""
    return {"task": task.name, "task_id": task.request.id}
