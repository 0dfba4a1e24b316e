"""The text tower: of a checkpoint, or of a release that was tuned for the same image tower.

Shapes in this file: n items, t tokens, d embedding dimension.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from cn_clip import clip as cn_clip
from cn_clip.clip.bert_tokenizer import FullTokenizer
from cn_clip.clip.configuration_bert import BertConfig
from cn_clip.clip.model import CLIP
from cn_clip.clip.modeling_bert import BertModel

from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import ModelSource, Precision, Runtime, load_clip, unit
from cra.shared.model.image_tower import image_fingerprint
from cra.shared.model.pixels import Preprocessing
from cra.shared.model.text import NORMALIZERS
from cra.shared.releases import Release

CONTEXT_LENGTH: Final = 52
"""Tokens that a text is cut at, [CLS] and [SEP] included, as in all official models."""


class Tokenizer:
    """cn_clip's tokenizer behind a normaliser, with tokens of its own after cn_clip's.

    Args:
        normalizer: version of the normaliser.
        added_tokens: characters that cn_clip's vocabulary lacks.

    Raises:
        FailedPreconditionError: the normaliser is unknown, or a token is in the vocabulary.
    """

    def __init__(self, normalizer: str, added_tokens: Sequence[str] = ()) -> None:
        if normalizer not in NORMALIZERS:
            raise FailedPreconditionError(f"unknown normalizer {normalizer!r}")
        self.normalizer = normalizer
        self.added_tokens = tuple(added_tokens)
        self._normalize = NORMALIZERS[normalizer]
        self._tokenizer = cn_clip._tokenizer
        if added_tokens:
            self._tokenizer = FullTokenizer()
            for token in added_tokens:
                if token in self._tokenizer.vocab:
                    raise FailedPreconditionError(f"the token {token!r} is there already")
                self._tokenizer.vocab[token] = len(self._tokenizer.vocab)
        vocab = self._tokenizer.vocab
        self._first, self._last = vocab["[CLS]"], vocab["[SEP]"]
        self.unknown_id: int = vocab["[UNK]"]
        """What a character without a token becomes."""

    def normalize(self, text: str) -> str:
        """Return the text as it is tokenised: texts that this makes equal mean the same."""
        return self._normalize(text)

    def __call__(
        self, texts: Sequence[str], context_length: int = CONTEXT_LENGTH
    ) -> tuple[torch.Tensor, list[bool]]:
        """Turn texts into token ids, as cn_clip's `tokenize` does but padded only to the longest.

        Returns:
            ids, int64 of shape [n, t] with t at most `context_length`, and for each text whether
            it was cut.
        """
        rows, truncated = [], []
        for text in texts:
            ids = self._tokenizer.convert_tokens_to_ids(self._tokens(text))
            truncated.append(len(ids) > context_length - 2)
            rows.append([self._first, *ids[: context_length - 2], self._last])
        ids_nt = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, ids in zip(ids_nt, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return ids_nt, truncated

    def unknown(self, texts: Iterable[str]) -> dict[str, int]:
        """Return the Chinese characters that have no token, and how many texts use each.

        Sorted by falling count, then by character.
        """
        counts: dict[str, int] = {}
        basic = self._tokenizer.basic_tokenizer
        for text in texts:
            for char in set(self._normalize(text)):
                if basic._is_chinese_char(ord(char)) and self._tokens(char) == ["[UNK]"]:
                    counts[char] = counts.get(char, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _tokens(self, text: str) -> list[str]:
        tokens: list[str] = self._tokenizer.tokenize(self._normalize(text))
        return tokens


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
    mask_nt = ids_nt.ne(_PAD).to(model.text_projection.dtype)
    states = model.bert(ids_nt, attention_mask=mask_nt)[0]
    encoded: torch.Tensor = states[:, 0, :].to(model.text_projection.dtype) @ model.text_projection
    return encoded


_PAD: Final[int] = cn_clip._tokenizer.vocab["[PAD]"]


def text_fingerprint(model: "TextModel | CLIP", normalizer: str) -> str:
    """Identify a text tower: weights, shapes and normaliser; 8 hex digits."""
    digest = hashlib.sha256(normalizer.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


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
    """A text tower in inference mode.

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
            self._model = load_text_model(source)
            self.tokenizer = Tokenizer(manifest.normalizer, manifest.added_tokens)
            self.release = source.name
            self.image_tower = manifest.image_tower
            self.dimension = manifest.dimension
        else:
            clip = load_clip(source)
            preprocessing = Preprocessing(source.config["image_resolution"])
            self.image_tower = image_fingerprint(clip, preprocessing)
            self.tokenizer = Tokenizer(source.normalizer)
            self.release = f"{source.name}-{text_fingerprint(clip, source.normalizer)}"
            self.dimension = source.config["embed_dim"]
            self._model = TextModel.from_clip(clip)
        self._model.to(self.runtime.device)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
        """Encode n texts.

        Returns:
            unit vectors, float32 of shape [n, d], and for each text whether it was cut.
        """
        ids_nt, truncated = self.tokenizer(texts)
        with torch.inference_mode(), self.runtime.autocast():
            encoded_nd = self._model(ids_nt.to(self.runtime.device))
        return unit(encoded_nd), truncated
