"""`Search` over gRPC: alone, cached, and with up to 48 callers, against its parts and infinity."""

import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from cra.embedding.v1 import embedding_pb2 as embedding
from cra.search.v1 import search_pb2 as search
from cra.services.gateway.search import TIES
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.client import SearchClient
from cra.shared.domain import SearchFilter
from cra.shared.model.openvino_towers import OpenVinoTextTower
from tests.bench import infinity
from tests.bench.measure import Comparison, percentile, seconds_of
from tests.bench.model import Queries
from tests.bench.stack import encoder, fill, running
from tests.bench.text import tower
from tests.bench.vectors import Embeddings
from tests.stack import Stack

IMAGES = 10_000
CALLS = 40
"""Of each in a round, whose median counts."""
CALLERS = 32
FEWER = (1, 2, 4, 8, 16)
MORE = 48
"""Callers: with each number throughput grows until the cores are full, and stays there."""
WARM_UP = 2.0
"""Seconds of a round that do not count: connections are made."""
SECONDS = 8.0
"""That count."""
OVERHEAD = 3.0
"""Milliseconds that all but encoder and database may take."""
BATCHES = (8, 16, 32)
BATCH_TRIES = 10
"""Of each size, before the callers and after them."""


def run(rounds: int) -> list[Comparison]:
    """Measure against an index of 10,000 images; Search and infinity take turns."""
    with (
        running(RECONCILE_SECONDS="100000", QUERY_CACHE="100000") as stack,
        infinity.server() as peer,
        contextlib.closing(MilvusVectorStore(stack.settings)) as store,
    ):
        image_tower = encoder(stack.settings).models().image_tower.fingerprint
        fill(store, image_tower, IMAGES)
        with peer.stopped():
            found = _alone(rounds, stack, store, image_tower)
        together = _together(rounds, stack, peer)
        with peer.stopped():
            return [*found, *together, _by_callers(rounds, stack), *_shares(stack)]


def _alone(
    rounds: int, stack: Stack, store: MilvusVectorStore, image_tower: str
) -> list[Comparison]:
    text_tower, queries = tower(), Queries()
    vector = Embeddings().queries(1)[0]
    known = queries()
    limit = 20 + TIES
    parts: list[float] = []

    def new() -> None:
        timing = stack.search.search(queries()).timing
        parts.append((timing.encode.ToNanoseconds() + timing.search.ToNanoseconds()) / 1e6)

    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: text_tower.encode([queries()]),
        "milvus": lambda: store.search(image_tower, vector, limit, SearchFilter()),
        "search": new,
        "cached": lambda: stack.search.search(known),
    }
    for call in calls.values():
        call()
    # What follows on its like finds its code in the caches. So each kind is called in a row, and
    # all of them one by one, in ever another order since each is helped by what came before.
    rng = random.Random(0)
    row = [name for name in calls for _ in range(CALLS)]
    columns: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        mixed = [name for _ in range(CALLS) for name in rng.sample(list(calls), len(calls))]
        for way, order in {"alike in a row": row, "of all kinds in turn": mixed}.items():
            taken: dict[str, list[float]] = {name: [] for name in calls}
            parts.clear()
            for name in order:
                taken[name].append(seconds_of(calls[name]) * 1000)
            for name, values in {**taken, "parts": parts}.items():
                medians = columns.setdefault(way, {}).setdefault(name, [])
                medians.append(statistics.median(values))
    return [one for way, found in columns.items() for one in _alone_as(way, found)]


def _alone_as(way: str, columns: dict[str, list[float]]) -> list[Comparison]:
    """Compare medians of rounds whose calls came one way or the other."""
    alone = [e + m + OVERHEAD for e, m in zip(columns["encoder"], columns["milvus"], strict=True)]
    title = f"Search of a new text, p50, calls {way}"
    return [
        Comparison(
            title,
            columns["search"],
            [inside + OVERHEAD for inside in columns["parts"]],
            f"what encoder and Milvus took of it + {OVERHEAD:g} ms",
            "ms",
            1.0,
        ),
        Comparison(
            title,
            columns["search"],
            alone,
            f"encoder by itself + Milvus by itself + {OVERHEAD:g} ms",
            "ms",
            None,
            {
                "encoder alone": f"{statistics.median(columns['encoder']):.1f} ms",
                "Milvus alone": f"{statistics.median(columns['milvus']):.1f} ms",
            },
        ),
        Comparison(
            f"Search of a text that was asked before, p50, calls {way}",
            columns["cached"],
            [milvus + OVERHEAD for milvus in columns["milvus"]],
            f"Milvus alone + {OVERHEAD:g} ms",
            "ms",
            1.0,
        ),
    ]


def _together(rounds: int, stack: Stack, peer: infinity.Infinity) -> list[Comparison]:
    text_tower = tower()
    batched, ours, theirs, middles, tails = [], [], [], [], []
    for number in range(rounds):
        with peer.stopped():
            before = _batched(text_tower)
            taken = _load(number, partial(SearchClient.of, stack.settings, timeout=30))
            batched.append((before + _batched(text_tower)) / 2)
        ours.append(SECONDS / len(taken) * 1000)
        middles.append(statistics.median(taken))
        tails.append(percentile(taken, 0.99))
        theirs.append(SECONDS / len(_load(number, lambda: _Peer(peer))) * 1000)
    notes = {
        "queries a second": f"{1000 / statistics.median(ours):.0f}",
        "the encoder's best": f"{1000 / statistics.median(batched):.0f} a second",
        "infinity": f"{1000 / statistics.median(theirs):.0f} a second",
        "failed": "none",
    }
    title = f"a Search of {CALLERS} callers at once"
    return [
        Comparison(title, ours, batched, "the encoder's best batched rate", "ms", 0.7, notes),
        Comparison(title, ours, theirs, f"infinity {infinity.VERSION}, encoding alone", "ms", 2.0),
        Comparison(f"p99 of {CALLERS} callers", tails, middles, "their p50", "ms", 1 / 5, {}),
    ]


def _by_callers(rounds: int, stack: Stack) -> Comparison:
    """Compare the most callers with the best of fewer; numbers take turns."""
    counts = (*FEWER, CALLERS, MORE)
    loads = itertools.count(rounds)  # each has texts of its own, which no cache knows
    taken: dict[int, list[float]] = {count: [] for count in counts}
    connect = partial(SearchClient.of, stack.settings, timeout=30)
    for _ in range(rounds):
        for count in counts:
            answered = len(_load(next(loads), connect, count))
            taken[count].append(SECONDS / answered * 1000)
    rates = {count: 1000 / statistics.median(found) for count, found in taken.items()}
    return Comparison(
        f"a Search of {MORE} callers at once",
        taken[MORE],
        [min(of_round) for of_round in zip(*(taken[count] for count in counts[:-1]), strict=True)],
        "the best of fewer callers",
        "ms",
        0.9,
        {
            "queries a second of " + ", ".join(map(str, counts)) + " callers": ", ".join(
                f"{rate:.0f}" for rate in rates.values()
            )
        },
    )


class _Peer:
    def __init__(self, peer: infinity.Infinity) -> None:
        self._peer = peer

    def search(self, text: str) -> None:
        self._peer.embed(text)

    def close(self) -> None:
        pass


def _batched(text_tower: OpenVinoTextTower) -> float:
    """Return the milliseconds of a query at the best batch size; sizes take turns."""
    queries = Queries(3)
    taken: dict[int, list[float]] = {count: [] for count in BATCHES}

    def encode(count: int) -> None:
        text_tower.encode([queries() for _ in range(count)])

    for _ in range(BATCH_TRIES):
        for count, found in taken.items():
            found.append(seconds_of(partial(encode, count)) * 1000 / count)
    return min(statistics.median(found) for found in taken.values())


def _load(
    number: int, connect: Callable[[], SearchClient | _Peer], callers: int = CALLERS
) -> list[float]:
    """Have callers ask for a while; return how long each call took, in milliseconds.

    Raises:
        Exception: what the first call that failed raised.
    """
    taken: list[float] = []
    begin = time.monotonic() + WARM_UP
    end = begin + SECONDS

    def ask(caller: int) -> None:
        queries = Queries(1000 * (number + 1) + caller)
        with contextlib.closing(connect()) as client:
            while True:
                text = queries()
                took = seconds_of(lambda: client.search(text))  # noqa: B023
                now = time.monotonic()
                if now > end:
                    return
                if now > begin:
                    taken.append(took * 1000)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(ask, range(callers)))
    return taken


def _shares(stack: Stack) -> Iterator[Comparison]:
    """Compare what is only carried to and fro with the whole of a Search.

    Each is timed once after a Search, when its code has left the caches, as it has in one.
    """
    queries, text_tower = Queries(5), tower()
    answer = stack.search.search(queries())
    vector = np.ones(512, np.float32)
    encoded = embedding.EmbedTextsResponse(
        embeddings=[embedding.TextEmbedding(vector=vector.tobytes())], dimension=512
    )
    messages = [search.SearchRequest(text=queries(), top_k=20), answer, encoded]

    def protobuf() -> None:
        for message in messages:
            type(message).FromString(message.SerializeToString())

    def copies() -> None:
        np.frombuffer(vector.astype("<f4").tobytes(), "<f4").astype(np.float32).tobytes()

    calls: dict[str, Callable[[], object]] = {
        "tokenising": lambda: text_tower.tokenizer([queries()]),
        "protobuf, both ways": protobuf,
        "numpy copies of a vector": copies,
    }
    for name, call in calls.items():
        whole, part = [], []
        for _ in range(CALLS):
            whole.append(seconds_of(lambda: stack.search.search(queries())) * 1000)
            part.append(seconds_of(call) * 1000)
        yield Comparison(
            name,
            [statistics.median(part)],
            [statistics.median(whole)],
            "a Search of a new text",
            "ms",
            20.0,
        )
