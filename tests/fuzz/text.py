"""Texts, through the check, each normaliser, and the tokeniser."""

from cra.shared.errors import InvalidArgumentError
from cra.shared.model.text import MAX_CHARACTERS, NORMALIZERS, check_text
from cra.shared.model.tokenizer import CONTEXT_LENGTH, PAD, Tokenizer

MOST_EXPANDED = 18
"""Characters that NFKC makes of one at most: of U+FDFA."""

TOKENIZERS = {name: Tokenizer(name) for name in NORMALIZERS}


def check(data: bytes) -> None:
    """Any text is refused, or has token ids in their range between [CLS] and [SEP].

    A normaliser gives the same for the same text, no longer than Unicode allows, and what it folded
    it folds no further. Fails when `check_text` lets empty texts through, when a row is not cut,
    and when NFKC comes after the conversion to simplified characters.
    """
    text = data.decode("utf-8", "replace")
    try:
        assert check_text(text) is text
    except InvalidArgumentError as error:
        assert error.field == "text"
        return
    assert len(text) <= MAX_CHARACTERS
    assert text.strip()
    for tokens in TOKENIZERS.values():
        folded = tokens.normalize(text)
        assert len(folded) <= MOST_EXPANDED * len(text)
        assert tokens.normalize(text) == folded
        assert tokens.normalize(folded) == folded
        (ids,), (cut,) = tokens([text])
        assert 2 <= len(ids) <= CONTEXT_LENGTH
        assert ids[0] == tokens._first
        assert ids[-1] == tokens._last
        assert all(PAD < token < len(tokens._tokenizer.vocab) for token in ids.tolist())
        assert not cut or len(ids) == CONTEXT_LENGTH
        (again,), _ = tokens([folded])
        assert (again == ids).all()
