"""The demo's pictures in the bucket: put, deleted and overwritten through the S3 API."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
from minio import Minio

from cra.ingest.v1 import ingest_pb2 as pb
from cra.ingest.v1 import ingest_pb2_grpc as pb_grpc
from cra.services.training.buildings.dataset import Picture
from cra.shared import rpc
from cra.shared.adapters.object_store import connect, encode_metadata
from cra.shared.client import SearchClient
from cra.shared.errors import CraError, NotFoundError
from cra.shared.settings import Settings
from deploy.local.environment import StackError

PREFIX: Final = "demo/"
"""What the demo's keys begin with, in a bucket that may hold others."""

_INGEST: Final = "cra.ingest.v1.IngestService"
_UPLOADS_AT_ONCE: Final = 8
_STALL_SECONDS: Final = 90.0
_FOLLOW_SECONDS: Final = 60.0


class Gallery:
    """Which picture lies under which key of the bucket."""

    def __init__(self, settings: Settings) -> None:
        self.bucket: Final = settings.buckets[0]
        self.pictures: dict[str, Picture] = {}
        self._store: Minio = connect(settings)
        self._channel = rpc.open_channel(settings.ingest_target, _INGEST, tls=settings.client_tls)
        self._ingest = pb_grpc.IngestServiceStub(self._channel)
        self._failed_before = self.status().failed

    def image_id(self, key: str) -> str:
        """Return the id that the index gives to a key."""
        return f"{self.bucket}/{key}"

    def put(self, items: Iterable[tuple[str, Picture]], done: Callable[[], None]) -> None:
        """Put pictures under keys, several at a time, each with two captions as metadata."""

        def one(item: tuple[str, Picture]) -> None:
            key, picture = item
            captions = {
                "caption": picture.plain[0] if picture.plain else "",
                "professional": picture.professional[0] if picture.professional else "",
            }
            metadata: dict[str, Any] = encode_metadata(captions)
            self._store.fput_object(self.bucket, key, str(picture.file), "image/jpeg", metadata)
            self.pictures[key] = picture
            done()

        with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
            for _ in pool.map(one, items):
                pass

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects."""
        for key in keys:
            self._store.remove_object(self.bucket, key)
            self.pictures.pop(key, None)

    def status(self) -> pb.GetStatusResponse:
        """Count objects and vectors now."""
        return self._ingest.GetStatus(pb.GetStatusRequest(refresh=True), timeout=60)

    def wait_indexed(self, show: Callable[[pb.GetStatusResponse], None]) -> pb.GetStatusResponse:
        """Wait until every object is indexed at its current version.

        Raises:
            StackError: an object failed, or nothing moved for a while.
        """
        best, moved = -1, time.monotonic()
        while True:
            try:
                status = self.status()
            except grpc.RpcError as error:
                raise StackError(f"GetStatus: {error}") from error
            show(status)
            left = status.waiting + status.unaccounted + status.stale + status.orphaned
            failed = status.failed - self._failed_before
            if failed == 0 and left == 0 and status.indexed + status.failed == status.objects:
                return status
            progress = status.indexed - status.orphaned - status.stale
            if progress > best:
                best, moved = progress, time.monotonic()
            stalled = time.monotonic() - moved > _STALL_SECONDS
            if stalled or (failed > 0 and left == 0):
                raise StackError(f"not all is indexed:\n{status}{self._failures()}")
            time.sleep(1)

    def _failures(self) -> str:
        answer = self._ingest.ListFailures(pb.ListFailuresRequest(page_size=10), timeout=10)
        return "\n".join(f"{f.image_id}: {f.reason}: {f.message}" for f in answer.failures)

    def close(self) -> None:
        """Close the connection to the ingest service."""
        self._channel.close()


def is_gone(client: SearchClient, image_id: str) -> bool:
    """Tell whether the index no longer knows an image."""
    try:
        client.search(image_id=image_id, top_k=1)
    except NotFoundError:
        return True
    return False


def finds_itself(client: SearchClient, image_id: str, file: Path) -> bool:
    """Tell whether a search by a picture returns its own image first."""
    hits = client.search(image=file.read_bytes(), top_k=1).hits
    return bool(hits) and hits[0].image_id == image_id and hits[0].score > 0.99


def follows(conditions: Iterable[Callable[[], bool]]) -> tuple[int, float]:
    """Wait until conditions hold, at most a minute in all.

    Returns:
        how many of them do not hold, and the seconds until the rest did.
    """
    began = time.monotonic()
    left = list(conditions)
    while left and time.monotonic() - began < _FOLLOW_SECONDS:
        left = [condition for condition in left if not _holds(condition)]
        if left:
            time.sleep(0.2)
    return len(left), time.monotonic() - began


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except CraError:
        return False
