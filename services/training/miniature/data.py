"""The data of the miniature: rendered buildings, three sets of which no two share a building."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cra.services.training.base import Settings
from cra.services.training.buildings.dataset import INDEX, Picture, read_dataset, write_dataset
from cra.services.training.data.dataset import DataSet, Image

CAPTIONS: Final = 4
"""Professional captions of each training picture."""
PICTURES: Final = {"train": 12_000, "validation": 1_000, "test": 2_000}
_BASE_SAW: Final = Settings().pictures
"""Training pictures of the base model: these are of other buildings than any that it saw."""


@dataclass(frozen=True)
class Part:
    """One set."""

    pictures: Sequence[Picture]
    dataset: DataSet


def load(
    work: Path, split: str, workers: int, progress: Callable[[int], None] | None = None
) -> Part:
    """Return a set; its pictures are rendered on the first call.

    Args:
        work: folder of all sets.
        split: `train`, `validation` or `test`.
        workers: processes that render.
        progress: called with the number of pictures rendered so far.
    """
    folder = work / split
    if not (folder / INDEX).is_file():
        start = _BASE_SAW if split == "train" else 0
        captions = {"captions": CAPTIONS} if split == "train" else {}
        write_dataset(
            folder,
            split,
            PICTURES[split],
            progress,
            workers=workers,
            start=start,
            **captions,
        )
    pictures = read_dataset(folder)
    return Part(pictures, DataSet(tuple(_image(picture) for picture in pictures)))


def fewer_pairs(dataset: DataSet, pairs: int, seed: int) -> DataSet:
    """Return images drawn at random that have about so many captions in all."""
    order = np.random.default_rng((seed, pairs)).permutation(len(dataset))
    chosen: list[Image] = []
    left = pairs
    for place in order:
        if left <= 0:
            break
        image = dataset.images[place]
        captions = image.captions[:left]
        left -= len(captions)
        chosen.append(
            Image(image.image_id, image.group, captions, image.read, image.general[: len(captions)])
        )
    return DataSet(tuple(chosen))


def _image(picture: Picture) -> Image:
    return Image(
        picture.file.name,
        picture.building,
        tuple(picture.professional),
        picture.file.read_bytes,
        tuple(picture.plain),
        {"roof": _largest(picture, "roof"), "style": _largest(picture, "style")},
    )


def _largest(picture: Picture, slot: str) -> str:
    values = {
        fact.partition("=")[2]: size
        for fact, size in picture.facts.items()
        if fact.startswith(f"{slot}=")
    }
    return max(values, key=values.__getitem__, default="")
