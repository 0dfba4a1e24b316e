"""Retrieval metrics as pure functions of where the first right candidate comes.

A query may have several right candidates; it is answered when the best of them is found, as
Chinese CLIP's evaluation counts it. Equal scores count as ordered at random: every value here is
the exact mean over all orders of the equals, so that a constant score earns chance and no more.

Shapes in this file: q queries, n candidates, r right ones, d dimension of the vectors.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Places = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

_SCORES_AT_ONCE: Final = 2**24
"""Scores that `rank_vectors` holds in memory: 64 MiB of float32."""


@dataclass(frozen=True, eq=False)
class Relevant:
    """Which candidates are right for each query: for q queries at least one each."""

    starts: Places
    """Shape [q + 1]: those of query i are `items[starts[i]:starts[i + 1]]`."""
    items: Places
    """Places among the candidates, no query's twice."""

    @classmethod
    def of(cls, places: Iterable[Iterable[int]]) -> "Relevant":
        """Gather the right candidates of each query.

        Raises:
            ValueError: there is no query, or one has no right candidate.
        """
        rows = [sorted(set(row)) for row in places]
        counts = [len(row) for row in rows]
        if not counts or min(counts) < 1:
            raise ValueError("each query needs at least one right candidate")
        items = np.fromiter((item for row in rows for item in row), np.int64, sum(counts))
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), items)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts_q(self) -> Places:
        """How many candidates are right for each query. Shape [q]."""
        return np.diff(self.starts)

    def row(self, query: int) -> Places:
        """Return the right candidates of one query. Shape [r]."""
        return self.items[self.starts[query] : self.starts[query + 1]]

    def part(self, start: int, stop: int) -> "Relevant":
        """Return those of the queries from `start` to `stop`."""
        starts = self.starts[start : stop + 1]
        return Relevant(starts - starts[0], self.items[starts[0] : starts[-1]])


Targets = Relevant | npt.NDArray[np.integer] | npt.NDArray[np.bool_]
"""`Relevant`, the one right candidate of each query [q], or a boolean matrix [q, n]."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the best right candidate of each query comes. All of shape [q]."""

    better_q: Places
    """Candidates that score higher than it."""
    equal_q: Places
    """Candidates that score the same, itself too."""
    right_q: Places
    """Those of the equals that are right."""

    def __len__(self) -> int:
        return len(self.better_q)

    def hits_at_k(self, k: int) -> Values:
        """Return the chance that a right candidate is among the best k: mostly 0 or 1. Shape [q].

        Raises:
            ValueError: k is not positive.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be positive")
        drawn_q = np.clip(k - self.better_q, 0, self.equal_q)
        return 1.0 - _miss(self.equal_q, self.right_q, drawn_q)

    def recall_at_k(self, k: int) -> float:
        """Return the share of queries with a right candidate among the best k, from 0 to 1.

        Raises:
            ValueError: k is not positive.
        """
        return float(self.hits_at_k(k).mean())

    def ranks(self) -> Values:
        """Return the rank of the first right candidate, from 1. Shape [q]."""
        return self.better_q.astype(np.float64) + (self.equal_q + 1) / (self.right_q + 1)

    def reciprocal_ranks(self) -> Values:
        """Return 1 / rank of the first right candidate. Shape [q]."""
        found = np.reciprocal(self.better_q + np.float64(1.0))
        tied = np.flatnonzero(self.equal_q > self.right_q)
        if tied.size:
            cases = np.stack([self.better_q, self.equal_q, self.right_q], axis=1)[tied]
            different, inverse = np.unique(cases, axis=0, return_inverse=True)
            values = np.array([_reciprocal(*map(int, case)) for case in different])
            found[tied] = values[inverse.reshape(-1)]
        return found

    def mean_reciprocal_rank(self) -> float:
        """Return the mean of 1 / rank of the first right candidate."""
        return float(self.reciprocal_ranks().mean())

    def median_rank(self) -> float:
        """Return the median rank of the first right candidate, from 1."""
        return float(np.median(self.ranks()))


def rank(scores_qn: Scores, targets: Targets) -> Ranking:
    """Find the best right candidate of each query in a matrix of scores; higher is better.

    Raises:
        ValueError: the shapes do not fit, there is no query, or one has no right candidate.
    """
    relevant = _relevant(targets)
    if scores_qn.ndim != 2 or len(relevant) != len(scores_qn):
        raise ValueError(f"scores {scores_qn.shape} and {len(relevant)} queries do not fit")
    if relevant.items.max() >= scores_qn.shape[1] or relevant.items.min() < 0:
        raise ValueError(f"there is no candidate {relevant.items.max()} in {scores_qn.shape}")
    right_r = scores_qn[np.repeat(np.arange(len(relevant)), relevant.counts_q), relevant.items]
    best_q = np.maximum.reduceat(right_r, relevant.starts[:-1])
    equals_r = right_r == np.repeat(best_q, relevant.counts_q)
    return Ranking(
        (scores_qn > best_q[:, None]).sum(axis=1),
        (scores_qn == best_q[:, None]).sum(axis=1),
        np.add.reduceat(equals_r.astype(np.int64), relevant.starts[:-1]),
    )


def rank_vectors(
    queries_qd: Scores,
    items_nd: Scores,
    targets: Targets,
    progress: Callable[[int], None] | None = None,
) -> Ranking:
    """Find the best right candidate of each query by inner products, some queries at a time.

    So memory stays bounded: 100,000 queries on 100,000 candidates never make their whole matrix.

    Args:
        queries_qd: vectors of the queries.
        items_nd: vectors of the candidates.
        targets: which are right.
        progress: called with the number of queries done so far.

    Raises:
        ValueError: as `rank`.
    """
    relevant = _relevant(targets)
    if len(relevant) != len(queries_qd):
        raise ValueError(f"{len(queries_qd)} vectors and {len(relevant)} queries do not fit")
    step = max(1, _SCORES_AT_ONCE // max(1, len(items_nd)))
    parts = []
    for start in range(0, len(queries_qd), step):
        stop = min(start + step, len(queries_qd))
        scores_qn = queries_qd[start:stop] @ items_nd.T
        parts.append(rank(scores_qn, relevant.part(start, stop)))
        if progress is not None:
            progress(stop)
    return Ranking(
        np.concatenate([part.better_q for part in parts]),
        np.concatenate([part.equal_q for part in parts]),
        np.concatenate([part.right_q for part in parts]),
    )


def hits_at_k(scores_qn: Scores, targets: Targets, k: int) -> Values:
    """Return the chance of each query that a right candidate is among its best k. Shape [q].

    Raises:
        ValueError: as `rank`, or k is not positive.
    """
    return rank(scores_qn, targets).hits_at_k(k)


def recall_at_k(scores_qn: Scores, targets: Targets, k: int) -> float:
    """Return the share of queries with a right candidate among the best k, from 0 to 1.

    Raises:
        ValueError: as `rank`, or k is not positive.
    """
    return rank(scores_qn, targets).recall_at_k(k)


def chance(k: int, candidates: int, right: int | Sequence[int] | Places = 1) -> float:
    """Return the recall at k of a random order.

    Args:
        k: how many candidates are looked at.
        candidates: how many there are.
        right: how many of them are right, or that for each query.
    """
    right_q = np.atleast_1d(np.asarray(right, np.int64))
    total_q = np.full_like(right_q, candidates)
    return float(1.0 - _miss(total_q, right_q, np.minimum(k, total_q)).mean())


def _relevant(targets: Targets) -> Relevant:
    if isinstance(targets, Relevant):
        return targets
    if targets.ndim == 1:
        return Relevant.of([int(target)] for target in targets)
    return Relevant.of(np.flatnonzero(row) for row in targets)


def _miss(total_q: Places, right_q: Places, drawn_q: Places) -> Values:
    """Return the chance to draw none of the right ones: C(total-right, drawn) / C(total, drawn).

    Symmetric in right and drawn, so it is a product of as many factors as the smaller has.
    """
    small_q = np.minimum(right_q, drawn_q)
    large_q = np.maximum(right_q, drawn_q)
    miss_q = np.ones(len(total_q))
    for i in range(int(small_q.max(initial=0))):
        factor_q = np.maximum(total_q - large_q - i, 0) / np.maximum(total_q - i, 1)
        miss_q *= np.where(i < small_q, factor_q, 1.0)
    return miss_q


def _reciprocal(better: int, equal: int, right: int) -> float:
    """Return the mean of 1 / rank of the first right one of the equals, in random order."""
    i = np.arange(equal - right + 1)
    miss = np.concatenate([[1.0], np.cumprod((equal - right - i) / (equal - i))])
    return float(((miss[:-1] - miss[1:]) / (better + 1 + i)).sum())
