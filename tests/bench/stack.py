"""The local stack with the measured model, and an index to search in."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore, collection_name
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, Version
from cra.shared.settings import Settings
from tests.bench.model import CONVERTED, FOLDER, converted, model
from tests.bench.vectors import Embeddings, Vectors
from tests.servers import wait_until
from tests.stack import Stack, local_stack

BULK = 500
"""Vectors in one upsert."""
AT_REST = 60.0
"""Seconds without a new segment."""


@contextlib.contextmanager
def running(**changes: str) -> Iterator[Stack]:
    """Run every service and the Milvus server, with an empty index.

    Args:
        changes: of the environment, without `CRA_`.
    """
    converted()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("CRA_CONVERTED_MODELS", str(CONVERTED))
        with local_stack(Path(folder), model(), "server", **changes) as stack:
            yield stack


def encoder(settings: Settings) -> RemoteEncoder:
    """Return a client of the embedding service."""
    return RemoteEncoder.of(settings)


def key(number: int) -> str:
    """Return the key of a made-up image."""
    return f"{number:08}.jpg"


def fill(store: MilvusVectorStore, image_tower: str, count: int) -> None:
    """Write made-up images into the index, and return when it is at rest.

    Each is searchable through HNSW then, and Milvus has not merged segments for a while, which it
    does half a minute after so many writes and which takes a sixth of a core.
    """
    number = 0
    for part in Embeddings().images(count):
        for start in range(0, len(part), BULK):
            rows = part[start : start + BULK]
            store.upsert(image_tower, [image(number + i, vector) for i, vector in enumerate(rows)])
            number += len(rows)
    name, client = collection_name(image_tower), store._client()
    client.flush(name)

    def indexed() -> bool:
        state = client.describe_index(name, "vector")
        return bool(state["indexed_rows"] >= count) and not state["pending_index_rows"]

    def handed_over() -> bool:
        loaded = client.list_loaded_segments(name)
        return bool(sum(one.num_rows for one in loaded if one.state_name == "Sealed") >= count)

    wait_until(indexed, f"{count} vectors are indexed", 7200)
    wait_until(handed_over, f"{count} vectors are loaded with their index", 600)
    state: tuple[frozenset[int], float] = (frozenset(), 0.0)

    def at_rest() -> bool:
        nonlocal state
        loaded = frozenset(one.segment_id for one in client.list_loaded_segments(name))
        if loaded != state[0]:
            state = loaded, time.monotonic()
        return time.monotonic() - state[1] > AT_REST

    wait_until(at_rest, "no segments are merged any more", 7200)
    store._segments.clear()


def image(number: int, vector: Vectors) -> IndexedImage:
    """Return a made-up image with a vector."""
    record = ImageRecord(
        ref=ObjectRef("images", key(number)),
        version=Version(f"{number:032x}", 1_700_000_000),
        metadata_digest="0" * 16,
        metadata={"city": "西安", "number": str(number % 50)},
        width=1600,
        height=1200,
        ingested_at=1_700_000_000.0,
    )
    return IndexedImage(record, vector)
