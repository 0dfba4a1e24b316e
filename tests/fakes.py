"""A model of no weights, with structure: pictures and words of colours lie where they belong."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from cra.shared.domain import Vector
from cra.shared.errors import FailedPreconditionError, NotFoundError
from cra.shared.model.pixels import BadImageError, Preprocessing, prepare
from cra.shared.ports import (
    EncodedImages,
    EncodedTexts,
    EncodeTiming,
    ImageProblem,
    ImageTowerInfo,
    Models,
    Priority,
    TextReleaseInfo,
)

SIDE = 4
COLOURS = {"红": (200, 30, 30), "绿": (30, 200, 30), "蓝": (30, 30, 200), "黄": (200, 200, 30)}


def picture(
    colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), kind: str = "PNG"
) -> bytes:
    """Return an encoded image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def vector_of(pixels: npt.NDArray[np.uint8]) -> Vector:
    """Return the fake image tower's vector: the pixels themselves, centred, of unit length."""
    flat = pixels.astype(np.float32).ravel() - 127.3
    return np.asarray(flat / np.linalg.norm(flat), dtype=np.float32)


class ColourEncoder:
    """Fulfils `ports.Encoder`: an image is its pixels, a text the colour that it names first."""

    def __init__(self, fingerprint: str = "f00dfeed00000001") -> None:
        self.preprocessing = Preprocessing(SIDE)
        self.fingerprint = fingerprint
        self.batches: list[int] = []

    def models(self) -> Models:
        """See `ports.Encoder`."""
        return Models(
            ImageTowerInfo(
                "colours", self.fingerprint, SIDE * SIDE * 3, SIDE, self.preprocessing.fingerprint
            ),
            [TextReleaseInfo("colours-1", True, "identity", self.fingerprint)],
            "fake",
            "cpu",
            "fp32",
        )

    def embed_texts(
        self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        """See `ports.Encoder`."""
        if text_release not in {"", "colours-1"}:
            raise NotFoundError(f"there is no text release {text_release!r}")
        vectors = []
        for text in texts:
            colour = next((COLOURS[char] for char in text if char in COLOURS), (128, 128, 128))
            vectors.append(vector_of(np.full((SIDE, SIDE, 3), colour, np.uint8)))
        return EncodedTexts(
            vectors,
            [len(text) > 50 for text in texts],
            "colours-1",
            self.fingerprint,
            EncodeTiming(),
        )

    def embed_encoded_images(
        self, images: Sequence[bytes], priority: Priority, timeout: float | None = None
    ) -> EncodedImages:
        """See `ports.Encoder`."""
        results: list[Vector | ImageProblem] = []
        for image in images:
            try:
                results.append(vector_of(prepare(image, self.preprocessing).pixels))
            except BadImageError as error:
                results.append(ImageProblem(error.reason, error.message))
        return EncodedImages(results, self.fingerprint, "colours-1", EncodeTiming())

    def begin(self, pixels: Sequence[bytes]) -> None:
        """Do what a test has to be done, or raised, before these are encoded."""

    def embed_pixels(
        self,
        pixels: Sequence[bytes],
        preprocessing: str,
        priority: Priority,
        timeout: float | None = None,
    ) -> EncodedImages:
        """See `ports.Encoder`."""
        if preprocessing != self.preprocessing.fingerprint:
            raise FailedPreconditionError("prepared for another image tower")
        self.batches.append(len(pixels))
        self.begin(pixels)
        arrays = [np.frombuffer(data, np.uint8) for data in pixels]
        results: list[Vector | ImageProblem] = [vector_of(array) for array in arrays]
        return EncodedImages(results, self.fingerprint, "colours-1", EncodeTiming())
