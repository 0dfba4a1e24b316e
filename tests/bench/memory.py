"""Memory of each service while it serves 10,000 queries and indexes 10,000 images."""

import contextlib
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psutil

from cra.shared.adapters.vector_store import MilvusVectorStore
from tests.bench.ingest import _Index
from tests.bench.measure import Comparison
from tests.bench.model import Queries, converted, model
from tests.bench.stack import running
from tests.photos import photograph
from tests.servers import wait_until
from tests.stack import Stack

IMAGES: Final = 10_000
QUERIES: Final = 10_000
CALLERS: Final = 4
PICTURE_EVERY: Final = 10
"""Queries, of which one is a picture."""
SIZE: Final = (640, 480)
SERVICES: Final = ("embedding", "gateway", "ingest", "worker")
ROOM: Final = 400.0
"""MiB beside 1.3 times the weights."""
GROWTH: Final = 1.05
"""What the last quarter of the time may take of what the second quarter took."""
EVERY: Final = 1.0
"""Seconds."""


def run(rounds: int) -> list[Comparison]:
    """Sample the proportional set size of each service with all its processes; one round."""
    del rounds
    converted()
    # Of both towers in fp32; the checkpoint has two bytes a weight.
    weights = 2 * (model() / "checkpoint.pt").stat().st_size / 2**20
    with (
        running(RECONCILE_SECONDS="100000", QUERY_CACHE="10000") as stack,
        contextlib.closing(MilvusVectorStore(stack.settings)) as store,
    ):
        index = _Index(store, stack.settings)
        with _Watch(stack) as watch:
            _work(stack, index)
    found = []
    for name in SERVICES:
        seen = watch.samples[name]
        limit = (1.3 * weights if name == "embedding" else 0.0) + ROOM
        what = f"1.3 x {weights:.0f} MiB of fp32 weights + " if name == "embedding" else ""
        peak = [max(seen)]
        against = f"{what}{ROOM:.0f} MiB"
        found.append(Comparison(f"{name}, peak", peak, [limit], against, "MiB", 1.0))
        quarter = len(seen) // 4
        early = statistics.median(seen[quarter : 2 * quarter])
        late = statistics.median(seen[-quarter:])
        found.append(
            Comparison(
                f"{name}, last quarter of the time",
                [late],
                [early],
                "the second quarter",
                "MiB",
                1 / GROWTH,
            )
        )
    return found


def _work(stack: Stack, index: _Index) -> None:
    photographs = [photograph(seed, SIZE) for seed in range(12)]

    def put(number: int) -> None:
        content = photographs[number % len(photographs)] + number.to_bytes(4, "big")
        stack.put(f"{number}.jpg", content)

    def ask(caller: int) -> None:
        queries = Queries(caller)
        for number in range(QUERIES // CALLERS):
            if number % PICTURE_EVERY:
                stack.search.search(queries())
            else:
                stack.search.search(image=photographs[number % len(photographs)])

    with ThreadPoolExecutor(CALLERS + 1) as pool:
        asked = [pool.submit(ask, caller) for caller in range(CALLERS)]
        for number in range(IMAGES):
            put(number)
        for one in asked:
            one.result()
    wait_until(lambda: index.count() >= IMAGES, "all are indexed", 3600)


class _Watch(contextlib.AbstractContextManager["_Watch"]):
    """Samples memory on a thread of its own."""

    def __init__(self, stack: Stack) -> None:
        self._roots = {
            name: _root(f"cra.services.{name}" if name != "worker" else "celery", stack)
            for name in SERVICES
        }
        self.samples: dict[str, list[float]] = {name: [] for name in SERVICES}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(EVERY):
            for name, root in self._roots.items():
                self.samples[name].append(_mebibytes(root))


def _root(word: str, stack: Stack) -> psutil.Process:
    """Return the process of this stack whose command line holds a word."""
    data = stack.env["CRA_DATA_DIR"]
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = process.info["cmdline"] or []
        environment = process.info["environ"] or {}
        ours = environment.get("CRA_DATA_DIR") == data
        if ours and any(word in part for part in command) and "beat" not in command:
            parent = process.parent()
            if parent is not None and "deploy.stack" in " ".join(parent.cmdline()):
                return process
    raise AssertionError(f"no process of {word} is running")


def _mebibytes(root: psutil.Process) -> float:
    """Return what a process and its children take, each shared page counted once among sharers."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20
