"""The text tower: of a checkpoint, or of a release that was tuned for the same image tower.

Shapes in this file: n items, t tokens, d embedding dimension.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from cn_clip.clip.configuration_bert import BertConfig
from cn_clip.clip.model import CLIP
from cn_clip.clip.modeling_bert import BertModel

from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import ModelSource, load_clip
from cra.shared.model.encoders import encode_by_length
from cra.shared.model.image_tower import image_fingerprint
from cra.shared.model.pixels import Preprocessing
from cra.shared.model.runtime import Precision, Runtime
from cra.shared.model.tokenizer import PAD, Tokenizer
from cra.shared.model.torch_forward import HIGH, TorchForward
from cra.shared.releases import Release


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments of `CLIP` that shape the text tower."""
    return {
        key: value
        for key, value in config.items()
        if key in {"embed_dim", "vocab_size"} or key.startswith("text_")
    }


class TextModel(torch.nn.Module):
    """The text half of `CLIP`: its weights under the same names, and nothing of the image's.

    Args:
        config: see `text_config`.

    Raises:
        FailedPreconditionError: the config does not fit cn_clip's BERT.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            shape = {
                key.removeprefix("text_"): value
                for key, value in config.items()
                if key.startswith("text_")
            }
            bert = BertConfig(
                vocab_size_or_config_json_file=config["vocab_size"], layer_norm_eps=1e-12, **shape
            )
            self.bert = BertModel(bert)
            self.text_projection = torch.nn.Parameter(
                torch.empty(bert.hidden_size, config["embed_dim"])
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FailedPreconditionError(f"no config of a text tower: {error!r}") from error
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def from_clip(cls, model: CLIP) -> "TextModel":
        """Return the text half of a model that was loaded; it shares the model's weights."""
        half = cls.__new__(cls)
        torch.nn.Module.__init__(half)
        half.bert = model.bert
        half.text_projection = model.text_projection
        half.logit_scale = model.logit_scale
        return half.train(model.training)

    def forward(self, ids_nt: torch.Tensor) -> torch.Tensor:
        """Encode token ids of shape [n, t] to [n, d], not normalised."""
        return encode_text(self, ids_nt)


def encode_text(model: "TextModel | CLIP", ids_nt: torch.Tensor) -> torch.Tensor:
    """Encode token ids of shape [n, t] to [n, d], not normalised.

    `CLIP.encode_text` line by line, but without reaching for the image tower's dtype, so that a
    process can hold the text tower alone. Padding is masked, so t may be the longest real length.
    """
    mask_nt = ids_nt.ne(PAD).to(model.text_projection.dtype)
    states = model.bert(ids_nt, attention_mask=mask_nt)[0]
    encoded: torch.Tensor = states[:, 0, :].to(model.text_projection.dtype) @ model.text_projection
    return encoded


def text_fingerprint(model: "TextModel | CLIP", normalizer: str) -> str:
    """Identify a text tower: weights, shapes and normaliser; 8 hex digits."""
    digest = hashlib.sha256(normalizer.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def base_release(source: ModelSource, model: CLIP) -> str:
    """Return the name of a model's own text tower, as a release."""
    return f"{source.name}-{text_fingerprint(model, source.normalizer)}"


def encode_weights(model: TextModel) -> bytes:
    """Return the weights file of a release: safetensors in fp16."""
    return safetensors.torch.save(
        {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    )


def load_text_model(release: Release) -> TextModel:
    """Load a release's text tower: fp32 on CPU, in eval mode.

    Raises:
        FailedPreconditionError: weights and manifest do not fit each other.
    """
    config = release.manifest.config
    with torch.device("meta"):
        model = TextModel(config)
    try:
        weights = safetensors.torch.load_file(release.weights)
        model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise FailedPreconditionError(
            f"the weights of release {release.name} do not fit its config: {error}"
        ) from error
    if model.text_projection.shape[1] != release.manifest.dimension:
        raise FailedPreconditionError(f"the dimension of release {release.name} is another")
    return model.eval()


class TextTower:
    """A text tower run by torch; see `encoders.TextEncoder`.

    Args:
        source: a model's own, or a release.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        precision: `auto` is fp32 on CPU, and on CUDA bf16, or fp16 where there is no bf16.

    Raises:
        FailedPreconditionError: the weights do not load.
    """

    def __init__(
        self,
        source: ModelSource | Release,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        self.runtime = Runtime.choose(device, precision)
        if isinstance(source, Release):
            manifest = source.manifest
            self.model = load_text_model(source)
            self.tokenizer = Tokenizer(manifest.normalizer, manifest.added_tokens)
            self.release = source.name
            self.image_tower = manifest.image_tower
            self.dimension = manifest.dimension
        else:
            clip = load_clip(source)
            preprocessing = Preprocessing(source.config["image_resolution"])
            self.image_tower = image_fingerprint(clip, preprocessing)
            self.tokenizer = Tokenizer(source.normalizer)
            self.release = base_release(source, clip)
            self.dimension = source.config["embed_dim"]
            self.model = TextModel.from_clip(clip)
        self._forward = TorchForward(self.model, self.runtime, priority=HIGH)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
        """Encode n texts; see `encoders.TextEncoder.encode`."""
        ids_nt, truncated = self.tokenizer(texts)
        return encode_by_length(ids_nt, self._forward, self._forward.text_passes), truncated
