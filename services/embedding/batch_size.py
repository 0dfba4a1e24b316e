"""How many items a batch should have on this machine, found by trying."""

import time
from collections.abc import Callable
from typing import Final

ENOUGH: Final = 0.98
"""Share of the best rate that will do: a smaller batch is sooner done, and lets the next in."""
_TRIES: Final = 3


def measure(
    encode: Callable[[int], object],
    most: int,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return the smallest batch size, a power of two, whose rate is near the best.

    Args:
        encode: encodes a batch of a size.
        most: largest size.
        seconds: after which no larger size is tried.
        clock: in seconds.
    """
    begun = clock()
    rates: dict[int, float] = {}
    size = 1
    while size <= most and (not rates or clock() - begun < seconds):
        encode(size)  # the first of a shape costs more
        taken = []
        for _ in range(_TRIES):
            start = clock()
            encode(size)
            taken.append(clock() - start)
        # The best of a few: whatever else the machine did meanwhile only ever adds.
        rates[size] = size / max(min(taken), 1e-9)
        size *= 2
    return min(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))
