"""Hours in little: four fifths of what the cores serve, and what every process holds meanwhile."""

import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

from cra.search.v1 import search_pb2 as pb
from tests.bench.model import Queries
from tests.load import fleet as fleets
from tests.load.arrivals import Outcome, closed_loop, open_loop, tail_of
from tests.load.sampling import KINDS, Sampler
from tests.servers import wait_until

IMAGES: Final = 300
LOAD: Final = 0.8
SLICE: Final = 30.0
"""Seconds after which outcomes are added up, so that they hold no memory of this process."""
PERIOD: Final = 5.0
"""Seconds between two looks at the processes, and between two objects put again."""
CALLERS: Final = 32
MEASURED: Final = 15.0
"""Seconds in which it is found out what the cores serve."""


def run(model: str, minutes: float, kind: str = "server") -> dict[str, Any]:
    """Measure capacity, ask for four fifths of it for so many minutes, look at every process."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        fleets.running(Path(folder), model, 1, kind, QUERY_CACHE="500") as fleet,
        fleet.search() as stub,
    ):
        for number in range(IMAGES):
            fleet.put(number)
        wait_until(fleet.settled, "all are indexed", 300)
        queries = Queries(13)

        def request() -> pb.SearchRequest:
            return pb.SearchRequest(text=queries())

        ending = threading.Event()
        numbers = iter(range(10**9))

        def overwrite() -> None:
            while not ending.wait(PERIOD):
                fleet.put(next(numbers) % IMAGES)

        writer = threading.Thread(target=overwrite)
        writer.start()
        try:
            capacity = (
                len(closed_loop(lambda: stub.Search(request(), timeout=30), CALLERS, 15)) / 15
            )
            codes: Counter[str] = Counter()
            tails = []
            with Sampler(fleet.pids, PERIOD) as sampler:
                for _ in range(max(1, round(minutes * 60 / SLICE))):
                    found: list[Outcome] = open_loop(
                        stub.Search, request, LOAD * capacity, SLICE, 30
                    )
                    codes.update(one.code for one in found)
                    tails.append(tail_of(found))
        finally:
            ending.set()
            writer.join()
        starts = {name: fleet.state(name).starts for name in fleet.names}
        growth = {
            name: {kind: samples.growth(kind) for kind in KINDS}
            for name, samples in sampler.samples.items()
        }
        flat = {
            f"{kind} of {name} flat": samples.is_flat(kind)
            for name, samples in sampler.samples.items()
            for kind in KINDS
        }
        return {
            "minutes": minutes,
            "capacity": capacity,
            "rate": LOAD * capacity,
            "codes": dict(codes),
            "p99": tails,
            "growth": growth,
            "samples": {
                name: {
                    kind: [round(value, 1) for value in values]
                    for kind, values in {"times": one.times, **one.values}.items()
                }
                for name, one in sampler.samples.items()
            },
            "held": {
                "every call answered": set(codes) == {"OK"},
                "no process was started again": set(starts.values()) == {1},
                **flat,
            },
        }
