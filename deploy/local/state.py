"""What a running stack leaves on disk for the commands that ask after it: lock and state."""

import fcntl
import json
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

_KILL_WAIT = 10.0


@dataclass(frozen=True)
class PartState:
    """One process as the runner sees it."""

    name: str
    state: str
    """`running`, `waiting` (for a restart) or `stopped`."""
    pid: int | None
    birth: str | None
    """With the pid, which process: pids are used again."""
    starts: int
    since: float
    """Unix seconds of its last start."""


@dataclass(frozen=True)
class StackState:
    """The whole stack."""

    pid: int
    birth: str | None
    parts: list[PartState] = field(default_factory=list)


class StateFile:
    """The lock and the state of the stack of one data folder."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "run"
        self._file = self._folder / "stack.json"
        self._lock: TextIO | None = None

    def acquire(self) -> bool:
        """Take the lock for as long as this process lives; False if another stack has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def write(self, state: StackState) -> None:
        """Replace the state in one step."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(asdict(state), indent=1))
        new.replace(self._file)

    def read(self) -> StackState | None:
        """Return the last state written, by a stack that may be gone by now."""
        try:
            raw = json.loads(self._file.read_text())
        except FileNotFoundError:
            return None
        parts = [PartState(**part) for part in raw.pop("parts")]
        return StackState(**raw, parts=parts)

    def running(self) -> StackState | None:
        """Return the state of a stack that is up; None if none is."""
        state = self.read()
        return state if state is not None and is_alive(state.pid, state.birth) else None

    def clear(self) -> None:
        """Forget the state."""
        self._file.unlink(missing_ok=True)

    def leftovers(self) -> list[PartState]:
        """Return what still runs of a stack that was itself killed."""
        state = self.read()
        return [
            part
            for part in (state.parts if state else [])
            if part.pid is not None and is_alive(part.pid, part.birth)
        ]

    def kill_leftovers(self) -> list[str]:
        """Kill what a stack left behind that was itself killed; return the names."""
        left = self.leftovers()
        for part in left:
            kill_group(part.pid or 0)
        return [part.name for part in left]


def birth_of(pid: int) -> str | None:
    """Return when a process started, in a form only good for comparing; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else fields[19]


def is_alive(pid: int, birth: str | None) -> bool:
    """Tell whether this very process still runs."""
    if not Path("/proc/self/stat").exists():  # not Linux: the pid is all there is
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    return birth is not None and birth_of(pid) == birth


def kill_group(group: int) -> None:
    """Kill what is left of a process group and wait until it is gone."""
    deadline = time.monotonic() + _KILL_WAIT
    while time.monotonic() < deadline:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS denies it where only zombies are left
            return
        time.sleep(0.05)
