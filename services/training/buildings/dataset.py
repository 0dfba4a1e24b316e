"""A data set as a folder: JPEG files and `captions.jsonl`, one picture a line."""

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from cra.services.training.buildings.captions import Caption, write
from cra.services.training.buildings.render import render
from cra.services.training.buildings.scene import SEED, sample

INDEX: Final = "captions.jsonl"
CAPTIONS: Final = 3
"""Captions of one picture in each way of speaking."""


@dataclass(frozen=True)
class Picture:
    """One picture of a data set."""

    file: Path
    building: str
    """Pictures of one building share this name."""
    plain: list[str]
    """Captions as a layman writes them."""
    professional: list[str]
    """Captions as an architect writes them."""
    facts: dict[str, float]
    """What shows, and how large: see `render.Rendering`."""
    names: dict[str, tuple[str, ...]]
    """Which facts each caption names."""


@dataclass(frozen=True)
class Made:
    """One picture, made but not yet written."""

    jpeg: bytes
    building: str
    facts: dict[str, float]
    plain: list[Caption]
    professional: list[Caption]

    def line(self, file: str) -> str:
        """Return its line of the index."""
        entry = {
            "file": file,
            "building": self.building,
            "plain": [caption.text for caption in self.plain],
            "professional": [caption.text for caption in self.professional],
            "facts": self.facts,
            "names": {c.text: c.names for c in [*self.plain, *self.professional]},
        }
        return json.dumps(entry, ensure_ascii=False)


def make(index: int, split: str, seed: int = SEED, captions: int = CAPTIONS) -> Made:
    """Make one picture of a split; the same arguments give the same bytes.

    Args:
        index: of the picture in its split, from 0.
        split: `train`, `validation` or `test`.
        seed: another one gives another data set.
        captions: how many in each way of speaking, fewer where too little is seen.

    Raises:
        ValueError: an unknown split or a negative index.
    """
    scene = sample(split, index, seed)
    rendering = render(scene)
    rng = np.random.default_rng((*scene.entropy, 1))
    buffer = io.BytesIO()
    rendering.image.save(buffer, "JPEG", quality=int(rng.integers(72, 93)))
    return Made(
        jpeg=buffer.getvalue(),
        building=scene.name,
        facts=dict(rendering.facts),
        plain=write(rendering.facts, "plain", captions, rng),
        professional=write(rendering.facts, "professional", captions, rng),
    )


def make_all(
    split: str,
    count: int,
    seed: int = SEED,
    workers: int = 1,
    start: int = 0,
    captions: int = CAPTIONS,
) -> Iterator[Made]:
    """Make `count` pictures of a split from `start` on, in order, in that many processes.

    Raises:
        ValueError: an unknown split.
    """
    one = partial(make, split=split, seed=seed, captions=captions)
    places = range(start, start + count)
    if workers == 1:
        yield from map(one, places)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(one, places, chunksize=16)


def write_dataset(
    folder: Path,
    split: str,
    count: int,
    progress: Callable[[int], None] | None = None,
    seed: int = SEED,
    workers: int = 1,
    start: int = 0,
    captions: int = CAPTIONS,
) -> None:
    """Write pictures of a split into a folder, and last of all their index.

    Args:
        folder: made if missing; pictures of an earlier run are overwritten.
        split: `train`, `validation` or `test`.
        count: how many pictures; two of each building.
        progress: called with the number of pictures written so far.
        seed: another one gives another data set.
        workers: processes.
        start: place of the first picture in its split.
        captions: of each picture, in each way of speaking.

    Raises:
        ValueError: an unknown split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, made in enumerate(make_all(split, count, seed, workers, start, captions)):
        file = f"{split}-{start + index:06d}.jpg"
        (folder / file).write_bytes(made.jpeg)
        lines.append(made.line(file))
        if progress is not None:
            progress(index + 1)
    (folder / INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_dataset(folder: Path) -> list[Picture]:
    """Read what `write_dataset` wrote, in its order.

    Raises:
        FileNotFoundError: the folder holds no data set, or it was not finished.
    """
    pictures = []
    for line in (folder / INDEX).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        pictures.append(
            Picture(
                file=folder / entry["file"],
                building=entry["building"],
                plain=entry["plain"],
                professional=entry["professional"],
                facts=entry["facts"],
                names={text: tuple(names) for text, names in entry["names"].items()},
            )
        )
    return pictures
