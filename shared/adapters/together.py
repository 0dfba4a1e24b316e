"""Calls that go together while another is under way."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    results: list[Result] = field(default_factory=list)
    """One, once it is there."""
    error: BaseException | None = None
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def done(self) -> bool:
        return bool(self.results) or self.error is not None


class Together(Generic[Key, Item, Result]):
    """Turns calls with one item each into fewer calls with several.

    A call that comes alone goes at once: nobody waits for company. Those that come while one of
    their kind is under way form a line, and the first of them takes the others along when that one
    is back. So the more there are, the larger the batches become.

    Args:
        call: is given what its items have in common, and returns one result for each.
        most: items in one call.
    """

    def __init__(self, call: Callable[[Key, Sequence[Item]], Sequence[Result]], most: int) -> None:
        self._call, self._most = call, most
        self._lock = threading.Lock()
        self._lines: dict[Key, list[_Waiting[Item, Result]]] = {}
        """Who waits; there is a line, if an empty one, while a call is under way."""

    def __call__(self, key: Key, item: Item) -> Result:
        """Return the result for an item; raise what the call raised that took it along."""
        mine = _Waiting[Item, Result](item)
        with self._lock:
            line = self._lines.get(key)
            if line is None:
                self._lines[key] = []
            else:
                line.append(mine)
        if line is not None:
            mine.woken.wait()
        if not mine.done:
            self._lead(key, mine)
        if mine.error is not None:
            raise mine.error
        return mine.results[0]

    def _lead(self, key: Key, first: _Waiting[Item, Result]) -> None:
        """Call for the first and those behind it, then let the next one lead."""
        with self._lock:
            line = self._lines[key]
            batch = [first, *line[: self._most - 1]]
            del line[: self._most - 1]
        try:
            results = self._call(key, [one.item for one in batch])
            for one, result in zip(batch, results, strict=True):
                one.results.append(result)
        except BaseException as error:  # raised again by each that it concerns
            for one in batch:
                one.error = error
        with self._lock:
            following = self._lines[key][:1]
            if following:
                del self._lines[key][0]
            else:
                del self._lines[key]
        for one in (*following, *batch):
            one.woken.set()
