"""Small checkpoints of random weights, in cn_clip's format and its own class."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from cn_clip.clip.model import CLIP, ModifiedResNet
from torch import nn

from cra.shared.model.checkpoints import save_checkpoint

Vision = Literal["vit", "resnet"]


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    text_seed: int | None = None,
    vision: Vision = "vit",
    input_size: int = 32,
    dimension: int = 32,
    name: str = "tiny",
    normalizer: str = "identity",
) -> Path:
    """Write `checkpoint.pt` (2 MB) and `config.json`, and return `folder`, which names the model.

    The weights are of the scale of trained ones: different inputs give different vectors.

    Args:
        folder: made if it is not there.
        seed: of the image tower, and of the text tower too unless `text_seed` is given.
        text_seed: of the text tower; same `seed` and another `text_seed` make another text
            release for the same image tower.
        vision: architecture of the image tower, as `ViT-B-16` or as `RN50`.
        input_size: side of its input in pixels; a multiple of 8, for `resnet` of 32.
        dimension: of the vectors.
        name: name of the model.
        normalizer: version of the text normaliser.
    """
    config = tiny_config(vision, input_size, dimension)
    torch.manual_seed(seed)
    model = CLIP(**config)
    if isinstance(model.visual, ModifiedResNet):
        _settle(model.visual, input_size)
    else:
        # As it comes, the class token hears little of the patches: all images would look alike.
        for block in model.visual.transformer.resblocks:
            block.attn.out_proj.weight.data *= 8
    if text_seed is not None:
        torch.manual_seed(text_seed)
        text = {
            key: value
            for key, value in CLIP(**config).state_dict().items()
            if not key.startswith("visual.")
        }
        model.load_state_dict(model.state_dict() | text)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, folder / "checkpoint.pt")
    fields = {"name": name, "normalizer": normalizer, **config}
    (folder / "config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")
    return folder


def tiny_config(
    vision: Vision = "vit", input_size: int = 32, dimension: int = 32
) -> dict[str, Any]:
    """Return arguments of `CLIP`: two layers a tower, with the dropout of the official models."""
    hidden = 32
    towers: dict[Vision, dict[str, Any]] = {
        "vit": {"vision_layers": 2, "vision_width": 64, "vision_patch_size": 8},
        "resnet": {"vision_layers": [1, 1, 1, 1], "vision_width": 8, "vision_patch_size": None},
    }
    return {
        "embed_dim": dimension,
        "image_resolution": input_size,
        **towers[vision],
        "vocab_size": 21128,
        "text_attention_probs_dropout_prob": 0.1,
        "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": 0.1,
        "text_hidden_size": hidden,
        # BERT's 0.02 is for a width of 768; as small here, all texts would look alike.
        "text_initializer_range": 2 * hidden**-0.5,
        "text_intermediate_size": 64,
        "text_max_position_embeddings": 64,
        "text_num_attention_heads": 4,
        "text_num_hidden_layers": 2,
        "text_type_vocab_size": 2,
    }


def _settle(visual: ModifiedResNet, input_size: int) -> None:
    """Open the residual branches, which start at zero, and fit batch norm's statistics."""
    norms = [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = None  # the mean over all batches
    visual.train()
    with torch.no_grad():
        for _ in range(4):
            visual(torch.randn(16, 3, input_size, input_size))
