"""Checkpoints in cn_clip's format: found, loaded into cn_clip's own model class, and written."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cra.shared.errors import FailedPreconditionError
from cra.shared.model.runtime import Precision
from cra.shared.model.text import NORMALIZERS
from cra.shared.model.tokenizer import NO_CN_CLIP

try:
    from cn_clip.clip import utils as cn_clip_utils
    from cn_clip.clip.model import CLIP, convert_weights
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(NO_CN_CLIP) from error


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a checkpoint in cn_clip's format and the shape of its towers."""

    name: str
    checkpoint: Path
    config: dict[str, Any]
    """Arguments of `cn_clip.clip.model.CLIP`."""
    normalizer: str = "identity"


def find_model(model: str, config: str = "", cache: Path | None = None) -> ModelSource:
    """Find a model by name or path; an official one is downloaded by cn_clip, once.

    Args:
        model: an official name (`ViT-B-16`, `ViT-L-14`, `ViT-L-14-336`, `ViT-H-14`, `RN50`), a
            checkpoint file in cn_clip's format, or a folder with `checkpoint.pt` and
            `config.json`.
        config: shape of the towers of a checkpoint file: a JSON file, or
            `VISION@TEXT` as in cn_clip's `model_configs`, such as
            `ViT-B-16@RoBERTa-wwm-ext-base-chinese`. If empty, `config.json` beside it.
        cache: folder that official checkpoints are downloaded to.

    Raises:
        FailedPreconditionError: there is no such model, or its config is missing.
    """
    if model in cn_clip_utils._MODELS:
        root = str(cache or Path.home() / ".cache" / "clip")
        try:
            checkpoint = Path(cn_clip_utils._download(model, root))
        except (OSError, ValueError) as error:  # huggingface_hub's errors are one or the other
            raise FailedPreconditionError(
                f"the official model {model!r} is not in {root} and cannot be downloaded: {error}"
            ) from error
        return ModelSource(model, checkpoint, packaged_config(_official_struct(model)))
    path = Path(model)
    checkpoint = path / "checkpoint.pt" if path.is_dir() else path
    if model and path.is_dir() and not checkpoint.is_file():
        raise FailedPreconditionError(
            f"the folder {model!r} holds no model: {checkpoint} is missing"
        )
    if not checkpoint.is_file():
        names = ", ".join(cn_clip_utils.available_models())
        raise FailedPreconditionError(f"no model {model!r}: neither a file nor one of {names}")
    if "@" in config:
        return ModelSource(path.stem, checkpoint, packaged_config(config))
    config_file = Path(config) if config else checkpoint.with_name("config.json")
    if not config_file.is_file():
        raise FailedPreconditionError(f"the config of model {model!r} is missing: {config_file}")
    fields = _read_config(config_file)
    name = fields.pop("name", path.stem)
    normalizer = fields.pop("normalizer", "identity")
    if normalizer not in NORMALIZERS:
        raise FailedPreconditionError(f"{config_file}: unknown normalizer {normalizer!r}")
    return ModelSource(name, checkpoint, fields, normalizer)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPreconditionError(f"{file}: is no JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise FailedPreconditionError(f"{file}: is no JSON object")
    return fields


def _official_struct(model: str) -> str:
    struct: str = cn_clip_utils._MODEL_INFO[model]["struct"]
    return struct


def packaged_config(struct: str) -> dict[str, Any]:
    """Merge the two configs of `VISION@TEXT` from inside cn_clip's package."""
    folder = Path(cn_clip_utils.__file__).parent / "model_configs"
    config: dict[str, Any] = {}
    for part in struct.split("@"):
        file = folder / f"{part.replace('/', '-')}.json"
        if not file.is_file():
            raise FailedPreconditionError(f"cn_clip has no model config {part!r}")
        config |= _read_config(file)
    if isinstance(config.get("vision_layers"), str):
        config["vision_layers"] = ast.literal_eval(config["vision_layers"])
    return config


def load_clip(source: ModelSource) -> CLIP:
    """Load a checkpoint into cn_clip's class: fp32 on CPU, in eval mode.

    Weights are rounded to fp16 on the way, as cn_clip's own `load_from_name` does, so that the
    vectors are the same.

    Raises:
        FailedPreconditionError: the file is no checkpoint, or does not fit the config.
    """
    try:
        # Mapped: the file's pages are given back as soon as they are read.
        checkpoint = torch.load(source.checkpoint, "cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises nearly anything, with advice that is not for us
        raise FailedPreconditionError(
            f"{source.checkpoint} is no checkpoint: it does not load as weights alone"
        ) from error
    try:
        weights = {
            # What stays fp32 must not stay in the file, which may be written over.
            key.removeprefix("module."): value if value.dtype is torch.half else value.clone()
            for key, value in checkpoint["state_dict"].items()
            if "bert.pooler" not in key
        }
        with torch.device("meta"):  # no random weights, which would be thrown away
            model = CLIP(**source.config)
        model.load_state_dict(weights, assign=True)
        convert_weights(model)
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise FailedPreconditionError(
            f"{source.checkpoint} does not load as a cn_clip checkpoint of its config: {error}"
        ) from error
    # cn_clip leaves it in train mode, where dropout makes every vector random.
    return model.float().eval()


def save_checkpoint(model: CLIP, path: Path) -> None:
    """Write a checkpoint in cn_clip's format, fp16, that `load_clip` and cn_clip itself load."""
    weights = {
        # Counters stay whole: batch norm's outgrow fp16.
        f"module.{key}": value.half() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    torch.save({"epoch": 0, "step": 0, "name": "cra", "state_dict": weights}, path)


def image_precision(source: ModelSource, asked: Precision) -> Precision:
    """Return the precision of an image tower, of which `auto` may not be all that is fast.

    Batch norm's statistics do not survive bf16: a ResNet's vectors would miss the tolerance of
    0.999.
    """
    is_resnet = not isinstance(source.config["vision_layers"], int)
    return "fp32" if is_resnet and asked == "auto" else asked
