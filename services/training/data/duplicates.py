"""Images and captions that come twice: what lies in two groups leaks between splits.

Shapes in this file: n images.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from cra.services.training.data.dataset import DataSet, Image
from cra.shared.errors import NotFoundError
from cra.shared.model.pixels import BadImageError, Preprocessing, prepare

NEAR: Final = 4
"""Bits of 64 in which the perceptual hashes of near-duplicates differ at most."""
_COMPARED_AT_ONCE: Final = 4_000_000
"""Pairs of hashes: 32 MB."""
_SMALL: Final = Preprocessing(64)
"""Twice the side that the perceptual hash looks at."""


@dataclass(frozen=True)
class Duplicate:
    """Two images, or two captions of images, that are the same or nearly so."""

    kind: str
    """`same file`, `looks alike` or `same caption`."""
    first: str
    second: str
    """Image ids."""
    across_groups: bool
    """Whether their groups differ, so that a split may part them."""
    detail: str = ""


def find_duplicates(
    dataset: DataSet,
    near: int = NEAR,
    progress: Callable[[int], None] | None = None,
    workers: int = 2,
) -> list[Duplicate]:
    """Return pairs of duplicates, those across groups first.

    Near-duplicates are found by perceptual hash (DCT), of images as they are shown. Where many
    are the same, each is paired with the first. Images that cannot be decoded are left out:
    `check_images` tells of them.

    Args:
        dataset: n images.
        near: bits in which hashes differ at most.
        progress: called with the number of images read so far.
        workers: threads.

    Raises:
        UnavailableError: the object store that the images lie in does not answer.
    """
    files: dict[bytes, list[int]] = defaultdict(list)
    hashes: dict[int, list[int]] = defaultdict(list)
    with ThreadPoolExecutor(workers, "compare") as pool:
        for place, looked in enumerate(pool.map(_look, dataset.images)):
            if looked is not None:
                digest, look = looked
                files[digest].append(place)
                if files[digest] == [place]:
                    hashes[look].append(place)
            if progress is not None:
                progress(place + 1)
    found = [*_with_first(dataset, "same file", files.values())]
    found += _with_first(dataset, "looks alike", hashes.values(), "0 bits")
    found += _alike(dataset, hashes, near)
    found += _captions(dataset)
    return sorted(found, key=lambda one: not one.across_groups)


def _look(image: Image) -> tuple[bytes, int] | None:
    """Return an image's SHA-256 and perceptual hash; None if there is nothing to look at."""
    try:
        encoded = image.read()
        pixels = prepare(encoded, _SMALL).pixels
    except (BadImageError, OSError, NotFoundError):
        return None
    bits = imagehash.phash(PillowImage.fromarray(pixels)).hash
    return hashlib.sha256(encoded).digest(), int.from_bytes(np.packbits(bits).tobytes(), "big")


def _alike(dataset: DataSet, hashes: dict[int, list[int]], near: int) -> Iterator[Duplicate]:
    """Yield pairs of images whose hashes differ, but little; of each hash the first image."""
    firsts = [places[0] for places in hashes.values()]
    for one, other, apart in near_pairs(np.fromiter(hashes, np.uint64), near):
        yield _pair(dataset, "looks alike", firsts[one], firsts[other], f"{apart} bits")


def near_pairs(hashes_n: npt.NDArray[np.uint64], near: int) -> Iterator[tuple[int, int, int]]:
    """Yield (place, later place, bits apart) of hashes that differ in at most `near` bits.

    Every pair is compared, in blocks: 20,000 hashes take a second, 100,000 half a minute.
    """
    start = 0
    while start < len(hashes_n):
        rows = max(1, _COMPARED_AT_ONCE // (len(hashes_n) - start))
        apart = np.bitwise_count(hashes_n[start : start + rows, None] ^ hashes_n[None, start:])
        for row, column in np.argwhere(apart <= near).tolist():
            if row < column:
                yield start + row, start + column, int(apart[row, column])
        start += rows


def _with_first(
    dataset: DataSet, kind: str, alike: Iterable[Sequence[int]], detail: str = ""
) -> Iterator[Duplicate]:
    for places in alike:
        for place in places[1:]:
            yield _pair(dataset, kind, places[0], place, detail)


def _captions(dataset: DataSet) -> Iterator[Duplicate]:
    images: dict[str, list[int]] = defaultdict(list)
    for place, caption in dataset.pairs():
        images[caption].append(place)
    for caption, places in images.items():
        yield from _with_first(dataset, "same caption", [places], caption)


def _pair(dataset: DataSet, kind: str, one: int, other: int, detail: str = "") -> Duplicate:
    first, second = dataset.images[one], dataset.images[other]
    across = first.group != second.group
    return Duplicate(kind, first.image_id, second.image_id, across, detail)
