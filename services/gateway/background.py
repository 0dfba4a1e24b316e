"""What queries give to images at random: kept for the index that is searched."""

import threading
import time
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

_log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class _Drawn:
    image_tower: str
    background: Background | None
    until: float
    """On the monotonic clock."""


class Backgrounds:
    """The background of one index at a time, drawn beside the queries and never by one."""

    def __init__(self, vectors: VectorStore) -> None:
        self._vectors = vectors
        self._drawing = threading.Lock()
        self._drawn = _Drawn("", None, 0.0)

    def of(self, image_tower: str) -> Background | None:
        """Return the background of an index; None if it is too small, or was never drawn."""
        drawn = self._drawn
        return drawn.background if drawn.image_tower == image_tower else None

    def refresh(self, image_tower: str) -> None:
        """Draw the background of an index if there is none or it is old.

        If the index cannot be read the old one stays, and the log says why.
        """
        with self._drawing:
            drawn = self._drawn
            if drawn.image_tower == image_tower and time.monotonic() < drawn.until:
                return
            try:
                vectors_nd = self._vectors.sample(image_tower, SAMPLED)
            except CraError as error:
                _log.warning("the index was not sampled", problem=error.message)
                return
            background = Background.of(vectors_nd)
            # While the index is too small the next look may find that it no longer is.
            lasts = LASTS if background else 0.0
            self._drawn = _Drawn(image_tower, background, time.monotonic() + lasts)
