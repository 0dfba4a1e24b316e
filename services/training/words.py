"""A second, denser lesson for an image tower: which words do the captions of this image use?

A contrastive batch says little about an image whose captions name two things of twelve. To
predict the words of all its captions says much more, and still needs nothing but captions; early
training is many times faster. The head that does it is dropped afterwards.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional


def vocabulary(captions: Sequence[Sequence[str]], at_least: int = 30) -> list[str]:
    """Return the pairs of characters used in the captions of at least so many images, sorted.

    Raises:
        ValueError: there is no such pair.
    """
    counts = Counter(pair for texts in captions for pair in _pairs(texts))
    known = sorted(pair for pair, count in counts.items() if count >= at_least)
    if not known:
        raise ValueError(f"no word is used in the captions of {at_least} images")
    return known


def targets(captions: Sequence[Sequence[str]], words: Sequence[str]) -> npt.NDArray[np.float16]:
    """Return what to predict for n images: a distribution over v words each, shape [n, v].

    Rare words weigh more, as the inverse document frequency has it; an image whose captions use
    no known word gets zeros.
    """
    places = {word: place for place, word in enumerate(words)}
    used = np.zeros((len(captions), len(words)), dtype=np.float32)
    for row, texts in zip(used, captions, strict=True):
        row[[places[pair] for pair in _pairs(texts) if pair in places]] = 1.0
    weights = np.log(len(captions) / np.maximum(used.sum(axis=0), 1.0))
    used *= weights
    shares: npt.NDArray[np.float32] = used / np.maximum(used.sum(axis=1, keepdims=True), 1e-9)
    return shares.astype(np.float16)


def loss(logits_nv: torch.Tensor, targets_nv: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy between predicted and used words, above the targets' own."""
    entropy = -torch.xlogy(targets_nv, targets_nv).sum(dim=1).mean()
    return functional.cross_entropy(logits_nv, targets_nv) - entropy


def _pairs(texts: Sequence[str]) -> set[str]:
    return {text[i : i + 2] for text in texts for i in range(len(text) - 1)}
