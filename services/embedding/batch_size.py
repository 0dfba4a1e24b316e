"""How many items a batch should have on this machine, found by trying."""

import time
from collections.abc import Callable
from typing import Final

ENOUGH: Final = 0.98
"""Share of the best rate that will do: a smaller batch is sooner done, and lets the next in."""
_TRIES: Final = 5


def measure(
    encode: Callable[[int], object],
    most: int,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return the smallest batch size, a power of two, whose rate is near the best.

    Sizes take turns and their times are added up: while services start, others take the cores now
    and then, and a small batch falls between where a large one does not.

    Args:
        encode: encodes a batch of a size.
        most: largest size.
        seconds: in whose first quarter larger sizes are begun; those that were are then tried
            `_TRIES` times each, however long that takes.
        clock: in seconds.
    """
    encode(1)  # what the very first call loads is of no size
    begun = clock()
    taken: dict[int, float] = {}
    size = 1
    while size <= most and (not taken or clock() - begun < seconds / 4):
        encode(size)  # the first of a shape costs more
        taken[size] = 0.0
        size *= 2
    for _ in range(_TRIES):
        for size in taken:
            start = clock()
            encode(size)
            taken[size] += clock() - start
    rates = {size: size / max(took, 1e-9) for size, took in taken.items()}
    return min(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))
