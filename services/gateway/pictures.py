"""How many pictures are searched with at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cra.shared.errors import ResourceExhaustedError

PICTURES_AT_ONCE: Final = 32 * 2**20
"""Bytes, of all queries together. While it is sent on, a picture is in memory several times."""
TRY_AGAIN: Final = 0.5
"""Seconds."""


class Pictures:
    """Bounds the bytes of the pictures that are worked on.

    Args:
        most: bytes. What is larger by itself is let in when there is nothing else.
    """

    def __init__(self, most: int = PICTURES_AT_ONCE) -> None:
        self._most = most
        self._held = 0
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count so many bytes for as long as the block runs.

        Raises:
            ResourceExhaustedError: they would be too many; nobody waits, since what waits is held.
        """
        with self._lock:
            if self._held and self._held + size > self._most:
                raise ResourceExhaustedError(
                    f"pictures of {self._held} bytes are searched with already, and this query has "
                    f"{size} more; at most {self._most} are taken at once",
                    retry_after=TRY_AGAIN,
                )
            self._held += size
        try:
            yield
        finally:
            with self._lock:
                self._held -= size
