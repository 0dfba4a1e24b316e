"""Putting files into a bucket, several at a time, and only those that it does not hold yet."""

import hashlib
import mimetypes
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from minio import Minio
from minio.error import S3Error

from cra.shared.adapters.object_store import call_s3, decode_metadata, encode_metadata
from cra.shared.errors import CraError, UnavailableError

PARALLEL: Final = 8

PART: Final = 16 * 2**20
"""Bytes. Larger files go in parts of this; what is smaller has the MD5 of its content as ETag."""

INTERRUPTED: Final = "interrupted"
"""Why putting has ended early when it was told to."""

PAUSES: Final = (0.2, 0.8, 3.0)
"""Seconds before a file is tried again when the store could not take it."""

SUFFIXES: Final = {
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif",
    ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm",
    ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
"""Files that a folder is searched for; a file that is named by itself is always put. Of all
formats that ingest decodes; written down, because to ask Pillow it would have to be loaded."""


@dataclass(frozen=True)
class Upload:
    """One file and the key it gets."""

    file: Path
    key: str


@dataclass
class Summary:
    """What became of files."""

    put: int = 0
    skipped: int = 0
    """The bucket holds them already."""
    failed: list[tuple[Upload, str]] = field(default_factory=list)
    """Each with what went wrong."""
    left: int = 0
    """Not tried."""
    bytes: int = 0
    """Of what was put."""
    seconds: float = 0.0
    stopped: str = ""
    """Why it ended early; empty if it did not."""


class Held(NamedTuple):
    """An object as the bucket lists it."""

    size: int
    etag: str


def find_uploads(paths: Iterable[Path], prefix: str = "") -> tuple[list[Upload], int]:
    """List the files to put: those named, and the images below the folders named.

    A file below a folder keeps its path from that folder on.

    Returns:
        The files, and how much else the folders hold, other than folders.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path is neither a file nor a folder, or two files would get one key.
    """
    uploads = []
    others = set()
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and file.suffix.lower() in SUFFIXES:
                    uploads.append(Upload(file, prefix + file.relative_to(path).as_posix()))
                elif not file.is_dir() or file.is_symlink():  # nobody looks behind such a link
                    others.add(file)
        elif path.is_file():
            uploads.append(Upload(path, prefix + path.name))
        elif path.exists():
            raise ValueError(f"{path} is {_kind(path)}, and neither a file nor a folder")
        else:
            raise FileNotFoundError(f"{path} does not exist")
    files: dict[str, Path] = {}
    for upload in uploads:
        other = files.setdefault(upload.key, upload.file)
        if other.resolve() != upload.file.resolve():
            raise ValueError(f"{other} and {upload.file} would both become {upload.key}")
    others -= set(files.values())  # named by itself as well
    return [Upload(file, key) for key, file in files.items()], len(others)


def _kind(path: Path) -> str:
    if path.is_fifo():
        return "a FIFO"
    return "a socket" if path.is_socket() else "a device"


def key_problem(key: str) -> str:
    """Return why an object store would not keep a file under this key; empty if it would."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return "its name is no UTF-8, so that it can be no key"
    if "\\" in key:
        return "its name has a backslash, of which the object store would make a slash"
    return ""


def held_objects(
    client: Minio, bucket: str, uploads: Sequence[Upload], stop: threading.Event | None = None
) -> dict[str, Held]:
    """List what a bucket holds where uploads will go, by key: a request for a thousand objects.

    Once `stop` is set the list ends where it is.
    """
    keys = {upload.key for upload in uploads}
    # Character by character: a prefix of keys, not a folder.
    prefix = os.path.commonprefix([min(keys), max(keys)]) if keys else ""  # noqa: RUF071
    listing = client.list_objects(bucket, prefix=prefix or None, recursive=True)
    found = {}
    while (stop is None or not stop.is_set()) and (
        item := call_s3(lambda: next(listing, None))
    ) is not None:
        if item.object_name in keys:
            found[item.object_name] = Held(item.size or 0, (item.etag or "").strip('"'))
    return found


def etag_of(file: Path, size: int) -> str:
    """Return the ETag that a file gets when it is put: its MD5, or that of its parts' MD5s."""
    with file.open("rb") as stream:
        if size <= PART:
            return hashlib.file_digest(stream, "md5").hexdigest()
        digests = b""
        while part := stream.read(PART):
            digests += hashlib.md5(part, usedforsecurity=False).digest()
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(digests) // 16}"


class _LeftError(Exception):
    """A file was not tried, since putting has been stopped."""


class _Putter:
    """Puts one file at a time, for many threads."""

    def __init__(
        self,
        client: Minio,
        bucket: str,
        metadata: dict[str, str],
        held: Mapping[str, Held],
        stop: threading.Event,
    ) -> None:
        self._client, self._bucket, self._held = client, bucket, held
        self._metadata = {name.lower(): value for name, value in metadata.items()}
        self._headers: dict[str, Any] = encode_metadata(metadata)
        self._stop = stop

    def __call__(self, upload: Upload) -> int | None:
        """Put a file unless the bucket holds it; return its bytes, or None if it does.

        Raises:
            CraError: the store does not take it.
            OSError: the file cannot be read.
            ValueError: the SDK does not take the key.
            _LeftError: putting has been stopped.
        """
        if self._stop.is_set():
            raise _LeftError
        size = upload.file.stat().st_size
        if self._is_held(upload, size):
            return None
        for pause in PAUSES:
            try:
                return self._put(upload)
            except UnavailableError as error:
                if not _may_pass(error) or self._stop.wait(pause):
                    raise
        return self._put(upload)

    def _put(self, upload: Upload) -> int:
        content_type = mimetypes.guess_type(upload.file)[0] or "application/octet-stream"
        with upload.file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            call_s3(
                lambda: self._client.put_object(
                    self._bucket, upload.key, stream, size, content_type, self._headers,
                    part_size=PART,
                )
            )  # fmt: skip
        return size

    def _is_held(self, upload: Upload, size: int) -> bool:
        held = self._held.get(upload.key)
        if held is None or held.size != size or held.etag != etag_of(upload.file, size):
            return False
        if not self._metadata:
            return True
        # No listing tells the metadata.
        there = call_s3(lambda: self._client.stat_object(self._bucket, upload.key), gone=True)
        return there is not None and decode_metadata(there.metadata) == self._metadata


def put_all(
    client: Minio,
    bucket: str,
    uploads: Sequence[Upload],
    metadata: dict[str, str],
    progress: Callable[[Summary], None],
    *,
    parallel: int = PARALLEL,
    force: bool = False,
    stop: threading.Event | None = None,
) -> Summary:
    """Put files into a bucket, `parallel` at a time; those that it holds already are skipped.

    An object counts as held if size and ETag are the file's, and with metadata also those. `stop`,
    or a store that answers nothing any more, lets what is under way end and leaves the rest.

    Args:
        client: of the object store.
        bucket: exists.
        uploads: files and their keys.
        metadata: user metadata of every object.
        progress: called after each file.
        parallel: threads.
        force: put what is held, too.
        stop: ends it once it is set; it is set as well where this ends early by itself.

    Raises:
        PermissionDeniedError: the store denies it, so that every other file would fail as well.
    """
    began = time.monotonic()
    stop = stop or threading.Event()
    problems = {one: key_problem(one.key) for one in uploads}
    failed = [(one, problem) for one, problem in problems.items() if problem]
    uploads = [one for one, problem in problems.items() if not problem]
    held = {} if force else held_objects(client, bucket, uploads, stop)
    put = _Putter(client, bucket, metadata, held, stop)
    summary = Summary(failed=failed, left=len(uploads))
    silent = 0
    with ThreadPoolExecutor(parallel) as pool:
        running = {pool.submit(put, one): one for one in uploads}
        try:
            for future in as_completed(running):
                try:
                    problem, answered = _result(future, summary)
                except _LeftError:
                    continue
                summary.left -= 1
                if problem:
                    summary.failed.append((running[future], problem))
                silent = 0 if answered else silent + 1
                progress(summary)
                if silent > parallel and not stop.is_set():
                    summary.stopped = problem
                    stop.set()
        except BaseException:
            stop.set()  # so that no file is begun while the pool ends
            raise
    if stop.is_set():
        summary.stopped = summary.stopped or INTERRUPTED
    summary.seconds = time.monotonic() - began
    return summary


def _result(future: Future[int | None], summary: Summary) -> tuple[str, bool]:
    """Count one file; return what went wrong, and whether the store answered."""
    try:
        size = future.result()
    except UnavailableError as error:
        return error.message, isinstance(error.__cause__, S3Error)
    except CraError:
        raise
    except OSError as error:  # of the file; its text would name the file again
        return error.strerror or str(error), True
    except ValueError as error:  # the SDK does not take the key
        return str(error), True
    if size is None:
        summary.skipped += 1
    else:
        summary.put += 1
        summary.bytes += size
    return "", True


def _may_pass(error: UnavailableError) -> bool:
    """Tell whether another try may do: not when the store refuses the request for what it is."""
    cause = error.__cause__
    return not (isinstance(cause, S3Error) and cause.response.status < 500)
