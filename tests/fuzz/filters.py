"""Search requests, from the bytes of a message to the expression that Milvus gets."""

from google.protobuf.message import DecodeError

from cra.search.v1 import search_pb2 as pb
from cra.services.gateway.query import MAX_TOP_K, MAX_WEIGHT, Query, parse
from cra.shared.adapters.vector_store import expression
from cra.shared.domain import SearchFilter
from cra.shared.errors import InvalidArgumentError
from tests.expressions import EXPRESSION

FIELDS = {field.name for field in pb.SearchRequest.DESCRIPTOR.fields} | {"query"}


def check(data: bytes) -> None:
    """Any request is refused, naming a field, or becomes a query within its limits.

    Its filter becomes an expression of digits, hex and our own words. Fails when `_hex` returns
    its text as it is, and when a limit of `parse` is taken out.
    """
    try:
        request = pb.SearchRequest.FromString(data)
    except DecodeError:
        return
    try:
        query = parse(request)
    except InvalidArgumentError as error:
        assert error.field.split(".")[0].split("[")[0] in FIELDS, error.field
        assert error.problem
        return
    assert isinstance(query, Query)
    assert 1 <= query.top_k <= MAX_TOP_K
    assert query.min_score is None or -1 <= query.min_score <= 1
    assert query.terms
    assert all(0 < abs(term.weight) <= MAX_WEIGHT for term in query.terms)
    assert len(query.digest) == 16
    assert parse(pb.SearchRequest.FromString(request.SerializeToString())) == query
    found = expression(query.where)
    if query.where == SearchFilter():
        assert found == ""
    else:
        assert EXPRESSION.fullmatch(found), found
