"""Comparing buckets and index: what differs is put in line, what is there is counted."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

import structlog

from cra.services.ingest.ledger import Ledger
from cra.services.ingest.metrics import RECONCILES
from cra.shared.domain import ObjectRef, Version
from cra.shared.errors import AbortedError, DeadlineExceededError, UnavailableError
from cra.shared.ports import Encoder, ImageTowerInfo, ObjectStore, VectorStore

FEW_ORPHANS: Final = 20
"""So many vectors are removed whatever their share: in a small index any number is a large one."""

PROGRESS_EVERY: Final = 1000
"""Objects between two reports."""

ADDED_AT_ONCE: Final = 1000
"""Objects; of a large bucket the first are indexed while it is listed on, and what is found is not
lost with the process that finds it."""

_DOWN: Final = (UnavailableError, DeadlineExceededError)

_log = structlog.get_logger()


@dataclass(frozen=True)
class Summary:
    """What a reconcile found; times are Unix seconds."""

    started_at: float
    finished_at: float = 0.0
    objects: int = 0
    missing: int = 0
    stale: int = 0
    orphaned: int = 0
    stopped: str = ""
    """Why nothing was removed; empty if the reconcile went through."""


@dataclass(frozen=True)
class Status:
    """How far the index follows the buckets, counted object by object.

    What needs the index is None while that cannot be counted: an outage is no zero.
    """

    objects: int
    indexed: int | None
    waiting: int
    failed: int
    unaccounted: int | None
    stale: int | None
    orphaned: int | None
    rate: float
    last_reconcile: Summary | None
    as_of: float
    image_tower: str
    """Whose index was counted; empty if none was ever seen."""
    down: tuple[str, ...]
    """What does not answer, one sentence each."""


class Reconciler:
    """Compares buckets and index both ways."""

    def __init__(
        self,
        objects: ObjectStore,
        vectors: VectorStore,
        encoder: Encoder,
        ledger: Ledger,
        buckets: tuple[str, ...],
        max_deletion_share: float,
        wake: Callable[[], None],
    ) -> None:
        self._objects = objects
        self._vectors = vectors
        self._encoder = encoder
        self._ledger = ledger
        self._buckets = buckets
        self._max_deletion_share = max_deletion_share
        self._wake = wake
        self._last_tower: ImageTowerInfo | None = None

    def reconcile(
        self, *, dry_run: bool = False, allow_mass_deletion: bool = False
    ) -> Iterator[Summary]:
        """Put in line what is missing, stale or orphaned; yield progress, the whole last.

        Raises:
            AbortedError: more of the index than allowed would go. What is missing or stale has
                been put in line; nothing has been removed.
        """
        try:
            yield from self._reconcile(dry_run, allow_mass_deletion)
        except AbortedError:
            RECONCILES["stopped"].inc()
            raise
        except Exception:
            RECONCILES["failed"].inc()
            raise
        RECONCILES["done"].inc()

    def _reconcile(self, dry_run: bool, allow_mass_deletion: bool) -> Iterator[Summary]:
        summary = Summary(started_at=time.time())
        index = self._index()
        entries = len(index)
        failures = {f.ref: f.version for f in self._ledger.failures()}
        differing: list[ObjectRef] = []
        for ref, version in self._listing():
            indexed = index.pop(ref, None)
            failed_before = failures.pop(ref, None)
            summary = replace(summary, objects=summary.objects + 1)
            # A failure accounts for an object only while no vector of another version is there.
            if version != (failed_before if indexed is None else indexed):
                differing.append(ref)
                if indexed is None:
                    summary = replace(summary, missing=summary.missing + 1)
                else:
                    summary = replace(summary, stale=summary.stale + 1)
            if len(differing) >= ADDED_AT_ONCE and not dry_run:
                self._ledger.add(differing)
                self._wake()
                differing.clear()
            if summary.objects % PROGRESS_EVERY == 0:
                yield summary
        orphans = list(index)
        summary = replace(summary, orphaned=len(orphans), finished_at=time.time())
        if not dry_run:
            self._ledger.add(differing)
            self._ledger.forget(list(failures))  # what is left there names objects that are gone
            if not allow_mass_deletion:
                summary = replace(summary, stopped=self._refusal(len(orphans), entries))
            if not summary.stopped:
                # Not deleted here: each is looked at again by a worker, which may find it back.
                self._ledger.add(orphans)
            self._ledger.note_reconcile(asdict(summary))
            self._wake()
            if summary.stopped:
                raise AbortedError(summary.stopped)
        _log.info("reconciled", dry_run=dry_run, **asdict(summary))
        yield summary

    def status(self) -> Status:
        """Count every object of the buckets under exactly one heading.

        Without the encoder, the index of the tower that it served last is counted; without the
        index, what is known without it.
        """
        as_of = time.time()
        # What is taken off the line while we count was in it before, and what is put in line
        # while we count is in it after.
        waiting = self._ledger.waiting()
        failures = {f.ref: f.version for f in self._ledger.failures()}
        tower, index, down = self._index_if_up()
        listing = dict(self._listing())
        waiting |= self._ledger.waiting()
        failures |= {f.ref: f.version for f in self._ledger.failures()}
        counts = Counter(
            "indexed" if index is not None and index.get(ref) == version
            else "waiting" if ref in waiting
            else "failed" if failures.get(ref) == version
            else "unaccounted"
            for ref, version in listing.items()
        )  # fmt: skip
        last = self._ledger.last_reconcile()
        return Status(
            objects=len(listing),
            indexed=None if index is None else counts["indexed"],
            waiting=counts["waiting"],
            failed=counts["failed"],
            unaccounted=None if index is None else counts["unaccounted"],
            stale=None
            if index is None
            else sum(ref in listing and listing[ref] != v for ref, v in index.items()),
            orphaned=None if index is None else sum(ref not in listing for ref in index),
            rate=self._ledger.rate(),
            last_reconcile=Summary(**last) if last else None,
            as_of=as_of,
            image_tower=tower,
            down=tuple(down),
        )

    def _index(self) -> dict[ObjectRef, Version]:
        return self._entries(self._encoder.models().image_tower)

    def _index_if_up(self) -> tuple[str, dict[ObjectRef, Version] | None, list[str]]:
        """Return the fingerprint of the image tower, what is indexed, and what does not answer."""
        down = []
        try:
            self._last_tower = self._encoder.models().image_tower
        except _DOWN as error:
            down.append(error.message)
        if self._last_tower is None:
            return "", None, down
        fingerprint = self._last_tower.fingerprint
        try:
            return fingerprint, self._entries(self._last_tower), down
        except _DOWN as error:
            return fingerprint, None, [*down, error.message]

    def _entries(self, tower: ImageTowerInfo) -> dict[ObjectRef, Version]:
        self._vectors.ensure_collection(tower.fingerprint, tower.dimension)
        return {entry.ref: entry.version for entry in self._vectors.entries(tower.fingerprint)}

    def _listing(self) -> Iterator[tuple[ObjectRef, Version]]:
        for bucket in self._buckets:
            for stored in self._objects.list(bucket):
                yield stored.ref, stored.version

    def _refusal(self, orphans: int, entries: int) -> str:
        """Return why so many are not removed unasked; empty if they are."""
        most = max(FEW_ORPHANS, self._max_deletion_share * entries)
        if orphans <= most:
            return ""
        return (
            f"{orphans} of {entries} vectors have no object any more; at most "
            f"{int(most)} are removed unasked. Look at the buckets, then allow mass deletion"
        )
