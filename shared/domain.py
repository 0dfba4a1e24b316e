"""What the services talk about: objects, image records, filters and ranked hits."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cra.shared.errors import InvalidArgumentError

Vector = npt.NDArray[np.float32]
"""A unit vector, float32 of shape [dimension]."""


def is_finite(vector: Vector) -> bool:
    """Tell whether a vector about as long as the unit holds numbers only."""
    # One product sees every element, and makes nothing on the way.
    return math.isfinite(vector.dot(vector))


@dataclass(frozen=True, order=True)
class ObjectRef:
    """The name of one object in the object store, and so of one image."""

    bucket: str
    key: str

    @property
    def image_id(self) -> str:
        """`bucket/key`, as callers see it."""
        return f"{self.bucket}/{self.key}"

    @property
    def primary_key(self) -> str:
        """Hex SHA-256 of bucket, NUL, key: a primary key that is safe inside any expression."""
        return hashlib.sha256(f"{self.bucket}\0{self.key}".encode()).hexdigest()

    @classmethod
    def parse(cls, image_id: str, field: str = "image_id") -> "ObjectRef":
        """Split `bucket/key` at its first slash.

        Raises:
            InvalidArgumentError: there is no bucket or no key, or the key is over S3's limit.
        """
        bucket, _, key = image_id.partition("/")
        if not bucket or not key:
            raise InvalidArgumentError(field, f"{image_id!r} is not of the form bucket/key")
        try:
            size = len(key.encode())
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(field, f"{image_id!r} is not valid Unicode") from error
        if len(bucket) > 63 or size > 1024:
            raise InvalidArgumentError(
                field, "is too long; a bucket has at most 63 characters, a key 1024 bytes"
            )
        return cls(bucket, key)


@dataclass(frozen=True)
class Version:
    """Which state of an object something was made from."""

    etag: str
    modified_at: int
    """Unix seconds: the resolution that listings and single look-ups have in common."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it."""

    ref: ObjectRef
    version: Version
    size: int
    """Bytes."""


@dataclass(frozen=True)
class ObjectDetails(StoredObject):
    """An object as looked at by itself: its user metadata too."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be asked for, though a listing shows it; empty: it can."""

    @property
    def metadata_digest(self) -> str:
        """16 hex digits that change whenever the metadata does."""
        text = json.dumps(dict(self.metadata), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageRecord:
    """What the index knows of one image, its vector aside."""

    ref: ObjectRef
    version: Version
    metadata_digest: str
    metadata: Mapping[str, str]
    width: int
    height: int
    ingested_at: float
    """Unix seconds."""


@dataclass(frozen=True)
class IndexedImage:
    """An image record and its vector."""

    record: ImageRecord
    vector: Vector


@dataclass(frozen=True)
class ScoredImage:
    """An image record and the cosine of its vector with the query's."""

    record: ImageRecord
    score: float
    vector: Vector | None = field(default=None, compare=False)
    """Its own, where that was asked for."""


@dataclass(frozen=True)
class IndexEntry:
    """The version at which an object is in the index."""

    ref: ObjectRef
    version: Version


@dataclass(frozen=True)
class SearchFilter:
    """Restricts a search; what is set must hold all together."""

    scope: tuple[str, ...] = ()
    """Buckets that the caller may see at all."""
    buckets: tuple[str, ...] = ()
    """Buckets that it asks for."""
    key_prefix: str = ""
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each name, the values of which one must be there."""
    ingested_after: float | None = None
    """Unix seconds, inclusive."""
    ingested_before: float | None = None
    """Unix seconds, exclusive."""
