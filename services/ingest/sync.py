"""Bringing the index level with objects as they are now."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from cra.services.ingest.ledger import Failure
from cra.shared.domain import ImageRecord, IndexedImage, ObjectDetails, ObjectRef
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.pixels import BadImageError, PreparedImage, Preprocessing, prepare
from cra.shared.ports import (
    Encoder,
    ImageProblem,
    ImageTowerInfo,
    ObjectStore,
    Priority,
    VectorStore,
)

MAX_ROUNDS: Final = 5
"""How often an object that keeps changing is looked at before it goes back in line."""

PIXEL_BATCH_BYTES: Final = 16 * 2**20
"""Pixels in one request; half of the encoder's message limit."""

MAX_METADATA_ENTRIES: Final = 128
MAX_METADATA_BYTES: Final = 32 * 2**10
READERS: Final = 2

_log = structlog.get_logger()


@dataclass
class Outcome:
    """What became of the objects of one batch."""

    done: list[ObjectRef] = field(default_factory=list)
    """Indexed as they are, or gone and removed."""
    failed: list[Failure] = field(default_factory=list)
    unsettled: list[ObjectRef] = field(default_factory=list)
    """They changed at every look."""


@dataclass(frozen=True)
class _Ready:
    details: ObjectDetails
    image: PreparedImage


class Synchronizer:
    """Looks at objects as they are now and makes the index agree; see `sync`.

    Args:
        objects: the truth.
        vectors: the index.
        encoder: makes vectors of prepared pixels.
        max_object_bytes: larger objects fail without being read.
    """

    def __init__(
        self,
        objects: ObjectStore,
        vectors: VectorStore,
        encoder: Encoder,
        max_object_bytes: int,
    ) -> None:
        self._objects = objects
        self._vectors = vectors
        self._encoder = encoder
        self._max_object_bytes = max_object_bytes
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._ensured: set[str] = set()

    def sync(self, refs: Sequence[ObjectRef], alive: Callable[[], None] = lambda: None) -> Outcome:
        """Make the index agree with each object, by looking at it and not at what was said of it.

        Then look again: an object that changed meanwhile is done over. So two syncs of one
        object may interleave in any order, and the last one to finish leaves the truth.

        Args:
            refs: objects, each at most once.
            alive: called between steps, to extend leases.

        Raises:
            UnavailableError: a part that is needed does not answer; any of the objects may or
                may not have been done.
        """
        tower = self._tower()
        outcome = Outcome()
        pending = list(refs)
        for _ in range(MAX_ROUNDS):
            if not pending:
                break
            looks = self._look(pending)
            failed = self._apply(tower, looks, alive)
            alive()
            again = self._look(pending)
            for ref in pending:
                if _state(looks[ref]) != _state(again[ref]):
                    continue
                if ref in failed:
                    outcome.failed.append(failed[ref])
                else:
                    outcome.done.append(ref)
            pending = [ref for ref in pending if _state(looks[ref]) != _state(again[ref])]
        outcome.unsettled = pending
        return outcome

    def _tower(self) -> ImageTowerInfo:
        tower = self._encoder.models().image_tower
        if Preprocessing(tower.input_size).fingerprint != tower.preprocessing:
            raise FailedPreconditionError(
                "the encoder prepares pixels in another way than this worker; update the worker"
            )
        if tower.fingerprint not in self._ensured:
            self._vectors.ensure_collection(tower.fingerprint, tower.dimension)
            self._ensured.add(tower.fingerprint)
        return tower

    def _look(self, refs: Sequence[ObjectRef]) -> dict[ObjectRef, ObjectDetails | None]:
        return dict(zip(refs, self._readers.map(self._objects.look, refs), strict=True))

    def _apply(
        self,
        tower: ImageTowerInfo,
        looks: dict[ObjectRef, ObjectDetails | None],
        alive: Callable[[], None],
    ) -> dict[ObjectRef, Failure]:
        """Write to the index what `looks` calls for; return what cannot be indexed."""
        known = {
            record.ref: record for record in self._vectors.records(tower.fingerprint, list(looks))
        }
        wanted = [
            details
            for details in looks.values()
            if details is not None and not _is_current(known.get(details.ref), details)
        ]
        preprocessing = Preprocessing(tower.input_size)
        ready: list[_Ready] = []
        failed: dict[ObjectRef, Failure] = {}
        read = self._readers.map(lambda details: self._prepare(details, preprocessing), wanted)
        for details, prepared in zip(wanted, read, strict=True):
            alive()
            if isinstance(prepared, PreparedImage):
                ready.append(_Ready(details, prepared))
            elif prepared is not None:
                failed[details.ref] = _failure(details, prepared.reason, prepared.message)
        for start in range(0, len(ready), step := max(1, _fits(tower.input_size))):
            failed |= self._embed(tower, ready[start : start + step])
            alive()
        # An object that cannot be indexed must not be found by what it was before.
        remove = [ref for ref, details in looks.items() if details is None or ref in failed]
        if remove:
            self._vectors.delete(tower.fingerprint, remove)
        return failed

    def _prepare(
        self, details: ObjectDetails, preprocessing: Preprocessing
    ) -> PreparedImage | BadImageError | None:
        """Return pixels, or what is wrong, or None if the object is gone."""
        try:
            _check_size(details, self._max_object_bytes)
            content = self._objects.read(details.ref)
            return None if content is None else prepare(content, preprocessing)
        except BadImageError as error:
            return error

    def _embed(self, tower: ImageTowerInfo, batch: Sequence[_Ready]) -> dict[ObjectRef, Failure]:
        answer = self._encoder.embed_pixels(
            [item.image.pixels.tobytes() for item in batch], tower.preprocessing, Priority.BULK
        )
        if answer.image_tower != tower.fingerprint:
            raise FailedPreconditionError("the image tower was switched in the middle of a batch")
        now = time.time()
        images, failed = [], {}
        for item, result in zip(batch, answer.results, strict=True):
            details = item.details
            if isinstance(result, ImageProblem):
                failed[details.ref] = _failure(details, result.reason, result.message)
                continue
            record = ImageRecord(
                ref=details.ref,
                version=details.version,
                metadata_digest=details.metadata_digest,
                metadata=details.metadata,
                width=item.image.width,
                height=item.image.height,
                ingested_at=now,
            )
            images.append(IndexedImage(record, result))
        if images:
            self._vectors.upsert(tower.fingerprint, images)
        _log.info("indexed", images=len(images), failed=len(failed))
        return failed


def _state(details: ObjectDetails | None) -> object:
    return details and (details.version, details.metadata_digest)


def _is_current(record: ImageRecord | None, details: ObjectDetails) -> bool:
    return record is not None and _state(details) == (record.version, record.metadata_digest)


def _check_size(details: ObjectDetails, most: int) -> None:
    if details.size > most:
        raise BadImageError(
            "too_many_bytes", f"it has {details.size} bytes; at most {most} are allowed"
        )
    size = len(json.dumps(dict(details.metadata), ensure_ascii=False).encode())
    if len(details.metadata) > MAX_METADATA_ENTRIES or size > MAX_METADATA_BYTES:
        raise BadImageError(
            "too_much_metadata",
            f"its metadata has {len(details.metadata)} entries in {size} bytes; at most "
            f"{MAX_METADATA_ENTRIES} in {MAX_METADATA_BYTES} are allowed",
        )


def _failure(details: ObjectDetails, reason: str, message: str) -> Failure:
    return Failure(details.ref, reason, message, details.version, 1, time.time())


def _fits(input_size: int) -> int:
    """Return how many prepared images one request takes."""
    return min(64, PIXEL_BATCH_BYTES // (input_size * input_size * 3 + 256))
