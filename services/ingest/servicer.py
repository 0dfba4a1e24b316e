"""The ingest service's calls."""

import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import grpc
from google.protobuf import timestamp_pb2

from cra.ingest.v1 import ingest_pb2 as pb
from cra.ingest.v1 import ingest_pb2_grpc as pb_grpc
from cra.services.ingest import tasks
from cra.services.ingest.ledger import Failure, Ledger
from cra.services.ingest.reconcile import Reconciler, Status, Summary
from cra.shared import rpc
from cra.shared.domain import ObjectRef
from cra.shared.errors import InvalidArgumentError

SERVICE: Final = "cra.ingest.v1.IngestService"
CHANGING: Final = tuple(
    f"/{SERVICE}/{method}" for method in ("RetryFailures", "SyncObjects", "Reconcile")
)
"""Methods that need service credentials."""

MAX_IDS: Final = 1000
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
STATUS_LASTS: Final = 5.0
"""Seconds; counting lists every object."""


class IngestServicer(pb_grpc.IngestServiceServicer):
    """See proto/cra/ingest/v1."""

    def __init__(
        self,
        ledger: Ledger,
        reconciler: Reconciler,
        buckets: tuple[str, ...],
        wake: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._reconciler = reconciler
        self._buckets = buckets
        self._wake = wake
        self._counting = threading.Lock()
        self._status: Status | None = None

    def count(self, age: float = STATUS_LASTS) -> Status:
        """Return how far the index follows the buckets; counted at most `age` seconds ago."""
        oldest = time.time() - age
        with self._counting:
            if self._status is None or self._status.as_of < oldest:
                rpc.check_caller()
                # For whoever asks next, too: who hangs up or has little time ends it for nobody.
                self._status = contextvars.Context().run(self._reconciler.status)
            return self._status

    def last_count(self) -> Status | None:
        """Return what `count` last counted, however long ago; None if it never has."""
        return self._status

    def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.ServicerContext
    ) -> pb.GetStatusResponse:
        status = self.count(0.0 if request.refresh else STATUS_LASTS)
        return pb.GetStatusResponse(
            objects=status.objects,
            indexed=status.indexed,
            waiting=status.waiting,
            failed=status.failed,
            unaccounted=status.unaccounted,
            stale=status.stale,
            orphaned=status.orphaned,
            rate=status.rate,
            last_reconcile=_summary(status.last_reconcile) if status.last_reconcile else None,
            as_of=_timestamp(status.as_of),
            image_tower=status.image_tower,
            down=status.down,
        )

    def ListFailures(
        self, request: pb.ListFailuresRequest, context: grpc.ServicerContext
    ) -> pb.ListFailuresResponse:
        size = request.page_size or DEFAULT_PAGE
        if not 1 <= size <= MAX_PAGE:
            raise InvalidArgumentError("page_size", f"is {size}; 1 to {MAX_PAGE} are allowed")
        # The token is the last image_id of the page before: the list is ordered by it.
        if request.page_token:
            ObjectRef.parse(request.page_token, "page_token")
        rest = [f for f in self._ledger.failures() if f.ref.image_id > request.page_token]
        if request.image_ids:
            _check_count(len(request.image_ids))
            named = set(_refs(request.image_ids))
            rest = [failure for failure in rest if failure.ref in named]
        page = rest[:size]
        return pb.ListFailuresResponse(
            failures=[_failure(failure) for failure in page],
            next_page_token=page[-1].ref.image_id if len(rest) > size else "",
        )

    def RetryFailures(
        self, request: pb.RetryFailuresRequest, context: grpc.ServicerContext
    ) -> pb.RetryFailuresResponse:
        if request.all and request.image_ids:
            raise InvalidArgumentError("image_ids", "must be empty with all")
        if not request.all:
            _check_count(len(request.image_ids))
        refs = None if request.all else _refs(request.image_ids)
        count, unknown = tasks.retry(self._ledger, refs)
        self._wake()
        return pb.RetryFailuresResponse(retried=count, unknown=[ref.image_id for ref in unknown])

    def SyncObjects(
        self, request: pb.SyncObjectsRequest, context: grpc.ServicerContext
    ) -> pb.SyncObjectsResponse:
        _check_count(len(request.image_ids))
        named = _refs(request.image_ids)
        for number, ref in enumerate(named):
            if ref.key.endswith("/"):
                raise InvalidArgumentError(f"image_ids[{number}]", "names a folder, not an object")
            if ref.bucket not in self._buckets:
                raise InvalidArgumentError(
                    f"image_ids[{number}]",
                    f"bucket {ref.bucket!r} is not indexed; these are: {', '.join(self._buckets)}",
                )
        refs = dict.fromkeys(named)
        self._ledger.add(refs, changed=True)
        self._wake()
        return pb.SyncObjectsResponse(accepted=len(refs))

    def Reconcile(
        self, request: pb.ReconcileRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReconcileResponse]:
        for summary in self._reconciler.reconcile(
            dry_run=request.dry_run, allow_mass_deletion=request.allow_mass_deletion
        ):
            yield pb.ReconcileResponse(summary=_summary(summary), done=summary.finished_at > 0)


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_IDS:
        raise InvalidArgumentError("image_ids", f"has {count} entries; 1 to {MAX_IDS} are allowed")


def _refs(image_ids: Iterable[str]) -> list[ObjectRef]:
    return [
        ObjectRef.parse(image_id, f"image_ids[{number}]")
        for number, image_id in enumerate(image_ids)
    ]


def _failure(failure: Failure) -> pb.Failure:
    return pb.Failure(
        image_id=failure.ref.image_id,
        reason=failure.reason,
        message=failure.message,
        etag=failure.version.etag,
        attempts=failure.attempts,
        failed_at=_timestamp(failure.failed_at),
    )


def _summary(summary: Summary) -> pb.ReconcileSummary:
    return pb.ReconcileSummary(
        started_at=_timestamp(summary.started_at),
        finished_at=_timestamp(summary.finished_at) if summary.finished_at else None,
        objects=summary.objects,
        missing=summary.missing,
        stale=summary.stale,
        orphaned=summary.orphaned,
        stopped=summary.stopped,
    )


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMilliseconds(round(seconds * 1000))
    return stamp
