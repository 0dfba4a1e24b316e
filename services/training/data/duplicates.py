"""Images and captions that come twice: what lies in two groups leaks between splits.

Shapes in this file: n images.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps

from cra.services.training.data.dataset import DataSet

NEAR: Final = 4
"""Bits of 64 in which the perceptual hashes of near-duplicates differ at most."""
_ROWS_AT_ONCE: Final = 512


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
    dataset: DataSet, near: int = NEAR, progress: Callable[[int], None] | None = None
) -> list[Duplicate]:
    """Return pairs of duplicates, those across groups first.

    Near-duplicates are found by perceptual hash (DCT), of images as they are shown. Of a caption
    that many images have, each is paired with the first.

    Args:
        dataset: n images.
        near: bits in which hashes differ at most.
        progress: called with the number of images read so far.
    """
    digests: list[bytes] = []
    hashes_n = np.zeros(len(dataset), np.uint64)
    for place, image in enumerate(dataset.images):
        encoded = image.read()
        digests.append(hashlib.sha256(encoded).digest())
        hashes_n[place] = _perceptual_hash(encoded)
        if progress is not None:
            progress(place + 1)
    found = [*_same(dataset, digests), *_alike(dataset, digests, hashes_n, near)]
    found += _captions(dataset)
    return sorted(found, key=lambda one: not one.across_groups)


def _perceptual_hash(encoded: bytes) -> np.uint64:
    with PillowImage.open(io.BytesIO(encoded)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    bits = imagehash.phash(upright).hash.ravel()
    return np.uint64(np.packbits(bits).view(np.uint64)[0])


def _same(dataset: DataSet, digests: list[bytes]) -> Iterator[Duplicate]:
    first: dict[bytes, int] = {}
    for place, digest in enumerate(digests):
        other = first.setdefault(digest, place)
        if other != place:
            yield _pair(dataset, "same file", other, place)


def _alike(
    dataset: DataSet, digests: list[bytes], hashes_n: npt.NDArray[np.uint64], near: int
) -> Iterator[Duplicate]:
    for start in range(0, len(hashes_n), _ROWS_AT_ONCE):
        rows = hashes_n[start : start + _ROWS_AT_ONCE]
        apart = np.bitwise_count(rows[:, None] ^ hashes_n[None, start:])
        for row, column in np.argwhere(apart <= near):
            one, other = start + int(row), start + int(column)
            if one < other and digests[one] != digests[other]:
                yield _pair(dataset, "looks alike", one, other, f"{apart[row, column]} bits")


def _captions(dataset: DataSet) -> Iterator[Duplicate]:
    images: dict[str, list[int]] = defaultdict(list)
    for place, caption in dataset.pairs():
        images[caption].append(place)
    for caption, places in images.items():
        for place in places[1:]:
            yield _pair(dataset, "same caption", places[0], place, caption)


def _pair(dataset: DataSet, kind: str, one: int, other: int, detail: str = "") -> Duplicate:
    first, second = dataset.images[one], dataset.images[other]
    across = first.group != second.group
    return Duplicate(kind, first.image_id, second.image_id, across, detail)
