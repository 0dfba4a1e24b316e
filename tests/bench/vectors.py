"""Vectors with the structure of a model's own: nothing that is easy to index, such as noise.

What is known of embeddings of images and texts in one space is made here: all lie in a narrow cone,
their variance falls off like a power of the dimension, images come in clusters of clusters of very
different sizes, and texts lie beside the images that they describe, shifted by a gap between the
two kinds ("Mind the Gap", Liang and others, NeurIPS 2022), so that a query is none of the points
that an index was built from.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DIMENSION: Final = 512
SUBJECTS: Final = 200
SCENES: Final = 5_000
"""Clusters within the subjects; half of all images lie in a tenth of them."""
DECAY: Final = 0.4
"""Standard deviations fall with this power of the dimension's number."""
CHUNK: Final = 10_000

Vectors = npt.NDArray[np.float32]


class Embeddings:
    """Images and queries of one made-up model; the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        spectrum = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -DECAY
        self._spectrum = spectrum / np.linalg.norm(spectrum)
        self._cone = _unit(rng.standard_normal(DIMENSION, np.float32))
        self._gap = _unit(rng.standard_normal(DIMENSION, np.float32))
        subjects = self._spread(rng, SUBJECTS)
        self._scenes = subjects[rng.integers(0, SUBJECTS, SCENES)] + self._spread(rng, SCENES)
        weights = 1 / np.arange(1, SCENES + 1)
        self._weights = rng.permutation(weights / weights.sum())

    def images(self, count: int) -> Iterator[Vectors]:
        """Yield unit vectors of `count` images, in parts of at most `CHUNK`."""
        for part, start in enumerate(range(0, count, CHUNK)):
            rng = np.random.default_rng((self._seed, 1, part))
            content = self._content(rng, min(CHUNK, count - start))
            yield _unit(1.2 * self._cone + content)

    def queries(self, count: int) -> Vectors:
        """Return unit vectors of `count` texts that describe images of no index."""
        rng = np.random.default_rng((self._seed, 2))
        content = self._content(rng, count) + 0.5 * self._spread(rng, count)
        return _unit(1.2 * self._cone + 0.8 * self._gap + 0.7 * content)

    def _content(self, rng: np.random.Generator, count: int) -> Vectors:
        scenes = self._scenes[rng.choice(SCENES, count, p=self._weights)]
        return np.asarray(0.6 * scenes + 0.8 * self._spread(rng, count), np.float32)

    def _spread(self, rng: np.random.Generator, count: int) -> Vectors:
        return rng.standard_normal((count, DIMENSION), np.float32) * self._spectrum


def exact(parts: Iterator[Vectors], queries: Vectors, top_k: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the `top_k` nearest images of each query, nearest first."""
    best = np.full((len(queries), 0), 0, np.float32)
    numbers = np.full((len(queries), 0), 0, np.int64)
    start = 0
    for part in parts:
        scores = np.concatenate([best, queries @ part.T], axis=1)
        found = np.broadcast_to(np.arange(start, start + len(part)), (len(queries), len(part)))
        numbers = np.concatenate([numbers, found], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        best = np.take_along_axis(scores, order, axis=1)
        numbers = np.take_along_axis(numbers, order, axis=1)
        start += len(part)
    return numbers


def _unit(vectors: npt.NDArray[Any]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)
