"""What is sent to Milvus and made of its answers, beside what pymilvus makes of them.

The server is one of gRPC that keeps what it is sent; Milvus itself is in tests/contract.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc, schema_pb2

from cra.shared.adapters.milvus_search import Alike, Searcher
from cra.shared.domain import Vector

VECTORS: list[Vector] = list(np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32))
MISSING = common_pb2.Status(code=100, error_code=common_pb2.ErrorCode.UnexpectedError, reason="no")


class _Milvus(milvus_pb2_grpc.MilvusServiceServicer):  # type: ignore[misc]
    """Keeps searches and answers them all alike, but for what is in `first`."""

    def __init__(self) -> None:
        self.searches: list[tuple[Any, dict[str, str]]] = []
        self.connections = 0
        self.first: list[grpc.StatusCode | Any] = []
        self.counts = [1, 2]
        """Hits of each vector."""

    def Connect(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        self.connections += 1
        return milvus_pb2.ConnectResponse(identifier=self.connections)

    def Search(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.searches.append((request, dict(context.invocation_metadata())))
        if self.first:
            problem = self.first.pop(0)
            if isinstance(problem, grpc.StatusCode):
                context.abort(problem, "as the test says")
            return milvus_pb2.SearchResults(status=problem)
        return milvus_pb2.SearchResults(results=self._results("vector" in request.output_fields))

    def _results(self, with_vectors: bool) -> Any:
        many = sum(self.counts)
        found = schema_pb2.SearchResultData(
            num_queries=len(self.counts),
            topks=self.counts,
            scores=[1.0 - number / 7 for number in range(many)],
            ids=schema_pb2.IDs(str_id=schema_pb2.StringArray(data=map(str, range(many)))),
            primary_field_name="id",
        )
        if not many:
            return found
        records = [json.dumps({"key": f"檐{number}"}).encode() for number in range(many)]
        field = found.fields_data.add(field_name="record", type=schema_pb2.DataType.JSON)
        field.scalars.json_data.data.extend(records)
        if with_vectors:
            field = found.fields_data.add(field_name="vector", type=schema_pb2.DataType.FloatVector)
            field.vectors.dim = 8
            field.vectors.float_vector.data.extend(map(float, range(8 * many)))
        return found


@pytest.fixture
def milvus() -> Iterator[tuple[_Milvus, MilvusClient]]:
    """A server and a client of it, which has a token."""
    server, servicer = grpc.server(ThreadPoolExecutor(4)), _Milvus()
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    uri = f"http://127.0.0.1:{port}/plans"
    client = MilvusClient(uri=uri, token="root:secret", timeout=5, dedicated=True)
    yield servicer, client
    client.close()
    server.stop(None)


def both(milvus: tuple[_Milvus, MilvusClient], alike: Alike) -> tuple[Any, Any]:
    """Return what pymilvus and ours find, after the same search of each."""
    _, client = milvus
    theirs = client.search(
        alike.collection,
        [vector.tolist() for vector in VECTORS],
        limit=alike.limit,
        filter=alike.expression,
        output_fields=["record", "vector"] if alike.with_vectors else ["record"],
        search_params={"metric_type": "COSINE", "params": {"ef": 200}},
        consistency_level="Bounded",
        timeout=5,
    )
    return theirs, Searcher(client)(alike, 200, VECTORS, 5.0)


@pytest.mark.parametrize("expression", ["", 'bucket_hex in ["61"]'])
@pytest.mark.parametrize("with_vectors", [False, True])
def test_a_search_is_what_pymilvus_would_send_and_find(
    milvus: tuple[_Milvus, MilvusClient], expression: str, with_vectors: bool
) -> None:
    """Message, credentials, database and hits are the same, of two vectors.

    Broken on purpose: another consistency, no token, hits of the first vector given to the second.
    """
    theirs, ours = both(milvus, Alike("cra2_tower", 28, expression, with_vectors))
    (message, headers), (our_message, our_headers) = milvus[0].searches
    assert our_message == message
    for name in ("authorization", "dbname"):
        assert our_headers[name] == headers[name]
    assert [[(hit.record, hit.score) for hit in hits] for hits in ours] == [
        [(hit["entity"]["record"], hit["distance"]) for hit in hits] for hits in theirs
    ]
    for hits, their_hits in zip(ours, theirs, strict=True):
        for hit, their_hit in zip(hits, their_hits, strict=True):
            if hit.vector is None:
                assert not with_vectors
            else:
                np.testing.assert_array_equal(hit.vector, their_hit["entity"]["vector"])


def test_nothing_found_is_an_empty_answer(milvus: tuple[_Milvus, MilvusClient]) -> None:
    """Without a hit there are no fields in the answer either; one of two may have some."""
    milvus[0].counts = [0, 0]
    assert both(milvus, Alike("cra2_tower", 28, "", True))[1] == [[], []]
    milvus[0].counts = [0, 3]
    assert list(map(len, both(milvus, Alike("cra2_tower", 28, "", True))[1])) == [0, 3]


def test_a_lost_connection_is_made_anew(milvus: tuple[_Milvus, MilvusClient]) -> None:
    """A search that finds the server unavailable goes once more, when pymilvus has reconnected.

    Broken on purpose: without pymilvus's decorator it fails at once.
    """
    server, client = milvus
    search = Searcher(client)
    assert search(Alike("cra2_tower", 28, "", False), 128, VECTORS, 5.0)
    before = server.connections
    server.first = [grpc.StatusCode.UNAVAILABLE]
    assert search(Alike("cra2_tower", 28, "", False), 128, VECTORS, 5.0)
    assert len(server.searches) == 3
    assert server.connections == before + 1
    channel, stub = search._made
    assert channel is client._get_connection()._channel
    assert stub.Search._channel is channel._channel


def test_a_closed_connection_says_so(milvus: tuple[_Milvus, MilvusClient]) -> None:
    """A search on a client that was closed is refused in words."""
    search = Searcher(milvus[1])
    milvus[1].close()
    with pytest.raises(MilvusException, match="the connection was closed"):
        search(Alike("cra2_tower", 28, "", False), 128, VECTORS, 5.0)


def test_a_refusal_is_raised_with_its_code(milvus: tuple[_Milvus, MilvusClient]) -> None:
    """What Milvus refuses is not tried again; a call without time is not either."""
    server, client = milvus
    search = Searcher(client)
    server.first = [MISSING]
    with pytest.raises(MilvusException) as refused:
        search(Alike("cra2_tower", 28, "", False), 128, VECTORS, 5.0)
    assert refused.value.code == MISSING.code
    server.first = [grpc.StatusCode.DEADLINE_EXCEEDED]
    with pytest.raises(grpc.RpcError):
        search(Alike("cra2_tower", 28, "", False), 128, VECTORS, 5.0)
    assert len(server.searches) == 2
