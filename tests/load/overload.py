"""Ten times what the cores can serve: who is answered how fast, and what becomes of the rest."""

import contextlib
import itertools
import tempfile
import threading
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, Final

from cra.search.v1 import search_pb2 as pb
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import SearchFilter
from tests.bench.measure import percentile
from tests.bench.model import Queries
from tests.bench.stack import encoder, image
from tests.bench.vectors import Embeddings
from tests.load import fleet as fleets
from tests.load.arrivals import Outcome, closed_loop, open_loop, tail_of
from tests.load.sampling import Sampler
from tests.servers import wait_until

TIMES: Final = 10
IMAGES: Final = 300
CALLERS: Final = 32
"""That wait for each answer, and keep every core busy."""
SECONDS: Final = 20.0
RECOVERS_WITHIN: Final = 5.0
TAIL: Final = 3.0
"""How many times their p99 at full load the accepted calls may take."""
POINTS: Final = 800
"""Calls in the chart."""
PROBES: Final = 10
"""A second, after the rush."""


def run(model: str, kind: str = "server", seconds: float = SECONDS) -> dict[str, Any]:
    """Measure capacity, then the same services with ten times as much."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        fleets.running(
            Path(folder), model, 1, kind, ("embedding", "gateway"), QUERY_CACHE="0"
        ) as fleet,
        fleet.search() as stub,
        contextlib.closing(MilvusVectorStore(fleet.settings)) as store,
    ):
        tower = encoder(fleet.settings).models().image_tower.fingerprint
        (vectors,) = Embeddings().images(IMAGES)
        store.upsert(tower, [image(number, vector) for number, vector in enumerate(vectors)])
        probe = Embeddings().queries(1)[0]
        wait_until(
            lambda: len(store.search(tower, probe, IMAGES, SearchFilter())) == IMAGES,
            "all are searchable",
        )
        queries = Queries(11)

        def request() -> pb.SearchRequest:
            return pb.SearchRequest(text=queries())

        def search() -> None:
            stub.Search(request(), timeout=30)

        alone = closed_loop(search, 1, seconds / 4)
        full = closed_loop(search, CALLERS, seconds)
        capacity = len(full) / seconds
        with Sampler(fleet.pids, 0.5) as sampler:
            pause = threading.Event()
            pause.wait(3)
            calm = len(sampler.samples["gateway-1"].times)
            found = open_loop(stub.Search, request, TIMES * capacity, seconds, 30)
            over = found[-1].begun
            after = open_loop(stub.Search, request, PROBES, 2 * RECOVERS_WITHIN, 30)
        return _figures(alone, full, capacity, found, over, after, sampler, calm)


def _figures(
    alone: list[float],
    full: list[float],
    capacity: float,
    found: list[Outcome],
    over: float,
    after: list[Outcome],
    sampler: Sampler,
    calm: int,
) -> dict[str, Any]:
    taken = [one for one in found if one.ok]
    refused = [one for one in found if one.code == "RESOURCE_EXHAUSTED"]
    lasted = found[-1].begun - found[0].begun
    memory = {
        name: (median(one.values["memory"][:calm]), max(one.values["memory"]))
        for name, one in sampler.samples.items()
    }
    tail = percentile(full, 0.99)
    recovery = _recovery(after, over, 3 * percentile(alone, 0.95))
    drawn = found[:: max(1, len(found) // POINTS)]
    figures: dict[str, Any] = {
        "callers": CALLERS,
        "alone p50": median(alone),
        "capacity": capacity,
        "full p50": median(full),
        "full p99": tail,
        "offered": len(found) / lasted,
        "asked": TIMES * capacity,
        "accepted": len(taken) / lasted,
        "accepted p50": median(one.seconds for one in taken),
        "accepted p99": tail_of(taken),
        "tail": tail_of(taken) / tail,
        "refused": len(refused),
        "refused p50": median(one.seconds for one in refused) if refused else 0.0,
        "refused p99": tail_of(refused),
        "with a hint": sum(one.hint is not None for one in refused) / max(1, len(refused)),
        "others": dict(Counter(one.code for one in found if one not in taken and not one.hint)),
        "recovery": recovery,
        "memory": memory,
        "begun": [round(one.begun - found[0].begun, 3) for one in drawn],
        "seconds": [round(one.seconds, 5) for one in drawn],
        "ok": [one.ok for one in drawn],
    }
    figures["held"] = {
        f"offered is at least 8 times what is served (asked: {TIMES})": (
            figures["offered"] >= 8 * capacity
        ),
        f"p99 of the accepted at most {TAIL:g} times that at capacity": figures["tail"] <= TAIL,
        "everything else RESOURCE_EXHAUSTED": len(taken) + len(refused) == len(found),
        "every refusal with a hint": figures["with a hint"] == 1.0,
        f"recovery within {RECOVERS_WITHIN:g} s": recovery <= RECOVERS_WITHIN,
        "memory grows by at most a fifth and 64 MiB": all(
            most <= 1.2 * before + 64 for before, most in memory.values()
        ),
    }
    return figures


def _recovery(after: list[Outcome], over: float, as_before: float) -> float:
    """Return the seconds after the rush from which on every call is answered as before it."""
    # A single one that is slow later on is noise of the machine, two in a row are not.
    last = after[0].begun
    for one, following in itertools.pairwise(after):
        if all(not each.ok or each.seconds > as_before for each in (one, following)):
            last = following.begun + following.seconds
    return max(0.0, last - over)
