"""Images that are copies of each other, as their vectors show it.

Shapes in this file: n images in order of rank, d embedding dimension.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

BOUND: Final = 0.96
"""Cosine from which on two images count as one picture. `make quality` shows which copies
lie above it, and which other pictures."""


def fold(vectors_nd: npt.NDArray[np.float32], bound: float = BOUND) -> list[list[int]]:
    """Put each image under the best one that it is a copy of.

    Only what is not folded itself has copies under it, so a chain of pictures that change little
    by little does not become one.

    Args:
        vectors_nd: n unit vectors, the best first.
        bound: least cosine of copies.

    Returns:
        for each image that is kept, in order, its place and those of its copies.
    """
    if not len(vectors_nd):
        return []
    alike_nn = vectors_nd @ vectors_nd.T >= bound
    groups: list[list[int]] = []
    folded = np.zeros(len(vectors_nd), dtype=bool)
    for place in range(len(vectors_nd)):
        if folded[place]:
            continue
        later = np.flatnonzero(alike_nn[place, place + 1 :] & ~folded[place + 1 :]) + place + 1
        folded[later] = True
        groups.append([place, *later.tolist()])
    return groups
