"""The image tower: frozen, so that its fingerprint names every index of its vectors.

Shapes in this file: n items, s input size, d embedding dimension.
"""

import copy
import hashlib

import numpy as np
import numpy.typing as npt
import torch
from cn_clip.clip.model import CLIP

from cra.shared.model.checkpoints import ModelSource, image_precision, load_clip
from cra.shared.model.encoders import unit
from cra.shared.model.pixels import MEAN, STD, Preprocessing
from cra.shared.model.runtime import Precision, Runtime
from cra.shared.model.torch_forward import HIGH, LOW, TorchForward


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


class ImageModel(torch.nn.Module):
    """The image half of `CLIP`, from uint8 pixels on."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, pixels_nssc: torch.Tensor) -> torch.Tensor:
        """Encode prepared images, uint8 RGB [n, s, s, 3], to [n, d], not normalised."""
        encoded: torch.Tensor = self.visual(normalize_pixels(pixels_nssc))
        return encoded


class ImageTower:
    """The image tower of a model run by torch; see `encoders.ImageEncoder`.

    Args:
        source: the model.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        precision: `auto` is fp32 on CPU and for a ResNet, and on CUDA else bf16, or fp16 where
            there is no bf16.

    Raises:
        FailedPreconditionError: the checkpoint does not load.
    """

    def __init__(
        self, source: ModelSource, device: str = "auto", precision: Precision = "auto"
    ) -> None:
        self.runtime = Runtime.choose(device, image_precision(source, precision))
        model = load_clip(source)
        self.name = source.name
        self.preprocessing = Preprocessing(source.config["image_resolution"])
        self.dimension: int = source.config["embed_dim"]
        self.image_tower = image_fingerprint(model, self.preprocessing)
        self.model = ImageModel(model)
        self._forward = TorchForward(self.model, self.runtime, priority=LOW)

    def encode(self, pixels_nssc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode n prepared images; see `encoders.ImageEncoder.encode`."""
        return unit(self._forward(pixels_nssc))

    def for_queries(self) -> "ImageTower":
        """Return one of the same weights; on CUDA it goes first. See `encoders.ImageEncoder`."""
        twin = copy.copy(self)
        twin._forward = TorchForward(self.model, self.runtime, priority=HIGH)
        return twin
