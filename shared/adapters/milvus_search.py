"""The search of Milvus, on pymilvus's connection, in as little Python as it takes.

`MilvusClient.search` makes and reads messages in Python that has left the processor's caches when a
query comes to it, for the encoder's weights have taken its place (docs/performance.md). Message,
database, credentials and how it is tried again are the same; a test holds both side by side.
"""

import base64
import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from pymilvus import MilvusClient
from pymilvus.client.utils import check_status
from pymilvus.decorators import retry_on_rpc_failure
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

from cra.shared.domain import Vector

RECORD: Final = "record"
"""What an answer is made of lies in one field of JSON: with nine for each of 36 hits a search took
2.5 ms instead of 1.8."""
VECTOR: Final = "vector"

_BOUNDED: Final = 2
"""Guarantee timestamp of bounded staleness. Strong consistency waits 200 ms and more for writes
that no query of ours waits for."""


class Alike(NamedTuple):
    """What searches have in common that can go as one."""

    collection: str
    limit: int
    expression: str
    with_vectors: bool


class Hit(NamedTuple):
    """One result."""

    record: dict[str, Any]
    score: float
    vector: Vector | None
    """Its own, where that was asked for."""


class Searcher:
    """Searches over the connection of a `MilvusClient`.

    Args:
        client: is connected; when it makes a lost connection anew, that one is used.
    """

    def __init__(self, client: MilvusClient) -> None:
        self._handler = client._get_connection()
        config = client._config
        self._metadata = [("dbname", config.db_name)]
        if config.token:
            token = base64.b64encode(config.token.encode()).decode()
            self._metadata.append(("authorization", token))
        self._made: tuple[Any, Any] = (None, None)
        """A channel and the stub on it; set at once, since many threads search."""

    def __call__(
        self, alike: Alike, ef: int, vectors: Sequence[Vector], seconds: float
    ) -> list[list[Hit]]:
        """Return for each vector the hits, as Milvus ranks them.

        Args:
            alike: the collection, the number of hits and the rest.
            ef: candidates that HNSW keeps in each segment.
            vectors: what to look for.
            seconds: that each try may take; none begins later.

        Raises:
            MilvusException: Milvus refuses it, or could not be reached for so long.
            grpc.RpcError: it does not answer in time, or what else is not tried again.
        """
        found = _search(self._handler, self._ask, request_of(alike, ef, vectors), timeout=seconds)
        return _hits(found.results)

    def _ask(self, request: Any, seconds: float) -> Any:
        # The channel itself: each of pymilvus's interceptors makes the method anew for every call.
        channel, made = self._handler._channel, self._made
        if channel is None:
            raise MilvusException(message="the connection was closed")
        if made[0] is not channel:
            made = self._made = channel, milvus_pb2_grpc.MilvusServiceStub(channel)
        return made[1].Search(request, timeout=seconds, metadata=self._metadata)


@retry_on_rpc_failure()  # type: ignore[untyped-decorator]
def _search(_handler: object, ask: Any, request: Any, *, timeout: float) -> Any:
    """Ask, again and over a new connection if need be; what does that wants the handler first."""
    found = ask(request, timeout)
    check_status(found.status)
    return found


def request_of(alike: Alike, ef: int, vectors: Sequence[Vector]) -> Any:
    """Return the message of a search."""
    request = milvus_pb2.SearchRequest()
    request.CopyFrom(_same_for_all(alike, ef))
    request.nq = len(vectors)
    placeholder = common_pb2.PlaceholderValue(
        tag="$0",
        type=common_pb2.PlaceholderType.FloatVector,
        values=[vector.astype("<f4", copy=False).tobytes() for vector in vectors],
    )
    group = common_pb2.PlaceholderGroup(placeholders=[placeholder])
    request.placeholder_group = group.SerializeToString()
    return request


@functools.lru_cache(maxsize=64)
def _same_for_all(alike: Alike, ef: int) -> Any:
    """Return what the messages of searches have in common."""
    params = {
        "topk": str(alike.limit),
        "round_decimal": "-1",
        "ignore_growing": "False",
        "metric_type": "COSINE",
        "params": f'{{"ef":{ef},"metric_type":"COSINE"}}',
    }
    return milvus_pb2.SearchRequest(
        collection_name=alike.collection,
        dsl=alike.expression,
        dsl_type=common_pb2.DslType.BoolExprV1,
        output_fields=[RECORD, VECTOR] if alike.with_vectors else [RECORD],
        search_params=[common_pb2.KeyValuePair(key=k, value=v) for k, v in params.items()],
        guarantee_timestamp=_BOUNDED,
        consistency_level=common_pb2.ConsistencyLevel.Bounded,
    )


def _hits(found: Any) -> list[list[Hit]]:
    fields = {field.field_name: field for field in found.fields_data}
    scores = list(found.scores)
    records = fields[RECORD].scalars.json_data.data if scores else []
    vectors: Sequence[Vector | None] = [None] * len(scores)
    if scores and VECTOR in fields:
        vectors = list(_matrix(fields[VECTOR].vectors))
    hits = [
        Hit(orjson.loads(record), score, vector)
        for record, score, vector in zip(records, scores, vectors, strict=True)
    ]
    lists, start = [], 0
    for count in found.topks:
        lists.append(hits[start : start + count])
        start += count
    return lists


def _matrix(vectors: Any) -> npt.NDArray[np.float32]:
    return np.array(vectors.float_vector.data, np.float32).reshape(-1, vectors.dim)
