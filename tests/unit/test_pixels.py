"""Images that are none, or bad: each is refused with its reason, and none does any harm."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cra.shared.model.pixels import (
    MAX_PIXELS,
    MAX_SIDE,
    BadImageError,
    Preprocessing,
    prepare,
)
from tests.pictures import FILES, colourful, encode, png

TINY = Preprocessing(8)
REASONS = {
    "empty", "not_an_image", "truncated", "corrupt", "unsupported", "too_many_pixels", "too_long",
    "too_many_parts",
}  # fmt: skip

# Pillow warns of what it repairs; the tests look at what comes out.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _reason(encoded: bytes) -> str:
    with pytest.raises(BadImageError) as caught:
        prepare(encoded, TINY)
    assert caught.value.message
    return caught.value.reason


def test_an_empty_file() -> None:
    """No bytes at all: `empty`."""
    assert _reason(b"") == "empty"


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param("这不是图片".encode(), id="text"),
        pytest.param(b"\0" * 4096, id="zeros"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param(b"%PDF-1.7\n", id="PDF"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", id="EPS"),
        pytest.param(encode(colourful(), "ICO"), id="a format that is not in the list"),
    ],
)
def test_not_an_image(encoded: bytes) -> None:
    """What is no image of a format in the list: `not_an_image`."""
    assert _reason(encoded) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "JPEG2000", "TIFF"])
def test_a_file_cut_short(kind: str) -> None:
    """Half a file, however well it begins, is refused, never taken as a picture half gray."""
    encoded = encode(colourful(200, 150), kind)
    assert _reason(encoded[: len(encoded) // 2]) in {"truncated", "corrupt", "not_an_image"}


def test_a_photograph_cut_short() -> None:
    """What a broken upload leaves of a JPEG says what happened: `truncated`."""
    encoded = encode(colourful(200, 150), "JPEG")
    for share in (0.5, 0.9, 0.99):
        assert _reason(encoded[: int(len(encoded) * share)]) == "truncated"


def test_too_many_pixels() -> None:
    """More pixels than a decompression bomb may have: refused by the header alone."""
    side = int(MAX_PIXELS**0.5) + 1
    assert _reason(png(side, side, 8, 0, b"")) == "too_many_pixels"
    with pytest.raises(BadImageError) as caught:
        prepare(png(60_000, 60_000, 8, 0, b""), TINY)
    # Pillow refuses this one by itself, at a limit of its own; only ours is named.
    assert caught.value.message == "too many pixels; at most 89478485 are allowed"


def test_the_limit_of_pixels_itself_is_allowed() -> None:
    """An image of just the allowed size is not refused for its size."""
    assert _reason(png(MAX_PIXELS // 1000, 1000, 8, 0, b"")) == "too_long"
    side = int(MAX_PIXELS**0.5)
    assert _reason(png(side, side, 8, 0, b"")) not in {"too_many_pixels", "too_long"}


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_too_long(size: tuple[int, int]) -> None:
    """A side over 65,535 pixels: refused, since a resize takes memory in proportion to it."""
    assert _reason(png(*size, 8, 0, b"\0\7" * (MAX_SIDE + 2))) == "too_long"


def test_the_longest_side_needs_little_memory() -> None:
    """An image of the longest allowed side is taken, in under 64 MiB of Python's memory."""
    image = Image.new("L", (MAX_SIDE, 1), 200)
    encoded = encode(image, "PNG")
    tracemalloc.start()
    try:
        prepared = prepare(encoded, TINY)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (prepared.pixels == 200).all()
    assert most < 64 * 2**20


def test_samples_that_are_no_numbers() -> None:
    """A float image with NaN or infinity: `corrupt`, not a vector of NaN in the index."""
    for bad in (np.nan, np.inf):
        samples = np.full((4, 4), bad, np.float32)
        assert _reason(encode(Image.fromarray(samples), "TIFF")) == "corrupt"


def test_an_unreadable_orientation_does_no_harm() -> None:
    """Broken EXIF data costs the orientation, not the image."""
    encoded = encode(colourful(), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\xff\xff")
    plain = encode(colourful(), "JPEG")
    assert (prepare(encoded, TINY).pixels == prepare(plain, TINY).pixels).all()


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(encoded: bytes) -> None:
    """Random bytes are refused with BadImageError and nothing else."""
    with pytest.raises(BadImageError):
        prepare(encoded, TINY)


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    st.integers(0, 4000),
    st.booleans(),
)
def test_no_damage_raises_anything_else(
    name: str, changes: list[tuple[int, int]], end: int, cut: bool
) -> None:
    """A file of any kind with bytes changed or cut gives pixels of the right shape or a reason."""
    damaged = bytearray(FILES[name])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    if cut:
        del damaged[end % len(damaged) :]
    try:
        pixels = prepare(bytes(damaged), TINY).pixels
    except BadImageError as error:
        outcome: object = error.reason
    else:
        outcome = (pixels.shape, pixels.dtype)
    assert outcome in {((8, 8, 3), np.dtype(np.uint8)), *REASONS}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_any_size_fits_any_tower(width: int, height: int, side: int) -> None:
    """The result has the tower's size and tells the image's own."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), 77).save(buffer, "PPM")
    prepared = prepare(buffer.getvalue(), Preprocessing(side))
    assert prepared.pixels.shape == (side, side, 3)
    assert (prepared.pixels == 77).all()
    assert (prepared.width, prepared.height) == (width, height)


def test_preprocessings_are_told_apart() -> None:
    """The fingerprint of the preprocessing is stable and changes with the input size."""
    prints = [Preprocessing(side).fingerprint for side in (32, 96, 224, 336)]
    assert len(set(prints)) == 4
    assert Preprocessing(224).fingerprint == prints[2]
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in prints)


def test_what_stands_behind_the_last_chunk_counts_for_nothing() -> None:
    """A PNG with two megabytes of zeros behind its end is read as if they were not there.

    Break: count on behind IEND, where each twelve zeros look like a chunk.
    """
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    padded = file.getvalue() + bytes(2 * 2**20)
    plain = prepare(file.getvalue(), Preprocessing(32)).pixels
    assert (prepare(padded, Preprocessing(32)).pixels == plain).all()
