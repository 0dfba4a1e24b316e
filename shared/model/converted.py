"""Towers converted for OpenVINO: found on disk, made by a process of their own where they are not.

A process that runs a converted tower never imports torch, which alone takes more memory than a
tower does. Weights are kept as fp16 where that is exact: those of our releases, and of text towers
in cn_clip's hands, are.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.model.runtime import Precision
from cra.shared.releases import Release

FORMAT: Final = 1
"""Raised when the same weights come to be converted in another way."""
TEXT: Final = "text.xml"
IMAGE: Final = "image.xml"
_INFO: Final = "info.json"
REFUSED: Final = 3
"""Exit status of the converter when what it was given is no tower; the reason is on stdout."""


@dataclass(frozen=True)
class TowerInfo:
    """What there is to know of converted towers without loading them."""

    name: str
    """Of the model."""
    release: str
    """Of the text tower."""
    normalizer: str
    added_tokens: tuple[str, ...]
    image_tower: str
    """Fingerprint."""
    dimension: int
    input_size: int | None
    """Of the image tower; None for a release, which has none."""
    image_precision: Precision
    """What the image tower takes for `auto`, if that is not the fastest there is."""


@dataclass(frozen=True)
class Converted:
    """A folder of converted towers."""

    folder: Path
    info: TowerInfo

    @property
    def text(self) -> Path:
        """The text tower's model."""
        return self.folder / TEXT

    @property
    def image(self) -> Path:
        """The image tower's model; a release has none."""
        return self.folder / IMAGE


def load(folder: Path) -> Converted | None:
    """Return what a folder holds, or None if nothing was converted there."""
    try:
        fields = json.loads((folder / _INFO).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    fields["added_tokens"] = tuple(fields["added_tokens"])
    return Converted(folder, TowerInfo(**fields))


def save(folder: Path, info: TowerInfo) -> None:
    """Write what is known of the towers of a folder."""
    text = json.dumps(asdict(info), ensure_ascii=False, indent=1)
    (folder / _INFO).write_text(text, encoding="utf-8")


def convert_model(model: str, config: str, downloads: str, store: Path) -> Converted:
    """Return both towers of a model, converted now or earlier.

    Args:
        model: see `checkpoints.find_model`.
        config: likewise.
        downloads: folder that official checkpoints are downloaded to; empty for cn_clip's own.
        store: folder of all converted towers.

    Raises:
        FailedPreconditionError: there is no such model, or it does not load.
        UnavailableError: the converter died.
    """
    return _convert(["--model", model, "--config", config, "--downloads", downloads], store)


def convert_release(release: Release, store: Path) -> Converted:
    """Return the text tower of a release, converted now or earlier.

    Raises:
        FailedPreconditionError: its weights do not load.
        UnavailableError: the converter died.
    """
    # Its name is of its content, so what is there need not be looked at again.
    there = load(store / f"{release.name}-{FORMAT}")
    return there or _convert(["--release", str(release.folder)], store)


def place(parent: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """Return `parent/name`; if it is not there, it is filled under another name and put there."""
    folder = parent / name
    if load(folder) is not None:
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as new:
        made = Path(new) / name
        made.mkdir()
        fill(made)
        try:
            made.rename(folder)
        except OSError:
            if load(folder) is None:  # nobody else was quicker with the same
                raise
    return folder


def _convert(arguments: list[str], store: Path) -> Converted:
    command = [sys.executable, "-m", "cra.shared.model.convert", *arguments, "--into", str(store)]
    done = subprocess.run(  # noqa: S603 - our own module
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in {0, REFUSED}:
        raise UnavailableError(f"converting the model ended with status {done.returncode}")
    # Downloads and libraries may have talked before.
    answer = json.loads(done.stdout.splitlines()[-1])
    if done.returncode == REFUSED:
        raise FailedPreconditionError(answer)
    found = load(Path(answer))
    if found is None:
        raise UnavailableError(f"the converted model was removed from {answer}")
    return found
