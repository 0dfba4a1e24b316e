"""Timing two ways of doing the same thing, turn and turn about."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Seconds of two rivals, round by round."""

    title: str
    ours: Sequence[float]
    theirs: Sequence[float]
    notes: Mapping[str, str]

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the median over the rounds."""
        return statistics.median(
            their / our for our, their in zip(self.ours, self.theirs, strict=True)
        )

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a round."""
        ratios = [their / our for our, their in zip(self.ours, self.theirs, strict=True)]
        return min(ratios), max(ratios)


def compare(
    title: str,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    rounds: int,
    notes: Mapping[str, str] | None = None,
) -> Comparison:
    """Time both, alternately, after one run of each that does not count."""
    ours()
    theirs()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for rival, seconds in zip((ours, theirs), taken, strict=True):
            begun = time.perf_counter()
            rival()
            seconds.append(time.perf_counter() - begun)
    return Comparison(title, *taken, notes or {})


def machine() -> dict[str, str]:
    """Return what figures depend on: processor, cores, versions and the date."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        model = names[0] if names else model
    except OSError:
        pass  # not Linux: what `platform` says must do
    versions = {name: importlib.metadata.version(name) for name in ("torch", "cn_clip")}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **versions,
    }
