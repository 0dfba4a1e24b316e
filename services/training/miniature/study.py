"""Recall of a text tower on the test set, by exact search, beside chance and ceiling.

Shapes in this file: q captions, n images, d embedding dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training.buildings import oracle
from cra.services.training.features import Features
from cra.services.training.metrics import Ranking, chance, rank_vectors
from cra.services.training.miniature.data import Part

KS: Final = (1, 5, 10, 20)
SPEECHES: Final = ("professional", "plain")

Encode = Callable[[list[str]], npt.NDArray[np.float32]]
"""Returns unit vectors of texts, shape [q, d]."""


class HeldOut:
    """The captions of the test set, and what anybody could reach on them.

    Args:
        part: the test set.
        input_size: side of the image tower's input, for the ceiling.
    """

    def __init__(self, part: Part, input_size: int) -> None:
        self.part = part
        self.queries: dict[str, list[tuple[int, str]]] = {
            "professional": list(part.dataset.pairs()),
            "plain": list(part.dataset.general_pairs()),
        }
        self.ceiling: dict[str, dict[int, float]] = {
            speech: {
                k: oracle.ceiling(part.pictures, self.queries[speech], k, input_size) for k in KS
            }
            for speech in SPEECHES
        }
        self.chance = {k: chance(k, len(part.dataset)) for k in KS}

    def groups(self, speech: str) -> list[str]:
        """Return the building of each caption."""
        images = self.part.dataset.images
        return [images[place].group for place, _ in self.queries[speech]]

    def rank(self, encode: Encode, features_nd: Features) -> dict[str, Ranking]:
        """Return where the picture of each caption comes, by way of speaking.

        Only the picture that a caption was written for is right.
        """
        return {
            speech: rank_vectors(
                encode([text for _, text in queries]),
                features_nd,
                np.array([place for place, _ in queries]),
            )
            for speech, queries in self.queries.items()
        }


@dataclass(frozen=True)
class Outcome:
    """What one tower reached: hits of each caption at each k, by way of speaking."""

    hits: Mapping[str, Mapping[int, npt.NDArray[np.float64]]]

    @classmethod
    def of(cls, rankings: Mapping[str, Ranking]) -> "Outcome":
        """Take from rankings what is compared."""
        return cls(
            {speech: {k: ranking.hits_at_k(k) for k in KS} for speech, ranking in rankings.items()}
        )

    def recall(self, speech: str, k: int) -> float:
        """Return a share from 0 to 1."""
        return float(self.hits[speech][k].mean())
