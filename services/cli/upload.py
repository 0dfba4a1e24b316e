"""Putting files into a bucket, several at a time."""

import mimetypes
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minio import Minio

from cra.shared.adapters.object_store import call_s3, encode_metadata
from cra.shared.errors import CraError

PARALLEL: Final = 8

SUFFIXES: Final = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jpeg", ".jpg", ".png", ".tif",
    ".tiff", ".webp",
}  # fmt: skip
"""Files that a folder is searched for; a file that is named by itself is always put."""


@dataclass(frozen=True)
class Upload:
    """One file and the key it gets."""

    file: Path
    key: str


def find_uploads(paths: Iterable[Path], prefix: str = "") -> list[Upload]:
    """List the files to put: those named, and the images below the folders named.

    A file below a folder keeps its path from that folder on.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: two files would get one key.
    """
    uploads = []
    for path in paths:
        if path.is_dir():
            uploads += [
                Upload(file, prefix + file.relative_to(path).as_posix())
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in SUFFIXES and file.is_file()
            ]
        elif path.is_file():
            uploads.append(Upload(path, prefix + path.name))
        else:
            raise FileNotFoundError(f"{path} does not exist")
    files: dict[str, Path] = {}
    for upload in uploads:
        other = files.setdefault(upload.key, upload.file)
        if other.resolve() != upload.file.resolve():
            raise ValueError(f"{other} and {upload.file} would both become {upload.key}")
    return [Upload(file, key) for key, file in files.items()]


def put_all(
    client: Minio,
    bucket: str,
    uploads: Iterable[Upload],
    metadata: dict[str, str],
    progress: Callable[[Upload], None],
) -> list[tuple[Upload, str]]:
    """Put files into a bucket, `PARALLEL` at a time.

    Returns:
        the files that could not be put, each with what went wrong.
    """
    headers: dict[str, Any] = encode_metadata(metadata)
    problems = []

    def put(upload: Upload) -> None:
        content_type = mimetypes.guess_type(upload.file)[0] or "application/octet-stream"
        with upload.file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            call_s3(
                lambda: client.put_object(bucket, upload.key, stream, size, content_type, headers)
            )

    with ThreadPoolExecutor(PARALLEL) as pool:
        running = {pool.submit(put, upload): upload for upload in uploads}
        for future in as_completed(running):
            try:
                future.result()
            except CraError as error:
                problems.append((running[future], error.message))
            except OSError as error:  # of the file; its text would name the file again
                problems.append((running[future], error.strerror or str(error)))
            except ValueError as error:  # the SDK does not take the key
                problems.append((running[future], str(error)))
            progress(running[future])
    return problems
