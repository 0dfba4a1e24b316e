"""Pixels as the image tower takes them. Free of torch, so that decoding scales with the workers.

The steps are cn_clip's own `image_transform`, in its order: resize to a square (squash, bicubic)
in the image's own mode, then convert to RGB. Before them an image is made what a viewer shows:
upright by its EXIF orientation, and 16-bit samples scaled to 8 bits, where cn_clip would clip
them to white.
"""

import hashlib
import io
import json
import math
import re
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS: Final = 89_478_485
"""Pillow's own limit against decompression bombs: 256 MiB of RGB."""

MAX_PIXELS_TOGETHER: Final = 3 * MAX_PIXELS
"""Decoded for one call. JPEGs count as the smaller ones that they are decoded to."""

MAX_SIDE: Final = 65_535
"""JPEG's own limit. A resize needs memory in proportion to the side: a PNG of one row and 90 KB
could ask for 3 GB."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
"""What is decoded; the plugins of rarer formats are a risk and no gain."""

# HEIF and nothing else. It turns and mirrors as the file says (irot, imir) and takes the
# orientation out of the EXIF data, which repeats it: each is applied once. Without thumbnails:
# they would be decoded in the image's place, and nothing proves that they show the same.
pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)

MAX_SCANS: Final = 100
"""Of a progressive JPEG; an encoder makes about ten. Each passes over the whole image, however few
bytes it has: a file of 1 MB could keep a worker busy for minutes."""

MAX_SEGMENTS: Final = 100_000
"""Of a JPEG or chunks of a PNG. Pillow keeps those that it does not know: a file of 64 MB could
ask for gigabytes."""

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of an EXIF orientation upright."""

_QUARTER_TURNS: Final = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))

# Blocks that the C library always maps: those of 16 MiB, Pillow's own, went into its heap, and a
# worker that had decoded two large images kept 464 MB for ever.
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined]

DRAFT: Final = 2.5
"""How much larger than the tower's input a JPEG is decoded at least. At 2 the worst of the images
that were tried had a cosine of 0.9987 with itself, at 2.5 of 0.9997."""

# A JPEG's markers; 00 and the restarts, D0 to D7, stand inside a scan.
_MARKER: Final = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_START_OF_SCAN: Final = b"\xda"
_END_OF_IMAGE: Final = b"\xd9"
_WITHOUT_LENGTH: Final = (b"\x01", b"\xd8")

_TILE_WIDTH: Final = 322
_TILE_LENGTH: Final = 323

_SIGNED: Final = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "HEIF")
"""Formats whose files begin as no text does."""

# The statistics of OpenAI's CLIP, which Chinese CLIP keeps.
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


class BadImageError(Exception):
    """An image that cannot be encoded.

    Attributes:
        reason: a stable word: `empty`, `not_an_image`, `truncated`, `corrupt`, `unsupported`,
            `too_many_pixels`, `too_long`, `too_many_parts`.
        message: what is wrong, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Preprocessing:
    """How pixels are prepared for one image tower."""

    input_size: int
    """Side of the square input, in pixels."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal only if the same file gives the same pixels."""
        steps = {
            "input_size": self.input_size,
            "orientation": "exif",
            "wide_samples": "scale",
            "resize": "squash-bicubic",
            "mean": MEAN,
            "std": STD,
        }
        return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PreparedImage:
    """Pixels ready for the tower, and the size of the image they came from."""

    pixels: npt.NDArray[np.uint8]
    """RGB, shape [input_size, input_size, 3]."""
    width: int
    """Of the upright image, in pixels."""
    height: int
    decoded: int
    """Pixels that were decoded: fewer than the image has, if its format offers it smaller."""


@dataclass(frozen=True)
class DecodedImage:
    """An image upright, in a mode of 8 bits a sample, and the size of its file's."""

    image: Image.Image
    width: int
    """Of the upright image as it is stored, in pixels; `image` may have been decoded smaller."""
    height: int


def prepare(encoded: bytes, preprocessing: Preprocessing, *, exact: bool = False) -> PreparedImage:
    """Decode an image in full, check it and bring it to the tower's size.

    Args:
        encoded: the file.
        preprocessing: of the tower.
        exact: give cn_clip's pixels to the bit. Otherwise a large JPEG is decoded at the smallest
            size that its format offers and that is `DRAFT` times the tower's; its vector keeps a
            cosine of 0.9997 (docs/performance.md).

    Raises:
        BadImageError: it is empty, no image, cut short, damaged, or too large.
    """
    least = 0 if exact else math.ceil(DRAFT * preprocessing.input_size)
    decoded = decode(encoded, least)
    try:
        pixels = squash(decoded.image, preprocessing)
    except Exception as error:  # some modes are only found out to be odd when converted
        raise _damaged(error) from error
    across, down = decoded.image.size
    return PreparedImage(pixels, decoded.width, decoded.height, across * down)


def decode(encoded: bytes, least: int = 0) -> DecodedImage:
    """Decode an image in full, check it, and make it what a viewer shows.

    Args:
        encoded: the file.
        least: a JPEG is decoded at the smallest size that its format offers and whose shorter side
            has at least so many pixels, which is faster; 0: at its own.

    Raises:
        BadImageError: it is empty, no image, cut short, damaged, or too large.
    """
    image = _open(encoded)
    width, height = image.size
    try:
        # A HEIF would be drafted by a picture beside the image, if there were one.
        if least and image.format in {"JPEG", "MPO"}:
            image.draft(None, (least, least))
        image.load()
        turn = _turn(image)
        image = _eight_bit(image)
        if turn is not None:
            image = image.transpose(turn)
        if turn in _QUARTER_TURNS:
            width, height = height, width
        return DecodedImage(image, width, height)
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise _damaged(error) from error


def check_together(decoded: int) -> None:
    """Check that another image of a call may be decoded, after so many pixels of those before.

    Raises:
        BadImageError: with the reason `too_many_pixels`.
    """
    if decoded > MAX_PIXELS_TOGETHER:
        found = " together with the images before it"
        raise BadImageError("too_many_pixels", _pixel_limit(found, MAX_PIXELS_TOGETHER))


def squash(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return a decoded image as uint8 RGB of shape [input_size, input_size, 3]."""
    side = (preprocessing.input_size, preprocessing.input_size)
    # Resize before the conversion: cn_clip's order, which matters for palettes, alpha and CMYK.
    resized = image.resize(side, Image.Resampling.BICUBIC)
    return np.array(resized.convert("RGB"), dtype=np.uint8)


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImageError("empty", "the file is empty")
    _check_parts(encoded)
    try:
        with warnings.catch_warnings():
            # Pillow warns at its limit and raises at twice that; here the limit is the limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        # Its words name its own limit, not ours.
        raise BadImageError("too_many_pixels", _pixel_limit()) from error
    except UnidentifiedImageError as error:
        raise _unknown(encoded) from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise _damaged(error) from error
    size = f"{image.width} x {image.height}"
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError("too_many_pixels", _pixel_limit(f": {size}"))
    if max(image.size) > MAX_SIDE:
        raise BadImageError("too_long", f"too long: {size}; a side has at most {MAX_SIDE} pixels")
    if image.format == "TIFF":
        _check_tiles(image)
    if image.mode == "LAB":
        raise BadImageError("unsupported", "its colours are given as L*a*b*; save it as RGB")
    return image


def _check_parts(encoded: bytes) -> None:
    """Refuse a JPEG or PNG of so many parts that they, not its pixels, are the work."""
    if encoded.startswith(b"\xff\xd8\xff"):
        scans, segments = _jpeg_parts(encoded)
        if scans > MAX_SCANS:
            raise BadImageError(
                "too_many_parts", f"a JPEG of over {MAX_SCANS} scans; at most that are allowed"
            )
    elif encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        segments = _png_chunks(encoded)
    else:
        return
    if segments > MAX_SEGMENTS:
        raise BadImageError(
            "too_many_parts", f"it has over {MAX_SEGMENTS} segments; at most that are allowed"
        )


def _jpeg_parts(encoded: bytes) -> tuple[int, int]:
    """Count scans and the segments before them, or until one of them is over its limit."""
    # The quick count also finds pairs that are none, inside EXIF data or after the image's end.
    few = encoded.count(b"\xff" + _START_OF_SCAN) <= MAX_SCANS
    scans = segments = 0
    place = 2
    while (found := _MARKER.search(encoded, place)) and found[1] != _END_OF_IMAGE:
        segments += 1
        scans += found[1] == _START_OF_SCAN
        if scans > MAX_SCANS or segments > MAX_SEGMENTS or (few and scans):
            break
        size = int.from_bytes(encoded[found.end() : found.end() + 2])
        place = found.end() + (0 if found[1] in _WITHOUT_LENGTH else size)
    return scans, segments


def _png_chunks(encoded: bytes) -> int:
    """Count chunks up to the last, behind which nobody reads, or until they are over the limit."""
    chunks, place, kind = 0, 8, b""
    while place < len(encoded) and kind != b"IEND" and chunks <= MAX_SEGMENTS:
        kind = encoded[place + 4 : place + 8]
        place += 12 + int.from_bytes(encoded[place : place + 4])
        chunks += 1
    return chunks


def _check_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are larger than an image may be: each is decoded as a whole."""
    tags = getattr(image, "tag_v2", {})
    pixels = 1
    for tag in (_TILE_WIDTH, _TILE_LENGTH):
        side = tags.get(tag, 1)
        pixels *= side if isinstance(side, int) else max(side, default=1)
    if pixels > MAX_PIXELS:
        raise BadImageError("too_many_pixels", _pixel_limit(" in a tile"))


def _unknown(encoded: bytes) -> BadImageError:
    """Return why no format took the file."""
    for name in _SIGNED:
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(encoded[:16]) is True:
            return BadImageError("corrupt", f"it begins like {name}, but is damaged or cut short")
    return BadImageError("not_an_image", f"not an image of a known format ({', '.join(FORMATS)})")


def _damaged(error: Exception) -> BadImageError:
    """Return what a decoder's error means."""
    # A missing key, an index: the name of the error says more than its text.
    plain = isinstance(error, (OSError, EOFError, ValueError, SyntaxError, RuntimeError))
    detail = (plain and str(error)) or type(error).__name__
    cut = any(words in detail.lower() for words in ("truncated", "outside of file"))
    return BadImageError(
        "truncated" if cut else "corrupt", f"the image cannot be decoded: {detail}"
    )


def _pixel_limit(found: str = "", most: int = MAX_PIXELS) -> str:
    return f"too many pixels{found}; at most {most} are allowed"


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grayscale to 8 bits; leave every other mode alone."""
    if not image.mode.startswith(("I", "F")):
        return image
    samples = np.array(image, dtype=np.float32)  # exact enough: k / 257 is never near a half
    if not np.isfinite(samples).all():
        raise ValueError("it holds samples that are not finite")
    most = float(samples.max(initial=0.0))
    if image.mode.startswith("F") and most <= 255.0:
        scale = 255.0 if most <= 1.0 else 1.0
    else:
        scale = 255.0 / max(most, 65535.0)
    # In place: a large image has room once, not four times.
    np.rint(np.multiply(samples, scale, out=samples), out=samples)
    return Image.fromarray(np.clip(samples, 0, 255, out=samples).astype(np.uint8))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes a decoded image upright."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # The orientation is unreadable; the pixels are fine, and viewers show them as they lie.
        return None
