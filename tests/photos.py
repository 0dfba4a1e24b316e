"""JPEGs that cost what photographs cost: structure at every scale, edges, and a sensor's noise."""

import io

import numpy as np
from PIL import Image, ImageDraw

LARGE = (1600, 1200)
TWELVE_MEGAPIXELS = (4032, 3024)


def photograph(
    seed: int, size: tuple[int, int] = LARGE, quality: int = 88, noise: float = 4.0
) -> bytes:
    """Return an encoded JPEG, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    # Amplitudes that fall with the frequency, as those of natural images do.
    rows, columns = height // 8, width // 8
    frequencies = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequencies[0, 0] = 1.0
    channels = []
    for _ in range(3):
        waves = np.fft.rfft2(rng.standard_normal((rows, columns))) / frequencies
        field = np.fft.irfft2(waves, s=(rows, columns))
        channels.append((field - field.min()) / np.ptp(field))
    image = Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))
    image = image.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(150):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        box = (left, top, left + int(rng.integers(4, 200)), top + int(rng.integers(4, 200)))
        draw.rectangle(box, tuple(rng.integers(0, 256, 3).tolist()), (0, 0, 0))
    pixels = np.asarray(image) + rng.normal(0, noise, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
