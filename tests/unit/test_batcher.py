"""Dynamic batching: who shares a batch, who is refused, who goes first, and what goes wrong."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.services.embedding import batcher as batcher_module
from cra.services.embedding.batcher import TURN, Batcher, Encoded
from cra.shared.errors import (
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.servers import wait_until

SOON = 10.0
"""Seconds after which a test gives up."""


class Tower:
    """Doubles numbers, one batch for each turn of its gate; refuses to encode 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._turns = threading.Semaphore(0)

    def encode(self, numbers: Sequence[int]) -> list[int]:
        """Return each number twice as large."""
        self.batches.append(list(numbers))
        self.entered.put(len(numbers))
        assert self._turns.acquire(timeout=SOON)
        if 13 in numbers:
            raise ValueError("13 brings bad luck")
        return [2 * number for number in numbers]

    def wait_until_busy(self) -> None:
        """Return when a batch has begun."""
        self.entered.get(timeout=SOON)

    def turn(self, batches: int = 1) -> None:
        """Let batches end."""
        self._turns.release(batches)


@pytest.fixture
def tower() -> Tower:
    """A tower behind a gate."""
    return Tower()


@pytest.fixture
def batcher(tower: Tower) -> Iterator[Batcher[int, int]]:
    """A line of at most 8 before it, in batches of at most 4."""
    batcher = Batcher(tower.encode, 4, 8, "number")
    yield batcher
    tower.turn(100)
    batcher.close()


def _later() -> float:
    return time.monotonic() + 60


def _values(futures: "Sequence[Future[Encoded[int]]]") -> list[int]:
    return [future.result(SOON).value for future in futures]


def test_what_arrives_while_the_tower_works_shares_batches(
    batcher: Batcher[int, int], tower: Tower
) -> None:
    """An idle tower starts at once; calls that come meanwhile share full batches, in order."""
    first = batcher.submit([1], _later())
    tower.wait_until_busy()
    others = [batcher.submit([n, n + 20], _later()) for n in (2, 3, 4)]
    tower.turn(3)
    assert _values(first) == [2]
    assert [_values(futures) for futures in others] == [[4, 44], [6, 46], [8, 48]]
    assert tower.batches == [[1], [2, 22, 3, 23], [4, 24]]


def test_calls_of_many_threads_share_batches(batcher: Batcher[int, int], tower: Tower) -> None:
    """Eight callers at once, behind a busy tower: two full batches, each gets its own result."""
    batcher.submit([0], _later())
    tower.wait_until_busy()
    results: dict[int, list[int]] = {}
    ready = threading.Barrier(9)

    def call(number: int) -> None:
        futures = batcher.submit([number], _later())
        ready.wait(SOON)
        results[number] = _values(futures)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    ready.wait(SOON)
    tower.turn(3)
    for thread in threads:
        thread.join(SOON)
    assert results == {number: [2 * number] for number in range(1, 9)}
    assert [len(batch) for batch in tower.batches] == [1, 4, 4]


def test_a_line_that_is_full_takes_all_or_none(batcher: Batcher[int, int], tower: Tower) -> None:
    """What does not fit whole is refused at once and leaves nothing behind in the line."""
    batcher.submit([0], _later())
    tower.wait_until_busy()
    batcher.submit([1, 2, 3, 4, 5, 6], _later())
    with pytest.raises(ResourceExhaustedError, match=r"6 numbers are waiting.* 8 may") as caught:
        batcher.submit([7, 8, 9], _later())
    assert caught.value.retry_after > 0
    fits = batcher.submit([7, 8], _later())
    with pytest.raises(ResourceExhaustedError):
        batcher.submit([9], _later())
    tower.turn(3)
    assert _values(fits) == [14, 16]
    assert tower.batches == [[0], [1, 2, 3, 4], [5, 7, 8, 6]]


def test_more_at_once_than_the_line_holds_is_refused(batcher: Batcher[int, int]) -> None:
    """A call that could never fit is refused, however idle the tower is."""
    with pytest.raises(ResourceExhaustedError):
        batcher.submit(list(range(9)), _later())


def test_nothing_is_nothing(batcher: Batcher[int, int], tower: Tower) -> None:
    """A call without items gets no futures and starts no batch."""
    assert batcher.submit([], _later()) == []
    assert tower.batches == []


def test_calls_take_turns(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """One item waits for no call with many to be done; nor does that one for all that come after.

    Break: every item of a call has the turn of its first; or the first of a batch is the first in
    turn.
    """
    monkeypatch.setattr(batcher_module, "TURN", 1)
    batcher = Batcher(tower.encode, 4, 100, "number")
    batcher.submit([0], _later())
    tower.wait_until_busy()
    many = batcher.submit([1, 2, 3, 4, 5, 6, 7], _later())
    few = batcher.submit([11], _later())
    for _ in range(6):
        tower.turn()
        tower.wait_until_busy()
        few += [batcher.submit([21], _later())[0] for _ in range(4)]
    tower.turn(100)
    _values([*many, *few])
    batcher.close()
    assert tower.batches[:2] == [[0], [1, 11, 2, 3]]
    assert [set(batch) - {21} for batch in tower.batches[2:6]] == [{4}, {5}, {6}, {7}]


def test_a_call_with_few_items_stays_together(tower: Tower) -> None:
    """As many as `TURN` of a call go before those of later calls; the rest takes turns."""
    batcher = Batcher(tower.encode, 2 * TURN, 100, "number")
    batcher.submit([0], _later())
    tower.wait_until_busy()
    few, many = [*range(101, 101 + TURN)], [*range(201, 201 + TURN + 2)]
    batcher.submit(few, _later())
    batcher.submit(many, _later())
    last = batcher.submit([301], _later())
    tower.turn(100)
    _values(last)
    batcher.close()
    assert tower.batches == [[0], few + many[:TURN], [many[TURN], 301, many[TURN + 1]]]


@pytest.mark.parametrize("done", [2, 8, 16, 24])
def test_turns_in_small_batches(tower: Tower, done: int) -> None:
    """However much of a call with many was encoded, two batches later a new one is.

    Break: turns of `TURN` items whatever the batches are.
    """
    batcher = Batcher(tower.encode, 2, 100, "number")
    many = batcher.submit([*range(20, 84)], _later())
    for _ in range(done // 2 - 1):
        tower.wait_until_busy()
        tower.turn()
    tower.wait_until_busy()
    (new,) = batcher.submit([100], _later())
    tower.turn(100)
    assert _values([new]) == [200]
    _values(many)
    batcher.close()
    assert 100 in [number for batch in tower.batches[done // 2 :][:2] for number in batch]


def test_calls_one_after_another(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where calls do not take turns, the first is done first."""
    monkeypatch.setattr(batcher_module, "TURN", 1)
    batcher = Batcher(tower.encode, 4, 100, "number", in_turn=False)
    batcher.submit([0], _later())
    tower.wait_until_busy()
    batcher.submit([1, 2, 3, 4, 5], _later())
    last = batcher.submit([11, 12], _later())
    tower.turn(3)
    _values(last)
    batcher.close()
    assert tower.batches == [[0], [1, 2, 3, 4], [5, 11, 12]]


def test_a_deadline_that_passes_in_line(batcher: Batcher[int, int], tower: Tower) -> None:
    """An item whose deadline has passed is never encoded; its caller is told."""
    batcher.submit([0], _later())
    tower.wait_until_busy()
    late = batcher.submit([1], time.monotonic() - 0.001)
    kept = batcher.submit([2], _later())
    tower.turn(2)
    with pytest.raises(DeadlineExceededError, match="number tower"):
        late[0].result(SOON)
    assert _values(kept) == [4]
    assert tower.batches == [[0], [2]]


def test_a_cancelled_item_costs_nothing(batcher: Batcher[int, int], tower: Tower) -> None:
    """An item whose caller hung up is never encoded, and its neighbours are."""
    batcher.submit([0], _later())
    tower.wait_until_busy()
    first, second, third = batcher.submit([1, 2, 3], _later())
    assert second.cancel()
    tower.turn(2)
    assert _values([first, third]) == [2, 6]
    with pytest.raises(CancelledError):
        second.result(SOON)
    assert tower.batches == [[0], [1, 3]]


def test_the_dead_make_room_for_the_living(batcher: Batcher[int, int], tower: Tower) -> None:
    """A line that is full of the cancelled and the late is not full: they leave it first."""
    batcher.submit([0], _later())
    tower.wait_until_busy()
    for future in batcher.submit([1, 2, 3], _later()):
        future.cancel()
    late = batcher.submit([4, 5], time.monotonic() - 0.001)
    early = batcher.submit([6, 7, 8], _later())
    living = batcher.submit([20, 21, 22, 23, 24], _later())
    for future in late:
        with pytest.raises(DeadlineExceededError):
            future.result(0)
    tower.turn(3)
    assert _values([*living, *early]) == [40, 42, 44, 46, 48, 12, 14, 16]
    assert tower.batches == [[0], [6, 7, 8, 20], [21, 22, 23, 24]]


def test_what_is_being_encoded_cannot_be_cancelled(
    batcher: Batcher[int, int], tower: Tower
) -> None:
    """A caller that hangs up during the forward pass takes nothing from the others' results."""
    first, second = batcher.submit([1, 2], _later())
    tower.wait_until_busy()
    assert not first.cancel()
    tower.turn()
    assert _values([second]) == [4]


def test_an_error_fails_its_batch_alone(batcher: Batcher[int, int], tower: Tower) -> None:
    """What the tower raises goes to the callers of that batch; the thread lives on."""
    first = batcher.submit([1], _later())
    tower.wait_until_busy()
    bad = batcher.submit([13, 2, 3, 4], _later())
    good = batcher.submit([5], _later())
    tower.turn(3)
    assert _values(first) == [2]
    for future in bad:
        with pytest.raises(ValueError, match="bad luck"):
            future.result(SOON)
    assert _values(good) == [10]


def test_a_result_too_few_fails_its_batch_alone() -> None:
    """A tower that loses an item fails the batch, instead of shifting vectors to neighbours."""
    batcher: Batcher[int, int] = Batcher(lambda numbers: list(numbers)[1:], 4, 8, "number")
    with pytest.raises(ValueError, match="shorter"):
        batcher.submit([1], _later())[0].result(SOON)
    assert batcher.last_success == float("-inf")
    batcher.close()


def test_success_and_its_time_are_noted(batcher: Batcher[int, int], tower: Tower) -> None:
    """A batch that was encoded is the proof of life that readiness asks for; one that failed not.

    Each result tells how long it waited and how long its batch took.
    """
    tower.turn(2)
    with pytest.raises(ValueError, match="bad luck"):
        batcher.submit([13], _later())[0].result(SOON)
    assert batcher.last_success == float("-inf")
    before = time.monotonic()
    (encoded,) = [future.result(SOON) for future in batcher.submit([1], _later())]
    assert before <= batcher.last_success <= time.monotonic()
    assert encoded.queue >= 0
    assert encoded.encode >= 0


def test_closing_drains(tower: Tower) -> None:
    """On close what is in line is still encoded, new work is refused, and the thread ends."""
    batcher = Batcher(tower.encode, 4, 8, "number")
    running = batcher.submit([1], _later())
    tower.wait_until_busy()
    waiting = batcher.submit([2, 3, 4, 5, 6], _later())
    closer = threading.Thread(target=batcher.close)
    closer.start()
    refused = threading.Event()

    def refuse() -> bool:
        try:
            batcher.submit([9], time.monotonic() - 1)
        except UnavailableError:
            refused.set()
        return refused.is_set()

    end = time.monotonic() + SOON
    while not refuse():
        assert time.monotonic() < end
    tower.turn(3)
    closer.join(SOON)
    assert not closer.is_alive()
    assert _values([*running, *waiting]) == [2, 4, 6, 8, 10, 12]


def test_a_full_batch_goes_beside_another_one_and_no_smaller_one_does(tower: Tower) -> None:
    """While one is encoded, what does not fill a batch waits for more, or for that one's end.

    Broken on purpose: without `beside` the second item is a batch by itself.
    """
    batcher: Batcher[int, int] = Batcher(tower.encode, 4, 99, "number", lanes=2, beside=4)
    futures = batcher.submit([1], _later())
    tower.wait_until_busy()
    for number in (2, 3, 4, 5):
        futures += batcher.submit([number], _later())
    tower.wait_until_busy()
    futures += batcher.submit([6, 7], _later())
    tower.turn(2)
    tower.wait_until_busy()
    tower.turn()
    assert _values(futures) == [2, 4, 6, 8, 10, 12, 14]
    assert tower.batches == [[1], [2, 3, 4, 5], [6, 7]]
    batcher.close()


def test_one_call_fills_every_lane(tower: Tower) -> None:
    """A call of more than a batch holds is encoded by all lanes, though it wakes one."""
    batcher: Batcher[int, int] = Batcher(tower.encode, 4, 99, "number", lanes=2, beside=4)
    futures = batcher.submit(range(10), _later())
    tower.wait_until_busy()
    tower.wait_until_busy()
    tower.turn(3)
    assert _values(futures) == [2 * number for number in range(10)]
    assert sorted(map(len, tower.batches)) == [2, 4, 4]
    batcher.close()


def test_closing_drains_what_would_have_waited(tower: Tower) -> None:
    """On close what does not fill a batch is encoded too, and every thread ends."""
    batcher: Batcher[int, int] = Batcher(tower.encode, 4, 99, "number", lanes=2, beside=4)
    futures = batcher.submit([1], _later())
    tower.wait_until_busy()
    futures += batcher.submit([2, 3], _later())
    closing = threading.Thread(target=batcher.close)
    closing.start()
    tower.turn(2)
    assert _values(futures) == [2, 4, 6]
    closing.join(SOON)
    assert not closing.is_alive()


def test_an_idle_batcher_closes_at_once(tower: Tower) -> None:
    """Nothing in line: close returns."""
    Batcher(tower.encode, 4, 8, "number").close()
    assert tower.batches == []


@given(st.lists(st.lists(st.integers(0, 12), max_size=20), max_size=8), st.booleans())
def test_every_item_is_answered_once(calls: list[list[int]], in_turn: bool) -> None:
    """Whatever the calls, each result goes to its item, and no batch is over its limit."""
    sizes = []

    def encode(numbers: Sequence[int]) -> list[int]:
        sizes.append(len(numbers))
        return [2 * number for number in numbers]

    batcher = Batcher(encode, 3, 1000, "number", in_turn=in_turn)
    futures = [batcher.submit(numbers, _later()) for numbers in calls]
    for numbers, waiting in zip(calls, futures, strict=True):
        assert _values(waiting) == [2 * number for number in numbers]
    batcher.close()
    assert sum(sizes) == sum(map(len, calls))
    assert max(sizes, default=0) <= 3


def test_groups_take_turns_by_place_in_line() -> None:
    """A batch is of one group; the first in line decides which, so none starves another."""
    batches: list[list[str]] = []
    entered, turns = threading.Semaphore(0), threading.Semaphore(0)

    def encode(items: Sequence[str]) -> list[str]:
        batches.append(list(items))
        entered.release()
        assert turns.acquire(timeout=SOON)
        return list(items)

    batcher = Batcher(encode, 3, 100, "word", group=lambda word: word[0])
    deadline = time.monotonic() + SOON
    first = batcher.submit(["a0"], deadline)
    assert entered.acquire(timeout=SOON)
    words = ["a1", "b1", "a2", "b2", "a3", "a4", "a5", "b3", "a6"]
    rest = batcher.submit(words, deadline)
    for _ in range(10):
        turns.release()
    batcher.close()
    assert batches == [["a0"], ["a1", "a2", "a3"], ["b1", "b2", "b3"], ["a4", "a5", "a6"]]
    assert [future.result(SOON).value for future in (*first, *rest)] == ["a0", *words]


def test_a_call_that_would_come_too_late_is_refused_at_once(
    batcher: Batcher[int, int], tower: Tower
) -> None:
    """When those in line take longer than the deadline leaves, nobody is kept waiting for nothing.

    The hint to try again is the time that the line takes. Broken on purpose: without the estimate
    it is taken, waits, and fails when its deadline has passed.
    """
    batcher.submit([0], _later())
    tower.wait_until_busy()
    batcher._seconds_an_item = 2.0
    batcher.submit([1, 2, 3], _later())
    late = r"take about 6.000 s.*deadline is in"
    with pytest.raises(ResourceExhaustedError, match=late) as caught:
        batcher.submit([4], time.monotonic() + 5)
    assert caught.value.retry_after == pytest.approx(6.0)
    assert batcher.submit([5], _later())
    tower.turn(3)


def test_a_call_is_not_refused_for_what_goes_after_it(
    batcher: Batcher[int, int], tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a call with many, only those count whose turn is not later."""
    monkeypatch.setattr(batcher_module, "TURN", 1)
    batcher.submit([0], _later())
    tower.wait_until_busy()
    batcher._seconds_an_item = 2.0
    batcher.submit([1, 2, 3], _later())
    with pytest.raises(ResourceExhaustedError, match=r"take about 2.000 s"):
        batcher.submit([4], time.monotonic() + 1)
    with pytest.raises(ResourceExhaustedError, match=r"take about 6.000 s"):
        batcher.submit([4, 5, 6], time.monotonic() + 3)
    assert batcher.submit([4], time.monotonic() + 3)
    tower.turn(3)


def test_what_came_before_in_line_and_died_delays_nobody(
    batcher: Batcher[int, int], tower: Tower
) -> None:
    """An estimate counts the living only."""
    batcher.submit([0], _later())
    tower.wait_until_busy()
    batcher._seconds_an_item = 2.0
    for future in batcher.submit([1, 2, 3], _later()):
        future.cancel()
    living = batcher.submit([4], time.monotonic() + 5)
    batcher._seconds_an_item = 0.0
    tower.turn(2)
    assert _values(living) == [8]


class _Escaping(BaseException):
    """What no `except Exception` catches."""


def test_a_batch_thread_that_dies_is_noticed_and_leaves_nobody_waiting() -> None:
    """Who shared the batch, who is in line and who comes later are told; `problem` says so.

    Broken on purpose: without `_die` the second and third wait until their deadlines, and the
    service is said to work.
    """
    entered, go = threading.Event(), threading.Event()

    def encode(numbers: Sequence[int]) -> list[int]:
        entered.set()
        assert go.wait(SOON)
        raise _Escaping

    batcher: Batcher[int, int] = Batcher(encode, 1, 8, "number")
    assert batcher.problem() == ""
    first = batcher.submit([1], _later())
    assert entered.wait(SOON)
    second = batcher.submit([2], _later())
    go.set()
    for future in (*first, *second):
        with pytest.raises(UnavailableError, match="died"):
            future.result(SOON)
    with pytest.raises(UnavailableError, match="batch thread of the number tower has died"):
        batcher.submit([3], _later())
    assert "has died" in batcher.problem()
    batcher.close()


def test_a_batch_thread_that_is_stuck_is_noticed(tower: Tower) -> None:
    """A batch that takes longer than any may is a problem until it ends; an idle thread is none."""
    batcher: Batcher[int, int] = Batcher(tower.encode, 4, 8, "number", longest=0.01)
    pending = batcher.submit([1], _later())
    tower.wait_until_busy()
    wait_until(lambda: "has not ended for" in batcher.problem(), "it is noticed")
    tower.turn()
    assert _values(pending) == [2]
    wait_until(lambda: batcher.problem() == "", "it is over")
    batcher.close()


def test_only_a_sound_result_is_a_success() -> None:
    """A tower that answers nothing but nonsense has not proved that it works."""
    batcher: Batcher[int, int] = Batcher(list, 4, 8, "number", sound=lambda result: result > 0)
    batcher.submit([-1], _later())[0].result(SOON)
    assert batcher.last_success == float("-inf")
    batcher.submit([1], _later())[0].result(SOON)
    assert batcher.last_success > float("-inf")
    batcher.close()
