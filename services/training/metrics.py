"""Retrieval metrics as pure functions of a score matrix.

Shapes in this file: q queries, n images of the gallery.
"""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]


def recall_at_k(scores_qn: Scores, targets_q: Targets, k: int) -> float:
    """Return the share of queries whose target is among the k best images.

    Equal scores count as ordered at random, so that a constant score earns chance and no more.

    Args:
        scores_qn: higher is better.
        targets_q: index of the one relevant image of each query.
        k: how many images are looked at.

    Returns:
        a share from 0 to 1.

    Raises:
        ValueError: the shapes do not fit, or k is not positive.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be positive")
    better_q, equal_q = _places(scores_qn, targets_q)
    return float(np.clip((k - better_q) / equal_q, 0.0, 1.0).mean())


def mean_reciprocal_rank(scores_qn: Scores, targets_q: Targets) -> float:
    """Return the mean of 1 / rank of the target, its rank among equals being the middle one.

    Raises:
        ValueError: the shapes do not fit.
    """
    return float((1.0 / ranks(scores_qn, targets_q)).mean())


def median_rank(scores_qn: Scores, targets_q: Targets) -> float:
    """Return the median rank of the target, from 1.

    Raises:
        ValueError: the shapes do not fit.
    """
    return float(np.median(ranks(scores_qn, targets_q)))


def ranks(scores_qn: Scores, targets_q: Targets) -> npt.NDArray[np.float64]:
    """Return the rank of each target, from 1; among equals the middle one. Shape [q].

    Raises:
        ValueError: the shapes do not fit.
    """
    better_q, equal_q = _places(scores_qn, targets_q)
    middle: npt.NDArray[np.float64] = better_q + (equal_q + 1) / 2
    return middle


def chance(k: int, gallery: int) -> float:
    """Return the recall at k of a random order of `gallery` images."""
    return min(1.0, k / gallery)


def _places(
    scores_qn: Scores, targets_q: Targets
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many images score higher than the target, and how many the same (itself too)."""
    if scores_qn.ndim != 2 or targets_q.shape != scores_qn.shape[:1] or not targets_q.size:
        raise ValueError(f"scores {scores_qn.shape} and targets {targets_q.shape} do not fit")
    own_q1 = np.take_along_axis(scores_qn, targets_q[:, None], axis=1)
    return (scores_qn > own_q1).sum(axis=1), (scores_qn == own_q1).sum(axis=1)
