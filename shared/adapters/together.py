"""Calls that go together while another is under way."""

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from cra.shared import rpc
from cra.shared.errors import DeadlineExceededError

SOON: Final = 1.0
"""Seconds within which a call has to fail for those that it took along to try alone."""

LATE: Final = 0.05
"""Seconds before a deadline from which on a failure is the deadline's."""

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    caller: rpc.Caller | None
    results: list[Result] = field(default_factory=list)
    """One, once it is there."""
    error: BaseException | None = None
    leads: bool = False
    """It is its turn to call, for itself and for those behind it."""
    alone: bool = False
    """It is to call for itself alone."""
    tried: bool = False
    """A call that took it along has failed for lack of another's time."""
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def done(self) -> bool:
        return bool(self.results) or self.error is not None

    @property
    def left(self) -> float:
        """Seconds for which somebody waits."""
        if self.caller is None:
            return math.inf
        return self.caller.deadline - time.monotonic() if self.caller.waits() else 0.0


class Together(Generic[Key, Item, Result]):
    """Turns calls with one item each into fewer calls with several.

    A call that comes alone goes at once: nobody waits for company. Those that come while one of
    their kind is under way form a line, and the first of them takes the others along when that one
    is back. So the more there are, the larger the batches become.

    Who is late or has hung up leaves the line and is not called for. A call may take as long as
    the one with the least time has; what fails because of that, or fails soon, fails for nobody
    else: the others go once more.

    Args:
        call: is given what its items have in common, the items and the seconds that it may take
            (`math.inf` if nobody said), and returns one result for each.
        most: items in one call.
        name: of what is called, for whoever it has kept too long.
    """

    def __init__(
        self, call: Callable[[Key, Sequence[Item], float], Sequence[Result]], most: int, name: str
    ) -> None:
        self._call, self._most, self._name = call, most, name
        self._lock = threading.Lock()
        self._lines: dict[Key, list[_Waiting[Item, Result]]] = {}
        """Who waits; there is a line, if an empty one, while a call is under way."""

    def __call__(self, key: Key, item: Item) -> Result:
        """Return the result for an item; raise what the call raised that took it along.

        Raises:
            DeadlineExceededError: the caller's deadline passed first, or it hung up.
        """
        mine = _Waiting[Item, Result](item, rpc.caller.get())
        with self._lock:
            line = self._lines.get(key)
            if line is None:
                self._lines[key] = []
                mine.leads = True
            else:
                line.append(mine)
        if not mine.leads:
            self._await(key, mine)
        while mine.leads:
            self._lead(key, mine)
        if mine.alone and not mine.done:
            return self._call(key, [item], mine.left)[0]
        if mine.error is not None:
            raise mine.error
        return mine.results[0]

    def _await(self, key: Key, mine: _Waiting[Item, Result]) -> None:
        """Return when there is a result, or it is time to call; raise when the deadline passes."""
        left = max(0.0, mine.left)
        if mine.woken.wait(None if left == math.inf else left):
            return
        with self._lock:
            if mine.leads or mine.alone or mine.done:
                return
            line = self._lines.get(key, [])
            if mine in line:
                line.remove(mine)
        raise self._too_late()

    def _lead(self, key: Key, first: _Waiting[Item, Result]) -> None:
        """Call for the first and those behind it, then let the next one lead."""
        with self._lock:
            line = self._lines[key]
            batch = [first, *line[: self._most - 1]]
            del line[: self._most - 1]
        again = self._call_for([one for one in batch if not self._is_gone(one)], key)
        with self._lock:
            line = self._lines[key]
            line[:0] = again
            first.leads = False
            if line:
                following = line.pop(0)
                following.leads = True
                following.woken.set()
            else:
                del self._lines[key]
        for one in batch:
            if one not in again:
                one.woken.set()

    def _is_gone(self, one: _Waiting[Item, Result]) -> bool:
        if one.left <= 0:
            one.error = self._too_late()
        return one.done

    def _call_for(
        self, batch: list[_Waiting[Item, Result]], key: Key
    ) -> list[_Waiting[Item, Result]]:
        """Call once; return those for whom it is to be done again."""
        if not batch:
            return []
        began = time.monotonic()
        try:
            left = min(one.left for one in batch)
            results = self._call(key, [one.item for one in batch], left)
            for one, result in zip(batch, results, strict=True):
                one.results.append(result)
        except BaseException as error:  # raised again by each that it concerns
            late = [one for one in batch if one.left <= LATE]
            for one in late:
                one.error = self._too_late()
                one.error.__cause__ = error
            others = [one for one in batch if one not in late]
            if late and others:
                # Once more with others, who may be as short of time; then not with them.
                for one in others:
                    one.alone, one.tried = one.tried, True
                return [one for one in others if not one.alone]
            for one in others:
                if len(batch) > 1 and time.monotonic() - began < SOON:
                    one.alone = True
                else:
                    one.error = error
        return []

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"the deadline passed before {self._name} answered")
