"""How far a score stands above what its query gives to images at random.

A cosine means nothing by itself: one query gives 0.3 to all images, another 0.1 to its best, and
a picture gives 0.8 to others. So a score is counted in standard deviations above the mean that the
same query has on a fixed random part of the index, and put on a scale from 0 to 1.

Shapes in this file: n sampled images, d embedding dimension.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.shared.domain import Vector

LEAST: Final = 50
"""Images below which an index has no background."""
MIDDLE: Final = 4.0
"""Deviations above the mean at which the relevance is a half: as `make quality` fits it on the
validation set, where every other hit that stands there is right."""
WIDTH: Final = 1.0
"""Deviations that take the odds up or down by a factor of e."""
_NO_SPREAD: Final = 1e-4
_EDGE: Final = 60.0


@dataclass(frozen=True)
class Scale:
    """What one query gives to images at random."""

    mean: float
    deviation: float

    def relevance(self, score: float) -> float:
        """Return the relevance of a score, from 0 to 1: 1 / (1 + exp((MIDDLE - z) / WIDTH)).

        z = (score - mean) / deviation. A logistic curve, since it has an inverse, tells apart also
        what lies far out, and is how a probability is fitted to one figure.
        """
        z = (score - self.mean) / self.deviation
        odds = math.exp(min(_EDGE, max(-_EDGE, (MIDDLE - z) / WIDTH)))
        # As a message holds it, so that a relevance that was returned is a bound that holds.
        return float(np.float32(1.0 / (1.0 + odds)))


@dataclass(frozen=True, eq=False)
class Background:
    """The mean and the covariance of a random part of an index.

    With them a query's mean and deviation on it cost one product of a d by d matrix, however many
    images were drawn.
    """

    mean_d: Vector
    covariance_dd: npt.NDArray[np.float32]

    @classmethod
    def of(cls, vectors_nd: npt.NDArray[np.float32]) -> "Background | None":
        """Return that of n unit vectors; None if they are fewer than `LEAST`."""
        if len(vectors_nd) < LEAST:
            return None
        wide_nd = vectors_nd.astype(np.float64)
        mean_d = wide_nd.mean(axis=0)
        centred_nd = wide_nd - mean_d
        covariance_dd = centred_nd.T @ centred_nd / len(wide_nd)
        return cls(mean_d.astype(np.float32), covariance_dd.astype(np.float32))

    def scale(self, query: Vector) -> Scale | None:
        """Return what a query, a unit vector, gives to images at random.

        None if it gives all of them the same, so that no score stands out.
        """
        variance = float(query @ (self.covariance_dd @ query))
        if variance < _NO_SPREAD**2:
            return None
        return Scale(float(query @ self.mean_d), math.sqrt(variance))
