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
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

MAX_PIXELS: Final = 89_478_485
"""Pillow's own limit against decompression bombs: 256 MiB of RGB."""

MAX_SIDE: Final = 65_535
"""JPEG's own limit. A resize needs memory in proportion to the side: a PNG of one row and 90 KB
could ask for 3 GB."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is decoded; the plugins of rarer formats are a risk and no gain."""

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

DRAFT: Final = 2.5
"""How much larger than the tower's input a JPEG is decoded at least. At 2 the worst of the images
that were tried had a cosine of 0.9987 with itself, at 2.5 of 0.9997."""

# The statistics of OpenAI's CLIP, which Chinese CLIP keeps.
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


class BadImageError(Exception):
    """An image that cannot be encoded.

    Attributes:
        reason: a stable word: `empty`, `not_an_image`, `truncated`, `corrupt`,
            `too_many_pixels`, `too_long`.
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
    image = _open(encoded)
    width, height = image.size
    try:
        if not exact:
            side = math.ceil(DRAFT * preprocessing.input_size)
            image.draft(None, (side, side))  # does nothing to what is no JPEG
        image.load()
        turn = _turn(image)
        image = _eight_bit(image)
        if turn is not None:
            image = image.transpose(turn)
        if turn in _QUARTER_TURNS:
            width, height = height, width
        return PreparedImage(squash(image, preprocessing), width, height)
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise BadImageError(reason, f"the image cannot be decoded: {error}") from error


def squash(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return a decoded image as uint8 RGB of shape [input_size, input_size, 3]."""
    side = (preprocessing.input_size, preprocessing.input_size)
    # Resize before the conversion: cn_clip's order, which matters for palettes, alpha and CMYK.
    resized = image.resize(side, Image.Resampling.BICUBIC)
    return np.array(resized.convert("RGB"), dtype=np.uint8)


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImageError("empty", "the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns at its limit and raises at twice that; here the limit is the limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        # Its words name its own limit, not ours.
        raise BadImageError("too_many_pixels", _pixel_limit()) from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise BadImageError(
            "not_an_image", f"not an image of a known format ({', '.join(FORMATS)})"
        ) from error
    size = f"{image.width} x {image.height}"
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError("too_many_pixels", _pixel_limit(f": {size}"))
    if max(image.size) > MAX_SIDE:
        raise BadImageError("too_long", f"too long: {size}; a side has at most {MAX_SIDE} pixels")
    return image


def _pixel_limit(found: str = "") -> str:
    return f"too many pixels{found}; at most {MAX_PIXELS} are allowed"


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
