"""What the services need from outside, as contracts; `adapters` fulfils them.

Every method raises UnavailableError while the part behind it does not answer: "down" must never
look like "nothing there".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cra.shared.domain import (
    ImageRecord,
    IndexedImage,
    IndexEntry,
    ObjectDetails,
    ObjectRef,
    ScoredImage,
    SearchFilter,
    StoredObject,
    Vector,
)
from cra.shared.releases import Choice, Manifest, Pointer, PublishedRelease, Release


class ObjectStore(Protocol):
    """Buckets of objects: the truth that the index follows."""

    def list(self, bucket: str, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object of a bucket whose key begins with `prefix`.

        Raises:
            NotFoundError: there is no such bucket.
        """
        ...

    def look(self, ref: ObjectRef) -> ObjectDetails | None:
        """Return the object as it is now, or None if there is none."""
        ...

    def fetch(
        self, ref: ObjectRef, check: Callable[[ObjectDetails], None] = lambda _: None
    ) -> tuple[ObjectDetails, bytes] | None:
        """Return the object as it is now with its content, or None if there is none.

        Args:
            ref: the object.
            check: sees the details before the content is loaded; what it raises ends that. An
                object with a `problem` has no content.
        """
        ...

    def signed_url(self, ref: ObjectRef) -> str:
        """Return a URL for GET, valid for a limited time, at the public endpoint."""
        ...

    def check(self) -> None:
        """Return if the store answers; raise UnavailableError otherwise."""
        ...


class VectorStore(Protocol):
    """Collections of image vectors, each named by the fingerprint of its image tower."""

    def ensure_collection(self, image_tower: str, dimension: int) -> None:
        """Create the collection of an image tower unless it is there, and load it."""
        ...

    def dimension(self, image_tower: str) -> int | None:
        """Return the length of a collection's vectors; None if there is no such collection."""
        ...

    def upsert(self, image_tower: str, images: Sequence[IndexedImage]) -> None:
        """Write images; one that is there is replaced. Idempotent."""
        ...

    def delete(self, image_tower: str, refs: Sequence[ObjectRef]) -> None:
        """Remove images; one that is not there is no error. Idempotent."""
        ...

    def search(
        self,
        image_tower: str,
        vector: Vector,
        limit: int,
        where: SearchFilter,
        *,
        with_vectors: bool = False,
    ) -> list[ScoredImage]:
        """Return up to `limit` images by falling cosine, then image_id; may lag by a second.

        Args:
            image_tower: its collection is searched.
            vector: of the query.
            limit: how many are returned at most.
            where: what they have to fulfil.
            with_vectors: return their vectors too, which takes longer.

        Raises:
            FailedPreconditionError: the image tower has no collection.
        """
        ...

    def fetch(self, image_tower: str, refs: Sequence[ObjectRef]) -> list[IndexedImage]:
        """Return those of the images that are there, with their vectors; may lag by a second.

        Raises:
            FailedPreconditionError: the image tower has no collection.
        """
        ...

    def sample(
        self, image_tower: str, most: int, scope: Sequence[str] = ()
    ) -> npt.NDArray[np.float32]:
        """Return vectors of a random part of a collection, float32 of shape [n, dimension].

        All of them if they are at most `most`, else more than a third of `most` and hardly ever
        more than it. Which images belong to it depends on their names and on how many there are
        alone, so that it is the same for all who ask, and loses none while the collection grows
        until it has doubled. May lag by a second.

        Args:
            image_tower: whose collection it is.
            most: how many are wanted.
            scope: buckets that they are drawn from; all if empty.

        Raises:
            FailedPreconditionError: the image tower has no collection.
        """
        ...

    def count(self, image_tower: str) -> int:
        """Return how many images a collection holds, every finished write included.

        Raises:
            FailedPreconditionError: the image tower has no collection.
        """
        ...

    def records(self, image_tower: str, refs: Sequence[ObjectRef]) -> list[ImageRecord]:
        """Return the records of those that are there, every finished write included."""
        ...

    def entries(self, image_tower: str) -> Iterator[IndexEntry]:
        """Yield what is in the collection, every finished write included."""
        ...

    def images(self, image_tower: str) -> Iterator[IndexedImage]:
        """Yield what is in the collection with its vectors, a part at a time.

        Every write that was finished before is included; what is written meanwhile may be.

        Raises:
            FailedPreconditionError: the image tower has no collection.
        """
        ...


class ReleaseStore(Protocol):
    """Published releases, and the pointer that says which one is active."""

    def list(self) -> list[PublishedRelease]:
        """Return what is published as a whole, the newest first.

        Raises:
            NotFoundError: nothing was ever published: there is no bucket.
        """
        ...

    def manifest(self, name: str) -> Manifest:
        """Return a release's manifest.

        Raises:
            NotFoundError: there is no such release.
            FailedPreconditionError: it is torn or tampered with.
        """
        ...

    def fetch(self, name: str, parent: Path) -> Release:
        """Copy a release into `parent`/`name`, checked; one that is there whole is taken as it is.

        Raises:
            NotFoundError: there is no such release.
            FailedPreconditionError: it is torn, tampered with or under another's name.
        """
        ...

    def publish(self, folder: Path) -> Release:
        """Copy a release from a folder into the store, once it was found whole. Idempotent.

        Raises:
            FailedPreconditionError: it is not whole, or another one has its name.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a release from the store.

        Raises:
            NotFoundError: there is no such release.
            FailedPreconditionError: it is active, or a rollback would go back to it.
            AbortedError: somebody has just chosen it; it is still there.
        """
        ...

    def pointer(self) -> Pointer:
        """Return the pointer; version 0 if nobody has ever set it.

        Raises:
            NotFoundError: there is no bucket.
            FailedPreconditionError: it is unreadable.
        """
        ...

    def activate(self, release: str, image_tower: str) -> Pointer:
        """Make a release the active one, or the model's own text tower if it is empty.

        Raises:
            AbortedError: somebody else has changed the pointer meanwhile.
            FailedPreconditionError: the pointer that is there is unreadable.
        """
        ...

    def rollback(self) -> Pointer:
        """Go back to what was active before.

        Raises:
            AbortedError: somebody else has changed the pointer meanwhile.
            FailedPreconditionError: nothing was active before.
        """
        ...


class Priority(Enum):
    """Whether images are encoded at once, or when nothing else is to be computed."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True)
class EncodeTiming:
    """Seconds."""

    queue: float = 0.0
    encode: float = 0.0


@dataclass(frozen=True)
class EncodedTexts:
    """Unit vectors of texts, and what made them."""

    vectors: list[Vector]
    truncated: list[bool]
    text_release: str
    image_tower: str
    timing: EncodeTiming


@dataclass(frozen=True)
class ImageProblem:
    """Why one image has no vector."""

    reason: str
    message: str


@dataclass(frozen=True)
class EncodedImages:
    """A unit vector or a problem for each image, and the tower that made them."""

    results: list[Vector | ImageProblem]
    image_tower: str
    text_release: str
    timing: EncodeTiming


@dataclass(frozen=True)
class ImageTowerInfo:
    """The image tower that is served."""

    name: str
    fingerprint: str
    dimension: int
    input_size: int
    preprocessing: str
    """Fingerprint of how pixels are prepared."""


class ReleaseState(Enum):
    """How far an encoder is with a release."""

    LOADED = "loaded"
    LOADING = "loading"
    UNLOADED = "unloaded"
    """More are published than may be loaded side by side."""
    REFUSED = "refused"


@dataclass(frozen=True)
class TextReleaseInfo:
    """A text release that an encoder knows."""

    name: str
    active: bool
    normalizer: str
    image_tower: str
    state: ReleaseState = ReleaseState.LOADED
    problem: str = ""
    """Why it was refused."""


@dataclass(frozen=True)
class Models:
    """What an encoder serves."""

    image_tower: ImageTowerInfo
    releases: list[TextReleaseInfo]
    runtime: str
    device: str
    precision: str
    base_release: str = ""
    """The model's own text tower."""
    pointer_version: int = 0
    """Version of the pointer that is followed."""
    releases_problem: str = ""
    """Why the newest pointer, or the bucket of releases, is not followed."""
    newest_choice: Choice | None = None
    """What the newest pointer says, which may be for another image tower; None: it was not read."""

    def release(self, name: str) -> TextReleaseInfo | None:
        """Return what is known of a release, None if nothing is."""
        return next((one for one in self.releases if one.name == name), None)

    @property
    def active_release(self) -> TextReleaseInfo:
        """The release that answers when none is named."""
        return next(release for release in self.releases if release.active)


class Encoder(Protocol):
    """The two towers."""

    def embed_texts(
        self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        """Encode 1 to 256 texts; `timeout` in seconds.

        Raises:
            InvalidArgumentError: a text is empty or too long.
            NotFoundError: there is no such release.
            FailedPreconditionError: the release is refused or not loaded.
            ResourceExhaustedError: the encoder has too much to do.
        """
        ...

    def embed_encoded_images(
        self, images: Sequence[bytes], priority: Priority, timeout: float | None = None
    ) -> EncodedImages:
        """Decode and encode 1 to 64 images."""
        ...

    def embed_pixels(
        self,
        pixels: Sequence[bytes],
        preprocessing: str,
        priority: Priority,
        timeout: float | None = None,
    ) -> EncodedImages:
        """Encode 1 to 64 prepared images: uint8 RGB, row by row, at the tower's input size.

        Raises:
            FailedPreconditionError: they were prepared for another image tower.
        """
        ...

    def models(self) -> Models:
        """Say what is served."""
        ...
