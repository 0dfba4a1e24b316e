"""Recall on held-out images while a tower learns.

Shapes in this file: q captions, n images, d embedding dimension.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cra.services.training.data.dataset import DataSet
from cra.services.training.features import Features
from cra.services.training.metrics import rank_vectors
from cra.services.training.tuning.captions import Captions
from cra.shared.model.text_tower import TextModel
from cra.shared.model.tokenizer import Tokenizer


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
        return rank_vectors(texts_qd, self._features_nd, queries.images_q).recall_at_k(self._k)


@dataclass(frozen=True)
class _Queries:
    captions: Captions
    images_q: npt.NDArray[np.int64]

    @classmethod
    def of(cls, pairs: list[tuple[int, str]], tokenizer: Tokenizer) -> "_Queries":
        images_q = np.array([place for place, _ in pairs])
        return cls(Captions([text for _, text in pairs], tokenizer), images_q)
