"""Ctrl-C: raised while a command works, and a quiet end before and after it."""

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cra.services.cli.exit_codes import INTERRUPTED


def end_quietly() -> None:
    """Let Ctrl-C end the process at once, unless whoever started it wants something else of it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
        # The last of what is done at exit, being the first that is registered. The interpreter
        # takes handlers away before its own end, so that a Ctrl-C would kill what has succeeded.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextmanager
def raised() -> Iterator[None]:
    """Within this block, let Ctrl-C raise KeyboardInterrupt where it would end quietly."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)  # what was printed is flushed already
