"""Putting pictures that people give the page into the bucket."""

import asyncio
import hashlib
import mimetypes
import re
import tempfile
import unicodedata
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, Final, cast

from minio import Minio
from starlette.concurrency import run_in_threadpool

from cra.services.web.messages import UploadOut
from cra.shared.adapters.object_store import call_s3, encode_metadata
from cra.shared.errors import DeadlineExceededError, InvalidArgumentError

AT_ONCE: Final = 4
"""Uploads that are taken at a time; more wait."""

STALLS: Final = 30.0
"""Seconds without a byte after which an upload is given up: it keeps others from theirs."""

IN_MEMORY: Final = 2**20
"""Bytes of one upload; what is larger goes into a file that has no name."""

MAX_NAME: Final = 500
MAX_FOLDER: Final = 200
MAX_CAPTION: Final = 500
"""Characters. A caption is a header, percent-encoded, and a store takes 8 KiB of those."""

MAX_SEGMENT: Final = 180
"""Bytes of UTF-8 that a part of a key keeps: stores have them as names of files."""


class TooLargeError(InvalidArgumentError):
    """An upload has more bytes than an object may have."""


class Uploads:
    """Puts pictures into a bucket, each under a key that no other picture has.

    Args:
        client: of the object store.
        bucket: where they go.
        max_bytes: of one.
        stalls: seconds without a byte after which one is given up.
    """

    def __init__(self, client: Minio, bucket: str, max_bytes: int, stalls: float = STALLS) -> None:
        self._client = client
        self._bucket = bucket
        self._max_bytes = max_bytes
        self._stalls = stalls
        self._room = asyncio.Semaphore(AT_ONCE)

    def check_size(self, size: int) -> None:
        """Raise TooLargeError if an object may not have so many bytes."""
        if size > self._max_bytes:
            raise TooLargeError("body", f"a picture has at most {self._max_bytes} bytes")

    async def put(
        self, content: AsyncIterator[bytes], name: str, folder: str, caption: str
    ) -> UploadOut:
        """Put one picture; the same picture by the same name twice is one object.

        Args:
            content: in pieces; read to its end before anything is put.
            name: of the file, as its owner calls it.
            folder: where in the bucket, such as `uploads/2024`.
            caption: becomes the metadata `caption`, if not empty.

        Raises:
            TooLargeError: it has too many bytes; no more of it are read then.
            InvalidArgumentError: it has none, or a name is too long.
            DeadlineExceededError: it stopped coming.
        """
        for field, value, most in (
            ("name", name, MAX_NAME),
            ("folder", folder, MAX_FOLDER),
            ("caption", caption, MAX_CAPTION),
        ):
            if len(value) > most:
                raise InvalidArgumentError(
                    field, f"has {len(value)} characters; at most {most} are allowed"
                )
        async with self._room:
            digest, size = hashlib.sha256(), 0
            with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool:
                async for piece in self._flowing(content):
                    size += len(piece)
                    self.check_size(size)
                    digest.update(piece)
                    spool.write(piece)
                if not size:
                    raise InvalidArgumentError("body", "is empty; send the picture's bytes")
                spool.seek(0)
                key = key_of(name, folder, digest.hexdigest())
                metadata: dict[str, Any] = encode_metadata({"caption": caption} if caption else {})
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                result = await run_in_threadpool(
                    call_s3,
                    lambda: self._client.put_object(
                        self._bucket, key, cast(BinaryIO, spool), size, kind, metadata
                    ),
                )
        return UploadOut(image_id=f"{self._bucket}/{key}", etag=result.etag.strip('"'))

    async def _flowing(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._stalls):
                    piece = await anext(content, None)
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"no byte of the picture came for {self._stalls:g} s: put it again"
                ) from error
            if piece is None:
                return
            yield piece


def key_of(name: str, folder: str, digest: str) -> str:
    """Return the key of an upload: `FOLDER/DIGEST-NAME`, of nothing that a store could misread.

    Letters of any script, digits, `.`, `_`, `-` and parentheses stay; a name loses its path.
    """
    base = _clean(re.split(r"[/\\]", name)[-1]) or "picture"
    stem, dot, suffix = base.rpartition(".")
    base = f"{_cut(stem)}{dot}{suffix[:8]}" if stem else _cut(base)
    folders = [_cut(one) for one in map(_clean, re.split(r"[/\\]", folder)) if one]
    return "/".join([*folders, f"{digest[:12]}-{base}"])


def _clean(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[^\w.()-]+", "-", name).strip(".-")


def _cut(name: str) -> str:
    return name.encode()[:MAX_SEGMENT].decode(errors="ignore")
