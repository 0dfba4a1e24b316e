"""The image tower: frozen, so that its fingerprint names every index of its vectors.

Shapes in this file: n items, s input size, d embedding dimension.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from cn_clip.clip.model import CLIP

from cra.shared.model.checkpoints import ModelSource, Precision, Runtime, load_clip, unit
from cra.shared.model.pixels import MEAN, STD, Preprocessing


def image_fingerprint(model: CLIP, preprocessing: Preprocessing) -> str:
    """Identify an image tower: weights, shapes and preprocessing, not runtime or precision.

    Returns:
        16 hex digits, the name of every collection of its vectors.
    """
    digest = hashlib.sha256(preprocessing.fingerprint.encode())
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def normalize_pixels(pixels_nssc: torch.Tensor) -> torch.Tensor:
    """Turn uint8 RGB [n, s, s, 3] into the tower's float32 input [n, 3, s, s]."""
    scaled = pixels_nssc.permute(0, 3, 1, 2).float().div(255)
    mean = torch.tensor(MEAN, device=scaled.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=scaled.device).view(1, 3, 1, 1)
    return scaled.sub_(mean).div_(std).contiguous()


class ImageTower:
    """The image tower of a model, in inference mode.

    Args:
        source: the model.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        precision: `auto` is fp32 on CPU, and on CUDA bf16, or fp16 where there is no bf16.

    Raises:
        FailedPreconditionError: the checkpoint does not load.
    """

    def __init__(
        self, source: ModelSource, device: str = "auto", precision: Precision = "auto"
    ) -> None:
        self.runtime = Runtime.choose(device, precision)
        model = load_clip(source)
        self.name = source.name
        self.preprocessing = Preprocessing(source.config["image_resolution"])
        self.dimension: int = source.config["embed_dim"]
        self.image_tower = image_fingerprint(model, self.preprocessing)
        self._model = model
        del self._model.bert
        self._model.to(self.runtime.device)

    def encode(self, pixels_nssc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode n prepared images, uint8 RGB of shape [n, s, s, 3].

        Returns:
            unit vectors, float32 of shape [n, d].
        """
        pixels = torch.from_numpy(pixels_nssc).to(self.runtime.device)
        with torch.inference_mode(), self.runtime.autocast():
            encoded_nd = self._model.encode_image(normalize_pixels(pixels))
        return unit(encoded_nd)
