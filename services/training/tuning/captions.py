"""Texts that are encoded in batches, those of like length together, so that little is padding.

Shapes in this file: p texts, b of a batch, d embedding dimension.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from cra.shared.model.text_tower import TextModel
from cra.shared.model.tokenizer import CONTEXT_LENGTH, Tokenizer

Places = npt.NDArray[np.int64]
_AT_ONCE: Final = {"cpu": 16, "cuda": 256}
"""Texts in one forward: on CPU padding costs more than a further call does."""


class Captions:
    """Texts as tokens.

    Args:
        texts: p texts.
        tokenizer: of the model that will encode them.
        context_length: tokens that a text is cut at.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: Tokenizer, context_length: int = CONTEXT_LENGTH
    ) -> None:
        self._tokens_pt = torch.from_numpy(tokenizer(texts, context_length)[0])
        self._lengths_p = self._tokens_pt.ne(0).sum(dim=1)

    def __len__(self) -> int:
        return len(self._lengths_p)

    def encode(self, model: TextModel, batch_b: Places, device: str) -> torch.Tensor:
        """Return the vectors of some of the texts, not normalised, shape [b, d]."""
        lengths_b = self._lengths_p[batch_b]
        order_b = torch.argsort(lengths_b, stable=True)
        parts = []
        for chosen in torch.split(order_b, _AT_ONCE[torch.device(device).type]):
            rows = torch.from_numpy(batch_b)[chosen]
            longest = int(lengths_b[chosen].max())
            parts.append(model(self._tokens_pt[rows, :longest].to(device)))
        back_b = torch.empty_like(order_b)
        back_b[order_b] = torch.arange(len(order_b))
        return torch.cat(parts)[back_b.to(device)]

    def encode_all(self, model: TextModel, device: str) -> npt.NDArray[np.float32]:
        """Return unit vectors of all texts, float32 of shape [p, d], in inference mode."""
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            vectors = self.encode(model, np.arange(len(self)), device).float()
        model.train(was_training)
        unit: npt.NDArray[np.float32] = functional.normalize(vectors, dim=-1).cpu().numpy()
        return unit
