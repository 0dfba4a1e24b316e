"""How the cores of a machine are shared: the one place that says who may take how many threads.

Queries come first. What encodes their texts, and what encodes their pictures, may use every core at
once, because it runs in short bursts. What is done for ingest may use every core too, but at low
priority, so that it gets what queries leave. Nothing else computes.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

NICENESS: Final = 10
"""Of what is done for ingest, beside the image tower."""

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return how many cores this process may use: by affinity, and by its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        count = min(count or 1, -(-int(quota) // int(period)))
    return max(1, count or 1)


def give_way() -> None:
    """Have this thread, and those that it starts, take the smaller share of a busy core."""
    os.nice(NICENESS)


def only_when_idle() -> None:
    """Have this thread, and those that it starts, compute only when nothing else does.

    Where there is no such class, the whole process takes the smallest share.

    Niceness would not do: a query's threads wait for each other, and with the image tower at 19
    the slowest of twenty queries took 2.7 times as long as without, at this 2.1 times.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def tower_threads(setting: int) -> int:
    """Return the threads of a tower's process; a setting of 0 leaves it to the cores there are."""
    return setting or cores()


def picture_decoders() -> int:
    """Return the threads that decode images which come encoded with a call, such as a query's."""
    return min(cores(), 2)  # each may hold 360 MiB, of the most pixels that are taken


def worker_processes(setting: int) -> int:
    """Return the processes of an ingest worker; a setting of 0 leaves it to the cores there are.

    Two at least: one prepares images while those of the other are encoded.
    """
    return setting or max(2, cores())
