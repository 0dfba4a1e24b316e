"""Dynamic batching: calls at the same time share one forward pass.

While a batch is being encoded, what arrives waits in a bounded line; the next batch takes as many
as fit. There is no timer: an idle tower starts at once, a busy one finds fuller batches. Items of
different groups never share a batch; whose turn it is, the one that waits longest decides. Calls
may take turns: then few items have not to wait for all of a call that came before with many.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from cra.services.embedding import metrics
from cra.shared import tracing
from cra.shared.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError

TURN = 8
"""Items of a call that stay together, or as many as a batch has: a text and its expansions."""
SMOOTH = 0.2
"""Weight of the newest batch in what is known of the time that an item takes."""

_log = structlog.get_logger()

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoded(Generic[Result]):
    """A result and how long it took, in seconds."""

    value: Result
    queue: float
    encode: float


@dataclass(order=True)
class _Waiting(Generic[Item, Result]):
    turn: int
    """Lower goes first."""
    number: int
    item: Item = field(compare=False)
    deadline: float = field(compare=False)
    future: "Future[Encoded[Result]]" = field(compare=False)
    since: float = field(compare=False)
    trace: str = field(compare=False)
    """Traceparent of the call that it came with."""


class Batcher(Generic[Item, Result]):
    """A line in front of one tower.

    Args:
        encode: encodes a batch, one result for each item, in order. It runs on threads of this
            batcher. What it raises is raised to the callers of that batch alone.
        max_batch: most items in one batch.
        max_queue: most items in line.
        name: of the tower, for messages.
        group: which items may share a batch; all, unless given.
        lanes: batches that are encoded at once, each on its own thread.
        beside: items in line from which on a batch is begun while another one is being encoded.
        in_turn: whether calls take turns, `TURN` items of each, or else are encoded one after
            another.
        sound: whether a result shows that the tower works.
        longest: seconds after which a batch that is not done shows that its thread is stuck.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch: int,
        max_queue: int,
        name: str,
        group: Callable[[Item], Hashable] = lambda _: None,
        lanes: int = 1,
        beside: int = 1,
        in_turn: bool = True,
        sound: Callable[[Result], bool] = lambda _: True,
        longest: float = 600.0,
    ) -> None:
        self._encode = encode
        self._group = group
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._beside = beside
        self._in_turn = in_turn
        self._turn = 0
        """Of the first item of a call that comes now."""
        self._name = name
        self._line: list[_Waiting[Item, Result]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._sound = sound
        self._longest = longest
        self._closed = False
        self._dead = ""
        """Why nothing is encoded any more; empty while it is."""
        self._busy_since: dict[int, float] = {}
        """By thread."""
        self._seconds_an_item = 0.0
        self._ended = 0.0
        """`time.monotonic()` when the last batch did."""
        self.last_success = float("-inf")
        """`time.monotonic()` when a batch was last encoded to something sound."""
        metrics.QUEUE_ITEMS.labels(name).set_function(lambda: len(self._line))
        self._queue_seconds = metrics.QUEUE_SECONDS.labels(name)
        self._encode_seconds = metrics.ENCODE_SECONDS.labels(name)
        self._batch_items = metrics.BATCH_ITEMS.labels(name)
        self._dropped = metrics.DROPPED.labels(name)
        self._failed = metrics.FAILED_BATCHES.labels(name)
        self._full = metrics.REFUSED.labels(name, "full")
        self._late = metrics.REFUSED.labels(name, "late")
        self._threads = [
            threading.Thread(target=self._run, name=f"batch-{name}-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, items: Sequence[Item], deadline: float) -> "list[Future[Encoded[Result]]]":
        """Put items in line, all or none.

        Args:
            items: what to encode.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ResourceExhaustedError: they do not fit in the line, or their turn would come after
                the deadline.
            UnavailableError: the batcher is closed, or one of its threads has died.
        """
        with self._changed:
            if self._closed:
                raise UnavailableError(f"the {self._name} tower is shutting down")
            if self._dead:
                raise UnavailableError(self._dead)
            if len(self._line) + len(items) > self._max_queue:
                self._drop_dead()
            if len(self._line) + len(items) > self._max_queue:
                wait = max(0.1, len(self._line) * self._seconds_an_item)
                self._full.inc(len(items))
                raise ResourceExhaustedError(
                    f"{len(self._line)} {self._name}s are waiting already; "
                    f"at most {self._max_queue} may",
                    retry_after=wait,
                )
            now = time.monotonic()
            left = max(0.0, deadline - now)
            share = min(TURN, self._max_batch)
            later = (number // share if self._in_turn else 0 for number in range(len(items)))
            turns = [self._turn + turn for turn in later]
            if items and self._wait(turns[-1]) > left:
                self._drop_dead()
            if items and (wait := self._wait(turns[-1])) > left:
                self._late.inc(len(items))
                raise ResourceExhaustedError(
                    f"the {self._name}s that are waiting already take about {wait:.3f} s; the "
                    f"deadline is in {left:.3f} s",
                    retry_after=wait,
                )
            trace = tracing.sampled()
            waiting: list[_Waiting[Item, Result]] = [
                _Waiting(turn, next(self._numbers), item, deadline, Future(), now, trace)
                for turn, item in zip(turns, items, strict=True)
            ]
            for entry in waiting:
                heapq.heappush(self._line, entry)
            if self._is_due():
                self._changed.notify()
        return [entry.future for entry in waiting]

    def _wait(self, turn: int) -> float:
        """Return about how many seconds those take that would go first."""
        ahead = sum(entry.turn <= turn for entry in self._line)
        return ahead * self._seconds_an_item

    def close(self) -> None:
        """Encode what is in line, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def problem(self) -> str:
        """Tell what is wrong with the threads; empty if nothing is."""
        with self._changed:
            if self._dead:
                return self._dead
            oldest = min(self._busy_since.values(), default=time.monotonic())
        took = time.monotonic() - oldest
        if took > self._longest:
            return f"a batch of {self._name}s has not ended for {took:.0f} s"
        return ""

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            _log.exception("a batch thread died", tower=self._name)
            self._die()

    def _die(self) -> None:
        """Tell those in line, and those that come, that nobody encodes."""
        with self._changed:
            self._dead = f"a batch thread of the {self._name} tower has died"
            left, self._line = self._line, []
        for entry in left:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(UnavailableError(self._dead))

    def _work(self) -> None:
        me = threading.get_ident()
        while batch := self._next_batch():
            start = self._busy_since[me]
            try:
                with self._traced(batch, start):
                    results = self._encode([entry.item for entry in batch])
                answered = list(zip(batch, results, strict=True))
            except Exception as error:  # goes to the callers, whatever it is
                self._failed.inc()
                for entry in batch:
                    entry.future.set_exception(error)
                continue
            except BaseException as error:
                for entry in batch:
                    entry.future.set_exception(UnavailableError(f"its thread died: {error!r}"))
                raise
            now = time.monotonic()
            took = now - start
            self._note(batch, start, took)
            # While another one was encoded this one may only have waited.
            now_known = max(0.0, now - max(start, self._ended)) / len(batch)
            self._ended = now
            self._seconds_an_item += SMOOTH * (now_known - self._seconds_an_item)
            if any(self._sound(result) for _, result in answered):
                self.last_success = time.monotonic()
            for entry, result in answered:
                entry.future.set_result(Encoded(result, start - entry.since, took))

    def _note(self, batch: Sequence[_Waiting[Item, Result]], start: float, took: float) -> None:
        self._batch_items.observe(len(batch))
        self._encode_seconds.observe(took)
        for entry in batch:
            self._queue_seconds.observe(start - entry.since)

    def _traced(self, batch: Sequence[_Waiting[Item, Result]], start: float) -> tracing.Scope:
        """Return the batch as a span in the trace of each of its calls, after their waits."""
        if not tracing.is_on():
            return tracing.Scope()
        now = time.time_ns()
        first = {entry.trace: entry for entry in reversed(batch) if entry.trace}
        for trace, entry in first.items():
            waited = round((start - entry.since) * 1e9)
            tracing.record(f"{self._name} queue", now - waited, now, trace)
        traces = [entry.trace for entry in batch]
        return tracing.shared_span(f"{self._name} batch", traces, items=len(batch))

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Wait for work; an empty batch means the end."""
        me = threading.get_ident()
        with self._changed:
            self._busy_since.pop(me, None)
            while True:
                batch = self._take() if self._is_due() else []
                if batch:
                    self._busy_since[me] = time.monotonic()
                    if self._is_due():
                        self._changed.notify()
                if batch or (self._closed and not self._line):
                    return batch
                self._changed.wait()

    def _is_due(self) -> bool:
        """Tell whether a batch is to be begun now."""
        least = self._beside if self._busy_since and not self._closed else 1
        return len(self._line) >= least

    def _take(self) -> list[_Waiting[Item, Result]]:
        """Take the one that waits longest, then those of its group by turn; the others stay.

        So each batch takes something of a call with many items, however many calls with few come
        meanwhile.
        """
        batch: list[_Waiting[Item, Result]] = []
        others: list[_Waiting[Item, Result]] = []
        entry = min(self._line, key=lambda one: one.number, default=None)
        if entry is not None:
            self._line.remove(entry)
            heapq.heapify(self._line)
        while entry is not None:
            if batch and self._group(entry.item) != self._group(batch[0].item):
                others.append(entry)
            # From here on nobody can cancel it.
            elif not self._is_dead(entry) and entry.future.set_running_or_notify_cancel():
                batch.append(entry)
            is_room = self._line and len(batch) < self._max_batch
            entry = heapq.heappop(self._line) if is_room else None
        for entry in others:
            heapq.heappush(self._line, entry)
        self._turn = max([self._turn, *(entry.turn for entry in batch)])
        return batch

    def _drop_dead(self) -> None:
        """Give the places of dead requests to living ones."""
        self._line = [entry for entry in self._line if not self._is_dead(entry)]
        heapq.heapify(self._line)

    def _is_dead(self, entry: _Waiting[Item, Result]) -> bool:
        """Tell whether nobody waits any more: the caller hung up, or its deadline has passed."""
        if entry.deadline >= time.monotonic():
            hung_up = entry.future.cancelled()
            self._dropped.inc(hung_up)
            return hung_up
        self._dropped.inc()
        if entry.future.set_running_or_notify_cancel():
            entry.future.set_exception(
                DeadlineExceededError(f"waited too long for the {self._name} tower")
            )
        return True
