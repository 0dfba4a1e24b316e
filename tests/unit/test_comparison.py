"""Comparing two rankings, on cases done by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.services.cli.comparison import Asked, Mover, compare, read_queries, summarise
from cra.services.cli.replicas import addresses
from cra.shared.errors import InvalidArgumentError, UnavailableError


def test_one_query_by_hand() -> None:
    """Two of three images are in both; one stays, one rises by one, one leaves and one comes."""
    asked = Asked("塔", frozenset({"d", "x"}))
    result = compare(asked, ["a", "b", "c"], ["a", "c", "d"], 3)
    assert result.overlap == pytest.approx(2 / 3)
    assert result.rank_change == pytest.approx(0.5)
    assert result.movers == [Mover("b", 2, None, -2), Mover("c", 3, 2, 1), Mover("d", None, 3, 1)]
    assert result.found == (False, True)


def test_a_summary_by_hand() -> None:
    """Means are over all queries, recall over those whose right images are known."""
    results = [
        compare(Asked("一", frozenset({"a"})), ["a", "b"], ["b", "a"], 2),
        compare(Asked("二", frozenset({"b"})), ["a", "c"], ["a", "b"], 2),
        compare(Asked("三"), ["a"], ["b"], 2),
        compare(Asked("四"), [], [], 2),
    ]
    summary = summarise(results)
    assert summary.queries == 4
    assert summary.overlap == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert summary.rank_change == pytest.approx((1 + 0) / 2)
    assert summary.same_first == pytest.approx(2 / 4)
    assert (summary.judged, summary.recall) == (2, (0.5, 1.0))
    with pytest.raises(ValueError, match="no query"):
        summarise([])


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.integers(1, 8))
def test_a_release_agrees_with_itself(ids: list[str], k: int) -> None:
    """The same ranking twice: all of it in common, and nothing moved."""
    result = compare(Asked("塔"), ids, ids, k)
    assert (result.overlap, result.movers, result.found) == (1.0, [], None)
    assert result.rank_change == (0.0 if ids else None)


@given(st.permutations("abcdefgh"), st.permutations("abcdefgh"), st.integers(1, 8))
def test_the_other_way_round(before: list[str], after: list[str], k: int) -> None:
    """Exchanging the releases turns every move round and changes no mean."""
    one, other = compare(Asked("塔"), before, after, k), compare(Asked("塔"), after, before, k)
    assert (one.overlap, one.rank_change) == (other.overlap, other.rank_change)
    assert [-mover.distance for mover in one.movers] == [mover.distance for mover in other.movers]


def test_queries_are_texts_or_json() -> None:
    """Lines of both kinds may be mixed; empty ones do not count."""
    lines = ["红墙\n", "\n", '{"text": "塔", "image_ids": ["a/b", "a/c"]}\n', '{"text": "桥"}']
    assert read_queries(lines) == [
        Asked("红墙"),
        Asked("塔", frozenset({"a/b", "a/c"})),
        Asked("桥"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{}",
        '{"text": 1}',
        '{"text": "塔", "image_ids": "a/b"}',
        '{"text": "塔", "image_ids": [1]}',
    ],
)
def test_a_bad_line_is_named(line: str) -> None:
    """What is no query is refused by the number of its line."""
    with pytest.raises(InvalidArgumentError, match="line 2"):
        read_queries(["塔", line])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("ipv4:10.0.0.1:50052,10.0.0.2:50052", ["ipv4:10.0.0.1:50052", "ipv4:10.0.0.2:50052"]),
        ("dns:///127.0.0.1:50052", ["ipv4:127.0.0.1:50052"]),
        ("dns:127.0.0.1:50052", ["ipv4:127.0.0.1:50052"]),
        ("127.0.0.1:50052", ["ipv4:127.0.0.1:50052"]),
        ("dns:///[::1]:50052", ["ipv6:[::1]:50052"]),
        ("unix:/run/embedding.sock", ["unix:/run/embedding.sock"]),
    ],
)
def test_a_target_stands_for_addresses(target: str, expected: list[str]) -> None:
    """Each replica behind a target has an address of its own."""
    assert addresses(target) == expected


def test_a_target_without_an_address() -> None:
    """A name that nobody knows is unavailable, and named."""
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid"):
        addresses("dns:///nowhere.invalid:50052")
