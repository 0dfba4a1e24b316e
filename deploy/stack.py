"""The local stack: `python -m deploy.stack up`, `down` or `status`, from the repository."""

import argparse
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Final

from cra.shared.settings import Settings
from deploy.local import environment, readiness
from deploy.local.environment import ROOT, LocalSettings, StackError
from deploy.local.parts import (
    FOUNDATIONS,
    Part,
    S3User,
    configure,
    read_procfile,
    redis_server,
    s3_users,
)
from deploy.local.runner import Runner, install_signals, tail
from deploy.local.state import PartState, StackState, StateFile, birth_of, is_alive

READY_SECONDS: Final = 240.0
"""Time for everything to be ready, on a slow machine too."""
_STOP_SECONDS: Final = 120.0


def up() -> None:
    """Run the stack in the foreground until Ctrl-C or SIGTERM.

    Raises:
        StackError: it, or one of its parts, cannot start; the message says why.
    """
    settings, local = environment.load()
    file = StateFile(local.data)
    if not file.acquire():
        raise StackError(_is_up(file, local))
    for name in file.kill_leftovers():
        print(f"stopped {name}, left over from a stack that was killed")
    environment.check_ports(settings, local)
    server = redis_server(local.data / "redis")
    env = environment.build(settings, local) | {"CRA_REDIS_SERVER": server}
    users = s3_users(settings)
    configure(settings, local, env, users)
    published = environment.publish(local, env)
    settings = environment.join(local)

    def record(parts: list[PartState]) -> None:
        file.write(StackState(os.getpid(), birth_of(os.getpid()), parts))

    parts = read_procfile(env, settings.drain_seconds, users)
    # Held here, so that events wait while ingest is started again: the object store tries none of
    # those that are refused a second time, and deletions that were lost could be more than a
    # reconcile may remove.
    try:
        events = socket.create_server((settings.host, settings.events_port))
    except OSError as error:
        raise StackError(f"CRA_EVENTS_PORT={settings.events_port}: {error.strerror}") from error
    parts = [_handed(part, events) if part.name == "ingest" else part for part in parts]
    works = readiness.signs_of_life(settings, local, users["admin"].take(settings))
    runner = Runner(parts, env, ROOT, local.data / "logs", FOUNDATIONS, record, works)
    install_signals(runner)
    record([])
    stopping = threading.Event()
    watcher = threading.Thread(
        target=_announce, args=(runner, settings, local, users["admin"], stopping), daemon=True
    )
    runner.say(f"logs are kept in {local.data / 'logs'}; for `cra` in another shell:")
    runner.say(f"    export CRA_ENV_FILE={published}")
    if lacking := _lacks_key(settings):
        runner.say(lacking)
    runner.start()
    watcher.start()
    runner.wait()
    stopping.set()
    runner.say("stopping; once more to kill at once")
    runner.stop()
    events.close()
    file.clear()
    runner.say("stopped")
    if runner.problem:
        raise StackError(runner.problem)


def _handed(part: Part, listener: socket.socket) -> Part:
    number = listener.fileno()
    own = {**part.own, "CRA_EVENTS_FD": str(number)}
    return dataclasses.replace(part, own=own, descriptors=(number,))


def launch() -> LocalSettings:
    """Start the stack in the background; `await_ready` waits for it.

    Raises:
        StackError: it is up already, cannot start, or would never be ready.
    """
    settings, local = environment.load()
    file = StateFile(local.data)
    if file.running() is not None:
        raise StackError(_is_up(file, local))
    if lacking := _lacks_key(settings):  # it would be waited for in vain
        raise StackError(lacking)
    log = local.data / "logs" / "stack.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.stack", "up"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while file.running() is None:
        if process.poll() is not None:
            raise StackError(tail(log))
        time.sleep(0.1)
    return local


def await_ready(local: LocalSettings) -> Settings:
    """Wait until a stack that was launched is ready; return its settings.

    Raises:
        StackError: it does not become ready; then nothing of it is left running.
    """
    settings = environment.join(local)
    try:
        readiness.wait(settings, local, StateFile(local.data), READY_SECONDS)
    except BaseException:
        down(local)
        raise
    return settings


def down(local: LocalSettings | None = None) -> bool:
    """Stop the stack, or what is left of it, and wait until all is gone; False if nothing was up.

    Raises:
        StackError: it does not end.
    """
    if local is None:
        _, local = environment.load()
    file = StateFile(local.data)
    state = file.running()
    if state is None:
        left = file.kill_leftovers()
        for name in left:
            print(f"stopped {name}, left over from a stack that was killed")
        file.clear()
        return bool(left)
    os.kill(state.pid, signal.SIGTERM)
    began = time.monotonic()
    line = readiness.Line()
    while is_alive(state.pid, state.birth):
        elapsed = time.monotonic() - began
        if elapsed > _STOP_SECONDS:
            line.end()
            raise StackError(f"process {state.pid} does not end; see {local.data / 'logs'}")
        now = file.read()
        left = [part.name for part in now.parts if part.state != "stopped"] if now else []
        line.show(f"stopping {', '.join(left or ['the runner'])}", elapsed)
        time.sleep(0.2)
    line.end()
    return True


def status() -> bool:
    """Print the state of each part; True if all are up and ready."""
    _, local = environment.load()
    file = StateFile(local.data)
    state = file.running()
    if state is None:
        left = ", ".join(f"{part.name} (pid {part.pid})" for part in file.leftovers())
        gone = f"the runner in {local.data} was killed, and left {left}; `make down` stops them"
        print(gone if left else f"no stack is up in {local.data}")
        return False
    settings = environment.join(local)
    _, local = environment.load()  # with the ports of the stack that is up, wherever they were set
    unready = readiness.missing(readiness.probes(settings, local))
    for part in state.parts:
        age = f"{time.time() - part.since:.0f} s" if part.state == "running" else "-"
        told = "not ready" if part.name in unready else ""
        print(
            f"{part.name:10} {part.state:8} pid {part.pid or '-':>7} {age:>9} "
            f"restarts {max(0, part.starts - 1):>3}  {told}".rstrip()
        )
    return not unready and all(part.state == "running" for part in state.parts)


def _announce(
    runner: Runner,
    settings: Settings,
    local: LocalSettings,
    admin: S3User,
    stopping: threading.Event,
) -> None:
    for bucket in readiness.make_buckets(admin.take(settings), stopping.is_set):
        runner.say(f"made the bucket {bucket}")
    questions = readiness.probes(settings, local)
    began = time.monotonic()
    while readiness.missing(questions):
        if stopping.wait(1):
            return
    runner.settle()
    runner.say(f"everything is ready after {time.monotonic() - began:.0f} s")
    runner.say(f"the search page is at http://127.0.0.1:{settings.web_port}")


def _lacks_key(settings: Settings) -> str:
    """Return that the search page has no key to show the gateway; empty if it needs none."""
    if not settings.api_keys_file or settings.api_key.get_secret_value():
        return ""
    return (
        "the search page needs CRA_API_KEY, a key of CRA_API_KEYS_FILE (`cra keys add`): the "
        "gateway refuses its searches, and it does not become ready"
    )


def _is_up(file: StateFile, local: LocalSettings) -> str:
    state = file.running()
    process = f" (process {state.pid})" if state else ""
    return f"a stack is up already in {local.data}{process}; `make down` stops it"


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start everything and show its logs; Ctrl-C stops it")
    start.add_argument(
        "--detach", action="store_true", help="return once all is ready; `down` stops it"
    )
    commands.add_parser("down", help="stop a stack that was started elsewhere")
    commands.add_parser("status", help="show every process; exits 1 unless all are ready")
    options = parser.parse_args()
    try:
        if options.command == "up" and options.detach:
            settings = await_ready(launch())
            print(
                f"everything is ready; the search page is at http://127.0.0.1:{settings.web_port}"
            )
        elif options.command == "up":
            up()
        elif options.command == "down":
            print("stopped" if down() else "no stack was up")
        elif not status():
            sys.exit(1)
    except StackError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
