"""Where tuning starts: the base model's text tower, with tokens for characters it lacks."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from cra.services.training.tuning import lora
from cra.services.training.tuning.settings import TuningSettings
from cra.shared.model.checkpoints import ModelSource, load_clip
from cra.shared.model.text_tower import TextModel, text_config
from cra.shared.model.tokenizer import Tokenizer

NORMALIZER: Final = "cra-1"
"""Of every release that is tuned from now on."""

RELATIVES: Final[Mapping[str, str]] = {
    "庑": "廊殿",
    "盝": "平顶",
    "鸱": "鸟兽",
    "戗": "斜脊",
    "檩": "梁木",
    "槅": "窗门",
    "堞": "城墙",
}
"""Characters of building that cn_clip's vocabulary lacks, and some near them in meaning."""


@dataclass(frozen=True)
class Start:
    """A text tower that is about to learn."""

    model: TextModel
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    """Of the model, added tokens included; see `releases.Manifest.config`."""


def start(source: ModelSource, texts: Iterable[str], settings: TuningSettings) -> Start:
    """Load the base's text tower and make room for what is to be learnt.

    Tokens are added for the characters of `RELATIVES`, and of the texts, that the normaliser does
    not fold and the vocabulary lacks. One starts as the mean of its relatives, so that it means
    something even where no text teaches it; without any as [UNK], which is what the base read in
    its place.

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
        tokenizer = Tokenizer(NORMALIZER, list(tokenizer.unknown([*texts, *RELATIVES])))
    config = text_config(source.config)
    before = model.bert.embeddings.word_embeddings.num_embeddings
    _add_rows(model, [_relatives(token, tokenizer) for token in tokenizer.added_tokens])
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


def _relatives(token: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens whose mean a new one starts from."""
    if token not in RELATIVES:
        return [tokenizer.unknown_id]
    ids: list[int] = tokenizer(list(RELATIVES[token]))[0][:, 1].tolist()
    return ids


def _add_rows(model: TextModel, like: Sequence[Sequence[int]]) -> None:
    """Give the word embeddings more rows, each the mean of the rows that it is to be like."""
    words = model.bert.embeddings.word_embeddings
    means = [words.weight.data[list(ids)].mean(dim=0, keepdim=True) for ids in like]
    rows = torch.cat([words.weight.data, *means])
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
