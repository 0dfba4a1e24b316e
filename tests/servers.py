"""Real servers for tests: each on free ports of loopback, in a folder of its own."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis
from pydantic import SecretStr

from cra.shared.adapters.object_store import connect
from cra.shared.settings import Settings
from deploy.local import parts
from deploy.local.environment import LocalSettings, ports_of

ROOT = Path(__file__).resolve().parents[1]
NO_METRICS = {name: "0" for name in ports_of(Settings()) if name.endswith("_METRICS_PORT")}
"""Settings of services that run beside others of their kind, which want the same port."""


@dataclass(frozen=True)
class Place:
    """Where a server runs."""

    host: str = "127.0.0.1"
    """Address that it listens on."""
    via: tuple[str, ...] = ()
    """What its command begins with so that it runs there."""
    taken: set[int] = field(default_factory=set)
    """Ports of servers elsewhere, which nobody here sees."""

    def ports(self, count: int) -> list[int]:
        """Return ports that nobody listens on."""
        if not self.via:
            return free_ports(count)
        found = [one for one in free_ports(count + len(self.taken)) if one not in self.taken]
        self.taken.update(found[:count])
        return found[:count]


HERE = Place()

STARTS_WITHIN = 120.0
"""Seconds. The Milvus server takes about 32 on quiet cores."""


def last(seconds: float) -> None:
    """Let time pass, where nothing can be waited for but time: a fault that lasts, traffic."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: False, "time passes", seconds, every=0.5)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below the range that outgoing connections take.

    They are taken a while after they were looked for: tests that run beside each other look in
    ranges of their own.
    """
    found: list[int] = []
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    first = 20_000 + 3_000 * worker
    for port in range(first + (os.getpid() * 37) % 2_000, first + 3_000):
        if len(found) == count:
            return found
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Let nobody else start what looks for ports of its own: two at once would find the same."""
    with Path(tempfile.gettempdir(), f"cra-tests-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float = 30.0, every: float = 0.05
) -> None:
    """Return when `condition` holds, asked `every` so often; fail after so many `seconds`."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        pause.wait(every)


@contextlib.contextmanager
def running(
    command: list[str],
    folder: Path,
    ready: Callable[[], bool],
    env: dict[str, str] | None = None,
    patience: float = 5.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends: SIGTERM to its group, then SIGKILL after `patience`."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **NO_METRICS, **(env or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def up() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"{command[0]} ended: {log.read_text()[-2000:]}")
        return ready()

    try:
        wait_until(up, f"{command[0]} answers", STARTS_WITHIN)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def listens(port: int, host: str = HERE.host) -> bool:
    """Tell whether somebody accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextlib.contextmanager
def redis_server(folder: Path, place: Place = HERE) -> Iterator[str]:
    """Run Redis with an append-only file; yield its URL."""
    (port,) = place.ports(1)
    command = [*place.via, parts.redis_server(folder), "--port", str(port), "--bind", place.host]
    command += ["--dir", str(folder), "--appendonly", "yes", "--save", ""]
    if place is not HERE:  # whose address is as much out of the world's reach
        command += ["--protected-mode", "no"]
    with running(command, folder, lambda: listens(port, place.host)):
        url = f"redis://{place.host}:{port}/0"
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: bool(client.ping()), "Redis answers")
        yield url


@contextlib.contextmanager
def object_store(
    folder: Path, events_port: int | None = None, place: Place = HERE, events: str = ""
) -> Iterator[Settings]:
    """Run SeaweedFS with the bucket `images`; yield settings that reach it.

    Args:
        folder: its data.
        events_port: port of the event receiver; if None, its events go nowhere.
        place: where it runs.
        events: URL of the receiver, instead of its port on loopback.
    """
    ports = place.ports(3)
    settings = Settings(
        s3_endpoint=f"{place.host}:{ports[0]}",
        s3_access_key="tests",
        s3_secret_key=SecretStr("tests-secret"),
        events_port=events_port or ports[1],
        event_token=SecretStr("tests-events"),
    )
    local = LocalSettings(data_dir=folder, s3_port=ports[0])
    # Tests make buckets, so they are the admin.
    users = parts.s3_users(parts.S3User("operator", "operator-secret").take(settings))
    users["admin"] = parts.S3User("tests", "tests-secret")
    command = [str(Path(sys.executable).parent / "weed"), "server"]
    command += [f"-options={folder}/s3/weed.options"]
    command = [*place.via, "sh", "-c", f'cd {folder}/s3 && exec "$@"', "sh", *command]
    client = connect(settings)

    def ready() -> bool:
        if not listens(ports[0], place.host):
            return False
        try:
            if not client.bucket_exists("images"):
                client.make_bucket("images")
        except Exception:  # it listens before it answers
            return False
        return True

    with contextlib.ExitStack() as server:
        with starting():
            env = {"CRA_REDIS_PORT": str(ports[2])}
            parts.configure(settings, local, env, users, place.host, events)
            server.enter_context(running(command, folder, ready))
        yield settings


@contextlib.contextmanager
def milvus(folder: Path, kind: str, place: Place = HERE) -> Iterator[str]:
    """Run the Milvus server or Milvus Lite's; yield its URI."""
    with milvus_process(folder, kind, place) as (uri, _):
        yield uri


@contextlib.contextmanager
def milvus_process(folder: Path, kind: str, place: Place = HERE) -> Iterator[tuple[str, int]]:
    """Run the Milvus server or Milvus Lite's; yield its URI and the process."""
    (port,) = place.ports(1)
    env = {
        "CRA_DATA_DIR": str(folder),
        "CRA_LOCAL_MILVUS": kind,
        "CRA_MILVUS_PORT": str(port),
    }
    (folder / "milvus").mkdir()
    uri = f"http://{place.host}:{port}"

    def ready() -> bool:
        from pymilvus import MilvusClient

        if not listens(port, place.host):
            return False
        try:
            client = MilvusClient(uri=uri, timeout=2, dedicated=True)
            client.list_collections(timeout=2)
            client.close()
        except Exception:  # it listens before it answers
            return False
        return True

    command = [*place.via, sys.executable, "-m", "deploy.local.milvus"]
    if kind == "lite" and place is not HERE:  # the local stack binds it to loopback
        lite = str(Path(sys.executable).parent / "milvus-lite")
        command = [*place.via, lite, "server", "--host", place.host, "--port", str(port)]
        command += ["--data-dir", str(folder / "milvus" / "lite")]
    with contextlib.ExitStack() as server:
        with starting():
            process = server.enter_context(running(command, folder, ready, env, patience=2.0))
        yield uri, process.pid
