"""The ceiling: what nobody can beat who sees everything but must guess which image is meant.

The oracle knows every fact that can be seen in an image at a tower's resolution, and which facts
a caption names. It orders images by how many of the named facts they show, and equals at random.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training.buildings.dataset import Picture

MIN_PIXELS: Final = 1.9
"""What shows smaller than this at the tower's input cannot be told from noise; just under two, as
sizes are rounded."""


def ceiling(
    pictures: Sequence[Picture], queries: Sequence[tuple[int, str]], k: int, input_size: int
) -> float:
    """Return the oracle's expected recall at k, in closed form.

    Args:
        pictures: the gallery.
        queries: for each, the index of the picture it was made for, and one of its captions.
        k: how many images are looked at.
        input_size: side of the tower's input, in pixels.

    Returns:
        a share from 0 to 1.

    Raises:
        KeyError: a query's text is no caption of its picture.
        ValueError: there are no queries.
    """
    if not queries:
        raise ValueError("no queries")
    columns = seen_by_fact(pictures, input_size)
    nothing = np.zeros(len(pictures), dtype=bool)
    total = 0.0
    for index, text in queries:
        named = pictures[index].names[text]
        shown_n = sum(
            (columns.get(fact, nothing).astype(np.int64) for fact in named),
            start=np.zeros(len(pictures), dtype=np.int64),
        )
        better = int((shown_n > shown_n[index]).sum())
        equal = int((shown_n == shown_n[index]).sum())
        total += min(1.0, max(0.0, (k - better) / equal))
    return total / len(queries)


def seen_by_fact(pictures: Sequence[Picture], input_size: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Return for each fact which of n pictures show it at this resolution; shape [n] each."""
    columns: dict[str, npt.NDArray[np.bool_]] = {}
    for i, picture in enumerate(pictures):
        for fact, size in picture.facts.items():
            if size * input_size >= MIN_PIXELS:
                columns.setdefault(fact, np.zeros(len(pictures), dtype=bool))[i] = True
    return columns
