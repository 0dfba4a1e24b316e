"""What metrics and traces cost a Search: `python -m tests.bench.seeing`.

A gateway and an embedding service, real servers over real gRPC in this one process, answer the same
caller with counting left out, with metrics, and with metrics and traces, in turn, block by block.
The model and the index are fakes that take no time: what differs is what is looked for.
"""

import contextlib
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import grpc
from prometheus_client import Counter, Gauge, Histogram

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.embedding import metrics as embedding
from cra.services.gateway.metrics import note_search
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.shared import tracing
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.metrics import CallMetrics
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.bench.measure import times
from tests.embedding import running

GATEWAY: Final = "cra.search.v1.SearchService"
EMBEDDING: Final = "cra.embedding.v1.EmbeddingService"
ROUNDS: Final = 150
CALLS: Final = 20
"""Of each kind in a round. Blocks are short, so that all have the same of what else runs."""


class _Index:
    """Holds nothing."""

    def search(self, *_: Any, **__: Any) -> list[Any]:
        """See `ports.VectorStore`."""
        return []


@contextlib.contextmanager
def _gateway() -> Iterator[pb_grpc.SearchServiceStub]:
    with running(max_calls=64) as service:
        engine = SearchEngine(
            service.encoder,
            _Index(),  # type: ignore[arg-type]
            S3ObjectStore(Settings()),
            PageTokens("key"),
            QueryCache(0),
        )
        servicer = SearchServicer(engine, 16)
        server = Server(
            Settings(drain_seconds=1),
            GATEWAY,
            0,
            lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
            lambda: None,
        )
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield pb_grpc.SearchServiceStub(channel)
        server.stop()
        servicer.close()


@contextlib.contextmanager
def _without_metrics() -> Iterator[None]:
    """Leave the work of counting out, not the calls to it."""

    def nothing(*_: object, **__: object) -> None: ...

    with contextlib.ExitStack() as stack:
        for kind, names in ((Counter, ["inc"]), (Gauge, ["inc", "dec", "set"]),
                            (Histogram, ["observe"])):  # fmt: skip
            for name in names:
                stack.enter_context(mock.patch.object(kind, name, nothing))
        yield


def _traces(file: Path, share: float) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a block that is traced; what it has to write is written before it ends."""
    tracing.configure("bench", Settings(trace_file=str(file), trace_sample=share))
    provider, tracer = tracing._provider, tracing._tracer
    tracing._provider = tracing._tracer = None

    @contextlib.contextmanager
    def traced() -> Iterator[None]:
        assert provider is not None
        with mock.patch.object(tracing, "_tracer", tracer):
            yield
        provider.force_flush()

    return traced


def _microseconds_of_counting() -> float:
    """Return what all that a Search counts takes, alone, in a loop."""
    servers = [CallMetrics(*one) for one in ((GATEWAY, ["Search"]), (EMBEDDING, ["EmbedTexts"]))]
    calls = [f"/{GATEWAY}/Search", f"/{EMBEDDING}/EmbedTexts"]
    batch, queue, encode = (
        one.labels("text")
        for one in (embedding.BATCH_ITEMS, embedding.QUEUE_SECONDS, embedding.ENCODE_SECONDS)
    )

    def count() -> None:
        for server, call in zip(servers, calls, strict=True):
            name = server.name_of(call)
            server.begin(name)
            server.end(name, "OK", 0.0123)
        note_search(0.0001, 0.007, 0.004, 0.0123)
        batch.observe(1)
        queue.observe(0.0001)
        encode.observe(0.007)

    return min(timeit.repeat(count, number=10_000, repeat=7)) / 10_000 * 1e6


def main() -> None:
    """Measure and print."""
    took: dict[str, list[float]] = {}
    work: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, _gateway() as stub:
        file = Path(folder) / "traces"
        request = pb.SearchRequest(text="红色的大门")
        kinds: dict[str, Any] = {
            "neither": _without_metrics,
            "metrics": contextlib.nullcontext,
            "metrics, and 1 % of traces": _traces(file, 0.01),
            "metrics, and every trace": _traces(file, 1.0),
        }
        for _ in range(ROUNDS):
            for name, kind in kinds.items():
                begun = time.process_time()
                with kind():
                    took.setdefault(name, []).extend(times(lambda: stub.Search(request), CALLS))
                spent = (time.process_time() - begun) / (CALLS + 1) * 1000
                work.setdefault(name, []).append(spent)
    print(f"{_microseconds_of_counting():.0f} µs: counting, alone in a loop")  # noqa: T201
    for name, column in took.items():
        middle = statistics.median(column)
        more = middle - statistics.median(took["neither"])
        cpu = statistics.median(work[name])
        more_cpu = cpu - statistics.median(work["neither"])
        print(  # noqa: T201
            f"p50 {middle:.3f} ms ({more:+.3f}), processor {cpu:.3f} ms ({more_cpu:+.3f}): {name}"
        )


if __name__ == "__main__":
    main()
