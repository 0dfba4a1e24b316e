"""A split as arrays at a tower's size, made once and kept in a folder."""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cra.services.training.buildings.dataset import CAPTIONS, INDEX, Picture, make, read_dataset
from cra.services.training.buildings.scene import SEED
from cra.shared.model.pixels import Preprocessing, prepare


@dataclass(frozen=True)
class Arrays:
    """n pictures of a split, prepared for a tower with input size s."""

    pixels: npt.NDArray[np.uint8]
    """RGB, shape [n, s, s, 3], mapped from a file."""
    pictures: list[Picture]
    """Their captions; `file` names JPEGs that were never written."""


def load(
    work: Path,
    split: str,
    count: int,
    input_size: int,
    progress: Callable[[int], None] | None = None,
    seed: int = SEED,
    workers: int = 1,
    captions: int = CAPTIONS,
) -> Arrays:
    """Return the first pictures of a split, made on the first call and then read.

    They go through JPEG and the one preprocessing, as pictures in the bucket do.

    Args:
        work: folder for the arrays.
        split: `train`, `validation` or `test`.
        count: how many pictures.
        input_size: side of the tower's input, in pixels.
        progress: called with the number of pictures made so far.
        seed: of the data set.
        workers: processes.
        captions: of each picture, in each way of speaking.

    Raises:
        ValueError: an unknown split.
    """
    folder = work / f"{split}-{count}-{input_size}-{captions}-{seed}"
    if not (folder / INDEX).is_file():
        one = partial(_prepared, split=split, seed=seed, input_size=input_size, captions=captions)
        _make(folder, one, count, input_size, progress, workers)
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Arrays(pixels, read_dataset(folder))


def _make(
    folder: Path,
    one: Callable[[int], tuple[npt.NDArray[np.uint8], str]],
    count: int,
    input_size: int,
    progress: Callable[[int], None] | None,
    workers: int,
) -> None:
    # A folder without an index is what an interrupted run left.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape = (count, input_size, input_size, 3)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
    lines = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for index, (prepared, line) in enumerate(pool.imap(one, range(count), chunksize=16)):
            pixels[index] = prepared
            lines.append(line)
            if progress is not None:
                progress(index + 1)
    pixels.flush()
    (folder / INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _prepared(
    index: int, split: str, seed: int, input_size: int, captions: int
) -> tuple[npt.NDArray[np.uint8], str]:
    made = make(index, split, seed, captions)
    prepared = prepare(made.jpeg, Preprocessing(input_size))
    return prepared.pixels, made.line(f"{split}-{index:06d}.jpg")
