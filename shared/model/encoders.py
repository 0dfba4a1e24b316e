"""The port behind which towers run: a text encoder and an image encoder, whatever the engine.

Free of torch. Shapes: n items, t tokens, s input size, d embedding dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from cra.shared.model.pixels import Preprocessing
from cra.shared.model.runtime import Runtime
from cra.shared.model.tokenizer import PAD, Tokenizer

Vectors = npt.NDArray[np.float32]


class TextEncoder(Protocol):
    """A text tower in inference mode."""

    release: str
    image_tower: str
    """Fingerprint of the image tower that it was tuned for."""
    dimension: int
    tokenizer: Tokenizer
    runtime: Runtime

    def encode(self, texts: Sequence[str]) -> tuple[Vectors, list[bool]]:
        """Encode n texts.

        Returns:
            unit vectors, float32 of shape [n, d], and for each text whether it was cut.
        """
        ...


class ImageEncoder(Protocol):
    """An image tower in inference mode."""

    name: str
    image_tower: str
    """Fingerprint."""
    dimension: int
    preprocessing: Preprocessing
    runtime: Runtime

    def encode(self, pixels_nssc: npt.NDArray[np.uint8]) -> Vectors:
        """Encode n prepared images, uint8 RGB of shape [n, s, s, 3].

        Returns:
            unit vectors, float32 of shape [n, d].
        """
        ...

    def for_queries(self) -> "ImageEncoder":
        """Return the same tower for pictures of queries.

        They wait for nothing that this one encodes, if they come on a thread of their own.
        """
        ...


@dataclass(frozen=True)
class Passes:
    """What decides how a batch of texts is cut into forward passes; all in tokens."""

    cost: int
    """How many take as long as one more pass takes."""
    most: int
    """In a pass, padding among them."""


PASSES_ON_CPU: Final = Passes(cost=32, most=512)
"""Measured with RoBERTa-wwm-ext-base on two cores. In a pass of twice as many tokens a text took
4 to 9 % less, and all would wait twice as long."""


def encode_by_length(
    ids_nt: npt.NDArray[np.int64],
    forward: Callable[[npt.NDArray[np.int64]], Vectors],
    passes: Passes,
) -> Vectors:
    """Encode texts of like length together, each pass cut to its longest: padding costs time.

    Args:
        ids_nt: token ids, padded at the end.
        forward: encodes those of one pass.
        passes: says what is better, padding or one more pass.

    Returns:
        unit vectors in the order of `ids_nt`.
    """
    if len(ids_nt) == 1 and ids_nt[0, -1] != PAD:  # as a query comes: there is nothing to cut
        return unit(forward(ids_nt))
    lengths_n = (ids_nt != PAD).sum(axis=1)
    order_n = np.argsort(lengths_n, kind="stable")
    parts = []
    for part in cut(lengths_n[order_n].tolist(), passes):
        chosen = order_n[part]
        parts.append(forward(np.ascontiguousarray(ids_nt[chosen, : lengths_n[chosen[-1]]])))
    encoded_nd = np.concatenate(parts)
    vectors_nd = np.empty_like(encoded_nd)
    vectors_nd[order_n] = encoded_nd
    return unit(vectors_nd)


def cut(lengths: Sequence[int], passes: Passes) -> list[slice]:
    """Return the passes that take the least time, by dynamic programming.

    Args:
        lengths: of texts, ascending. One that is over the most tokens has a pass of its own.
        passes: what they cost.
    """
    count = len(lengths)
    if count * lengths[-1] <= min(passes.most, sum(lengths) + passes.cost):
        return [slice(0, count)]
    least = [0.0] * (count + 1)
    """By how many texts, from the shortest on: what encoding them costs."""
    start_of = [0] * (count + 1)
    """By the same: where the last of its passes starts."""
    for end in range(1, count + 1):
        longest = lengths[end - 1]
        first = max(0, end - max(1, passes.most // longest))
        least[end], start_of[end] = min(
            (least[start] + passes.cost + (end - start) * longest, start)
            for start in range(first, end)
        )
    found, end = [], count
    while end:
        found.append(slice(start_of[end], end))
        end = start_of[end]
    return found[::-1]


def unit(vectors_nd: Vectors) -> Vectors:
    """Return vectors of unit length."""
    lengths = np.linalg.norm(vectors_nd, axis=-1, keepdims=True)
    return np.asarray(vectors_nd / lengths, dtype=np.float32)
