"""Files, as the workers and the embedding service take them."""

import warnings

import numpy as np

from cra.shared.model.pixels import MAX_PIXELS, MAX_SIDE, BadImageError, Preprocessing, prepare

SIDE = 8
REASONS = {
    "empty", "not_an_image", "truncated", "corrupt", "unsupported", "too_many_pixels", "too_long",
    "too_many_parts",
}  # fmt: skip

warnings.simplefilter("ignore")  # of what Pillow repairs


def check(data: bytes) -> None:
    """Any file gives pixels of the tower's shape, or BadImageError with a known reason.

    The fuzzer ends a target that holds over 1.5 GB or takes over a minute for one file. Fails
    when `prepare` lets a decoder's error through, and, by memory, without the limit of pixels.
    """
    try:
        prepared = prepare(data, Preprocessing(SIDE))
    except BadImageError as error:
        assert error.reason in REASONS
        assert len(error.message.split()) >= 3, error.message
        return
    assert prepared.pixels.shape == (SIDE, SIDE, 3)
    assert prepared.pixels.dtype == np.uint8
    assert 0 < prepared.width * prepared.height <= MAX_PIXELS
    assert max(prepared.width, prepared.height) <= MAX_SIDE
