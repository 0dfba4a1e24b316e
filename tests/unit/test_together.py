"""Calls that go together while another is under way."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cra.shared.adapters.together import Together
from tests.servers import wait_until


class Held:
    """A call that waits until it is let go, and squares what it is given."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go = threading.Event()

    def __call__(self, key: str, items: Sequence[int]) -> list[int]:
        """Square the items."""
        self.batches.append((key, list(items)))
        assert self.go.wait(20)
        if -1 in items:
            raise ValueError("cannot be squared")
        return [item * item for item in items]


def test_those_that_come_meanwhile_go_together() -> None:
    """While one call is under way the others wait and then go as few; each has its own result.

    Broken on purpose: without the line every call goes alone, and there are nine batches.
    """
    held = Held()
    together = Together(held, most=5)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(together, "a", 10)
        wait_until(lambda: held.batches == [("a", [10])], "the first has gone alone", 20)
        others = [pool.submit(together, "a", number) for number in range(8)]
        wait_until(lambda: len(together._lines["a"]) == 8, "the others wait", 20)
        held.go.set()
        assert first.result(20) == 100
        assert [other.result(20) for other in others] == [n * n for n in range(8)]
    assert [len(items) for _, items in held.batches] == [1, 5, 3]
    assert not together._lines


def test_other_kinds_do_not_wait() -> None:
    """A call of another kind goes at once, however long one of the first kind takes."""
    held = Held()
    together = Together(held, most=5)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(together, kind, 3) for kind in "ab"]
        wait_until(lambda: len(held.batches) == 2, "both are under way", 20)
        held.go.set()
        assert [call.result(20) for call in calls] == [9, 9]


def test_an_error_reaches_each_it_concerns_and_nobody_else() -> None:
    """All of a batch that fails learn why, and the next batch goes on."""
    held = Held()
    together = Together(held, most=2)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(together, "a", 1)
        wait_until(lambda: len(held.batches) == 1, "the first has gone", 20)
        waiting = []
        for number in (-1, 2, 3):
            waiting.append(pool.submit(together, "a", number))
            wait_until(lambda: len(together._lines["a"]) == len(waiting), "it is in line", 20)
        held.go.set()
        assert first.result(20) == 1
        for failed in waiting[:2]:
            with pytest.raises(ValueError, match="cannot be squared"):
                failed.result(20)
        assert waiting[2].result(20) == 9
    assert together("a", 4) == 16


def test_many_at_once() -> None:
    """Of 2,000 calls by 32 threads each has its own result, and none waits for ever."""
    together = Together[str, int, int](lambda _, items: [n * n for n in items], most=16)
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(lambda n: together("a", n), range(2000), timeout=60)) == [
            n * n for n in range(2000)
        ]
    assert not together._lines
