"""Folding copies under the best of them."""

import numpy as np
import numpy.typing as npt

from cra.shared.duplicates import fold


def at(*degrees: float) -> npt.NDArray[np.float32]:
    """Return unit vectors in a plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_copies_go_under_the_best() -> None:
    """Each image stands once: kept, or under the first that is as near as the bound."""
    bound = float(np.cos(np.radians(10)))
    assert fold(at(0, 90, 5, 95, 50), bound) == [[0, 2], [1, 3], [4]]
    assert fold(at(), bound) == []


def test_a_chain_is_not_one_picture() -> None:
    """What is near a folded image only is kept: similarity does not travel."""
    bound = float(np.cos(np.radians(10)))
    assert fold(at(0, 8, 16, 24), bound) == [[0, 1], [2, 3]]


def test_a_longer_list_folds_its_beginning_alike() -> None:
    """What is kept of the first images is the same however many follow: so pages fit together."""
    rng = np.random.default_rng(0)
    vectors_nd = at(*rng.uniform(0, 360, 200))
    whole = [group[0] for group in fold(vectors_nd, 0.999)]
    for count in (1, 10, 77, 150):
        kept = [group[0] for group in fold(vectors_nd[:count], 0.999)]
        assert kept == [place for place in whole if place < count]
