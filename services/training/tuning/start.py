"""Where tuning starts: the base model's text tower, with tokens for characters it lacks."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from cra.services.training.tuning import lora
from cra.services.training.tuning.settings import TuningSettings
from cra.shared.model.checkpoints import ModelSource, load_clip
from cra.shared.model.text_tower import TextModel, Tokenizer, text_config

NORMALIZER: Final = "cra-1"
"""Of every release that is tuned from now on."""


@dataclass(frozen=True)
class Start:
    """A text tower that is about to learn."""

    model: TextModel
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    """Of the model, added tokens included; see `releases.Manifest.config`."""


def start(source: ModelSource, texts: Iterable[str], settings: TuningSettings) -> Start:
    """Load the base's text tower and make room for what is to be learnt.

    An added token starts as the vector of [UNK], which is what the base read in its place: before
    the first step the tower computes what the base computes.

    Args:
        source: the base model.
        texts: that will be learnt, for the characters in them.
        settings: of the run.

    Raises:
        FailedPreconditionError: the base does not load.
    """
    model = copy.deepcopy(TextModel.from_clip(load_clip(source)))
    tokenizer = Tokenizer(NORMALIZER)
    if settings.add_tokens:
        tokenizer = Tokenizer(NORMALIZER, list(tokenizer.unknown(texts)))
    config = text_config(source.config)
    before = model.bert.embeddings.word_embeddings.num_embeddings
    _add_rows(model, len(tokenizer.added_tokens), tokenizer.unknown_id)
    config["vocab_size"] = before + len(tokenizer.added_tokens)
    if settings.lora_rank:
        torch.manual_seed(settings.seed)
        lora.add(model.bert, settings.lora_rank, settings.lora_alpha)
        _learn_rows_from(model.bert.embeddings.word_embeddings.weight, before)
    return Start(model, tokenizer, config)


def merged(model: TextModel, config: Mapping[str, Any]) -> TextModel:
    """Return a copy of a text tower with its low-rank updates, if any, inside the weights.

    Args:
        model: the tower.
        config: its shape.
    """
    with torch.device("meta"):
        whole = TextModel(config)
    whole.load_state_dict(lora.merged_state(model), assign=True)
    return whole.eval()


def _add_rows(model: TextModel, count: int, like: int) -> None:
    """Give the word embeddings `count` more rows, all equal to row `like`."""
    words = model.bert.embeddings.word_embeddings
    rows = torch.cat([words.weight.data, words.weight.data[like].expand(count, -1)])
    larger = torch.nn.Embedding(len(rows), rows.shape[1], padding_idx=words.padding_idx)
    larger.weight.data.copy_(rows)
    model.bert.embeddings.word_embeddings = larger


def _learn_rows_from(weight: torch.nn.Parameter, first: int) -> None:
    """Let the rows from `first` on learn, and those before stay."""
    weight.requires_grad = True
    learns = (torch.arange(len(weight)) >= first).unsqueeze(1)
    weight.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: gradient * learns.to(gradient.device)
    )
