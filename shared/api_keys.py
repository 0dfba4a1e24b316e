"""API keys of the gateway: a file of their names, digests, scopes and rates, never of the keys.

The file is JSON: `{"keys": [{"name": …, "sha256": …, "buckets": […], "rate": …, "burst": …}]}`.
"""

import hashlib
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cra.shared.errors import FailedPreconditionError
from cra.shared.settings import Bucket


class ApiKey(BaseModel):
    """What is known of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """For people and logs."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    """Hex digest of the key; a key is random, so that nobody guesses it from this."""
    buckets: tuple[Bucket, ...] = ()
    """Whose images it may find; empty: all."""
    rate: Annotated[float, Field(ge=0.001, le=1e6)] | None = None
    """Searches a second; None: no limit of its own."""
    burst: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Searches that it may do at once after a pause; None: those of one second, one at least."""

    @property
    def most_at_once(self) -> int:
        """The burst that is in force."""
        return self.burst or max(1, math.ceil(self.rate or 1))


class _KeysFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for field in ("name", "sha256"):
            if len({getattr(key, field) for key in self.keys}) != len(self.keys):
                raise ValueError(f"two keys have one {field}")
        return self


def new_key() -> str:
    """Return a fresh key: 256 random bits, and before them what scanners for secrets look for."""
    return f"cra_{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """Return what the file says of a key: its SHA-256 in hex."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file.

    Raises:
        FailedPreconditionError: it cannot be read, or says what it must not.
    """
    try:
        return _KeysFile.model_validate_json(file.read_bytes()).keys
    except OSError as error:
        raise FailedPreconditionError(
            f"API keys: {file} cannot be read: {error.strerror}"
        ) from error
    except ValidationError as error:
        problems = [
            ".".join(str(part) for part in one["loc"])
            + (": " if one["loc"] else "")
            + one["msg"].removeprefix("Value error, ")
            # Without what was found: it may be a key where its digest should be.
            for one in error.errors(include_input=False, include_url=False)
        ]
        raise FailedPreconditionError(f"API keys: {file}: {'; '.join(problems)}") from None


def change_keys(
    file: Path, change: Callable[[tuple[ApiKey, ...]], Iterable[ApiKey]]
) -> tuple[ApiKey, ...]:
    """Replace a file of keys in one step, or make it; changes by several people follow each other.

    Args:
        file: which; whoever reads it sees the old or the new one, whole.
        change: from the keys that are there, none if there is no file, to those that shall be.

    Raises:
        FailedPreconditionError: the file is bad, its folder cannot be written, or two keys would
            have one name.
    """
    import fcntl  # noqa: PLC0415  the gateway only reads, and may do so where there is none

    file = file.resolve()
    try:
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            there = file.exists()
            try:
                changed = _KeysFile(keys=tuple(change(read_keys(file) if there else ())))
            except ValidationError as error:
                raise FailedPreconditionError(f"API keys: {error.errors()[0]['msg']}") from None
            _replace(file, changed.model_dump_json(indent=1, exclude_defaults=True) + "\n")
            return changed.keys
        finally:
            os.close(folder)
    except OSError as error:
        raise FailedPreconditionError(
            f"API keys: {file} cannot be written: {error.strerror}"
        ) from error


def _replace(file: Path, text: str) -> None:
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".keys-", delete=False) as new:
        try:
            new.write(text)
            new.flush()
            os.fchmod(new.fileno(), mode)
            os.fsync(new.fileno())
            Path(new.name).replace(file)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise
