import numpy as np
import pytest

from cra.services.training import metrics

SCORES = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.4, 0.4, 0.4]])
"""Three queries, three images."""


@pytest.mark.parametrize(
    ("k", "expected"), [(1, (1 + 0 + 1 / 3) / 3), (2, (1 + 1 + 2 / 3) / 3), (3, 1.0)]
)
def test_recall_by_hand(k: int, expected: float) -> None:
    """Recall is 1 for a target on top, 0 for one below k, and a fair share of k among equals."""
    assert metrics.recall_at_k(SCORES, np.array([0, 0, 2]), k) == pytest.approx(expected)


def test_ranks_by_hand() -> None:
    """The rank counts from 1, and among equals it is the middle one."""
    assert metrics.ranks(SCORES, np.array([2, 2, 1])).tolist() == [2.0, 3.0, 2.0]


def test_means_by_hand() -> None:
    """The mean reciprocal rank and the median rank follow from the ranks 2, 3 and 2."""
    targets = np.array([2, 2, 1])
    assert metrics.mean_reciprocal_rank(SCORES, targets) == pytest.approx(
        (1 / 2 + 1 / 3 + 1 / 2) / 3
    )
    assert metrics.median_rank(SCORES, targets) == 2.0


def test_constant_score_earns_chance() -> None:
    """A model that cannot tell images apart gets what a random order gets."""
    found = metrics.recall_at_k(np.zeros((5, 40)), np.arange(5), 10)
    assert found == pytest.approx(metrics.chance(10, 40)) == pytest.approx(0.25)


def test_chance_of_a_small_gallery() -> None:
    """Looking at more images than there are finds the target for certain."""
    assert metrics.chance(20, 7) == 1.0


@pytest.mark.parametrize(
    ("scores", "targets", "k"),
    [
        (np.zeros((2, 3)), np.array([0]), 1),
        (np.zeros(3), np.array([0, 0, 0]), 1),
        (np.zeros((0, 3)), np.array([], dtype=int), 1),
        (np.zeros((1, 3)), np.array([0]), 0),
    ],
)
def test_what_does_not_fit_is_refused(scores: np.ndarray, targets: np.ndarray, k: int) -> None:
    """Shapes that do not fit, no queries and a k of zero raise instead of giving a number."""
    with pytest.raises(ValueError, match=r"."):
        metrics.recall_at_k(scores, targets, k)
