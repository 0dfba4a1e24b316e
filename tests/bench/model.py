"""The model that is measured: the shape of ViT-B/16 and RoBERTa-wwm-ext-base, random weights."""

import json
import random
from pathlib import Path
from typing import Final

import torch
from cn_clip.clip.model import CLIP

from cra.shared.model.checkpoints import find_model, packaged_config, save_checkpoint
from cra.shared.model.convert import convert_model
from cra.shared.model.converted import Converted, load

SHAPE: Final = "ViT-B-16@RoBERTa-wwm-ext-base-chinese"
FOLDER: Final = Path(__file__).parents[2] / ".data" / "bench"
CONVERTED: Final = FOLDER / "converted"
CHARACTERS: Final = "飞檐翘角大殿前有一对石狮和红色门阁楼塔寺庙宫墙瓦砖木柱梁斗拱雕花窗桥亭台水榭"


def model() -> Path:
    """Return the folder of the checkpoint, made if it is not there."""
    folder = FOLDER / "vit-b-16"
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        config = packaged_config(SHAPE)
        save_checkpoint(CLIP(**config), folder / "checkpoint.pt")
        (folder / "config.json").write_text(json.dumps({"name": "vit-b-16", **config}))
    return folder


def converted() -> Converted:
    """Return it as the service has it on CPU."""
    found = load(convert_model(find_model(str(model())), CONVERTED))
    assert found is not None
    return found


def reference() -> CLIP:
    """Return it as cn_clip's README calls it: fp32, in eval mode."""
    torch.manual_seed(0)
    # Rounded to fp16 like the checkpoint, so that the vectors can be compared.
    return CLIP(**packaged_config(SHAPE)).half().float().eval()


class Queries:
    """Texts that nobody has asked for before."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)

    def __call__(self, tokens: int = 22) -> str:
        """Return a text of so many tokens, [CLS] and [SEP] among them."""
        return "".join(self._rng.choices(CHARACTERS, k=tokens - 2))
