import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra.services.training import metrics
from cra.services.training.metrics import Relevant

SCORES = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.4, 0.4, 0.4]])
"""Three queries, three images."""
MANY = np.array([[0.5, 0.9, 0.5, 0.5, 0.1]])
"""One query: one image above three equals."""


@pytest.mark.parametrize(
    ("k", "expected"), [(1, (1 + 0 + 1 / 3) / 3), (2, (1 + 1 + 2 / 3) / 3), (3, 1.0)]
)
def test_recall_by_hand(k: int, expected: float) -> None:
    """Recall is 1 for a target on top, 0 for one below k, and a fair share of k among equals."""
    assert metrics.recall_at_k(SCORES, np.array([0, 0, 2]), k) == pytest.approx(expected)


def test_several_right_ones_by_hand() -> None:
    """The best right one counts: two right of three equals are missed once in three draws."""
    relevant = Relevant.of([[0, 2, 4]])
    found = [metrics.hits_at_k(MANY, relevant, k)[0] for k in (1, 2, 3, 4)]
    assert found == pytest.approx([0, 2 / 3, 1, 1])
    ranking = metrics.rank(MANY, relevant)
    # It is second with 2/3, third with 1/3.
    assert ranking.ranks()[0] == pytest.approx(2 + 1 / 3)
    assert ranking.mean_reciprocal_rank() == pytest.approx(2 / 3 / 2 + 1 / 3 / 3)


def test_all_forms_of_relevance_agree() -> None:
    """One target a query, a boolean matrix and rows of places say the same."""
    targets = np.array([2, 0, 1])
    matrix = np.eye(3, dtype=bool)[targets]
    expected = metrics.hits_at_k(SCORES, targets, 2)
    for same in (matrix, Relevant.of([[2], [0], [1]])):
        assert metrics.hits_at_k(SCORES, same, 2).tolist() == expected.tolist()


def test_ranks_by_hand() -> None:
    """The rank counts from 1, and among equals it is the middle one."""
    assert metrics.rank(SCORES, np.array([2, 2, 1])).ranks().tolist() == [2.0, 3.0, 2.0]


def test_means_by_hand() -> None:
    """The mean reciprocal rank is the mean over all orders of equals; the median one of ranks."""
    ranking = metrics.rank(SCORES, np.array([2, 2, 1]))
    among_equals = (1 + 1 / 2 + 1 / 3) / 3
    assert ranking.mean_reciprocal_rank() == pytest.approx((1 / 2 + 1 / 3 + among_equals) / 3)
    assert ranking.median_rank() == 2.0


@pytest.mark.parametrize("right", [1, 3])
def test_constant_score_earns_chance(right: int) -> None:
    """A model that cannot tell images apart gets what a random order gets."""
    relevant = Relevant.of([range(i, i + right) for i in range(5)])
    found = metrics.recall_at_k(np.zeros((5, 40)), relevant, 10)
    assert found == pytest.approx(metrics.chance(10, 40, right))


def test_chance_by_hand() -> None:
    """One of 40 is among 10 with 1/4; two of 4 are both missed by 2 with 1/6; each query counts."""
    assert metrics.chance(10, 40) == pytest.approx(0.25)
    assert metrics.chance(2, 4, 2) == pytest.approx(5 / 6)
    assert metrics.chance(2, 4, [1, 2]) == pytest.approx((1 / 2 + 5 / 6) / 2)


def test_chance_of_a_small_gallery() -> None:
    """Looking at more images than there are finds the target for certain."""
    assert metrics.chance(20, 7) == 1.0


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and which candidates are right."""
    queries, count = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    cells = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    rows = st.lists(st.booleans(), min_size=count, max_size=count).filter(any)
    scores = [draw(cells) for _ in range(queries)]
    return np.array(scores, float), np.array([draw(rows) for _ in range(queries)])


@settings(deadline=None)
@given(cases(), st.integers(1, 7))
def test_every_order_of_equals_counts_alike(case: tuple[np.ndarray, np.ndarray], k: int) -> None:
    """Hits, ranks and reciprocal ranks are the means over all orders that the scores allow."""
    scores_qn, right_qn = case
    ranking = metrics.rank(scores_qn, right_qn)
    for query, (scores, right) in enumerate(zip(scores_qn, right_qn, strict=True)):
        orders = [
            order
            for order in itertools.permutations(range(len(scores)))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        firsts = np.array(
            [next(p for p, item in enumerate(order, 1) if right[item]) for order in orders]
        )
        assert ranking.hits_at_k(k)[query] == pytest.approx((firsts <= k).mean())
        assert ranking.ranks()[query] == pytest.approx(firsts.mean())
        assert ranking.reciprocal_ranks()[query] == pytest.approx((1 / firsts).mean())


def test_vectors_in_parts_give_what_the_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number of scores at a time changes nothing, and progress ends at all queries."""
    rng = np.random.default_rng(0)
    # Whole numbers: their products are exact in whatever order they are summed.
    queries_qd, items_nd = rng.integers(-3, 4, (50, 4)).astype(float), rng.integers(-3, 4, (30, 4))
    relevant = Relevant.of([rng.choice(30, 1 + i % 3, replace=False) for i in range(50)])
    whole = metrics.rank(queries_qd @ items_nd.T, relevant)
    done: list[int] = []
    monkeypatch.setattr(metrics, "_SCORES_AT_ONCE", 7 * 30)
    parts = metrics.rank_vectors(queries_qd, items_nd.astype(float), relevant, done.append)
    for name in ("better_q", "equal_q", "right_q"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    assert done == [7, 14, 21, 28, 35, 42, 49, 50]


@pytest.mark.parametrize(
    ("scores", "targets", "k"),
    [
        (np.zeros((2, 3)), np.array([0]), 1),
        (np.zeros(3), np.array([0, 0, 0]), 1),
        (np.zeros((0, 3)), np.array([], dtype=int), 1),
        (np.zeros((1, 3)), np.array([0]), 0),
        (np.zeros((1, 3)), np.array([3]), 1),
        (np.zeros((1, 3)), np.array([-1]), 1),
        (np.zeros((1, 3)), np.zeros((1, 3), bool), 1),
    ],
)
def test_what_does_not_fit_is_refused(scores: np.ndarray, targets: Any, k: int) -> None:
    """Shapes that do not fit, no queries, none right and a k of zero raise, and give no number."""
    with pytest.raises(ValueError, match=r"."):
        metrics.recall_at_k(scores, targets, k)
