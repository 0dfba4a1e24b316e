"""cn_clip itself, loaded by its own code: what our towers are compared with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cn_clip import clip
from cn_clip.clip import utils
from PIL import Image

from tests.checkpoints import Vision, make_checkpoint, tiny_config

TOLERANCE = 1e-4
"""Law 3, for the fp32 reference runtime."""


class Reference:
    """A checkpoint as cn_clip loads and calls it, its README line by line, in eval mode."""

    def __init__(self, name: str, **load: Any) -> None:
        model, self.preprocess = utils.load_from_name(name, device="cpu", **load)
        # Without this, cn_clip's dropout makes every vector random.
        self.model = model.eval()

    def encode_texts(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors, shape [n, d]."""
        with torch.no_grad():
            return _unit(self.model.encode_text(clip.tokenize(texts)))

    def encode_images(self, images: list[Image.Image]) -> npt.NDArray[np.float32]:
        """Return unit vectors, shape [n, d]."""
        with torch.no_grad():
            return _unit(self.model.encode_image(torch.stack([*map(self.preprocess, images)])))


def load_reference(folder: Path, vision: Vision = "vit", seed: int = 0) -> Reference:
    """Write a tiny checkpoint and load it by cn_clip's own code.

    cn_clip reads configs of towers from its package only, as `VISION@TEXT`; for this call its
    package is a folder that holds those of the tiny model.
    """
    make_checkpoint(folder, vision=vision, seed=seed)
    split_config(folder, vision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "__file__", str(folder / "utils.py"))
        return Reference(
            str(folder / "checkpoint.pt"),
            vision_model_name="tiny-vision",
            text_model_name="tiny-text",
            input_resolution=32,
        )


def split_config(folder: Path, vision: Vision = "vit") -> None:
    """Write the config of the tiny model as cn_clip's package holds its own: in two files."""
    config = tiny_config(vision)
    if vision == "resnet":  # as in cn_clip's RN50.json
        config["vision_layers"] = str(config["vision_layers"])
    configs = folder / "model_configs"
    configs.mkdir(exist_ok=True)
    seen = {k: v for k, v in config.items() if k.startswith(("vision", "image", "embed"))}
    read = {k: v for k, v in config.items() if k not in seen}
    (configs / "tiny-vision.json").write_text(json.dumps(seen))
    (configs / "tiny-text.json").write_text(json.dumps(read))


def _unit(vectors: torch.Tensor) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()
    return unit
