"""Text as token ids. Free of torch: a service that runs converted towers has no use for it.

Shapes in this file: n items, t tokens.
"""

import functools
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cra.shared.errors import FailedPreconditionError
from cra.shared.model.text import NORMALIZERS

CONTEXT_LENGTH: Final = 52
"""Tokens that a text is cut at, [CLS] and [SEP] included, as in all official models."""

PAD: Final = 0
"""The id of [PAD] in cn_clip's vocabulary."""

NO_CN_CLIP: Final = (
    "cn_clip is not installed; it goes beside the extras, without its dependencies: "
    "pip install --no-deps cn_clip==1.6.0"
)


@functools.cache
def _bert_tokenizer() -> Any:
    """Return cn_clip's own module of that name, without its package: that imports torch."""
    package = importlib.util.find_spec("cn_clip")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(NO_CN_CLIP)
    file = Path(package.submodule_search_locations[0]) / "clip" / "bert_tokenizer.py"
    spec = importlib.util.spec_from_file_location("cn_clip_bert_tokenizer", file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(NO_CN_CLIP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        self._tokenizer = _bert_tokenizer().FullTokenizer()
        vocab = self._tokenizer.vocab
        for token in added_tokens:
            if token in vocab:
                raise FailedPreconditionError(f"the token {token!r} is there already")
            vocab[token] = len(vocab)
        self._first, self._last = vocab["[CLS]"], vocab["[SEP]"]
        self.unknown_id: int = vocab["[UNK]"]
        """What a character without a token becomes."""

    def normalize(self, text: str) -> str:
        """Return the text as it is tokenised: texts that this makes equal mean the same."""
        return self._normalize(text)

    def __call__(
        self, texts: Sequence[str], context_length: int = CONTEXT_LENGTH
    ) -> tuple[npt.NDArray[np.int64], list[bool]]:
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
        ids_nt = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
        for row, ids in zip(ids_nt, rows, strict=True):
            row[: len(ids)] = ids
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
