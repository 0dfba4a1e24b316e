"""Relevance: a score against what its query gives to images at random."""

import time

import numpy as np
import numpy.typing as npt
import pytest

from cra.shared.relevance import LEAST, MIDDLE, Background, Scale


def unit(vectors_nd: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the vectors at unit length."""
    lengths = np.linalg.norm(vectors_nd, axis=-1, keepdims=True)
    return np.asarray(vectors_nd / lengths, dtype=np.float32)


def gallery(count: int, dimension: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return vectors in a narrow cone, as a tower's are."""
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((count, dimension)) + 2.0)


def test_mean_and_deviation_are_those_of_the_scores() -> None:
    """From mean vector and covariance comes what the scores themselves have."""
    images_nd = gallery(700, 32)
    background = Background.of(images_nd)
    assert background is not None
    for query in (images_nd[3], unit(np.random.default_rng(1).standard_normal(32))):
        scale = background.scale(query)
        assert scale is not None
        scores = images_nd @ query
        assert scale.mean == pytest.approx(scores.mean(), abs=1e-5)
        assert scale.deviation == pytest.approx(scores.std(), rel=1e-3)


def test_relevance_rises_from_0_to_1() -> None:
    """A half at the middle, monotone, within bounds however far the score is."""
    scale = Scale(0.2, 0.05)
    found = [scale.relevance(0.2 + z * 0.05) for z in (-1000, -1, 0, 2, MIDDLE, 4, 6, 1000)]
    assert found == sorted(found)
    assert 0.0 <= found[0] < 0.01
    assert 0.99 < found[-1] <= 1.0
    assert scale.relevance(0.2 + MIDDLE * 0.05) == pytest.approx(0.5)


def test_it_means_the_same_for_a_text_and_a_picture() -> None:
    """A shift and a stretch of all of a query's scores changes no relevance."""
    one, other = Scale(0.1, 0.02), Scale(0.7, 0.06)
    for z in (0.0, 2.5, 5.0):
        assert one.relevance(0.1 + z * 0.02) == pytest.approx(other.relevance(0.7 + z * 0.06))


def test_where_it_is_not_known() -> None:
    """Few images have no background, and a query that all of them fit alike has no scale."""
    assert Background.of(gallery(LEAST - 1, 8)) is None
    assert Background.of(gallery(LEAST, 8)) is not None
    alike = Background.of(np.tile(gallery(1, 8), (LEAST, 1)))
    assert alike is not None
    assert alike.scale(gallery(1, 8)[0]) is None


def test_a_query_costs_little() -> None:
    """At 512 dimensions the scale takes well under 0.2 ms, whatever was sampled."""
    background = Background.of(gallery(1000, 512))
    assert background is not None
    query = gallery(1, 512, 5)[0]

    def seconds() -> float:
        began = time.perf_counter()
        background.scale(query)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(200)) < 0.0002
