"""Filters as Milvus expressions: no value of a caller's can break out of its quotes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.shared.adapters.vector_store import collection_name, ef_of, expression, tag
from cra.shared.domain import ObjectRef, SearchFilter
from tests.expressions import EXPRESSION
from tests.hostile import HOSTILE

_values = st.text(max_size=20) | st.sampled_from(HOSTILE)
_filters = st.builds(
    SearchFilter,
    scope=st.lists(_values, max_size=3).map(tuple),
    buckets=st.lists(_values, max_size=3).map(tuple),
    key_prefix=_values,
    metadata=st.dictionaries(
        _values, st.lists(_values, min_size=1, max_size=3).map(tuple), max_size=3
    ),
    ingested_after=st.none() | st.floats(-62_135_596_800, 253_402_300_800),
    ingested_before=st.none() | st.floats(-62_135_596_800, 253_402_300_800),
)


@given(_filters)
def test_an_expression_is_made_of_our_words_and_hex(where: SearchFilter) -> None:
    """Whatever a filter holds, its expression is nothing but our own words, digits and hex."""
    found = expression(where)
    if where == SearchFilter():
        assert found == ""
    else:
        assert EXPRESSION.fullmatch(found)


@given(_filters)
def test_every_part_of_a_filter_is_in_its_expression(where: SearchFilter) -> None:
    """What is set makes one clause each, joined by `and`: none is left out in silence."""
    clauses = [clause for clause in expression(where).split(" and ") if clause]
    times = [where.ingested_after, where.ingested_before]
    assert len(clauses) == (
        bool(where.scope)
        + bool(where.buckets)
        + bool(where.key_prefix)
        + len(where.metadata)
        + sum(time is not None for time in times)
    )


def test_an_expression_by_hand() -> None:
    """The expression of a full filter, letter by letter."""
    where = SearchFilter(
        scope=("images", "img"),
        buckets=("images", '"'),
        key_prefix="a%",
        metadata={"style": ("a", "b")},
        ingested_after=1.0005,
        ingested_before=2,
    )
    assert expression(where) == (
        'bucket_hex in ["696d61676573", "696d67"] and '
        'bucket_hex in ["696d61676573", "22"] and key_hex like "6125%" and '
        f'ARRAY_CONTAINS_ANY(tags, ["{tag("style", "a")}", "{tag("style", "b")}"]) and '
        "ingested_at >= 1000 and ingested_at < 2000"
    )


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_tags_tell_entries_apart(first: tuple[str, str], second: tuple[str, str]) -> None:
    """Two entries of metadata have the same tag only if name and value are the same."""
    assert (tag(*first) == tag(*second)) == (first == second)


@given(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9))
def test_name_and_value_do_not_run_together(start: str, middle: str, end: str) -> None:
    """Moving letters from the name to the value, digits and colons too, makes another tag."""
    for joint in (middle, f"1:{middle}", f"{len(middle)}:", ":"):
        if joint:
            assert tag(start + joint, end) != tag(start, joint + end)


@given(st.text(), st.text())
def test_a_tag_is_32_hex_digits(name: str, value: str) -> None:
    """A tag has the length of its field in the collection."""
    assert re.fullmatch("[0-9a-f]{32}", tag(name, value))


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_prefixes_in_hex_are_prefixes(key: str, prefix: str) -> None:
    """A key begins with a prefix exactly if its hex begins with the prefix's."""
    assert key.encode().hex().startswith(prefix.encode().hex()) == key.startswith(prefix)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_primary_keys_tell_objects_apart(
    bucket: str, key: str, other_bucket: str, other_key: str
) -> None:
    """A primary key is hex alone, and two objects never share one."""
    first, second = ObjectRef(bucket, key), ObjectRef(other_bucket, other_key)
    assert re.fullmatch("[0-9a-f]{64}", first.primary_key)
    if "\0" not in bucket + other_bucket:
        assert (first.primary_key == second.primary_key) == (first == second)


@pytest.mark.parametrize("image_tower", ["0123456789abcdef", "f00dfeed00000001"])
def test_a_collection_has_a_name_that_milvus_takes(image_tower: str) -> None:
    """A fingerprint that begins with a digit makes a valid name all the same."""
    assert re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,254}", collection_name(image_tower))


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        ([], 28, 128),
        ([10], 28, 128),
        ([10_000], 28, 128),
        ([100_000], 28, 293),
        ([125_000] * 8, 28, 128),
        ([250_000] * 4, 28, 168),
        ([238_500, 184_500, 304_500, 272_500], 28, 173),
        ([500_000] * 2, 28, 336),
        ([500_000] * 2 + [10], 28, 336),
        ([0, 0, 100_000], 28, 293),
        ([125_000] * 1000, 28, 128),
        ([125_000] * 1000, 208, 260),
        ([10_000], 1100, 1375),
    ],
)
def test_how_far_a_search_looks(rows: list[int], limit: int, expected: int) -> None:
    """Farther the more images, less far the more even graphs, never under floor or limit.

    Break: count the segments instead of weighing them.
    """
    assert ef_of(rows, limit) == expected
