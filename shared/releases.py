"""Text releases as folders: a tuned text tower that fits every index of one image tower.

A release is immutable and named by its content. It holds `release.json`, the manifest, with the
checksum of every other file, and `text_tower.safetensors`; no file of it can run code. Free of
torch, so that any service may list, check and copy releases.
"""

import datetime
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cra.shared.errors import FailedPreconditionError

MANIFEST: Final = "release.json"
WEIGHTS: Final = "text_tower.safetensors"
CARD: Final = "README.md"
FORMAT: Final = 1

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[0-9a-f]{8}")
_LABEL: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_MAX_MANIFEST: Final = 4 * 2**20
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
    label: str = Field(pattern=_LABEL)
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
    if len(encoded) > _MAX_MANIFEST:
        raise FailedPreconditionError(f"{MANIFEST} has {len(encoded)} bytes")
    try:
        manifest = Manifest.model_validate_json(encoded)
    except ValidationError as error:
        where = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_input=False, include_url=False)[:5]
        )
        raise FailedPreconditionError(f"{MANIFEST} is no manifest of a release: {where}") from error
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
    manifest = Manifest(files={name: describe(data) for name, data in files.items()}, **fields)
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
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise FailedPreconditionError(f"{folder}: {name} cannot be read: {error}") from error
        check_file(name, content, expected)
    return Release(name_of(encoded), manifest, folder)


def check_file(name: str, content: bytes, expected: FileInfo) -> None:
    """Compare a file with what its manifest says.

    Raises:
        FailedPreconditionError: it is torn or tampered with.
    """
    found = describe(content)
    if found.size != expected.size:
        raise FailedPreconditionError(
            f"{name} is torn: it has {found.size} bytes, the manifest says {expected.size}"
        )
    if found.sha256 != expected.sha256:
        raise FailedPreconditionError(f"{name} was changed: its SHA-256 is not the manifest's")


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None and name != MANIFEST
