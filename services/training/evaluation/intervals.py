"""How sure a mean over queries is, and whether two models differ: by whole groups.

Queries about one building are alike, so they are drawn together: the groups are resampled, not
the queries. A text that describes several buildings is drawn with those of exactly the same ones.

Shapes in this file: q queries, m measures of each, g groups, b resamples at once.

Sources: Efron and Tibshirani, "An introduction to the bootstrap", 1993 (percentile intervals);
Field and Welsh, "Bootstrapping clustered data", 2007; Smucker, Allan and Carterette, "A comparison
of statistical significance tests for information retrieval evaluation", 2007 (the randomisation
test); Phipson and Smyth, "Permutation p-values should never be zero", 2010.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from cra.services.training.metrics import Places, Values

RESAMPLES: Final = 2000
FLIPS: Final = 10_000
"""Random signs that the paired test tries; no p-value is below its inverse."""
CONFIDENCE: Final = 0.95
_CELLS_AT_ONCE: Final = 2**21


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; none (None) where there are fewer than two groups."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """How much a second model is above a first one, on the same queries."""

    p_value: float
    """How often chance alone would set two equal models at least so far apart."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Which of `count` groups each query is drawn with."""

    groups_q: Places
    """From 0 to `count` - 1."""
    count: int

    @classmethod
    def of(cls, names: Iterable[Iterable[str]]) -> "Groups":
        """Put queries together that belong to the same groups, by their names."""
        numbers: dict[frozenset[str], int] = {}
        groups = [numbers.setdefault(frozenset(row), len(numbers)) for row in names]
        return cls(np.array(groups, np.int64), len(numbers))

    def sums(self, values_qm: Values) -> Values:
        """Add up the values of each group's queries. Shape [g, m]."""
        sums_gm = np.zeros((self.count, values_qm.shape[1]))
        np.add.at(sums_gm, self.groups_q, values_qm)
        return sums_gm


def means(
    values_qm: Values,
    groups: Groups,
    counted_qm: Values | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Return the mean of each measure over the queries, with its percentile interval.

    With few groups such intervals are somewhat too narrow.

    Args:
        values_qm: m measures of each query.
        groups: of the queries.
        counted_qm: 1 where a query counts for a measure, 0 where not; all count if None.
        resamples: of the groups.
        seed: the same gives the same interval.

    Raises:
        ValueError: no query counts for a measure.
    """
    counted_qm = np.ones_like(values_qm) if counted_qm is None else counted_qm
    sums_gm, counts_gm = groups.sums(values_qm * counted_qm), groups.sums(counted_qm)
    if not (counts_gm.sum(axis=0) > 0).all():
        raise ValueError("no query counts for one of the measures")
    ratios = []
    with np.errstate(invalid="ignore"):  # a resample without any query of a measure is nan
        for drawn_bg in _resamples(groups.count, resamples, seed):
            ratios.append((drawn_bg @ sums_gm) / (drawn_bg @ counts_gm))
    values = sums_gm.sum(axis=0) / counts_gm.sum(axis=0)
    inside = (counts_gm > 0).sum(axis=0)
    return [
        _estimate(float(value), column, int(several))
        for value, column, several in zip(values, np.concatenate(ratios).T, inside, strict=True)
    ]


def median(values_q: Values, groups: Groups, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the median over the queries, with its percentile interval."""
    # In rising order of value, so that a resample's median is where half of its queries lie.
    order_q = np.argsort(values_q, kind="stable")
    rising_q, groups_q = values_q[order_q], groups.groups_q[order_q]
    found = []
    for drawn_bg in _resamples(groups.count, resamples, seed, len(values_q)):
        below_bq = np.cumsum(drawn_bg[:, groups_q], axis=1)
        found.append(rising_q[(below_bq < below_bq[:, -1:] / 2).sum(axis=1)])
    return _estimate(float(np.median(values_q)), np.concatenate(found), groups.count)


def differences(
    first_qm: Values,
    second_qm: Values,
    groups: Groups,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare two models on the same queries, measure by measure: second less first.

    The interval is that of `means`. The test flips the sign of each whole group's difference at
    random: if the models are equal, which of them answered is as good as random.
    """
    apart_qm = second_qm - first_qm
    estimates = means(apart_qm, groups, None, resamples, seed)
    sums_gm = groups.sums(apart_qm)
    seen_m = np.abs(sums_gm.sum(axis=0))
    # Sums in another order differ in their last digits.
    least_m = seen_m - 1e-9 * np.abs(sums_gm).sum(axis=0)
    rng = np.random.default_rng([seed, 1])
    as_far_m = np.zeros(len(seen_m))
    for count in _parts(FLIPS, groups.count):
        signs_bg = 2.0 * rng.integers(0, 2, (count, groups.count)) - 1.0
        as_far_m += (np.abs(signs_bg @ sums_gm) >= least_m).sum(axis=0)
    return [
        Difference(one.value, one.low, one.high, float((1 + as_far) / (1 + FLIPS)))
        for one, as_far in zip(estimates, as_far_m, strict=True)
    ]


def _resamples(groups: int, resamples: int, seed: int, width: int = 1) -> Iterator[Values]:
    """Yield how often each group was drawn, some resamples at a time. Shape [b, g]."""
    rng = np.random.default_rng(seed)
    for count in _parts(resamples, max(groups, width)):
        drawn = rng.integers(0, groups, (count, groups))
        flat = (drawn + np.arange(count)[:, None] * groups).ravel()
        yield np.bincount(flat, minlength=count * groups).reshape(count, groups).astype(np.float64)


def _parts(total: int, width: int) -> Iterator[int]:
    """Cut `total` rows of `width` cells into parts that fit in memory."""
    step = max(1, _CELLS_AT_ONCE // width)
    for start in range(0, total, step):
        yield min(step, total - start)


def _estimate(value: float, found: Values, groups: int) -> Estimate:
    if groups < 2:
        return Estimate(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
