"""Pictures for tests: every format and mode that a bucket of photographs may hold."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def colourful(width: int = 40, height: int = 28, seed: int = 0) -> Image.Image:
    """Return a smooth RGB picture that no turn or mirroring leaves the same."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(encoded: bytes) -> Image.Image:
    """Open a file as cn_clip's callers do."""
    return Image.open(io.BytesIO(encoded))


def alpha(width: int = 40, height: int = 28) -> Image.Image:
    """Return a mask from clear to opaque."""
    ramp = np.linspace(0, 255, width * height).astype(np.uint8).reshape(height, width)
    return Image.fromarray(ramp)


def wide_samples(width: int = 40, height: int = 28) -> npt.NDArray[np.uint16]:
    """Return 16-bit gray samples over the whole range, shape [height, width]."""
    ramp = np.linspace(0, 65535, width * height).astype(np.uint16)
    return np.random.default_rng(1).permutation(ramp).reshape(height, width)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(
    width: int,
    height: int,
    bits: int,
    colour: int,
    rows: bytes,
    *,
    packed: bool = False,
    exif: bytes = b"",
) -> bytes:
    """Return a PNG whose header may tell of more, or other, pixels than there are.

    Args:
        width: as the header has it, in pixels.
        height: the same.
        bits: of a sample.
        colour: PNG's colour type; 0: gray, 2: RGB, 6: RGBA.
        rows: each row behind the number of its filter.
        packed: `rows` is a zlib stream already.
        exif: EXIF data, if there is any.
    """
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = rows if packed else zlib.compress(rows)
    chunks = [(b"IHDR", header), (b"eXIf", exif), (b"IDAT", data), (b"IEND", b"")]
    used = [chunk(kind, content) for kind, content in chunks if kind != b"eXIf" or content]
    return b"\x89PNG\r\n\x1a\n" + b"".join(used)


def png_48(samples: npt.NDArray[np.uint16]) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow reads but does not write.

    Args:
        samples: uint16 RGB, shape [height, width, 3].
    """
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    return png(width, height, 16, 2, rows)


def _files() -> dict[str, bytes]:
    rgb = colourful()
    rgba = rgb.copy()
    rgba.putalpha(alpha())
    la = rgb.convert("L")
    la.putalpha(alpha())
    palette = rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 1
    return {
        "JPEG": encode(rgb, "JPEG", quality=90),
        "JPEG, gray": encode(rgb.convert("L"), "JPEG"),
        "JPEG, CMYK": encode(rgb.convert("CMYK"), "JPEG"),
        "JPEG, progressive": encode(rgb, "JPEG", progressive=True),
        "JPEG, EXIF": encode(rgb, "JPEG", exif=exif),
        "PNG": encode(rgb, "PNG"),
        "PNG, gray": encode(rgb.convert("L"), "PNG"),
        "PNG, 1 bit": encode(rgb.convert("1"), "PNG"),
        "PNG, palette": encode(palette, "PNG"),
        "PNG, palette, one clear colour": encode(palette, "PNG", transparency=3),
        "PNG, palette, translucent": encode(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        "PNG, RGBA": encode(rgba, "PNG"),
        "PNG, gray and alpha": encode(la, "PNG"),
        "PNG, clear colour": encode(rgb, "PNG", transparency=(1, 2, 3)),
        "WebP": encode(rgb, "WEBP", quality=80),
        "WebP, lossless, alpha": encode(rgba, "WEBP", lossless=True),
        "GIF": encode(palette, "GIF"),
        "GIF, two frames": encode(
            palette, "GIF", save_all=True, append_images=[colourful(seed=9).quantize(16)]
        ),
        "BMP": encode(rgb, "BMP"),
        "TIFF": encode(rgb, "TIFF"),
        "TIFF, CMYK": encode(rgb.convert("CMYK"), "TIFF"),
        "TIFF, YCbCr": encode(rgb.convert("YCbCr"), "TIFF"),
        "AVIF": encode(rgb, "AVIF"),
        "JPEG 2000": encode(rgb, "JPEG2000"),
        "PPM": encode(rgb, "PPM"),
    }


FILES = _files()
"""A file of each kind; cn_clip takes all of them as they are."""
