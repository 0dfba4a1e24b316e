"""A sign of life that outsiders can read: a file that is touched for as long as a loop turns."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from cra.shared.errors import UnavailableError

PERIOD: Final = 5.0
"""Seconds between two touches."""

STUCK: Final = 45.0
"""Seconds without a turn of the loop, while the broker answers, after which it is stuck."""

_log = structlog.get_logger()


class Heartbeat:
    """Touches a file while a loop turns, or cannot because there is no broker.

    A process that is stopped, or whose interpreter hangs, touches nothing either.

    Args:
        file: is made with its folder.
        ask_broker: raises UnavailableError while the broker does not answer.
        stuck: seconds, see STUCK.
        period: seconds, see PERIOD.
    """

    def __init__(
        self,
        file: Path,
        ask_broker: Callable[[], None],
        stuck: float = STUCK,
        period: float = PERIOD,
    ) -> None:
        self._file, self._ask_broker = file, ask_broker
        self._stuck, self._period = stuck, period
        self._turned = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to touch the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def turn(self) -> None:
        """Note a turn of the loop."""
        self._turned = time.monotonic()

    def close(self) -> None:
        """End."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            if self._works():
                self._file.touch()
            if self._ending.wait(self._period):
                return

    def _works(self) -> bool:
        since = time.monotonic() - self._turned
        if since < self._stuck:
            return True
        try:
            self._ask_broker()
        except UnavailableError:
            # Nothing turns without it; when it is back, the loop has its time to come back too.
            self._turned = time.monotonic()
            return True
        _log.error("wedged", problem=f"the loop has not turned for {since:.0f} s")
        return False
