"""Each service restarted in turn while everything is asked: no call fails."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.search.v1 import search_pb2 as pb
from tests.bench.model import Queries
from tests.load import fleet as fleets
from tests.load.fleet import Fleet
from tests.servers import wait_until

IMAGES: Final = 100
CALLERS: Final = 6
PAUSE: Final = 2.0
"""Seconds between two restarts."""


class _Asking:
    """Callers who ask again and again, and note what fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, call: Callable[[], object], pause: float = 0.0) -> None:
        """Add one who makes a call over and over."""

        def ask() -> None:
            while not self._ending.wait(pause):
                try:
                    call()
                except grpc.RpcError as error:
                    code: Any = error
                    with self._lock:
                        self.failed.append(f"{code.code().name}: {code.details()}")
                with self._lock:
                    self.calls += 1

        self._threads.append(threading.Thread(target=ask))

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Ask until the block ends."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in self._threads:
                thread.join()


def run(model: str, kind: str = "server") -> dict[str, Any]:
    """Restart every part once; count what is asked and what fails meanwhile."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        fleets.running(
            Path(folder), model, 2, kind, QUERY_CACHE="0", WORKER_PROCESSES="2", TOWER_THREADS="1"
        ) as fleet,
        fleet.search() as search,
        fleet.line() as line,
    ):
        return _restart_all(fleet, search, line)


def _restart_all(fleet: Fleet, search: Any, line: Any) -> dict[str, Any]:
    for number in range(IMAGES):
        fleet.put(number)
    wait_until(fleet.settled, "all are indexed", 300)
    queries, put = Queries(12), IMAGES
    asking = _Asking()

    def drop() -> None:
        nonlocal put
        fleet.put(put)
        put += 1

    for _ in range(CALLERS):
        asking.add(lambda: search.Search(pb.SearchRequest(text=queries()), timeout=15))
    asking.add(lambda: line.ListFailures(ingest.ListFailuresRequest(), timeout=15), 0.1)
    asking.add(
        lambda: line.SyncObjects(ingest.SyncObjectsRequest(image_ids=["images/000001.jpg"])), 0.2
    )
    asking.add(drop, 0.2)
    rows = []
    pause = threading.Event()
    with asking.going_on():
        pause.wait(PAUSE)
        for name in fleet.names:
            calls, failed, began = asking.calls, len(asking.failed), time.monotonic()
            fleet.restart(name)
            took = time.monotonic() - began
            pause.wait(PAUSE)
            rows.append(
                {
                    "part": name,
                    "seconds": took,
                    "calls": asking.calls - calls,
                    "failed": asking.failed[failed:],
                }
            )
            print(f"{name}: {took:.1f} s, {rows[-1]['calls']} calls", flush=True)  # noqa: T201
    began = time.monotonic()
    wait_until(fleet.settled, "every object is indexed", 120)
    status = fleet.status()
    return {
        "rows": rows,
        "calls": asking.calls,
        "failed": len(asking.failed),
        "objects": status.objects,
        "indexed": status.indexed,
        "settled": time.monotonic() - began,
        "held": {
            "no call failed": not asking.failed,
            "every object that was put is indexed": status.indexed == status.objects == put,
        },
    }
