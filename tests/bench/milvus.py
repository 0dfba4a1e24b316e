"""Milvus standalone at 10 thousand, 100 thousand and a million vectors, recall beside time."""

import contextlib
import statistics
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cra.services.gateway.search import TIES
from cra.shared.adapters.vector_store import MilvusVectorStore, collection_name
from cra.shared.domain import ScoredImage, SearchFilter
from cra.shared.settings import Settings
from tests.bench.measure import Comparison, percentile, seconds_of
from tests.bench.model import FOLDER
from tests.bench.stack import fill, key
from tests.bench.vectors import DIMENSION, Embeddings, Vectors, exact
from tests.servers import milvus_process

SIZES = (10_000, 100_000, 1_000_000)
QUERIES = 200
TOP_K = 20
RECALL = 0.98
MORE_ROUNDS = 5
"""Times as many rounds as asked for: each is short, and its p95 are ten searches."""
SLOWER = 2.0
"""How many times as long the largest may take as the smallest, p95."""


def run(rounds: int) -> list[Comparison]:
    """Fill three collections, then search them in turn."""
    embeddings = Embeddings()
    queries = embeddings.queries(QUERIES)
    FOLDER.mkdir(parents=True, exist_ok=True)
    filling: dict[int, float] = {}
    recalls: dict[int, float] = {}
    taken: dict[int, list[list[float]]] = {size: [] for size in SIZES}
    segments: dict[int, int] = {}
    with (
        tempfile.TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as folder,
        milvus_process(Path(folder), "server") as (uri, _),
        contextlib.closing(MilvusVectorStore(Settings(milvus_uri=uri, milvus_timeout=60))) as store,
    ):
        for size in SIZES:
            store.ensure_collection(str(size), DIMENSION)
            filling[size] = seconds_of(lambda: fill(store, str(size), size))  # noqa: B023
            name = collection_name(str(size))
            segments[size] = len(store._client().list_loaded_segments(name))
            truth = exact(embeddings.images(size), queries, TOP_K)
            recalls[size] = _recall(store, str(size), queries, truth)
        for _ in range(MORE_ROUNDS * rounds):
            for size in SIZES:
                taken[size].append([_seconds(store, size, query) * 1000 for query in queries])
    tails = {size: [percentile(round_, 0.95) for round_ in taken[size]] for size in SIZES}
    found = []
    for size in SIZES:
        low = tails[SIZES[0]]
        notes = {
            "p50": f"{statistics.median(map(statistics.median, taken[size])):.1f} ms",
            "segments": str(segments[size]),
            "written and indexed": f"in {filling[size]:.0f} s",
        }
        against = f"p95 at {SIZES[0]:,}"
        title = f"a search among {size:,} vectors, p95"
        wanted = 1 / SLOWER if size == SIZES[-1] else None
        found.append(Comparison(title, tails[size], low, against, "ms", wanted, notes))
        found.append(
            Comparison(
                f"neighbours missed among {size:,} vectors (recall@20 {recalls[size]:.4f})",
                [max(1 - recalls[size], 1e-6)],
                [1 - RECALL],
                "the share that may be missed",
                "",
                1.0,
            )
        )
    return found


def _search(store: MilvusVectorStore, tower: str, query: Vectors) -> list[ScoredImage]:
    return store.search(tower, query, TOP_K + TIES, SearchFilter())


def _seconds(store: MilvusVectorStore, size: int, query: Vectors) -> float:
    return seconds_of(lambda: _search(store, str(size), query))


def _recall(
    store: MilvusVectorStore, tower: str, queries: Vectors, truth: npt.NDArray[np.int64]
) -> float:
    found = 0
    for query, expected in zip(queries, truth, strict=True):
        keys = {image.record.ref.key for image in _search(store, tower, query)[:TOP_K]}
        found += len(keys & {key(number) for number in expected})
    return found / truth.size
