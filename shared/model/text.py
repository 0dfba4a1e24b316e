"""Text as the towers take it: limits and normalisers. Free of torch: any service may check."""

import functools
import unicodedata
from collections.abc import Callable
from typing import Any, Final

from cra.shared.errors import InvalidArgumentError

MAX_CHARACTERS: Final = 1000

# Old or rare forms of characters in the words of Chinese building that OpenCC does not fold.
_VARIANTS: Final = str.maketrans(
    {"栱": "拱", "枓": "斗", "牕": "窗", "窓": "窗", "甎": "砖", "塼": "砖", "堦": "阶", "墻": "墙"}
)
# As Chinese CLIP's own trainer has it; its vocabulary knows straight quotes best.
_QUOTES: Final = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


def _cra_1(text: str) -> str:
    """Fold what is written in several ways: Unicode's compatibility forms, old and new characters.

    NFKC, straight quotes, traditional to simplified, variants of the words of building.
    """
    folded: str = _simplify().convert(unicodedata.normalize("NFKC", text).translate(_QUOTES))
    return folded.translate(_VARIANTS)


@functools.cache
def _simplify() -> Any:
    import opencc  # noqa: PLC0415 - only those who encode text need it

    return opencc.OpenCC("t2s")


NORMALIZERS: Final[dict[str, Callable[[str], str]]] = {
    # What official weights were trained with: cn_clip's tokenizer does all there is.
    "identity": lambda text: text,
    "cra-1": _cra_1,
}
"""Normalisers by version. A text release names the one that it was trained with; one that was
released is never changed, only followed by another."""


def check_text(text: str, field: str = "text") -> str:
    """Return `text` if the towers can take it.

    Args:
        text: what a caller sent.
        field: its name in the request, for the error.

    Raises:
        InvalidArgumentError: empty, nothing but white space and invisible characters, or longer
            than 1,000 characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidArgumentError(
            field, f"has {len(text)} characters; at most {MAX_CHARACTERS} are allowed"
        )
    if all(unicodedata.category(char)[0] in "CZ" for char in text):
        raise InvalidArgumentError(field, "is empty; at least one visible character is needed")
    return text
