"""A search request at its limits and past them: each field is refused by name."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.search.v1 import search_pb2 as pb
from cra.services.gateway.query import DEFAULT_TOP_K, Query, parse
from cra.shared.domain import ObjectRef, SearchFilter
from cra.shared.errors import InvalidArgumentError
from cra.shared.limits import MAX_IMAGE_BYTES

BIG = bytes(MAX_IMAGE_BYTES)


def _request(**fields: Any) -> pb.SearchRequest:
    return pb.SearchRequest(**{"text": "门", **fields})


def _filtered(**fields: Any) -> pb.SearchRequest:
    return _request(filter=pb.Filter(**fields))


def _metadata(names: int, values: int) -> dict[str, pb.MetadataValues]:
    return {f"name-{n}": pb.MetadataValues(values=["x"] * values) for n in range(names)}


def _refused(request: pb.SearchRequest) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(request)
    return caught.value


@pytest.mark.parametrize(
    "request_message",
    [
        pytest.param(_request(request_id="r" * 128), id="request_id"),
        pytest.param(_request(text="门" * 1000), id="text"),
        pytest.param(_request(image=BIG), id="image"),
        pytest.param(_request(image=b"x"), id="a tiny image"),
        pytest.param(_request(image_id="b/k"), id="image_id"),
        pytest.param(_request(image_id="b" * 63 + "/" + "k" * 1024), id="a long image_id"),
        pytest.param(_request(image_id="b/" + "钥" * 341), id="an image_id of 1,023 bytes"),
        pytest.param(_request(image_id="b//k/"), id="slashes"),
        pytest.param(_request(terms=[pb.Term(text="门")] * 16), id="terms"),
        pytest.param(pb.SearchRequest(terms=[pb.Term(text="门")]), id="terms alone"),
        pytest.param(_request(terms=[pb.Term(text="门", weight=-100)]), id="least weight"),
        pytest.param(_request(terms=[pb.Term(text="门", weight=100)]), id="most weight"),
        pytest.param(_request(terms=[pb.Term(text="门", weight=1e-30)]), id="a tiny weight"),
        pytest.param(_request(top_k=1), id="least top_k"),
        pytest.param(_request(top_k=200), id="most top_k"),
        pytest.param(_request(min_score=-1), id="least min_score"),
        pytest.param(_request(min_score=1), id="most min_score"),
        pytest.param(_filtered(buckets=["b" * 63] * 64), id="buckets"),
        pytest.param(_filtered(key_prefix="钥" * 341 + "k"), id="key_prefix"),
        pytest.param(_filtered(metadata=_metadata(16, 64)), id="metadata"),
        pytest.param(_filtered(ingested_after={"seconds": -62_135_596_800}), id="the first second"),
        pytest.param(
            _filtered(ingested_before={"seconds": 253_402_300_799, "nanos": 999_999_999}),
            id="the last nanosecond",
        ),
    ],
)
def test_at_the_limit(request_message: pb.SearchRequest) -> None:
    """A field just at its limit is taken."""
    assert parse(request_message).terms


@pytest.mark.parametrize(
    ("request_message", "field", "limit"),
    [
        (_request(request_id="r" * 129), "request_id", "at most 128"),
        (pb.SearchRequest(), "query", "text, image, image_id or terms"),
        (_request(text=""), "text", "at least one visible"),
        (_request(text=" \n\u3000"), "text", "at least one visible"),
        (_request(text="门" * 1001), "text", "at most 1000"),
        (_request(image=b""), "image", "1 to 10485760"),
        (_request(image=BIG + b"x"), "image", "1 to 10485760"),
        (_request(image_id=""), "image_id", "bucket/key"),
        (_request(image_id="bucket"), "image_id", "bucket/key"),
        (_request(image_id="bucket/"), "image_id", "bucket/key"),
        (_request(image_id="/key"), "image_id", "bucket/key"),
        (_request(image_id="b" * 64 + "/k"), "image_id", "at most 63"),
        (_request(image_id="b/" + "钥" * 342), "image_id", "1024 bytes"),
        (_request(terms=[pb.Term(text="门")] * 17), "terms", "at most 16"),
        (_request(terms=[pb.Term(text="门"), pb.Term()]), "terms[1]", "neither text nor"),
        (_request(terms=[pb.Term(weight=2)]), "terms[0]", "neither text nor"),
        (_request(terms=[pb.Term(text=" ")]), "terms[0].text", "at least one visible"),
        (_request(terms=[pb.Term(image=b"")]), "terms[0].image", "1 to 10485760"),
        (_request(terms=[pb.Term(image_id="b")]), "terms[0].image_id", "bucket/key"),
        (_request(terms=[pb.Term(text="门", weight=0)]), "terms[0].weight", "not be zero"),
        (_request(terms=[pb.Term(text="门", weight=-0.0)]), "terms[0].weight", "not be zero"),
        (_request(terms=[pb.Term(text="门", weight=100.01)]), "terms[0].weight", "-100 to 100"),
        (_request(terms=[pb.Term(text="门", weight=-101)]), "terms[0].weight", "-100 to 100"),
        (_request(terms=[pb.Term(text="门", weight=math.nan)]), "terms[0].weight", "-100 to 100"),
        (_request(terms=[pb.Term(text="门", weight=math.inf)]), "terms[0].weight", "-100 to 100"),
        (_request(top_k=-1), "top_k", "1 to 200"),
        (_request(top_k=201), "top_k", "1 to 200"),
        (_request(min_score=-1.001), "min_score", "-1 to 1"),
        (_request(min_score=1.001), "min_score", "is 1.001; -1 to 1"),
        (_request(min_score=math.nan), "min_score", "-1 to 1"),
        (_request(min_relevance=-0.001), "min_relevance", "0 to 1"),
        (_request(min_relevance=1.001), "min_relevance", "is 1.001; 0 to 1"),
        (_request(min_relevance=math.nan), "min_relevance", "0 to 1"),
        (_filtered(buckets=["b"] * 65), "filter.buckets", "at most 64"),
        (_filtered(buckets=["b", "b" * 64]), "filter.buckets[1]", "at most 63"),
        (_filtered(key_prefix="钥" * 342), "filter.key_prefix", "at most 1024"),
        (_filtered(metadata=_metadata(17, 1)), "filter.metadata", "at most 16"),
        (_filtered(metadata=_metadata(1, 65)), "filter.metadata['name-0']", "at most 64"),
        (_filtered(metadata=_metadata(1, 0)), "filter.metadata['name-0']", "at least one"),
        (
            _filtered(ingested_after={"seconds": -62_135_596_801}),
            "filter.ingested_after",
            "between the years 1 and 9999",
        ),
        (
            _filtered(ingested_after={"seconds": 5, "nanos": 1_000_000_000}),
            "filter.ingested_after.nanos",
            "0 to 999999999",
        ),
        (
            _filtered(ingested_before={"seconds": 5, "nanos": -1}),
            "filter.ingested_before.nanos",
            "0 to 999999999",
        ),
        (
            _filtered(ingested_before={"seconds": 253_402_300_800}),
            "filter.ingested_before",
            "between the years 1 and 9999",
        ),
        (
            _filtered(ingested_before={"seconds": 2**63 - 1, "nanos": 2**31 - 1}),
            "filter.ingested_before",
            "between the years 1 and 9999",
        ),
    ],
)
def test_past_the_limit(request_message: pb.SearchRequest, field: str, limit: str) -> None:
    """A field just past its limit is refused, naming it and the limit."""
    error = _refused(request_message)
    assert error.field == field
    assert limit in error.problem


def test_names_of_metadata_have_no_case() -> None:
    """Names are matched as HTTP headers are; one given twice is refused, not half forgotten."""
    values = pb.MetadataValues(values=["歇山", "'; drop"])
    assert parse(_filtered(metadata={"Roof": values})).where.metadata == {
        "roof": ("歇山", "'; drop")
    }
    error = _refused(_filtered(metadata={"Roof": values, "roof": pb.MetadataValues(values=["x"])}))
    assert error.field.startswith("filter.metadata[")
    assert "twice" in error.problem


def test_what_is_not_said_has_its_default() -> None:
    """A bare text asks for 20 hits of everything, with the active release."""
    query = parse(pb.SearchRequest(text="门"))
    assert [(term.content, term.weight, term.field) for term in query.terms] == [
        ("门", 1.0, "text")
    ]
    assert query.top_k == DEFAULT_TOP_K == 20
    assert query.min_score is None
    assert query.where == SearchFilter()
    assert not query.include_url
    assert not query.include_query_images
    assert not query.fold_duplicates
    assert query.min_relevance is None
    assert query.text_release == query.page_token == ""


def test_the_query_itself_is_the_first_term() -> None:
    """The query counts 1, terms count their weight, and each knows where it stands."""
    request = pb.SearchRequest(
        image_id="images/a/b.jpg",
        terms=[pb.Term(text="雪"), pb.Term(image=b"x", weight=-0.5)],
    )
    assert [(term.content, term.weight, term.field) for term in parse(request).terms] == [
        (ObjectRef("images", "a/b.jpg"), 1.0, "image_id"),
        ("雪", 1.0, "terms[0].text"),
        (b"x", -0.5, "terms[1].image"),
    ]


def test_min_score_may_be_zero() -> None:
    """A least score of 0 is a wish, not a default."""
    assert parse(_request(min_score=0.0)).min_score == 0.0


def test_whether_texts_are_expanded_is_the_server_s_unless_the_caller_says() -> None:
    """A page token of one default fits no request under another, and fits one that says the same.

    Replicas may be set differently while a setting is changed.
    """
    on, off = (parse(_request(), expand=default) for default in (True, False))
    assert (on.expand, off.expand) == (True, False)
    assert on.digest != off.digest
    for said, default in itertools.product((True, False), repeat=2):
        query = parse(_request(expand=said), expand=default)
        assert query.expand is said
        assert query.digest == (on if said else off).digest


def test_times_are_seconds() -> None:
    """Timestamps become Unix seconds, with their fractions."""
    where = parse(
        _filtered(
            ingested_after={"seconds": 1_700_000_000, "nanos": 500_000_000},
            ingested_before={"seconds": 1_800_000_000},
        )
    ).where
    assert (where.ingested_after, where.ingested_before) == (1_700_000_000.5, 1_800_000_000.0)


_CHANGES: dict[str, Callable[[pb.SearchRequest], object]] = {
    "text": lambda r: setattr(r, "text", "窗"),
    "image": lambda r: setattr(r, "image", b"x"),
    "image_id": lambda r: setattr(r, "image_id", "b/k"),
    "terms": lambda r: r.terms.add(text="雪"),
    "weight": lambda r: setattr(r.terms[0], "weight", 2),
    "min_score": lambda r: setattr(r, "min_score", 0),
    "buckets": lambda r: r.filter.buckets.append("c"),
    "key_prefix": lambda r: setattr(r.filter, "key_prefix", "q"),
    "metadata": lambda r: r.filter.metadata["a"].values.append("2"),
    "ingested_after": lambda r: setattr(r.filter.ingested_after, "seconds", 5),
    "ingested_before": lambda r: setattr(r.filter.ingested_before, "seconds", 5),
    "include_query_images": lambda r: setattr(r, "include_query_images", True),
    "min_relevance": lambda r: setattr(r, "min_relevance", 0),
    "fold_duplicates": lambda r: setattr(r, "fold_duplicates", True),
    "expand": lambda r: setattr(r, "expand", True),
}
_KEEPS: dict[str, Callable[[pb.SearchRequest], object]] = {
    "request_id": lambda r: setattr(r, "request_id", "other"),
    "top_k": lambda r: setattr(r, "top_k", 7),
    "page_token": lambda r: setattr(r, "page_token", "other"),
    "include_url": lambda r: setattr(r, "include_url", True),
    "text_release": lambda r: setattr(r, "text_release", "other"),
}


def _rich_request() -> pb.SearchRequest:
    return pb.SearchRequest(
        text="门",
        terms=[pb.Term(image_id="b/k", weight=0.5)],
        filter=pb.Filter(buckets=["b"], key_prefix="p", metadata=_metadata(3, 2)),
    )


@pytest.mark.parametrize("change", _CHANGES)
def test_what_decides_the_ranking_is_in_the_digest(change: str) -> None:
    """A page token fits no request whose hits or order could be others."""
    request = _rich_request()
    before = parse(request).digest
    request.filter.metadata["a"].values.append("1")
    middle = parse(request).digest
    _CHANGES[change](request)
    assert len({before, middle, parse(request).digest}) == 3


@pytest.mark.parametrize("change", _KEEPS)
def test_what_does_not_is_left_out(change: str) -> None:
    """The next page may have another size, id and URLs, and carries the token itself."""
    request = _rich_request()
    before = parse(request).digest
    _KEEPS[change](request)
    assert parse(request).digest == before


def test_every_field_is_in_one_of_the_two_lists() -> None:
    """A field that is added to the contract has to be placed: in the digest, or out of it."""
    placed = {*_CHANGES, *_KEEPS, "filter"}
    assert {field.name for field in pb.SearchRequest.DESCRIPTOR.fields} <= placed
    assert {field.name for field in pb.Filter.DESCRIPTOR.fields} <= placed
    assert {field.name for field in pb.Term.DESCRIPTOR.fields} <= placed


_texts = st.text(max_size=30)
_terms = st.builds(
    pb.Term,
    text=_texts,
    weight=st.none() | st.floats(width=32),
) | st.builds(pb.Term, image_id=_texts)
_stamps = st.fixed_dictionaries(
    {
        "seconds": st.integers(-(2**63), 2**63 - 1),
        "nanos": st.integers(-(2**31), 2**31 - 1),
    }
)
_filters = st.builds(
    pb.Filter,
    buckets=st.lists(_texts, max_size=3),
    key_prefix=_texts,
    metadata=st.dictionaries(
        _texts, st.builds(pb.MetadataValues, values=st.lists(_texts, max_size=3)), max_size=3
    ),
    ingested_after=st.none() | _stamps,
    ingested_before=st.none() | _stamps,
)
_requests = st.builds(
    pb.SearchRequest,
    request_id=_texts,
    text=st.none() | _texts,
    terms=st.lists(_terms, max_size=3),
    top_k=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 200),
    min_score=st.none() | st.floats(width=32),
    filter=_filters,
)


@given(_requests)
def test_any_request_is_within_limits_or_refused(request_message: pb.SearchRequest) -> None:
    """Whatever a request holds, it is refused naming a field, or becomes a query in its limits."""
    try:
        query: Query | None = parse(request_message)
    except InvalidArgumentError as error:
        query = None
        named = error.field.split(".")[0].split("[")[0]
        known = {field.name for field in pb.SearchRequest.DESCRIPTOR.fields} | {"query"}
        if named not in known:
            raise
    if query is not None:
        assert 1 <= query.top_k <= 200
        assert query.terms
        assert all(0 < abs(term.weight) <= 100 for term in query.terms)
        assert query.min_score is None or -1 <= query.min_score <= 1
        assert len(query.digest) == 16
        assert query == parse(request_message)
        assert all(query.where.metadata.values())
