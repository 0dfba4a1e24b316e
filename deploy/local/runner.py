"""Keeps a set of processes running: readable logs, restarts with backoff, an orderly end.

A process that is there but has stopped to work is killed and started again as well.

Each process leads its own process group. When a leader is gone, however it died, the rest of its
group is killed before it is started again, so nothing of the last run holds a port or a task.
"""

import contextlib
import logging
import logging.handlers
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from honcho.colour import get_colours
from honcho.printer import Message, Printer

from cra.shared.server import CANNOT_START
from deploy.local.parts import Part
from deploy.local.state import PartState, birth_of, kill_group

BACKOFF: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each restart; the last one from then on."""
ASKED_EVERY: Final = 5.0
"""Seconds between two questions whether a process works."""
UNANSWERED: Final = 3
"""Such questions in a row after which it is killed."""
FIRST_ANSWER: Final = 300.0
"""Seconds after its start from which on a process that has never said yes is asked for it."""
_TOLD: Final = 8
"""Last lines of a part that are shown when it cannot start."""
STEADY_SECONDS: Final = 60.0
"""A process that ran this long starts its backoff anew."""
_LOG_BYTES: Final = 20 * 2**20


class Console:
    """Lines of all processes on one output, each with the time and the process's name."""

    def __init__(self, width: int) -> None:
        self._printer = Printer(sys.stdout, width=width)
        self._lock = threading.Lock()

    def write(self, name: str, line: str, colour: str | None = None) -> None:
        """Print one line; a terminal that is gone is no reason to stop."""
        message = Message("line", line, datetime.now(), name, colour)
        with self._lock, contextlib.suppress(OSError):
            self._printer.write(message)


class _Kept:
    """One process that is kept running, by a thread of its own."""

    def __init__(
        self,
        part: Part,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        say: Callable[[str, str], None],
        changed: Callable[[], None],
        ended: Callable[[str, int, str], bool],
        works: Callable[[], bool] | None,
    ) -> None:
        self.part = part
        self._works = works
        self._env, self._cwd = env, cwd
        self._say, self._changed, self._ended = say, changed, ended
        self._log = logging.handlers.RotatingFileHandler(log, maxBytes=_LOG_BYTES, backupCount=2)
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._state = "waiting"
        self._starts = 0
        self._since = 0.0
        self._lines: deque[str] = deque(maxlen=_TOLD)
        """What it has written since it was last started."""
        self._thread = threading.Thread(target=self._keep, name=part.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def signal_stop(self) -> None:
        """Ask the process to end, and start it no more."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            self._write_line(f"still there; killed (pid {process.pid})")
            process.kill()

    def join(self, timeout: float) -> bool:
        """Wait for the end; False if it has not come."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def state(self) -> PartState:
        pid = self._process.pid if self._process is not None and self._state == "running" else None
        birth = birth_of(pid) if pid is not None else None
        return PartState(self.part.name, self._state, pid, birth, self._starts, self._since)

    def _keep(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code, outcome = self._run_once()
            told = "\n".join(self._lines)
            if self._stopping.is_set() or self._ended(self.part.name, code, told):
                self._write_line(outcome)
                break
            failures = 1 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            delay = BACKOFF[min(failures, len(BACKOFF)) - 1]
            self._set("waiting")
            self._write_line(f"{outcome}; starting again in {delay:g} s")
            self._stopping.wait(delay)
        self._set("stopped")
        self._log.close()

    def _run_once(self) -> tuple[int, str]:
        command = self.part.command
        self._lines.clear()
        try:
            process = subprocess.Popen(  # noqa: S603  what the Procfile says
                command,
                env=self._variables(),
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.part.descriptors,
            )
        except OSError as error:
            return 1, f"cannot start {shlex.join(command)}: {error}"
        self._process = process
        self._starts += 1
        self._since = time.time()
        self._set("running")
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        if self._stopping.is_set():  # asked between the check and the start
            process.send_signal(signal.SIGTERM)
        code = self._wait(process)
        kill_group(process.pid)
        reader.join(5)
        return code, _outcome(code)

    def _variables(self) -> dict[str, str]:
        merged = {**self._env, **self.part.own}
        return {name: value for name, value in merged.items() if value is not None}

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit code, if need be that of killing it because it does not work."""
        if self._works is None:
            return process.wait()
        began, answered, unanswered = time.monotonic(), False, 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(ASKED_EVERY)
            if self._stopping.is_set():
                return process.wait()
            if self._works():
                answered, unanswered = True, 0
            elif answered or time.monotonic() - began > FIRST_ANSWER:
                unanswered += 1
            if unanswered >= UNANSWERED:
                self._write_line(f"does not work any more; killed (pid {process.pid})")
                process.kill()
                return process.wait()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  for the type checker
        with process.stdout as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                self._lines.append(line)
                self._write_line(line, self.part.shown)

    def _write_line(self, line: str, shown: bool = True) -> None:
        if shown:
            self._say(self.part.name, line)
        self._log.handle(logging.LogRecord("", logging.INFO, "", 0, line, None, None))

    def _set(self, state: str) -> None:
        self._state = state
        self._changed()


class Runner:
    """Runs parts until asked to stop, or until one of them says at the start that it cannot.

    Args:
        parts: what to run, in the order of starting.
        env: environment of every part.
        cwd: working folder of every part.
        logs: folder of one log file a part.
        last: names of the parts that stop only when all others have.
        changed: called with the state of all parts whenever one changes.
        works: by part, tells whether its process works; if not, it is started again.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        env: Mapping[str, str],
        cwd: Path,
        logs: Path,
        last: Iterable[str] = (),
        changed: Callable[[list[PartState]], None] = lambda _: None,
        works: Mapping[str, Callable[[], bool]] | None = None,
    ) -> None:
        works = works or {}
        self._console = Console(max(len(part.name) for part in parts))
        self._changed_lock = threading.Lock()
        self._unreported = False
        self._report = changed
        self._last = frozenset(last)
        colours = get_colours()
        self._colours = {part.name: next(colours) for part in parts}
        self._kept = [
            _Kept(
                part,
                env,
                cwd,
                logs / f"{part.name}.log",
                self._say,
                self._changed,
                self._end,
                works.get(part.name),
            )
            for part in parts
        ]
        self._settled = threading.Event()
        self.problem = ""
        """Why a part cannot start, in its own words; empty if all can."""
        self._asked = threading.Event()
        self._hurried = threading.Event()

    def start(self) -> None:
        """Start every part."""
        for kept in self._kept:
            kept.start()

    def say(self, line: str) -> None:
        """Print a line of the stack itself."""
        self._console.write("stack", line)

    def settle(self) -> None:
        """Say that everything was ready: from now on a part that ends is always started again."""
        self._settled.set()

    def ask_to_stop(self) -> None:
        """Make `wait` return; asked twice, `stop` kills at once."""
        if self._asked.is_set():
            self._hurried.set()
        self._asked.set()

    def wait(self) -> None:
        """Wait until asked to stop."""
        while not self._asked.wait(1):  # in pieces, so that signals are seen
            if self._unreported:
                self._changed()

    def stop(self) -> None:
        """Stop every part and wait until all are gone: SIGTERM, each part's grace, SIGKILL."""
        first = [kept for kept in self._kept if kept.part.name not in self._last]
        last = [kept for kept in self._kept if kept.part.name in self._last]
        for wave in (first, last):
            for kept in wave:
                kept.signal_stop()
            began = time.monotonic()
            waiting = list(wave)
            while waiting:
                for kept in waiting:
                    elapsed = time.monotonic() - began
                    if elapsed > kept.part.grace or self._hurried.is_set():
                        kept.kill()
                waiting = [kept for kept in waiting if not kept.join(0.05)]

    def _say(self, name: str, line: str) -> None:
        self._console.write(name, line, self._colours[name])

    def _end(self, name: str, code: int, told: str) -> bool:
        """Note that a part has ended; return whether it is given up, and all others with it."""
        if code != CANNOT_START or self._settled.is_set():
            return False
        self.problem = self.problem or f"{name} cannot start:\n{told}"
        self._asked.set()
        return True

    def _changed(self) -> None:
        with self._changed_lock:
            try:
                self._report([kept.state for kept in self._kept])
            except OSError as error:  # such as a full disk; no reason to keep nothing running
                if not self._unreported:
                    self.say(f"the state of the stack cannot be written: {error}")
                self._unreported = True
            else:
                self._unreported = False


def _outcome(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"


def install_signals(runner: Runner) -> None:
    """Stop on SIGINT, SIGTERM and the loss of the terminal; a second one hurries."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: runner.ask_to_stop())


def tail(file: Path, count: int = 20) -> str:
    """Return the last lines of a log."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 64 * 1024))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-count:])
