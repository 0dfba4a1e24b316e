"""What `prepare` makes of each odd object, and how much memory that takes.

`main` decodes all of them in a process of its own: memory that was used for a moment is only seen
where nothing else uses any.
"""

import pickle
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cra.shared.model.pixels import BadImageError, Preprocessing, prepare
from tests.odd_objects import LYING, ODD_OBJECTS, OddObject, plain
from tests.pictures import encode

SIDE = 16
Pixels = npt.NDArray[np.uint8]

CONTENTS = [
    one
    for one in ODD_OBJECTS
    if one.content is not plain and one.reason not in {"too_many_bytes", "too_much_metadata"}
]
"""Those that are odd by their content."""


@dataclass(frozen=True)
class Decoded:
    """What became of one."""

    got: str
    """In the words of `OddObject.expected`."""
    message: str
    pixels: Pixels | None
    growth: int
    """Bytes of memory that the process had at most, over what it had before."""


def decode(odd: OddObject) -> Decoded:
    """Prepare one; the memory is counted where the kernel does."""
    content = odd.content()
    before = _reset_peak()
    try:
        prepared = prepare(content, Preprocessing(SIDE))
    except BadImageError as error:
        return Decoded(error.reason, error.message, None, _peak() - before)
    got = f"indexed, {prepared.width} x {prepared.height}"
    return Decoded(got, "", prepared.pixels, _peak() - before)


def distance(pixels: Pixels, picture: Image.Image) -> float:
    """Return by how much pixels differ from a picture's, on average; 0 to 255."""
    expected = prepare(encode(picture, "PNG"), Preprocessing(SIDE)).pixels
    return float(np.abs(pixels.astype(int) - expected).mean())


def turned(picture: Image.Image) -> list[Image.Image]:
    """Return a picture in each position but upright."""
    return [picture.transpose(turn) for turn in LYING.values() if turn is not None]


def _reset_peak() -> int:
    """Forget the process's peak of memory; return what it has now, in bytes."""
    if sys.platform != "linux":
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") if sys.platform == "linux" else 0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Decode all and write what became of each into the file that is named."""
    warnings.simplefilter("ignore")  # of what Pillow repairs
    Path(sys.argv[1]).write_bytes(pickle.dumps({one.kind: decode(one) for one in CONTENTS}))
