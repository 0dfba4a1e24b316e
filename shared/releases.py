"""Text releases as folders: a tuned text tower that fits every index of one image tower.

A release is immutable and named by its content. It holds `release.json`, the manifest, with the
checksum of every other file, and `text_tower.safetensors`; no file of it can run code. Which one is
active says a pointer beside them. Free of torch, so that any service may list, check and copy
releases.
"""

import datetime
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cra.shared.errors import FailedPreconditionError

MANIFEST: Final = "release.json"
WEIGHTS: Final = "text_tower.safetensors"
CARD: Final = "README.md"
FORMAT: Final = 1

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[0-9a-f]{8}")
LABEL: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_MANIFEST: Final = 4 * 2**20
"""Bytes."""
MAX_HISTORY: Final = 100
"""Changes of the pointer that can be rolled back."""
Hex = Annotated[str, Field(pattern="^[0-9a-f]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Part):
    """What a file of a release must be."""

    sha256: Annotated[Hex, Field(min_length=64, max_length=64)]
    size: int = Field(ge=0)
    """Bytes."""


class TrainingData(_Part):
    """What a text tower was tuned on."""

    digest: str
    """SHA-256 over images, captions and groups, 16 hex digits."""
    images: int
    pairs: int
    groups: int


class Manifest(_Part):
    """What a release is, and how it came about."""

    format: Literal[1] = FORMAT
    label: str = Field(pattern=LABEL)
    """First part of its name, chosen by people."""
    image_tower: Hex
    """Fingerprint of the image tower whose indexes it searches."""
    dimension: int = Field(ge=1)
    normalizer: str
    added_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Characters that cn_clip's vocabulary lacks; their ids follow its last."""
    config: Mapping[str, Any]
    """Arguments of `cn_clip.clip.model.CLIP` for the text tower: `vocab_size` (added tokens
    included), `embed_dim` and all that begin with `text_`."""
    temperature: float = Field(gt=0)
    """What cosines are divided by in the loss: 1 / exp(logit_scale)."""
    base: str
    """Release that it was tuned from."""
    created_at: datetime.datetime
    settings: Mapping[str, Any]
    """Hyperparameters."""
    data: TrainingData
    metrics: Mapping[str, Any]
    """What was measured, by name."""
    files: Mapping[str, FileInfo]

    def encode(self) -> bytes:
        """Return the content of `release.json`."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class Choice(_Part):
    """Which release is active, as of one change of the pointer."""

    version: int = Field(0, ge=0)
    """Grows with every change; 0: nobody has chosen yet."""
    release: str = Field("", max_length=200)
    """Empty: the model's own text tower."""
    image_tower: str = ""
    """Fingerprint that the choice was made for; empty: any."""
    changed_at: datetime.datetime | None = None


class Pointer(Choice):
    """The active release and those that were active before: the one object that is ever rewritten.

    A change makes a new pointer; see `ports.ReleaseStore` for how one comes into force.
    """

    format: Literal[1] = FORMAT
    history: tuple[Choice, ...] = Field((), max_length=MAX_HISTORY)
    """What `rolled_back` returns to, the newest last."""

    def activated(self, release: str, image_tower: str) -> Self:
        """Return the pointer after choosing a release; itself if that is active already.

        Where it named no image tower it names this one from then on. That is the same choice: a
        rollback has no reason to return to it without.
        """
        if (self.release, self.image_tower) == (release, image_tower):
            return self
        same = self.release == release and not self.image_tower
        history = self.history if same else (*self.history, self.choice)[-MAX_HISTORY:]
        return self._changed(Choice(release=release, image_tower=image_tower), history)

    def rolled_back(self) -> Self:
        """Return the pointer after going back to the choice before; twice goes back two.

        Raises:
            FailedPreconditionError: there is none before.
        """
        if not self.history:
            raise FailedPreconditionError("no release was active before this one")
        return self._changed(self.history[-1], self.history[:-1])

    def encode(self) -> bytes:
        """Return the content of the pointer's object."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def parse(cls, encoded: bytes) -> Self:
        """Read the content of the pointer's object.

        Raises:
            FailedPreconditionError: it is no pointer of this format.
        """
        try:
            return cls.model_validate_json(encoded)
        except ValidationError as error:
            raise FailedPreconditionError(
                f"the pointer to the active release is unreadable: {_problems(error)}"
            ) from error

    @property
    def choice(self) -> Choice:
        """What is active now."""
        return Choice(**{name: getattr(self, name) for name in Choice.model_fields})

    def _changed(self, to: Choice, history: tuple[Choice, ...]) -> Self:
        return type(self)(
            version=self.version + 1,
            release=to.release,
            image_tower=to.image_tower,
            changed_at=datetime.datetime.now(datetime.UTC),
            history=history,
        )


@dataclass(frozen=True)
class PublishedRelease:
    """A release as the store lists it, unread."""

    name: str
    state: str
    """Changes whenever a file of it does."""
    published_at: datetime.datetime


@dataclass(frozen=True)
class Release:
    """A release that was read and found whole."""

    name: str
    """Label, hyphen and 8 hex digits of the manifest's SHA-256."""
    manifest: Manifest
    folder: Path

    @property
    def weights(self) -> Path:
        """The file of the text tower."""
        return self.folder / WEIGHTS


def name_of(encoded_manifest: bytes) -> str:
    """Return the name that a manifest's bytes give a release.

    Raises:
        FailedPreconditionError: they are no manifest of this format.
    """
    label = parse_manifest(encoded_manifest).label
    return f"{label}-{hashlib.sha256(encoded_manifest).hexdigest()[:8]}"


def parse_manifest(encoded: bytes) -> Manifest:
    """Read the content of `release.json`.

    Raises:
        FailedPreconditionError: it is no manifest of this format.
    """
    if len(encoded) > MAX_MANIFEST:
        raise FailedPreconditionError(f"{MANIFEST} has {len(encoded)} bytes")
    try:
        manifest = Manifest.model_validate_json(encoded)
    except ValidationError as error:
        raise FailedPreconditionError(
            f"{MANIFEST} is no manifest of a release: {_problems(error)}"
        ) from error
    if WEIGHTS not in manifest.files or any(not _is_plain(name) for name in manifest.files):
        raise FailedPreconditionError(f"{MANIFEST} lacks {WEIGHTS} or names a file elsewhere")
    return manifest


def describe(content: bytes) -> FileInfo:
    """Return what a manifest says of a file."""
    return FileInfo(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def write_release(parent: Path, files: Mapping[str, bytes], **fields: Any) -> Release:
    """Write a release into a new folder below `parent`, named like it; the manifest comes last.

    Args:
        parent: made if it is missing.
        files: content of every file but the manifest, the weights among them.
        fields: of the manifest, all but `files`.

    Raises:
        FailedPreconditionError: the manifest would not be valid.
    """
    try:
        manifest = Manifest(files={name: describe(data) for name, data in files.items()}, **fields)
    except ValidationError as error:
        raise FailedPreconditionError(f"no manifest of a release: {_problems(error)}") from error
    encoded = manifest.encode()
    name = name_of(encoded)
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in [*files.items(), (MANIFEST, encoded)]:
        (folder / file).write_bytes(content)
    return Release(name, manifest, folder)


def read_release(folder: Path) -> Release:
    """Read a release and check every file of it.

    Raises:
        FailedPreconditionError: a file is missing, torn or tampered with.
    """
    try:
        encoded = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{folder} holds no release: {error}") from error
    manifest = parse_manifest(encoded)
    for name, expected in manifest.files.items():
        check_file(folder / name, expected)
    return Release(name_of(encoded), manifest, folder)


def check_file(file: Path, expected: FileInfo) -> None:
    """Compare a file with what its manifest says.

    Raises:
        FailedPreconditionError: it is missing, torn or tampered with.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise FailedPreconditionError(f"{file.name} cannot be read: {error}") from error
    if size != expected.size:
        raise FailedPreconditionError(
            f"{file.name} is torn: it has {size} bytes, the manifest says {expected.size}"
        )
    if digest != expected.sha256:
        raise FailedPreconditionError(f"{file.name} was changed: its SHA-256 is not the manifest's")


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
        for one in error.errors(include_input=False, include_url=False)[:5]
    )


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None and name != MANIFEST
