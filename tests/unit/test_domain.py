"""Names of images, and what tells one state of an object from another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.shared.domain import ObjectDetails, ObjectRef, Version
from cra.shared.errors import InvalidArgumentError

_buckets = st.text(min_size=1, max_size=63).filter(lambda bucket: "/" not in bucket)
_keys = st.text(min_size=1, max_size=100)


@given(_buckets, _keys)
def test_an_image_id_names_one_object(bucket: str, key: str) -> None:
    """`bucket/key` is split at its first slash, so that any key survives."""
    ref = ObjectRef(bucket, key)
    assert ObjectRef.parse(ref.image_id) == ref


@given(st.text(max_size=50) | st.text("/ab", max_size=5))
def test_any_text_is_an_image_id_or_refused(text: str) -> None:
    """What is parsed gives the same text back; all else is refused naming the field."""
    try:
        image_id = ObjectRef.parse(text, "terms[3].image_id").image_id
    except InvalidArgumentError as error:
        image_id = text if error.field == "terms[3].image_id" else ""
    assert image_id == text


@pytest.mark.parametrize("text", ["", "/", "b", "b/", "/k", "b/\ud800", "b" * 64 + "/k"])
def test_no_image_id(text: str) -> None:
    """No bucket, no key, half a character, too long: refused."""
    with pytest.raises(InvalidArgumentError):
        ObjectRef.parse(text)


def _digest(metadata: dict[str, str]) -> str:
    return ObjectDetails(ObjectRef("b", "k"), Version("e", 1), 1, metadata).metadata_digest


_metadata = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4)


@given(_metadata, _metadata)
def test_the_digest_of_metadata_tells_it_apart(
    first: dict[str, str], second: dict[str, str]
) -> None:
    """Two objects have the same digest only if their metadata is the same, in whatever order."""
    assert (_digest(first) == _digest(second)) == (first == second)
    assert _digest(dict(reversed(first.items()))) == _digest(first)
    assert len(_digest(first)) == 16
