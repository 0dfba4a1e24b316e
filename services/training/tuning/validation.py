"""Recall on held-out images while a tower learns.

Shapes in this file: q captions, n images, d embedding dimension.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training.data.dataset import DataSet
from cra.services.training.features import Features
from cra.services.training.metrics import recall_at_k
from cra.services.training.tuning.captions import Captions
from cra.shared.model.text_tower import TextModel, Tokenizer

_QUERIES_AT_ONCE: Final = 1024


@dataclass(frozen=True)
class Score:
    """Recall at the k of validation: shares from 0 to 1."""

    field: float
    """Of the captions that are tuned on."""
    general: float | None
    """Of everyday captions, if the data has some."""


class Validation:
    """Held-out images and their captions.

    Args:
        dataset: n images.
        features_nd: their unit vectors.
        tokenizer: of the tower that learns.
        k: recall is measured at.

    Raises:
        ValueError: there is no caption.
    """

    def __init__(
        self, dataset: DataSet, features_nd: Features, tokenizer: Tokenizer, k: int
    ) -> None:
        self._features_nd = features_nd
        self._k = k
        field, general = list(dataset.pairs()), list(dataset.general_pairs())
        if not field:
            raise ValueError("the validation data has no captions")
        self._field = _Queries.of(field, tokenizer)
        self._general = _Queries.of(general, tokenizer) if general else None

    def score(self, model: TextModel, device: str) -> Score:
        """Measure a tower as it is; it stays in the mode that it is in."""
        general = None if self._general is None else self._recall(self._general, model, device)
        return Score(self._recall(self._field, model, device), general)

    def _recall(self, queries: "_Queries", model: TextModel, device: str) -> float:
        texts_qd = queries.captions.encode_all(model, device)
        total = 0.0
        for start in range(0, len(texts_qd), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            targets_q = queries.images_q[part]
            scores_qn = texts_qd[part] @ self._features_nd.T
            total += len(targets_q) * recall_at_k(scores_qn, targets_q, self._k)
        return total / len(texts_qd)


@dataclass(frozen=True)
class _Queries:
    captions: Captions
    images_q: npt.NDArray[np.int64]

    @classmethod
    def of(cls, pairs: list[tuple[int, str]], tokenizer: Tokenizer) -> "_Queries":
        images_q = np.array([place for place, _ in pairs])
        return cls(Captions([text for _, text in pairs], tokenizer), images_q)
