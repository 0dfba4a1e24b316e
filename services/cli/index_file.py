"""The file of `cra index save`: gzip of JSON lines, a header, a line for each image, an end.

    {"format": "cra-index", "version": 1, "image_tower": …, "dimension": …, "saved_at": …}
    {"bucket": …, "key": …, "etag": …, …, "vector": base64 of little-endian float32}
    {"images": how many, "sha256": of all bytes before this line}

Every language and `zcat` read it, the vectors come back to the bit, and it is written and read in
one go with one image in memory. The last line tells a file that is whole from one that is not.
"""

import base64
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import IO, Annotated, Final, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, Version
from cra.shared.errors import FailedPreconditionError

VERSION: Final = 1
LONGEST_LINE: Final = 4 * 2**20
"""Bytes; an image with all the metadata and dimensions there may be has less than a quarter."""
LEVEL: Final = 1
"""Of gzip: vectors hardly get smaller by more, which takes several times as long."""

Row = TypeVar("Row", bound=BaseModel)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Header(_Line):
    """What a file holds."""

    format: Literal["cra-index"] = "cra-index"
    version: Literal[1] = VERSION
    image_tower: Annotated[str, Field(pattern="^[0-9a-f]+$")]
    """Fingerprint of the tower that made the vectors."""
    dimension: Annotated[int, Field(gt=0, le=2**15)]
    saved_at: datetime


class _Image(_Line):
    bucket: str
    key: str
    etag: str
    modified_at: int
    metadata_digest: str
    metadata: dict[str, str]
    width: int
    height: int
    ingested_at: float
    vector: str


class _End(_Line):
    images: int
    sha256: str


def write(raw: IO[bytes], header: Header, images: Iterable[IndexedImage]) -> int:
    """Write a file; return how many images are in it."""
    digest, count = hashlib.sha256(), 0
    with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw) as file:

        def put(line: BaseModel) -> None:
            content = line.model_dump_json().encode() + b"\n"
            digest.update(content)
            file.write(content)

        put(header)
        for count, image in enumerate(images, 1):  # noqa: B007
            put(_line_of(image))
        put(_End(images=count, sha256=digest.hexdigest()))
    return count


def read_header(raw: IO[bytes]) -> Header:
    """Return the first line.

    Raises:
        FailedPreconditionError: this is no file of ours, or of a version that we do not know.
    """
    return _parsed(Header, next(_lines(raw), b""), "its first line")


def read(raw: IO[bytes]) -> Iterator[IndexedImage]:
    """Yield the images, then check that the file is whole.

    Raises:
        FailedPreconditionError: it is not; what was yielded before may be wrong.
    """
    dimension = read_header(raw).dimension
    lines, digest, count = _lines(raw), hashlib.sha256(), 0
    digest.update(next(lines))
    last = next(lines, b"")
    for line in lines:
        digest.update(last)
        count += 1
        what = f"line {count + 1}"
        yield _image_of(_parsed(_Image, last, what), dimension, what)
        last = line
    end = _parsed(_End, last, "its last line")
    if (end.images, end.sha256) != (count, digest.hexdigest()):
        raise FailedPreconditionError("it was changed: its checksum does not fit")


def _lines(raw: IO[bytes]) -> Iterator[bytes]:
    raw.seek(0)
    try:
        with gzip.GzipFile(mode="rb", fileobj=raw) as file:
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n"):
                    raise FailedPreconditionError("it is torn, or has a line that is too long")
                yield line
    except EOFError as error:
        raise FailedPreconditionError("it is torn: it ends in the middle") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FailedPreconditionError(f"it is damaged, or no file of ours: {error}") from error


def _parsed(kind: type[Row], line: bytes, what: str) -> Row:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FailedPreconditionError(
            f"{what} is not as `cra index save` writes it in version {VERSION}: "
            f"{where + ': ' if where else ''}{first['msg']}"
        ) from error


def _line_of(image: IndexedImage) -> _Image:
    record = image.record
    return _Image(
        bucket=record.ref.bucket,
        key=record.ref.key,
        etag=record.version.etag,
        modified_at=record.version.modified_at,
        metadata_digest=record.metadata_digest,
        metadata=dict(record.metadata),
        width=record.width,
        height=record.height,
        ingested_at=record.ingested_at,
        vector=base64.b64encode(image.vector.astype("<f4").tobytes()).decode(),
    )


def _image_of(line: _Image, dimension: int, what: str) -> IndexedImage:
    try:
        content = base64.b64decode(line.vector, validate=True)
        vector = np.frombuffer(content, "<f4").astype(np.float32)
    except ValueError as error:
        raise FailedPreconditionError(f"{what} has no vector: {error}") from error
    if len(vector) != dimension or not np.isfinite(vector).all():
        raise FailedPreconditionError(f"{what} has no vector of {dimension} finite numbers")
    record = ImageRecord(
        ref=ObjectRef(line.bucket, line.key),
        version=Version(line.etag, line.modified_at),
        metadata_digest=line.metadata_digest,
        metadata=line.metadata,
        width=line.width,
        height=line.height,
        ingested_at=line.ingested_at,
    )
    return IndexedImage(record, vector)
