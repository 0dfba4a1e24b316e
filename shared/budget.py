"""How the cores of a machine are shared: the one place that says who may take how many threads.

Queries come first. The text tower may use every core at once, because it runs in short bursts and
nothing waits behind it. What is done for ingest may use every core too, but at low priority, so
that it gets what queries leave. Nothing else computes.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

LOW_PRIORITY: Final = 10
"""Niceness of all that is done for ingest."""

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return how many cores this process may use: by affinity, and by its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        quota, period = _QUOTA.read_text().split()
        count = min(count or 1, -(-int(quota) // int(period)))
    return max(1, count or 1)


def tower_threads(setting: int) -> int:
    """Return the threads of a tower's process; a setting of 0 leaves it to the cores there are."""
    return setting or cores()


def worker_processes(setting: int) -> int:
    """Return the processes of an ingest worker; a setting of 0 leaves it to the cores there are.

    Two at least: one prepares images while those of the other are encoded.
    """
    return setting or max(2, cores())
