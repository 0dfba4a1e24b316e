"""What processes hold while time goes by, and whether it grows."""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import psutil

MEBIBYTE: Final = 2**20
KINDS: Final = ("memory", "threads", "descriptors")
"""Mebibytes of resident memory, threads, open file descriptors: of a process and its children."""

SETTLED: Final = 0.3
"""Share of the time that passes before growth counts: caches fill, allocators find their size."""

GROWTH: Final = {"memory": (0.05, 16.0), "threads": (0.0, 4.0), "descriptors": (0.0, 8.0)}
"""What may come on over the rest: a share of the median, or so much, whichever is more."""


@dataclass
class Samples:
    """Of one part, over time."""

    times: list[float] = field(default_factory=list)
    """Seconds since the first."""
    values: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def growth(self, kind: str) -> float:
        """Return what the values have grown by, by the median slope, after they have settled."""
        start = SETTLED * self.times[-1]
        points = [(t, v) for t, v in zip(self.times, self.values[kind], strict=True) if t >= start]
        # Theil and Sen's: one that is far out, as while a child is being replaced, counts as one.
        slopes = [
            (other[1] - one[1]) / (other[0] - one[0])
            for number, one in enumerate(points)
            for other in points[number + 1 :]
        ]
        return statistics.median(slopes) * (points[-1][0] - points[0][0]) if slopes else 0.0

    def is_flat(self, kind: str) -> bool:
        """Tell whether the values have not grown by more than may be."""
        share, least = GROWTH[kind]
        return self.growth(kind) <= max(share * statistics.median(self.values[kind]), least)


class Sampler:
    """Looks at processes every few seconds, on a thread of its own.

    Args:
        pids: returns the process of each part now.
        period: seconds between two looks.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]], period: float) -> None:
        self._pids, self._period = pids, period
        self.samples: dict[str, Samples] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> "Sampler":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for name, pid in self._pids().items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    values = look(pid)
                    samples = self.samples.setdefault(name, Samples())
                    samples.times.append(time.monotonic() - self._began)
                    for kind, value in zip(KINDS, values, strict=True):
                        samples.values[kind].append(value)
            if self._ending.wait(self._period):
                return


def look(pid: int) -> Sequence[float]:
    """Return memory, threads and descriptors of a process and its children."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return (
        sum(one.memory_info().rss for one in family) / MEBIBYTE,
        sum(one.num_threads() for one in family),
        sum(one.num_fds() for one in family),
    )
