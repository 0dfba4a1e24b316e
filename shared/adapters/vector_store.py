"""The vector store port over Milvus.

No caller's string ever reaches a Milvus expression: keys are compared as hex, buckets and
metadata as hex digests, so that there is nothing to escape and nothing to break out of.
"""

import hashlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from cra.shared import rpc, tracing
from cra.shared.adapters.milvus_search import RECORD, VECTOR, Alike, Hit, Searcher
from cra.shared.adapters.together import Together
from cra.shared.domain import (
    ImageRecord,
    IndexedImage,
    IndexEntry,
    ObjectRef,
    ScoredImage,
    SearchFilter,
    Vector,
    Version,
)
from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.limits import MAX_METADATA_ENTRIES
from cra.shared.metrics import DEPENDENCY_ERRORS
from cra.shared.settings import Settings

EF_LEAST: Final = 128
SEARCHES_TOGETHER: Final = 16
"""Vectors in one search of Milvus."""

IMAGES_READ_TOGETHER: Final = 2_000
"""Most of the time of such a query does not depend on how many it returns; but an answer of Milvus
has at most 100 MB, and an image up to 32 kB of metadata."""

SEGMENTS_LAST: Final = 60.0
"""Seconds that the segments of a collection are remembered."""

CONNECTS_WITHIN: Final = 3.0
"""Seconds. While a lost connection is made anew every other call waits for it."""

LEAST: Final = 0.1
"""Seconds that are given to making a connection, however late its caller is."""

_ERRORS: Final = DEPENDENCY_ERRORS.labels("milvus")

_COLLECTION_MISSING = 100
SCHEMA: Final = 2
"""Part of a collection's name: another schema is another collection, filled from the bucket."""


def collection_name(image_tower: str) -> str:
    """Return the name of the collection of an image tower."""
    return f"cra{SCHEMA}_{image_tower}"


def tag(name: str, value: str) -> str:
    """Return the digest that stands for one metadata entry; 32 hex digits."""
    text = f"{len(name.encode())}:{name}{value}"  # the length keeps name and value apart
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def ef_of(rows: Sequence[int], limit: int) -> int:
    """Return how many candidates HNSW is to keep in each segment.

    How many are needed over all segments follows the images, however these are shared out: more
    segments need as much fewer in each. A small one beside large ones counts for less than one.
    Fitted to recall@20 of vectors with the structure of embeddings (docs/performance.md).

    Args:
        rows: of each segment.
        limit: results that are asked for; fewer candidates would be an error.
    """
    images = max(1, sum(rows))
    # As many segments of one size as would hold the images as evenly: the inverse of the chance
    # that two images are in the same (Simpson, "Measurement of diversity", 1949).
    segments = images**2 / max(1, sum(count**2 for count in rows))
    together: float = 128 * (images / 10_000) ** 0.36
    return max(EF_LEAST, round(together / segments), limit + limit // 4)


def expression(where: SearchFilter) -> str:
    """Return a filter as a Milvus expression made of digits, hex digits and our own words."""
    parts = []
    for buckets in (where.scope, where.buckets):
        if buckets:
            parts.append(f"bucket_hex in [{_quoted(_hex(bucket) for bucket in buckets)}]")
    if where.key_prefix:
        parts.append(f'key_hex like "{_hex(where.key_prefix)}%"')
    for name, values in sorted(where.metadata.items()):
        tags = _quoted(tag(name, value) for value in values)
        parts.append(f"ARRAY_CONTAINS_ANY(tags, [{tags}])")
    if where.ingested_after is not None:
        parts.append(f"ingested_at >= {round(where.ingested_after * 1000)}")
    if where.ingested_before is not None:
        parts.append(f"ingested_at < {round(where.ingested_before * 1000)}")
    return " and ".join(parts)


class MilvusVectorStore:
    """Milvus, as a server or as Lite's server; see `ports.VectorStore`."""

    def __init__(self, settings: Settings) -> None:
        self._uri = settings.milvus_uri
        self._token = settings.milvus_token.get_secret_value()
        self._timeout = settings.milvus_timeout
        self._lock = threading.Lock()
        self._connected: tuple[MilvusClient, Searcher] | None = None
        self._searches = Together(self._search, SEARCHES_TOGETHER, "Milvus")
        self._segments: dict[str, tuple[float, list[int]]] = {}

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._connected is not None:
                self._connected[0].close()
                self._connected = None

    def ensure_collection(self, image_tower: str, dimension: int) -> None:
        name = collection_name(image_tower)
        if self._call("has_collection", name):
            self._call("load_collection", name)
            return
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        for field, length in {
            "image_id": 1100, "bucket": 64, "bucket_hex": 128, "key": 1024, "key_hex": 2048,
            "etag": 128,
        }.items():  # fmt: skip
            schema.add_field(field, DataType.VARCHAR, max_length=length)
        for field in ("modified_at", "ingested_at"):
            schema.add_field(field, DataType.INT64)
        schema.add_field("record", DataType.JSON)
        schema.add_field(
            "tags",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=MAX_METADATA_ENTRIES,
            max_length=32,
        )
        index = MilvusClient.prepare_index_params()
        index.add_index(
            "vector",
            index_type="HNSW",
            metric_type="COSINE",
            params={"M": 16, "efConstruction": 200},
        )
        # Two workers may both find it missing; Milvus keeps the first and accepts the same again.
        self._call(
            "create_collection",
            name,
            schema=schema,
            index_params=index,
            consistency_level="Bounded",
        )

    def dimension(self, image_tower: str) -> int | None:
        name = collection_name(image_tower)
        if not self._call("has_collection", name):
            return None
        fields = self._call("describe_collection", name)["fields"]
        return next(int(one["params"]["dim"]) for one in fields if one["name"] == "vector")

    def upsert(self, image_tower: str, images: Sequence[IndexedImage]) -> None:
        self._call("upsert", collection_name(image_tower), [_row(image) for image in images])

    def delete(self, image_tower: str, refs: Sequence[ObjectRef]) -> None:
        self._call("delete", collection_name(image_tower), filter=_by_key(refs))

    def search(
        self,
        image_tower: str,
        vector: Vector,
        limit: int,
        where: SearchFilter,
        *,
        with_vectors: bool = False,
    ) -> list[ScoredImage]:
        alike = Alike(collection_name(image_tower), limit, expression(where), with_vectors)
        with tracing.span("milvus search", kind="CLIENT", limit=limit):
            return self._searches(alike, vector)

    def fetch(self, image_tower: str, refs: Sequence[ObjectRef]) -> list[IndexedImage]:
        rows = self._query(image_tower, refs, [RECORD, VECTOR], "Bounded")
        return [_image(row) for row in rows]

    def sample(
        self, image_tower: str, most: int, scope: Sequence[str] = ()
    ) -> npt.NDArray[np.float32]:
        name = collection_name(image_tower)
        inside = expression(SearchFilter(scope=tuple(scope)))
        (row,) = self._call("query", name, filter=inside, output_fields=["count(*)"])
        # Primary keys are digests, so that those below a bound are a random part.
        halvings = max(0, math.ceil(math.log2(max(1, row["count(*)"]) / most)))
        below = f'id < "{2 ** (32 - halvings):08x}"' if halvings else ""
        rows = self._call(
            "query",
            name,
            filter=" and ".join(filter(None, (below, inside))),
            output_fields=["vector"],
            limit=2 * most,
            consistency_level="Bounded",
        )
        return np.asarray([row["vector"] for row in rows], dtype=np.float32)

    def count(self, image_tower: str) -> int:
        (row,) = self._call(
            "query",
            collection_name(image_tower),
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(row["count(*)"])

    def records(self, image_tower: str, refs: Sequence[ObjectRef]) -> list[ImageRecord]:
        return [_record(row[RECORD]) for row in self._query(image_tower, refs, [RECORD], "Strong")]

    def entries(self, image_tower: str) -> Iterator[IndexEntry]:
        for row in self._every(image_tower, ["bucket", "key", "etag", "modified_at"], 1000):
            yield IndexEntry(
                ObjectRef(row["bucket"], row["key"]), Version(row["etag"], row["modified_at"])
            )

    def images(self, image_tower: str) -> Iterator[IndexedImage]:
        for row in self._every(image_tower, [RECORD, VECTOR], IMAGES_READ_TOGETHER):
            yield _image(row)

    def _every(self, image_tower: str, fields: list[str], together: int) -> Iterator[Any]:
        # Waits until the server has seen every write; the iterator itself, though asked for
        # strong consistency, was seen missing the last ones.
        self.count(image_tower)
        iterator = self._call(
            "query_iterator",
            collection_name(image_tower),
            batch_size=together,
            filter="",
            output_fields=fields,
            consistency_level="Strong",
        )
        try:
            while rows := _translate(iterator.next):
                yield from rows
        finally:
            iterator.close()

    def _search(
        self, alike: Alike, vectors: Sequence[Vector], left: float
    ) -> list[list[ScoredImage]]:
        ef = self._ef(alike.collection, alike.limit)
        _, searcher = self._connection()
        seconds = min(left, self._timeout)
        found = self._ask(lambda: searcher(alike, ef, vectors, seconds))
        return [_ranked(hits) for hits in found]

    def _ef(self, name: str, limit: int) -> int:
        now = time.monotonic()
        known = self._segments.get(name)
        if known is None or known[0] < now - SEGMENTS_LAST:
            known = self._segments[name] = (now, self._rows(name))
        return ef_of(known[1], limit)

    def _rows(self, name: str) -> list[int]:
        """Return the rows of each segment of a collection."""
        client = self._client()
        try:
            seconds = rpc.time_left(self._timeout)
            segments = _translate(lambda: client.list_loaded_segments(name, timeout=seconds))
            return [segment.num_rows for segment in segments]
        except UnavailableError as error:
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED:
                # Milvus Lite, which keeps all in one.
                return [self._call("get_collection_stats", name)["row_count"]]
            raise

    def _query(
        self, image_tower: str, refs: Sequence[ObjectRef], fields: list[str], consistency: str
    ) -> Any:
        return self._call(
            "query",
            collection_name(image_tower),
            filter=_by_key(refs),
            output_fields=fields,
            consistency_level=consistency,
        )

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        client = self._client()
        rpc.check_caller()
        timeout = rpc.time_left(self._timeout)
        return self._ask(lambda: getattr(client, method)(*args, timeout=timeout, **kwargs))

    def _ask(self, function: Any) -> Any:
        try:
            return _translate(function)
        except UnavailableError:
            rpc.check_caller()  # it may be only that its caller gave it no more time
            raise

    def _client(self) -> MilvusClient:
        return self._connection()[0]

    def _connection(self) -> tuple[MilvusClient, Searcher]:
        if not self._lock.acquire(timeout=rpc.time_left(self._timeout)):
            rpc.check_caller()
            raise UnavailableError("Milvus does not answer: a connection is still being made")
        try:
            if self._connected is None:
                seconds = max(LEAST, rpc.time_left(min(self._timeout, CONNECTS_WITHIN)))
                client = _translate(
                    lambda: MilvusClient(
                        uri=self._uri, token=self._token, timeout=seconds, dedicated=True
                    )
                )
                self._connected = client, Searcher(client)
            return self._connected
        finally:
            self._lock.release()


def _translate(function: Any) -> Any:
    try:
        return function()
    except MilvusException as error:
        if error.code == _COLLECTION_MISSING:
            raise FailedPreconditionError(
                "there is no collection for this image tower: nothing was indexed with it, or it "
                "was lost"
            ) from error
        _ERRORS.inc()
        raise UnavailableError(f"Milvus: {error.message}") from error
    except grpc.RpcError as error:  # what it retries itself it wraps, the rest comes through
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            _ERRORS.inc()
        raise UnavailableError(f"Milvus does not answer: {error.code().name}") from error


def _ranked(hits: Sequence[Hit]) -> list[ScoredImage]:
    images = [ScoredImage(_record(hit.record), hit.score, hit.vector) for hit in hits]
    return sorted(images, key=lambda image: (-image.score, image.record.ref.image_id))


def _hex(text: str) -> str:
    return text.encode().hex()


def _quoted(words: Any) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _by_key(refs: Sequence[ObjectRef]) -> str:
    return f"id in [{_quoted(ref.primary_key for ref in refs)}]"


def _row(image: IndexedImage) -> dict[str, Any]:
    record = image.record
    return {
        "id": record.ref.primary_key,
        "vector": image.vector.tolist(),
        "image_id": record.ref.image_id,
        "bucket": record.ref.bucket,
        "bucket_hex": _hex(record.ref.bucket),
        "key": record.ref.key,
        "key_hex": _hex(record.ref.key),
        "etag": record.version.etag,
        "modified_at": record.version.modified_at,
        "tags": [tag(name, value) for name, value in sorted(record.metadata.items())],
        "ingested_at": round(record.ingested_at * 1000),
        "record": {
            "bucket": record.ref.bucket,
            "key": record.ref.key,
            "etag": record.version.etag,
            "modified_at": record.version.modified_at,
            "metadata_digest": record.metadata_digest,
            "metadata": dict(record.metadata),
            "width": record.width,
            "height": record.height,
            "ingested_at": round(record.ingested_at * 1000),
        },
    }


def _image(row: Any) -> IndexedImage:
    return IndexedImage(_record(row[RECORD]), np.asarray(row[VECTOR], dtype=np.float32))


def _record(row: Any) -> ImageRecord:
    return ImageRecord(
        ref=ObjectRef(row["bucket"], row["key"]),
        version=Version(row["etag"], row["modified_at"]),
        metadata_digest=row["metadata_digest"],
        metadata=row["metadata"],
        width=row["width"],
        height=row["height"],
        ingested_at=row["ingested_at"] / 1000,
    )
