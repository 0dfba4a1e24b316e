import numpy as np
import pytest

from cra.services.training.evaluation import intervals
from cra.services.training.evaluation.intervals import Groups


def named(numbers: np.ndarray) -> Groups:
    """Return groups of the queries by number."""
    return Groups.of([[f"{number:04}"] for number in numbers])


def test_means_are_means_over_queries() -> None:
    """The estimate is the plain mean, whatever the groups' sizes, and lies in its interval."""
    values = np.random.default_rng(0).random((50, 2))
    found = intervals.means(values, named(np.arange(50) % 7))
    for column, one in enumerate(found):
        assert one.value == pytest.approx(values[:, column].mean())
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high


def test_texts_of_the_same_buildings_are_drawn_together() -> None:
    """A caption of two buildings goes with those of the same two, in whatever order."""
    groups = Groups.of([["a"], ["a", "b"], ["b"], ["b", "a"], ["a"]])
    assert groups.groups_q.tolist() == [0, 1, 2, 1, 0]
    assert groups.sums(np.array([[1.0], [1.0], [0.0], [0.0], [1.0]])).ravel().tolist() == [2, 1, 0]


def test_intervals_cover_as_often_as_they_say() -> None:
    """Of intervals for a known mean, with groups that vary, about 95 in 100 hold it."""
    rng = np.random.default_rng(1)
    groups = named(np.repeat(np.arange(60), 5))
    held = 0
    for trial in range(200):
        own = rng.normal(0.3, 1.0, 60)
        values = (np.repeat(own, 5) + rng.normal(0, 0.5, 300))[:, None]
        (one,) = intervals.means(values, groups, resamples=500, seed=trial)
        assert one.low is not None
        assert one.high is not None
        held += one.low <= 0.3 <= one.high
    assert 0.90 <= held / 200 <= 0.985


def test_groups_widen_the_interval() -> None:
    """Five equal queries a group are worth one: the interval is that of the groups alone."""
    own = np.random.default_rng(2).normal(size=80)
    (alone,) = intervals.means(own[:, None], named(np.arange(80)))
    (repeated,) = intervals.means(np.repeat(own, 5)[:, None], named(np.repeat(np.arange(80), 5)))
    assert repeated.low == pytest.approx(alone.low)
    assert repeated.high == pytest.approx(alone.high)


def test_the_same_seed_gives_the_same_interval() -> None:
    """Intervals are reproducible."""
    values, groups = np.random.default_rng(3).random((30, 1)), named(np.arange(30))
    first = intervals.means(values, groups, seed=5)
    assert first == intervals.means(values, groups, seed=5)
    assert first != intervals.means(values, groups, seed=6)


def test_one_group_has_no_interval() -> None:
    """What was seen on one building says nothing of others: there is a value and no interval."""
    (one,) = intervals.means(np.array([[1.0], [0.0]]), named(np.array([0, 0])))
    assert (one.value, one.low, one.high) == (0.5, None, None)


def test_only_what_counts_counts() -> None:
    """A measure of some queries is their mean, also when resamples hold none of them."""
    values = np.arange(40.0)[:, None]
    counted = (np.arange(40) < 2).astype(float)[:, None]
    (one,) = intervals.means(values, named(np.arange(40)), counted)
    assert (one.value, one.low, one.high) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="no query"):
        intervals.means(values, named(np.arange(40)), np.zeros((40, 1)))


def test_median_and_its_interval() -> None:
    """The median of a known distribution lies in its interval, which narrows with the queries."""
    rng = np.random.default_rng(4)
    widths = []
    for count in (50, 800):
        values = rng.exponential(10.0, count)
        found = intervals.median(values, named(np.arange(count)))
        assert found.value == np.median(values)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= 10 * np.log(2) <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_equal_models_do_not_differ() -> None:
    """Of a model and itself the difference is 0, with an interval of 0, and p is 1."""
    values = np.random.default_rng(5).random((40, 2))
    for one in intervals.differences(values, values, named(np.arange(40) % 10)):
        assert (one.value, one.low, one.high, one.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_of_few_groups_by_hand() -> None:
    """Five groups that all gain: of 32 sets of signs two are as far, so p is near 1 / 16."""
    (one,) = intervals.differences(np.zeros((5, 1)), np.ones((5, 1)), named(np.arange(5)))
    assert one.value == 1.0
    assert one.p_value == pytest.approx(1 / 16, abs=0.01)


def test_p_is_uniform_where_nothing_differs() -> None:
    """Of equally good models, one pair in ten has a p-value below 0.1, and a real gain is seen."""
    rng = np.random.default_rng(6)
    groups = named(np.arange(40))
    values = rng.normal(size=(40, 300))
    found = intervals.differences(values, values + rng.normal(size=(40, 300)), groups)
    assert np.mean([one.p_value < 0.1 for one in found]) == pytest.approx(0.1, abs=0.06)
    better = values + rng.normal(1.0, 1.0, (40, 300))
    assert (
        np.mean([one.p_value < 0.01 for one in intervals.differences(values, better, groups)])
        > 0.95
    )
