"""What a text may be before it reaches a tower."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.shared.errors import InvalidArgumentError
from cra.shared.model.text import MAX_CHARACTERS, NORMALIZERS, check_text


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u3000", "\u200b\ufeff", "\0", " \u2028 "])
def test_a_text_without_anything_to_see(text: str) -> None:
    """Empty, white space or invisible characters alone: refused, naming the field."""
    with pytest.raises(InvalidArgumentError, match="texts\\[3\\]: is empty") as caught:
        check_text(text, "texts[3]")
    assert caught.value.field == "texts[3]"


def test_the_limit_of_characters() -> None:
    """1,000 characters are taken, 1,001 refused, naming both numbers."""
    assert check_text("门" * MAX_CHARACTERS)
    with pytest.raises(InvalidArgumentError, match="has 1001 characters; at most 1000"):
        check_text("门" * (MAX_CHARACTERS + 1))


@given(st.text(max_size=40))
def test_a_text_is_taken_as_it_is(text: str) -> None:
    """A text is returned unchanged or refused; the identity normaliser changes nothing either."""
    try:
        assert check_text(text) == text
    except InvalidArgumentError:
        visible = [char for char in text if not char.isspace() and char.isprintable()]
        assert not visible
    assert NORMALIZERS["identity"](text) == text
