"""The Celery application: one task that works off the line, one that reconciles.

A task carries no names of objects: what is to be done stands in the ledger, so that a task that
is lost, repeated or late does no harm, and a batch is as full as the line allows.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from cra.services.ingest import metrics
from cra.services.ingest.ledger import Claim, Failure, Ledger
from cra.services.ingest.reconcile import Reconciler
from cra.services.ingest.sync import READ_SECONDS, Outcome, Synchronizer
from cra.shared import budget, tracing
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

ATTEMPT_SECONDS: Final = 20.0
"""Seconds within which it has to be found out which objects of a claim fail."""
LONGEST_RECONCILE: Final = 6 * 3600.0
"""Seconds after which one is taken for one that hangs, and is killed."""
LAST_WAITS: Final = 40.0
"""Seconds for the object that is read last, which may be silent, and for what comes after a batch.
"""

_log = structlog.get_logger()


def drain_limit(settings: Settings) -> float:
    """Return the seconds after which a task that drains hangs, and is killed.

    The last sync of its last claim may begin so late, read for so long, and wait for one batch.
    """
    begins = LONGEST_TASK + ATTEMPT_SECONDS
    return begins + READ_SECONDS + settings.encode_timeout + LAST_WAITS


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


def wake(app: Celery, ledger: Ledger) -> None:
    """Ask for the line to be worked off, unless somebody has and no worker has heard it yet.

    A call for each event would make a line of its own, longer than that of the objects, and a
    reconcile would wait at its end until it is too old to be done.

    Raises:
        UnavailableError: the broker did not take it.
    """
    if not ledger.call():
        return
    try:
        with tracing.span(f"send {DRAIN}", kind="PRODUCER"):
            # What the task does for this caller belongs to the caller's trace.
            trace = tracing.sampled()
            headers = {"traceparent": trace} if trace else {}
            app.send_task(DRAIN, ignore_result=True, retry=False, headers=headers)
    except (OperationalError, OSError) as error:
        ledger.heard()  # by nobody: who tries again must not take it for on its way
        raise UnavailableError(f"the broker does not answer: {error}") from error


def drain(
    ledger: Ledger,
    synchronizer: Synchronizer,
    objects: ObjectStore,
    settings: Settings,
    seconds: float = LONGEST_TASK,
    size: "ClaimSize | None" = None,
) -> bool:
    """Work off the line for up to `seconds`; return whether there may be more."""
    end = time.monotonic() + seconds
    size = size or ClaimSize(settings.ingest_batch)
    ledger.heard()
    while time.monotonic() < end:
        claim = ledger.claim(size.now)
        metrics.LOST_LEASES.inc(claim.expired)
        if not claim.refs:
            return False
        _note_claim(claim)
        attempt = Attempt(synchronizer, claim.traces)
        if claim.losses < settings.max_losses:
            with _Renewing(functools.partial(ledger.renew, claim.refs), settings):
                attempt.run(claim.refs)
            size.note(len(claim.refs), in_time=not attempt.late)
            attempt.give_up(list(_given_up(ledger, objects, attempt.blamed, settings)))
        else:
            attempt.give_up([_lost(claim, objects)])
        ledger.done(attempt.outcome.done)
        failed = attempt.outcome.failed
        ledger.fail(failed)
        settled = {*attempt.outcome.done, *(failure.ref for failure in failed)}
        ledger.put_back([ref for ref in claim.refs if ref not in settled])
        metrics.PROCESSED["done"].inc(len(attempt.outcome.done))
        metrics.PROCESSED["put_back"].inc(len(claim.refs) - len(settled))
        _note_failed(failed)
        if attempt.outage:
            _log.warning("put back in line", problem=attempt.outage)
            return False  # the next tick tries again; going on would only meet the same outage
    return True


def _note_claim(claim: Claim) -> None:
    now = time.time_ns()
    for ref, seconds in claim.waited.items():
        metrics.WAIT_SECONDS.observe(seconds)
        trace = claim.traces.get(ref, "")
        tracing.record("wait in line", now - round(seconds * 1e9), now, trace)


def _note_failed(failures: Sequence[Failure]) -> None:
    metrics.PROCESSED["failed"].inc(len(failures))
    for failure in failures:
        metrics.FAILURES.labels(failure.reason).inc()
        _log.warning("failed", image_id=failure.ref.image_id, reason=failure.reason)


class ClaimSize:
    """How many objects are taken from the line at once.

    What was read and not encoded in time is read again. So there are half as many the next time,
    and one more whenever there was time for all, as TCP does with what is under way (additive
    increase, multiplicative decrease).

    Args:
        most: objects, where it begins.
    """

    def __init__(self, most: int) -> None:
        self._most = self.now = most

    def note(self, taken: int, *, in_time: bool) -> None:
        """Learn from a claim of so many objects, and whether there was time for all of them."""
        if not in_time:
            self.now = max(1, taken // 2)
        elif taken >= self.now:
            self.now = min(self._most, self.now + 1)


class Attempt:
    """One try at the objects of a claim.

    When the whole fails though all parts answer, its halves are tried, and their halves, so that
    one object which always fails keeps none of its neighbours waiting. An object is to blame when
    it fails alone and another of its claim got through. When nothing gets through it is an outage,
    whatever the parts answer to a question: nobody is to blame, and more is not tried. Nor is it
    when there is no time.
    """

    def __init__(
        self,
        synchronizer: Synchronizer,
        traces: Mapping[ObjectRef, str] | None = None,
    ) -> None:
        self._synchronizer = synchronizer
        self._traces = traces or {}
        self._end = time.monotonic() + ATTEMPT_SECONDS
        self._alone: dict[ObjectRef, str] = {}
        self._through = False
        self.outcome = Outcome()
        self.outage = ""
        """Why the rest was not tried."""
        self.late = False
        """Whether there was no time for it."""

    def run(self, refs: Sequence[ObjectRef]) -> None:
        """Sync these objects as far as can be."""
        if self.outage:
            return
        try:
            outcome = self._synchronizer.sync(refs, self._traces)
        except CraError as error:
            problem = error.message
        except Exception as error:  # a bug that one object brings out must not stop the others
            _log.exception("sync failed", objects=len(refs))
            problem = repr(error)
        else:
            self._through = self._through or bool(outcome.done or outcome.failed)
            self.outcome.done += outcome.done
            self.outcome.failed += outcome.failed
            self._stop(outcome.late)
            return
        self.outage = self._down()
        if self.outage:
            return
        if len(refs) == 1:
            self._alone[refs[0]] = problem
            if not self._through and len(self._alone) > 1:
                self.outage = problem
            return
        for half in (refs[: len(refs) // 2], refs[len(refs) // 2 :]):
            if time.monotonic() > self._end:
                self._stop(f"no time was left to find out which ones fail: {problem}")
            self.run(half)

    def give_up(self, failures: Sequence[Failure]) -> None:
        """Have these objects fail; they are not found any more by what they were before."""
        try:
            self._synchronizer.remove([failure.ref for failure in failures])
        except CraError as error:
            self.outage = self.outage or error.message
        else:
            self.outcome.failed += failures

    def _stop(self, late: str) -> None:
        """Try no more, if there is a reason why time is up."""
        if late and not self.outage:
            self.outage, self.late = late, True

    @property
    def blamed(self) -> dict[ObjectRef, str]:
        """Objects that failed for reasons of their own, and why."""
        # An object that was claimed alone has no neighbours who could tell; that the parts answer
        # must do then.
        return self._alone if self._through or not self.outage else {}

    def _down(self) -> str:
        try:
            self._synchronizer.check()
        except CraError as error:
            return error.message
        return ""


def _given_up(
    ledger: Ledger, objects: ObjectStore, blamed: Mapping[ObjectRef, str], settings: Settings
) -> Iterator[Failure]:
    """Count tries against the objects that are to blame; yield those that had their last."""
    for ref, tries in zip(blamed, ledger.blame(list(blamed)), strict=True):
        if tries >= settings.max_tries:
            message = f"it failed {tries} times while others got through; last: {blamed[ref]}"
            yield Failure(ref, "gave_up", message, _version(objects, ref), tries, time.time())


class _Renewing:
    """Renews what is held for a lease at a time, for as long as a block runs.

    On a thread, since a batch may take longer to be encoded than a lease lasts. A process that is
    killed or frozen renews nothing; one that hangs is killed at its limit.
    """

    def __init__(self, renew: Callable[[], None], settings: Settings) -> None:
        self._renew_once = renew
        self._apart = settings.lease_seconds / 4
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._over.wait(self._apart):
            try:
                self._renew_once()
            except UnavailableError as error:  # the next time may be in time yet
                _log.warning("a lease was not renewed", problem=error.message)


def _lost(claim: Claim, objects: ObjectStore) -> Failure:
    (ref,) = claim.refs
    message = f"{claim.losses} workers died or hung while they worked on it"
    version = _version(objects, ref)
    return Failure(ref, "worker_lost", message, version, claim.losses, time.time())


def _version(objects: ObjectStore, ref: ObjectRef) -> Version:
    """Return the version of an object; one that no object has if nobody can tell.

    A failure at that version stands until the next reconcile, which puts the object back in line.
    """
    try:
        details = objects.look(ref)
    except CraError:
        details = None
    return details.version if details else Version("", 0)


def reconcile(ledger: Ledger, reconciler: Reconciler, settings: Settings) -> bool:
    """Compare buckets and index, unless another worker is at it; return whether it was done.

    One of a large bucket takes longer than it is to the next: they must not take every worker.

    Raises:
        AbortedError: more of the index than allowed would go.
        CraError: a part that is needed does not answer.
    """
    if not ledger.begin_reconcile():
        return False
    try:
        with _Renewing(ledger.renew_reconcile, settings):
            for _ in reconciler.reconcile():
                pass
    finally:
        ledger.end_reconcile()
    return True


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
    return {"task": task.name, "task_id": task.request.id, "request_id": task.request.id}
