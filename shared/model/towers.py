"""The two towers of a Chinese CLIP checkpoint, in cn_clip's own model class.

Shapes in this file: n items, t tokens, s input size, d embedding dimension.
"""

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from cra.shared.errors import FailedPreconditionError
from cra.shared.model.pixels import MEAN, STD, Preprocessing
from cra.shared.model.text import NORMALIZERS

try:
    from cn_clip import clip as cn_clip
    from cn_clip.clip import utils as cn_clip_utils
    from cn_clip.clip.model import CLIP, convert_weights
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "cn_clip is not installed; it goes beside the extras, without its dependencies: "
        "pip install --no-deps cn_clip==1.6.0"
    ) from error

CONTEXT_LENGTH: Final = 52
"""Tokens that a text is cut at, [CLS] and [SEP] included, as in all official models."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]


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
        return ModelSource(model, checkpoint, _packaged_config(_official_struct(model)))
    path = Path(model)
    checkpoint = path / "checkpoint.pt" if path.is_dir() else path
    if not checkpoint.is_file():
        names = ", ".join(cn_clip_utils.available_models())
        raise FailedPreconditionError(f"no model {model!r}: neither a file nor one of {names}")
    if "@" in config:
        return ModelSource(path.stem, checkpoint, _packaged_config(config))
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


def _packaged_config(struct: str) -> dict[str, Any]:
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
        checkpoint = torch.load(source.checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything, with advice that is not for us
        raise FailedPreconditionError(
            f"{source.checkpoint} is no checkpoint: it does not load as weights alone"
        ) from error
    try:
        weights = {
            key.removeprefix("module."): value
            for key, value in checkpoint["state_dict"].items()
            if "bert.pooler" not in key
        }
        model = CLIP(**source.config)
        convert_weights(model)
        model.load_state_dict(weights)
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


def text_fingerprint(model: CLIP, normalizer: str) -> str:
    """Identify a text tower: weights, shapes and normaliser; 8 hex digits."""
    digest = hashlib.sha256(normalizer.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def tokenize(texts: Sequence[str], normalizer: str) -> tuple[torch.Tensor, list[bool]]:
    """Turn texts into token ids, as cn_clip's `tokenize` does but padded only to the longest.

    Returns:
        ids, int64 of shape [n, t] with t at most 52, and for each text whether it was cut.
    """
    normalize = NORMALIZERS[normalizer]
    tokenizer = cn_clip._tokenizer
    rows, truncated = [], []
    for text in texts:
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(normalize(text)))
        truncated.append(len(ids) > CONTEXT_LENGTH - 2)
        ids = ids[: CONTEXT_LENGTH - 2]
        rows.append([tokenizer.vocab["[CLS]"], *ids, tokenizer.vocab["[SEP]"]])
    ids_nt = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, ids in zip(ids_nt, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return ids_nt, truncated


def encode_text(model: CLIP, ids_nt: torch.Tensor) -> torch.Tensor:
    """Encode token ids of shape [n, t] to [n, d], not normalised.

    `CLIP.encode_text` line by line, but without reaching for the image tower's dtype, so that a
    process can hold the text tower alone. Padding is masked, so t may be the longest real length.
    """
    mask_nt = ids_nt.ne(model.tokenizer.vocab["[PAD]"]).to(model.text_projection.dtype)
    states = model.bert(ids_nt, attention_mask=mask_nt)[0]
    encoded: torch.Tensor = states[:, 0, :].to(model.text_projection.dtype) @ model.text_projection
    return encoded


def normalize_pixels(pixels_nssc: torch.Tensor) -> torch.Tensor:
    """Turn uint8 RGB [n, s, s, 3] into the tower's float32 input [n, 3, s, s]."""
    scaled = pixels_nssc.permute(0, 3, 1, 2).float().div(255)
    mean = torch.tensor(MEAN, device=scaled.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=scaled.device).view(1, 3, 1, 1)
    return scaled.sub_(mean).div_(std).contiguous()


class _Tower:
    def __init__(self, source: ModelSource, device: str, precision: Precision) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "fp32"
            if device.startswith("cuda"):
                precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        self.source = source
        self.device = device
        self.precision = precision
        self._model = load_clip(source)
        self.dimension: int = source.config["embed_dim"]
        self.preprocessing = Preprocessing(source.config["image_resolution"])
        self.image_tower = image_fingerprint(self._model, self.preprocessing)

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=dtype, enabled=self.precision != "fp32")


class TextTower(_Tower):
    """The text tower of a model, in inference mode.

    Args:
        source: the model.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        precision: `auto` is fp32 on CPU, and on CUDA bf16, or fp16 where there is no bf16.
    """

    def __init__(
        self, source: ModelSource, device: str = "auto", precision: Precision = "auto"
    ) -> None:
        super().__init__(source, device, precision)
        self.release = f"{source.name}-{text_fingerprint(self._model, source.normalizer)}"
        del self._model.visual
        self._model.to(self.device)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
        """Encode n texts.

        Returns:
            unit vectors, float32 of shape [n, d], and for each text whether it was cut.
        """
        ids_nt, truncated = tokenize(texts, self.source.normalizer)
        with torch.inference_mode(), self._autocast():
            encoded_nd = encode_text(self._model, ids_nt.to(self.device))
        return _unit(encoded_nd), truncated


class ImageTower(_Tower):
    """The image tower of a model, in inference mode; arguments as for `TextTower`."""

    def __init__(
        self, source: ModelSource, device: str = "auto", precision: Precision = "auto"
    ) -> None:
        super().__init__(source, device, precision)
        del self._model.bert
        self._model.to(self.device)

    def encode(self, pixels_nssc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode n prepared images, uint8 RGB of shape [n, s, s, 3].

        Returns:
            unit vectors, float32 of shape [n, d].
        """
        pixels = torch.from_numpy(pixels_nssc).to(self.device)
        with torch.inference_mode(), self._autocast():
            encoded_nd = self._model.encode_image(normalize_pixels(pixels))
        return _unit(encoded_nd)


def _unit(vectors_nd: torch.Tensor) -> npt.NDArray[np.float32]:
    vectors = vectors_nd.float()
    unit: npt.NDArray[np.float32] = (vectors / vectors.norm(dim=-1, keepdim=True)).cpu().numpy()
    return unit
