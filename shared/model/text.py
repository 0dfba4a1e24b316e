"""Text as the towers take it: limits and normalisers. Free of torch: any service may check."""

import unicodedata
from collections.abc import Callable
from typing import Final

from cra.shared.errors import InvalidArgumentError

MAX_CHARACTERS: Final = 1000

NORMALIZERS: Final[dict[str, Callable[[str], str]]] = {
    # What official weights were trained with: cn_clip's tokenizer does all there is.
    "identity": lambda text: text,
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
