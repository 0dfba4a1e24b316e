"""Pictures small enough to look at many: made once, and kept in a folder of bounded size."""

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import structlog

from cra.services.web import metrics
from cra.shared import tracing
from cra.shared.domain import ObjectDetails, ObjectRef
from cra.shared.errors import FailedPreconditionError, NotFoundError
from cra.shared.model.pixels import BadImageError
from cra.shared.ports import ObjectStore
from cra.shared.thumbnails import render

BOXES: Final = {"thumbnail": (1152, 384), "view": (1920, 1600)}
"""By kind, the width and height in pixels that a picture is brought down to, never up."""

_log = structlog.get_logger()


class Thumbnails:
    """Renders objects, each version once however many ask for it at a time.

    Args:
        objects: where they are.
        folder: where what was rendered is kept, by one process; made if missing.
        most: bytes in it, from which on the files that were asked for longest ago go.
        max_object_bytes: of an object that is fetched.

    Raises:
        FailedPreconditionError: the folder cannot be written.
    """

    def __init__(
        self, objects: ObjectStore, folder: Path, most: int, max_object_bytes: int
    ) -> None:
        self._objects = objects
        self._folder = folder
        self._most = most
        self._max_object_bytes = max_object_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Bytes of each file, that asked for longest ago first."""
        self._total = 0
        self._under_way: dict[str, Future[bytes]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_stock()
        except OSError as error:
            raise FailedPreconditionError(
                f"CRA_WEB_THUMBNAILS: {folder}: {error.strerror}"
            ) from error

    def get(self, kind: str, ref: ObjectRef, etag: str) -> bytes:
        """Return a picture of an object as WebP; blocks.

        Args:
            kind: one of `BOXES`.
            ref: the object.
            etag: its version.

        Raises:
            NotFoundError: there is no such version, or it is no picture.
            UnavailableError: the object store does not answer.
        """
        whole = "\0".join((kind, ref.bucket, ref.key, etag))
        name = hashlib.sha256(whole.encode()).hexdigest()
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
            other = self._under_way.get(name)
            mine: Future[bytes] = Future()
            if other is None:
                self._under_way[name] = mine
        if other is not None:
            metrics.KEPT.inc()
            return other.result()
        try:
            picture = self._kept(name)
            if picture is None:
                metrics.MADE.inc()
                with metrics.MAKING_SECONDS.time(), tracing.span("make small"):
                    picture = self._render(kind, ref, etag)
                self._keep(name, picture)
            else:
                metrics.KEPT.inc()
            mine.set_result(picture)
            return picture
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._under_way[name]

    def _render(self, kind: str, ref: ObjectRef, etag: str) -> bytes:
        def check(details: ObjectDetails) -> None:
            if details.version.etag != etag:
                raise NotFoundError(f"{ref.image_id} has changed since: search again")
            if details.size > self._max_object_bytes:
                raise NotFoundError(f"{ref.image_id} is too large to be shown")

        found = self._objects.fetch(ref, check)
        if found is None:
            raise NotFoundError(f"{ref.image_id} is gone since: search again")
        try:
            return render(found[1], BOXES[kind])
        except BadImageError as error:
            raise NotFoundError(f"{ref.image_id} cannot be shown: {error.message}") from error

    def _kept(self, name: str) -> bytes | None:
        if name not in self._sizes:
            return None
        file = self._folder / name
        try:
            picture = file.read_bytes()
            os.utime(file)  # so that the order outlives this process
        except OSError:
            return None
        return picture

    def _keep(self, name: str, picture: bytes) -> None:
        """Write a file in one step and make room for it; a full disk keeps nobody from looking."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(picture)
            Path(file.name).replace(self._folder / name)
        except OSError as error:
            _log.warning("a thumbnail is not kept", problem=str(error))
            return
        with self._lock:
            self._total += len(picture) - self._sizes.pop(name, 0)
            self._sizes[name] = len(picture)
            while self._total > self._most and len(self._sizes) > 1:
                oldest, size = self._sizes.popitem(last=False)
                self._total -= size
                (self._folder / oldest).unlink(missing_ok=True)
            metrics.THUMBNAILS_BYTES.set(self._total)

    def _take_stock(self) -> None:
        found = []
        for file in self._folder.iterdir():
            if len(file.name) == 64:
                stat = file.stat()
                found.append((stat.st_mtime_ns, file.name, stat.st_size))
            elif file.name.startswith("tmp"):  # of a process that was killed
                file.unlink(missing_ok=True)
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._total += size
        metrics.THUMBNAILS_BYTES.set(self._total)
