"""Bringing the index level with objects as they are now."""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import structlog

from cra.services.ingest import metrics
from cra.services.ingest.ledger import Failure
from cra.shared import tracing
from cra.shared.domain import ImageRecord, IndexedImage, ObjectDetails, ObjectRef
from cra.shared.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
)
from cra.shared.limits import MAX_METADATA_ENTRIES
from cra.shared.model.pixels import BadImageError, PreparedImage, Preprocessing, prepare
from cra.shared.ports import (
    EncodedImages,
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

READ_SECONDS: Final = 20.0
"""After so many no further object is read; what is left goes back in line."""

MAX_METADATA_BYTES: Final = 32 * 2**10
READERS: Final = 2

_NOBODY: Final = ObjectRef("readiness", "readiness")
"""An object that is asked for and not there."""

_log = structlog.get_logger()


@dataclass
class Outcome:
    """What became of the objects of one batch."""

    done: list[ObjectRef] = field(default_factory=list)
    """Indexed as they are, or gone and removed."""
    failed: list[Failure] = field(default_factory=list)
    unsettled: list[ObjectRef] = field(default_factory=list)
    """They changed at every look, or there was no time for them."""
    late: str = ""
    """Why there was no time for all of them; empty if there was."""


@dataclass(frozen=True)
class _Seen:
    """What a look at an object found."""

    details: ObjectDetails | None
    """None if it is gone."""
    image: PreparedImage | BadImageError | None = None
    """Its pixels, or why there are none; None if the index has them already."""


@dataclass(frozen=True)
class _Places:
    """Where the spans of what is done for each object belong."""

    traceparents: Mapping[ObjectRef, str]

    def of(self, refs: Iterable[ObjectRef]) -> list[str]:
        """Return the places of these objects, of those that are traced."""
        if not self.traceparents:
            return []
        return [self.traceparents[ref] for ref in refs if ref in self.traceparents]


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
        buckets: what is in no other is taken for gone.
    """

    def __init__(
        self,
        objects: ObjectStore,
        vectors: VectorStore,
        encoder: Encoder,
        max_object_bytes: int,
        buckets: Collection[str],
    ) -> None:
        self._objects = objects
        self._vectors = vectors
        self._encoder = encoder
        self._max_object_bytes = max_object_bytes
        self._buckets = frozenset(buckets)
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._ensured: set[str] = set()

    def sync(
        self,
        refs: Sequence[ObjectRef],
        traces: Mapping[ObjectRef, str] = MappingProxyType({}),
    ) -> Outcome:
        """Make the index agree with each object, by looking at it and not at what was said of it.

        Then look again: an object that changed meanwhile is done over. So two syncs of one
        object may interleave in any order, and the last one to finish leaves the truth.

        Args:
            refs: objects, each at most once.
            traces: traceparents, of those objects whose way is traced.

        Raises:
            UnavailableError: a part that is needed does not answer; any of the objects may or
                may not have been done.
        """
        spans = {
            ref: tracing.span(
                "sync",
                tracing.inside(traces[ref]),
                links=filter(None, [tracing.sampled()]),
                object=ref.image_id,
            )
            for ref in refs
            if ref in traces
        }
        try:
            places = {ref: span.traceparent for ref, span in spans.items()}
            return self._sync(refs, _Places(places))
        except Exception as error:
            for span in spans.values():
                span.fail(type(error).__name__)
            raise
        finally:
            for span in spans.values():
                span.end()

    def _sync(self, refs: Sequence[ObjectRef], places: "_Places") -> Outcome:
        tower = self._tower()
        outcome = Outcome()
        pending = list(refs)
        end = time.monotonic() + READ_SECONDS
        for _ in range(MAX_ROUNDS):
            if not pending or outcome.late:
                break
            seen = self._see(tower, pending, end, places)
            failed, left, outcome.late = self._apply(tower, seen, places)
            if len(seen) < len(pending):
                outcome.late = f"to read them took over {READ_SECONDS:g} s"

            def look(ref: ObjectRef) -> ObjectDetails | None:
                return self._look(ref, places)

            applied = [ref for ref in seen if ref not in left]
            outcome.unsettled += [ref for ref in pending if ref in left or ref not in seen]
            again = dict(zip(applied, self._readers.map(look, applied), strict=True))
            for ref in applied:
                if _state(seen[ref].details) != _state(again[ref]):
                    continue
                if ref in failed:
                    outcome.failed.append(failed[ref])
                else:
                    outcome.done.append(ref)
            pending = [r for r in applied if _state(seen[r].details) != _state(again[r])]
        outcome.unsettled += pending
        return outcome

    def remove(self, refs: Sequence[ObjectRef]) -> None:
        """Have objects that are given up no longer be found by what they were before.

        Raises:
            CraError: a part that is needed does not answer.
        """
        if refs:
            self._vectors.delete(self._tower().fingerprint, refs)

    def check(self) -> None:
        """Return if the parts that every sync needs answer now.

        Raises:
            CraError: one of them does not.
        """
        check_parts(self._objects, self._vectors, self._encoder)

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

    def _look(self, ref: ObjectRef, places: "_Places") -> ObjectDetails | None:
        if ref.bucket not in self._buckets:
            return None
        with metrics.stage("look", places.of([ref])):
            return self._objects.look(ref)

    def _see(
        self,
        tower: ImageTowerInfo,
        refs: Sequence[ObjectRef],
        end: float,
        places: "_Places",
    ) -> dict[ObjectRef, _Seen]:
        """Look at each object; of those that are not in the index as they are, get the pixels.

        Those whose turn did not come before `end` are missing from what is returned.
        """
        known = {record.ref: record for record in self._vectors.records(tower.fingerprint, refs)}
        preprocessing = Preprocessing(tower.input_size)

        def see(ref: ObjectRef) -> _Seen | None:
            if time.monotonic() > end:
                return None
            return self._see_one(ref, known, preprocessing, places)

        found = zip(refs, self._readers.map(see, refs), strict=True)
        return {ref: one for ref, one in found if one is not None}

    def _see_one(
        self,
        ref: ObjectRef,
        known: Mapping[ObjectRef, ImageRecord],
        preprocessing: Preprocessing,
        places: "_Places",
    ) -> _Seen:
        if ref.bucket not in self._buckets:
            return _Seen(None)
        if ref in known:
            details = self._look(ref, places)
            if details is None or _state(details) == _state_of(known[ref]):
                return _Seen(details)
        checked: list[ObjectDetails] = []

        def check(details: ObjectDetails) -> None:
            checked.append(details)
            _check(details, self._max_object_bytes)

        try:
            # One request for both: what was never indexed need not be looked at before.
            with metrics.stage("download", places.of([ref])):
                found = self._objects.fetch(ref, check)
            if found is None:
                return _Seen(None)
            details, content = found
            with metrics.stage("decode", places.of([ref])):
                return _Seen(details, prepare(content, preprocessing))
        except BadImageError as error:
            return _Seen(checked[-1], error)

    def _apply(
        self,
        tower: ImageTowerInfo,
        seen: Mapping[ObjectRef, _Seen],
        places: "_Places",
    ) -> tuple[dict[ObjectRef, Failure], set[ObjectRef], str]:
        """Write to the index what was seen.

        Returns:
            what cannot be indexed; what was not encoded in time, and what the encoder said then.
        """
        ready: list[_Ready] = []
        failed: dict[ObjectRef, Failure] = {}
        for ref, one in seen.items():
            if one.details is None or one.image is None:
                continue
            if isinstance(one.image, PreparedImage):
                ready.append(_Ready(one.details, one.image))
            else:
                failed[ref] = _failure(one.details, one.image.reason, one.image.message)
        left: set[ObjectRef] = set()
        late = ""
        for start in range(0, len(ready), step := _fits(tower.input_size)):
            batch = ready[start : start + step]
            try:
                answer = self._encode(tower, batch, places)
            except (DeadlineExceededError, ResourceExhaustedError) as error:
                # It works for queries first: nobody is to blame.
                left, late = {one.details.ref for one in ready[start:]}, error.message
                break
            failed |= self._write(tower, batch, answer, places)
        # An object that cannot be indexed must not be found by what it was before.
        remove = [ref for ref, one in seen.items() if one.details is None or ref in failed]
        if remove:
            self._vectors.delete(tower.fingerprint, remove)
        return failed, left, late

    def _encode(
        self, tower: ImageTowerInfo, batch: Sequence[_Ready], places: "_Places"
    ) -> EncodedImages:
        pixels = [item.image.pixels.tobytes() for item in batch]
        with metrics.stage("embed", places.of(item.details.ref for item in batch)):
            answer = self._encoder.embed_pixels(pixels, tower.preprocessing, Priority.BULK)
        if answer.image_tower != tower.fingerprint:
            raise FailedPreconditionError("the image tower was switched in the middle of a batch")
        return answer

    def _write(
        self,
        tower: ImageTowerInfo,
        batch: Sequence[_Ready],
        answer: EncodedImages,
        places: "_Places",
    ) -> dict[ObjectRef, Failure]:
        """Write a batch to the index; return those of it that have no vector."""
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
            with metrics.stage("upsert", places.of(image.record.ref for image in images)):
                self._vectors.upsert(tower.fingerprint, images)
        now = time.time()
        for image in images:
            metrics.LAG_SECONDS.observe(max(0.0, now - image.record.version.modified_at))
        _log.info("indexed", images=len(images), failed=len(failed))
        return failed


def check_parts(objects: ObjectStore, vectors: VectorStore, encoder: Encoder) -> None:
    """Ask each of them for what every sync needs, for no object in particular.

    Raises:
        CraError: one of them does not answer.
    """
    objects.check()
    tower = encoder.models().image_tower
    vectors.ensure_collection(tower.fingerprint, tower.dimension)
    vectors.fetch(tower.fingerprint, [_NOBODY])


def _state(details: ObjectDetails | None) -> object:
    return details and (details.version, details.metadata_digest)


def _state_of(record: ImageRecord) -> object:
    return record.version, record.metadata_digest


def _check(details: ObjectDetails, most: int) -> None:
    if details.problem:
        raise BadImageError("bad_key", f"its key cannot be asked for: {details.problem}")
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
    return max(1, min(64, PIXEL_BATCH_BYTES // (input_size * input_size * 3 + 256)))
