"""The port behind which towers run: a text encoder and an image encoder, whatever the engine.

Free of torch. Shapes: n items, t tokens, s input size, d embedding dimension.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

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


def encode_by_length(
    ids_nt: npt.NDArray[np.int64],
    forward: Callable[[npt.NDArray[np.int64]], Vectors],
    most: int,
) -> Vectors:
    """Encode texts of like length together, each part cut to its longest: padding costs time.

    Args:
        ids_nt: token ids, padded at the end.
        forward: encodes a part of them.
        most: texts in one part.

    Returns:
        unit vectors in the order of `ids_nt`.
    """
    lengths_n = (ids_nt != PAD).sum(axis=1)
    order_n = np.argsort(lengths_n, kind="stable")
    parts = []
    for start in range(0, len(order_n), most):
        chosen = order_n[start : start + most]
        parts.append(forward(np.ascontiguousarray(ids_nt[chosen, : lengths_n[chosen[-1]]])))
    encoded_nd = np.concatenate(parts)
    vectors_nd = np.empty_like(encoded_nd)
    vectors_nd[order_n] = encoded_nd
    return unit(vectors_nd)


def unit(vectors_nd: Vectors) -> Vectors:
    """Return vectors of unit length."""
    lengths = np.linalg.norm(vectors_nd, axis=-1, keepdims=True)
    return np.asarray(vectors_nd / lengths, dtype=np.float32)
