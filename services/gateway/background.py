"""What queries give to images at random: kept for the index that is searched.

Who may see some buckets alone has a background of those alone: scores beside relevances tell mean
and covariance of what was drawn, and so what there is in a bucket that is none of the caller's.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import structlog

from cra.shared.errors import CraError
from cra.shared.ports import VectorStore
from cra.shared.relevance import Background

SAMPLED: Final = 1000
"""Most images that are drawn: the deviation of a query on them is known to 2 to 3 %."""
LASTS: Final = 60.0
"""Seconds that a background is used."""
FORGOTTEN: Final = 600.0
"""Seconds after which that of an image tower which is no longer served goes."""
SCOPES: Final = 64
"""Backgrounds that are kept; the one that was not asked for the longest goes."""

Scope = tuple[str, ...]
"""Sorted buckets; empty for all of them."""

_log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn for a scope."""

    background: Background | None
    """None if there are too few images."""
    until: float
    """On the monotonic clock."""


class Backgrounds:
    """The backgrounds of each index, drawn beside the queries and never by one."""

    def __init__(self, vectors: VectorStore) -> None:
        self._vectors = vectors
        self._lock = threading.Lock()
        # Not cachetools' cache, for which every look is a use.
        self._drawn: OrderedDict[Scope, dict[str, Drawn]] = OrderedDict()
        """By scope and image tower; the scope that was asked for last is at the end.

        What was asked for of one tower is drawn of the other too, for when that one answers.
        """
        self._drawn[()] = {}

    def of(self, image_tower: str, scope: Scope) -> Drawn | None:
        """Return what was drawn of the buckets of a scope.

        None if nothing was yet; the next `refresh` will.
        """
        key = tuple(sorted(scope))
        with self._lock:
            drawn = self._drawn.setdefault(key, {})
            self._drawn.move_to_end(key)
            if len(self._drawn) > SCOPES:
                self._drawn.popitem(last=False)
            return drawn.get(image_tower)

    def refresh(self, image_tower: str) -> None:
        """Draw for each scope that was asked for, unless what was drawn is still good.

        If the index cannot be read the old ones stay, and the log says why.
        """
        now = time.monotonic()
        with self._lock:
            wanted = []
            for scope, drawn in self._drawn.items():
                if image_tower not in drawn or now >= drawn[image_tower].until:
                    wanted.append(scope)
                for other in drawn.keys() - {image_tower}:
                    if now >= drawn[other].until + FORGOTTEN:
                        del drawn[other]
        for scope in wanted:
            try:
                background = Background.of(self._vectors.sample(image_tower, SAMPLED, scope))
            except CraError as error:
                _log.warning("the index was not sampled", problem=error.message)
                return
            # While there are too few images the next look may find that there no longer are.
            until = time.monotonic() + (LASTS if background else 0.0)
            with self._lock:
                if (known := self._drawn.get(scope)) is not None:
                    known[image_tower] = Drawn(background, until)
