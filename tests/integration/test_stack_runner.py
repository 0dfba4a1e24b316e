"""The runner of the local stack, on real processes that misbehave."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cra.shared.server import CANNOT_START
from deploy import stack
from deploy.healthcheck import beats
from deploy.local.parts import Part
from deploy.local.runner import Runner, tail
from deploy.local.state import PartState, StackState, StateFile, birth_of, is_alive
from tests.servers import wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print('child', child.pid, flush=True); time.sleep(600)"
)


class Harness:
    """A runner, the states it reported, and its logs."""

    def __init__(self, folder: Path, last: tuple[str, ...], **programs: str) -> None:
        self.folder = folder
        self.history: list[list[PartState]] = []
        parts = [
            Part(name, (sys.executable, "-c", program), grace=1.0)
            for name, program in programs.items()
        ]
        self.runner = Runner(parts, os.environ, folder, folder, last, self.history.append)

    def state(self, name: str) -> PartState | None:
        """Return the newest state of a part."""
        now = self.history[-1] if self.history else []
        return next((part for part in now if part.name == name), None)

    def running(self, name: str, starts: int = 1) -> int:
        """Wait until a part has written its first line after its n-th start; return its pid."""

        def up() -> bool:
            state = self.state(name)
            lines = self.log(name).count("up") + self.log(name).count("child")
            return state is not None and state.state == "running" and lines >= starts

        wait_until(up, f"{name} runs")
        state = self.state(name)
        assert state is not None
        assert state.pid is not None
        return state.pid

    def log(self, name: str) -> str:
        """Return a part's log."""
        return tail(self.folder / f"{name}.log", 1000)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Make and start a runner, and stop it at the end."""
    made: list[Harness] = []

    def make(last: tuple[str, ...] = (), **programs: str) -> Harness:
        made.append(Harness(tmp_path, last, **programs))
        made[-1].runner.start()
        return made[-1]

    yield make
    for one in made:
        one.runner.stop()


def gone(pid: int) -> bool:
    """Tell whether a process has ended."""
    return birth_of(pid) is None


def test_a_killed_process_comes_back(harness: Callable[..., Harness]) -> None:
    """With nobody's help, and its log says how it ended."""
    stack = harness(part=SLEEPER)
    first = stack.running("part")
    os.kill(first, signal.SIGKILL)
    second = stack.running("part", starts=2)
    assert second != first
    assert "ended by SIGKILL; starting again in 1 s" in stack.log("part")


def test_a_talkative_part_is_read_in_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it writes is kept and not shown; that it ended is shown, and why it cannot start.

    Break: no look at `shown` in `_read`.
    """
    program = f"print('much ado'); raise SystemExit({CANNOT_START})"
    parts = [
        Part("calm", (sys.executable, "-c", "print('a word'); import time; time.sleep(600)"), 1.0),
        Part("loud", (sys.executable, "-c", program), 1.0, shown=False),
    ]
    runner = Runner(parts, os.environ, tmp_path, tmp_path)
    runner.start()
    runner.wait()
    wait_until(lambda: "a word" in tail(tmp_path / "calm.log"), "the other has written")
    runner.stop()
    shown = capfd.readouterr().out
    assert "a word" in shown
    assert "much ado" not in shown
    assert f"ended with code {CANNOT_START}" in shown
    assert "much ado" in tail(tmp_path / "loud.log")
    assert "much ado" in runner.problem


def test_a_state_that_cannot_be_written_ends_nothing(harness: Callable[..., Harness]) -> None:
    """With a full disk parts are still started again, and the state is written when it can be.

    Break: `Runner._changed` that lets OSError through: the part's thread ends, for good.
    """
    stack = harness(part=SLEEPER)
    first = stack.running("part")
    report = stack.history.append
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(_: list[PartState]) -> None:
        raise full

    stack.runner._report = refuse
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: stack.log("part").count("up") == 2, "it is started again")
    stack.runner._report = report
    waiting = threading.Thread(target=stack.runner.wait)
    waiting.start()
    wait_until(lambda: stack.running("part") != first, "the state is written")
    stack.runner.ask_to_stop()
    waiting.join()


def test_what_a_killed_process_leaves_is_killed_before_the_next_start(
    harness: Callable[..., Harness],
) -> None:
    """No orphan keeps a port or a task."""
    stack = harness(part=PARENT)
    leader = stack.running("part")
    child = int(stack.log("part").split()[1])
    os.kill(leader, signal.SIGKILL)
    wait_until(lambda: gone(child), "the child is gone", 5)
    stack.running("part", starts=2)


def test_stop_kills_what_ignores_sigterm_and_its_children(
    harness: Callable[..., Harness],
) -> None:
    """Nothing outlives the stack, however it takes SIGTERM."""
    stack = harness(deaf=DEAF, parent=PARENT)
    deaf, parent = stack.running("deaf"), stack.running("parent")
    child = int(stack.log("parent").split()[1])
    stack.runner.stop()
    assert gone(deaf)
    assert gone(parent)
    assert gone(child)
    assert "still there; killed" in stack.log("deaf")


def test_foundations_stop_after_what_stands_on_them(harness: Callable[..., Harness]) -> None:
    """A service drains while its broker still runs."""
    stack = harness(last=("redis",), redis=SLEEPER, service=DEAF)
    redis = stack.running("redis")
    service = stack.running("service")
    stopping = threading.Thread(target=stack.runner.stop)
    stopping.start()
    wait_until(lambda: gone(service), "the service is gone", 5)
    stopping.join(5)
    assert gone(redis)
    history = [{part.name: part.state for part in states} for states in stack.history]
    assert {"redis": "running", "service": "stopped"} in history


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """The log says which program is missing."""
    part = Part("ghost", ("no-such-program-at-all",), 1.0)
    runner = Runner([part], os.environ, tmp_path, tmp_path)
    runner.start()
    log = tmp_path / "ghost.log"
    wait_until(lambda: "cannot start no-such-program-at-all" in tail(log), "the log says so", 5)
    runner.stop()


def test_a_part_that_can_never_start_stops_the_stack(harness: Callable[..., Harness]) -> None:
    """It is not started for ever; the reason is what it wrote last."""
    stack = harness(hopeless="print('no model', flush=True); raise SystemExit(78)", fine=SLEEPER)
    stack.runner.wait()
    assert stack.runner.problem == "hopeless cannot start:\nno model"
    stack.runner.stop()
    state = stack.state("hopeless")
    assert state is not None
    assert (state.state, state.starts) == ("stopped", 1)


def test_once_everything_was_ready_every_part_is_started_again(
    harness: Callable[..., Harness], tmp_path: Path
) -> None:
    """What keeps one of them away may be over soon, and the others go on meanwhile."""
    flag = tmp_path / "flag"
    waits = (
        f"import pathlib, time; print('up', flush=True); flag = pathlib.Path({str(flag)!r})\n"
        "while not flag.exists(): time.sleep(0.01)\n"
        "raise SystemExit(78)"
    )
    stack = harness(part=waits)
    stack.running("part")
    stack.runner.settle()
    flag.touch()
    log = "ended with code 78; starting again in 1 s"
    wait_until(lambda: log in stack.log("part"), "it is to be started again")
    assert stack.runner.problem == ""


def test_leftovers_of_a_killed_stack_are_found_and_killed(tmp_path: Path) -> None:
    """A stack that was itself killed does not block the next one."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    threading.Thread(target=process.wait).start()  # reap it, as init would
    file = StateFile(tmp_path)
    assert file.acquire()
    left = PartState("part", "running", process.pid, birth_of(process.pid), 1, 0.0)
    file.write(StackState(2**22 - 1, "1", [left]))
    assert file.running() is None
    assert file.kill_leftovers() == ["part"]
    assert gone(process.pid)


def test_what_a_killed_runner_left_is_shown_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make status` says that the runner is gone and what is left; `make down` says what it stops.

    Break: `return False` for leftovers in `down`, or no `leftovers` in `status`.
    """
    monkeypatch.setattr(os, "environ", {**os.environ, "CRA_DATA_DIR": str(tmp_path)})
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    threading.Thread(target=process.wait).start()
    file = StateFile(tmp_path)
    assert file.acquire()
    left = PartState("part", "running", process.pid, birth_of(process.pid), 1, 0.0)
    file.write(StackState(2**22 - 1, "1", [left]))

    def said(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stack", command])
        with contextlib.suppress(SystemExit):
            stack.main()
        return capsys.readouterr().out

    told = said("status")
    alive = not gone(process.pid)
    stopped = said("down")
    assert alive
    assert f"was killed, and left part (pid {process.pid}); `make down` stops them" in told
    assert "stopped part, left over" in stopped
    assert "no stack was up" not in stopped
    assert gone(process.pid)
    assert said("down") == "no stack was up\n"
    assert said("status").startswith("no stack is up in ")


def test_another_process_with_a_leftover_s_pid_is_left_alone() -> None:
    """Pids are used again; when a process was born tells them apart."""
    assert is_alive(os.getpid(), birth_of(os.getpid()))
    assert not is_alive(os.getpid(), "1")


def test_only_one_stack_runs_in_a_data_folder(tmp_path: Path) -> None:
    """The second one is refused, while the first one lives."""
    first, second = StateFile(tmp_path), StateFile(tmp_path)
    assert first.acquire()
    assert not second.acquire()


FROZEN = (
    "import pathlib, sys, time\n"
    "file = pathlib.Path(sys.argv[1]); print('up', flush=True)\n"
    "while True: file.touch(); time.sleep(0.02)"
)


def test_what_does_not_work_any_more_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is there and stands still is killed, and its successor works.

    One that has never said that it works has its time to start. Broken on purpose: with
    `process.wait()` in place of `_wait`, it stands still for ever.
    """
    monkeypatch.setattr("deploy.local.runner.ASKED_EVERY", 0.1)
    monkeypatch.setattr("deploy.healthcheck.FRESH", 0.5)
    sign, late = tmp_path / "sign", tmp_path / "late"
    parts = [
        Part("frozen", (sys.executable, "-c", FROZEN, str(sign)), 1.0),
        Part("starting", (sys.executable, "-c", SLEEPER), 1.0),
    ]
    works = {"frozen": lambda: beats(sign), "starting": lambda: beats(late)}
    history: list[list[PartState]] = []
    runner = Runner(parts, os.environ, tmp_path, tmp_path, (), history.append, works)
    runner.start()
    try:
        wait_until(lambda: beats(sign), "it works")
        state = history[-1][0]
        assert state.pid is not None
        os.kill(state.pid, signal.SIGSTOP)
        log = tmp_path / "frozen.log"
        wait_until(lambda: "does not work any more; killed" in tail(log), "it is noticed", 10)
        wait_until(lambda: history[-1][0].starts == 2 and beats(sign), "it works again", 10)
        assert history[-1][1].starts == 1
    finally:
        runner.stop()
