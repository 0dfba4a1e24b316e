"""Timing rivals turn and turn about, and what a benchmark reports."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.servers import ROOT


@dataclass(frozen=True)
class Comparison:
    """A figure of ours beside that of a rival, or of a limit, round by round; less is better."""

    title: str
    ours: Sequence[float]
    rival: Sequence[float]
    against: str
    """What the rival is."""
    unit: str = "s"
    at_least: float | None = None
    """How many times as good ours has to be; None if nothing is asked."""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times as good ours is: the median over the rounds."""
        return statistics.median(self._ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a round."""
        return min(self._ratios), max(self._ratios)

    @property
    def held(self) -> bool | None:
        """Whether what is asked holds; None if nothing is."""
        return None if self.at_least is None else self.ratio >= self.at_least

    @property
    def _ratios(self) -> list[float]:
        return [rival / our for our, rival in zip(self.ours, self.rival, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "ratio": self.ratio, "spread": self.spread, "held": self.held}


def compare(
    title: str,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    rounds: int,
    **fields: Any,
) -> Comparison:
    """Time both, alternately, after one run of each that does not count."""
    ours()
    theirs()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for rival, seconds in zip((ours, theirs), taken, strict=True):
            seconds.append(seconds_of(rival))
    return Comparison(title, *taken, **fields)


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def times(function: Callable[[], object], count: int) -> list[float]:
    """Return the milliseconds of each of `count` calls, after one that does not count."""
    function()
    return [seconds_of(function) * 1000 for _ in range(count)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keep one core busy, as another process on the machine would."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def machine() -> dict[str, str]:
    """Return what figures depend on: processor, cores, versions and the date."""
    model = platform.processor() or platform.machine()
    # Not on every system: what `platform` says must do there.
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        model = names[0] if names else model
    packages = ("torch", "openvino", "cn_clip", "grpcio", "pymilvus", "milvus")
    return {
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _commit() -> str:
    """Return what is measured; `+` stands for changes that are in no commit."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str:
    # The server of Milvus has no wheel for every system.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
