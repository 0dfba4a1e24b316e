"""Calls that go together while another is under way."""

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cra.shared import rpc
from cra.shared.adapters.together import Together
from cra.shared.errors import DeadlineExceededError, UnavailableError
from tests.servers import wait_until


class Held:
    """A call that waits until it is let go, and squares what it is given."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go = threading.Event()

    def __call__(self, key: str, items: Sequence[int], left: float) -> list[int]:
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
    together = Together(held, most=5, name="the test")
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
    together = Together(held, most=5, name="the test")
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(together, kind, 3) for kind in "ab"]
        wait_until(lambda: len(held.batches) == 2, "both are under way", 20)
        held.go.set()
        assert [call.result(20) for call in calls] == [9, 9]


def test_an_error_reaches_each_it_concerns_and_nobody_else() -> None:
    """Of a batch that fails, each goes once more, alone: only who is at fault learns of it.

    Broken on purpose: with `one.error = error` for all of a batch, 2 fails with -1.
    """
    held = Held()
    together = Together(held, most=2, name="the test")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(together, "a", 1)
        wait_until(lambda: len(held.batches) == 1, "the first has gone", 20)
        waiting = []
        for number in (-1, 2, 3):
            waiting.append(pool.submit(together, "a", number))
            wait_until(lambda: len(together._lines["a"]) == len(waiting), "it is in line", 20)
        held.go.set()
        assert first.result(20) == 1
        with pytest.raises(ValueError, match="cannot be squared"):
            waiting[0].result(20)
        assert [one.result(20) for one in waiting[1:]] == [4, 9]
    assert together("a", 4) == 16
    assert not together._lines


def _asked_by(seconds: float, waits: Callable[[], bool] = lambda: True) -> Callable[..., object]:
    """Return what calls a function for a caller who waits so many seconds."""

    def call(function: Callable[..., object], *args: object) -> object:
        caller = rpc.Caller(time.monotonic() + seconds, waits, lambda _: True)
        context = contextvars.copy_context()
        context.run(rpc.caller.set, caller)
        return context.run(function, *args)

    return call


def test_a_deadline_ends_the_wait_in_line() -> None:
    """Who waits behind a call that hangs is told at its deadline, and is never called for.

    Broken on purpose: with `mine.woken.wait()`, without the time that is left, it waits for ever.
    """
    held = Held()
    together = Together(held, most=5, name="the test")
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together, "a", 1)
        wait_until(lambda: len(held.batches) == 1, "the first has gone", 20)
        with pytest.raises(DeadlineExceededError, match="before the test answered"):
            pool.submit(_asked_by(0.05), together, "a", 2).result(20)
        assert not first.done()
        third = pool.submit(together, "a", 3)
        wait_until(lambda: len(together._lines["a"]) == 1, "the third waits", 20)
        held.go.set()
        assert (first.result(20), third.result(20)) == (1, 9)
    assert held.batches == [("a", [1]), ("a", [3])]


def test_who_has_hung_up_is_not_called_for() -> None:
    """An item whose caller is gone leaves the line when its turn comes, even at its head."""
    held = Held()
    together = Together(held, most=5, name="the test")
    gone = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together, "a", 1)
        wait_until(lambda: len(held.batches) == 1, "the first has gone", 20)
        second = pool.submit(_asked_by(60, lambda: not gone.is_set()), together, "a", 2)
        wait_until(lambda: len(together._lines["a"]) == 1, "the second waits", 20)
        third = pool.submit(together, "a", 3)
        wait_until(lambda: len(together._lines["a"]) == 2, "the third waits", 20)
        gone.set()
        held.go.set()
        assert (first.result(20), third.result(20)) == (1, 9)
        with pytest.raises(DeadlineExceededError):
            second.result(20)
    assert held.batches == [("a", [1]), ("a", [3])]


def test_one_who_is_short_of_time_fails_nobody_else() -> None:
    """A call has the time of the one with least; if that is too short, the others go once more.

    Broken on purpose: without `return others` the second and third fail with the hasty one.
    """
    allowed: list[tuple[list[int], bool]] = []
    go, entered = threading.Event(), threading.Event()

    def call(_: str, items: Sequence[int], left: float) -> list[int]:
        allowed.append((list(items), left < 60))
        if items == [1]:
            entered.set()
            assert go.wait(20)
        elif left < 60:
            # As Milvus does: nothing, until the time is up.
            pause = threading.Event()
            pause.wait(left)
            raise UnavailableError("no answer")
        return [item * item for item in items]

    together = Together(call, most=5, name="the test")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(together, "a", 1)
        assert entered.wait(20)
        hasty = pool.submit(_asked_by(1.5), together, "a", 2)
        wait_until(lambda: len(together._lines["a"]) == 1, "the hasty one waits", 20)
        others = []
        for number in (3, 4):
            others.append(pool.submit(_asked_by(600), together, "a", number))
            wait_until(lambda: len(together._lines["a"]) == 1 + len(others), "it waits", 20)
        go.set()
        assert first.result(20) == 1
        with pytest.raises(DeadlineExceededError):
            hasty.result(20)
        assert [other.result(20) for other in others] == [9, 16]
    assert allowed == [([1], False), ([2, 3, 4], True), ([3, 4], False)]
    assert not together._lines


def test_one_behind_the_other_who_are_short_of_time_starve_nobody() -> None:
    """Who was taken along twice by callers with too little time then goes alone.

    Broken on purpose: with `return others`, whoever waits goes on failing with the next hasty one.
    """
    called: list[list[int]] = []
    go, entered = threading.Event(), threading.Semaphore(0)

    def call(_: str, items: Sequence[int], left: float) -> list[int]:
        called.append(list(items))
        entered.release()
        if items == [1]:
            assert go.wait(20)
        elif left < 60:
            threading.Event().wait(left)
            raise UnavailableError("no answer")
        return [item * item for item in items]

    together = Together(call, most=5, name="the test")
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together, "a", 1)
        assert entered.acquire(timeout=20)
        hasty = [pool.submit(_asked_by(1), together, "a", 2)]
        wait_until(lambda: len(together._lines["a"]) == 1, "the hasty one waits", 20)
        patient = pool.submit(_asked_by(600), together, "a", 3)
        wait_until(lambda: len(together._lines["a"]) == 2, "the patient one waits", 20)
        go.set()
        assert entered.acquire(timeout=20)
        hasty += [pool.submit(_asked_by(seconds), together, "a", 4) for seconds in (2, 3)]
        assert patient.result(20) == 9
        assert first.result(20) == 1
        for one in hasty:
            assert isinstance(one.exception(20), DeadlineExceededError)
    assert called[:2] == [[1], [2, 3]]
    assert 3 in called[2]
    assert [3] in called[3:]
    assert not together._lines


def test_many_at_once() -> None:
    """Of 2,000 calls by 32 threads each has its own result, and none waits for ever."""
    together = Together[str, int, int](
        lambda _, items, __: [n * n for n in items], most=16, name="the test"
    )
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(lambda n: together("a", n), range(2000), timeout=60)) == [
            n * n for n in range(2000)
        ]
    assert not together._lines
