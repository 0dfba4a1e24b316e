"""What must hold of the stack in containers, asked from outside."""

import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from cra.shared.client import SearchClient
from cra.shared.errors import CraError
from cra.shared.settings import Settings
from tests.containers.engine import Compose, address_of, docker, inspect, is_up, service_of
from tests.containers.images import TARGETS, VERSION, Image
from tests.datasets import write_files, write_lines
from tests.photos import photograph
from tests.servers import ROOT, wait_until
from tests.stack import Stack

OURS: Final = ("embedding", "gateway", "ingest", "worker", "beat", "web")
SIZES: Final = {"embedding": 2500, "gateway": 300, "ingest": 300, "web": 300}
"""Megabytes that an image may have, but for the first above Python's."""
PHOTOS: Final = 400
WORKERS: Final = 4
REPLICAS: Final = 2
SHARED_WITHIN: Final = 90.0
"""Seconds that a new replica has to get its share."""
FAIR: Final = 0.35
"""The least share of one of two replicas."""
WINDOW: Final = 5.0
"""Seconds over which a share is taken."""
HEALS_WITHIN: Final = 180.0
ASKERS: Final = 4
PAUSE: Final = 0.05
"""Seconds between two queries of one asker."""


@dataclass(frozen=True)
class Row:
    """One check."""

    claim: str
    seen: str


def environment(compose: Compose, ports: dict[str, str]) -> dict[str, str]:
    """Return the settings of an operator outside, and of the one embedding service inside."""
    (embedding, *_) = compose.containers("embedding")
    operator = dotenv_values(ROOT / "deploy" / "compose" / "operator.env")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CRA_")},
        **{name: value or "" for name, value in operator.items()},
        "CRA_GATEWAY_TARGET": f"dns:///127.0.0.1:{ports['CRA_GATEWAY_PORT']}",
        "CRA_INGEST_TARGET": f"dns:///127.0.0.1:{ports['CRA_INGEST_PORT']}",
        # It has no port outside; the engine's own host sees the network of its containers.
        "CRA_EMBEDDING_TARGET": f"ipv4:{address_of(embedding)}:50052",
        "CRA_S3_ENDPOINT": f"127.0.0.1:{ports['CRA_S3_PORT']}",
    }


def start(compose: Compose) -> tuple[float, dict[str, float]]:
    """Bring the stack up; return the seconds until all was healthy, and those of each service.

    A service's seconds are those from its container's start until a look at it, once a second,
    found it healthy.
    """
    healthy: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            for one in compose.containers():
                with contextlib.suppress(AssertionError):  # it has just been removed
                    container = inspect(one)
                    name = service_of(container)
                    if name not in healthy and is_up(container):
                        healthy[name] = _age(container["State"]["StartedAt"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        compose.up()
        wait_until(lambda: all_up(compose), "every container is healthy", 240, every=1.0)
        took = time.monotonic() - began
        wait_until(lambda: len(healthy) == _services(compose), "all are seen", 30, every=1.0)
    finally:
        done.set()
        watcher.join()
    return took, healthy


def _services(compose: Compose) -> int:
    return len({service_of(inspect(one)) for one in compose.containers()})


def _age(started: str) -> float:
    moment = datetime.datetime.fromisoformat(re.sub(r"\.\d+", "", started))
    return (datetime.datetime.now(datetime.UTC) - moment).total_seconds()


def all_up(compose: Compose, service: str = "") -> bool:
    """Tell whether every container of the project, or of a service, is healthy or done."""
    return all(is_up(inspect(one)) for one in compose.containers(service))


def is_closed(compose: Compose) -> Row:
    """Each of our containers runs as nobody in particular, and can write on nothing but its own."""
    for service in OURS:
        for one in compose.containers(service):
            assert docker("exec", one, "id", "-u") == "10001", service
            tried = docker("exec", one, "sh", "-c", "touch /app/x 2>&1 || true")
            assert "Read-only file system" in tried, tried
            state = inspect(one)
            assert state["HostConfig"]["Memory"] > 0, service
            assert state["HostConfig"]["NanoCpus"] > 0, service
    return Row("our containers are not root, on a read-only root, within limits", "all of them")


def images_are_small(images: Sequence[Image]) -> Row:
    """What is pulled before anything starts is no more than was meant."""
    seen = {one.target: one.size if one.target == "embedding" else one.above_base for one in images}
    for target, limit in SIZES.items():
        assert seen[target] < limit, f"{target}: {seen[target]:.0f} MB"
    return Row(
        "embedding under 2.5 GB; gateway, ingest and web under 300 MB above Python's image each",
        ", ".join(f"{target} {seen[target]:.0f} MB" for target in SIZES),
    )


def images_hold_what_they_need() -> Row:
    """No image has a compiler, and only those with towers have torch."""
    for target in TARGETS:
        image = f"cra-{target}:{VERSION}"
        look = (
            "import importlib.util as u, shutil; "
            "print(bool(u.find_spec('torch')), [c for c in ('cc','gcc','g++','clang','make') "
            "if shutil.which(c)])"
        )
        said = docker("run", "--rm", "--entrypoint=python", image, "-c", look)
        assert said == f"{target in {'embedding', 'training'}} []", f"{target}: {said}"
        labels = inspect(image)["Config"]["Labels"]
        assert labels["org.opencontainers.image.title"] == f"cra-{target}"
    return Row("no compiler in any image; torch in embedding and training alone", "all of them")


def training_works() -> Row:
    """The training image tunes a text tower, on a read-only root, and ends with a release."""
    with tempfile.TemporaryDirectory(prefix="cra-pairs-") as folder:
        rows = []
        for number in range(8):
            write_files(Path(folder), f"{number}.png")
            rows.append({"file": f"{number}.png", "caption": f"第{number}座塔", "group": number})
        write_lines(Path(folder) / "captions.jsonl", rows)
        Path(folder).chmod(0o755)
        closed = [
            "--rm",
            "--read-only",
            "--tmpfs=/tmp",
            "--tmpfs=/data:uid=10001",
            "--cap-drop=ALL",
        ]
        options = ["--max-epochs=1", "--threads=1", "--validation-share=0.3", "--test-share=0"]
        image = f"cra-training:{VERSION}"
        began = time.monotonic()
        said = docker(
            "run", *closed, f"--volume={folder}:/pairs:ro", image, "train", "/pairs", *options,
            within=300,
        )  # fmt: skip
    assert re.search(r"^\.data/releases/cra-\w+$", said, re.MULTILINE), said[-2000:]
    return Row(
        "`cra train` tunes a text tower in its container",
        f"8 pairs, one epoch, a release after {time.monotonic() - began:.0f} s",
    )


def demo(env: dict[str, str]) -> Row:
    """The demo's checks hold: puts, searches, changes, releases, recall."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo", "--deployed"],
        cwd=ROOT,
        env={**env, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "everything held" in done.stdout
    found = re.findall(r"^\W*R@20\W+([\d.]+%)", done.stdout, re.MULTILINE)
    return Row("the demo's checks pass from outside", f"R@20 {', '.join(found)}")


@dataclass
class Load:
    """Queries of new texts, from several threads at once."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def load(settings: Settings) -> Iterator[Load]:
    """Ask while the block runs; no text twice, so that each is encoded."""
    told = Load()
    stop = threading.Event()

    def ask(number: int) -> None:
        with SearchClient.of(settings, timeout=20, tries=5) as client:
            count = 0
            while not stop.wait(PAUSE):
                count += 1
                told.asked += 1
                try:
                    client.search(f"第{number}排第{count}座{time.time_ns()}", top_k=1)
                except CraError as error:
                    told.failed.append(error.message)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _received(container: str) -> int:
    """Return the bytes that a container has received."""
    table = docker("exec", container, "cat", "/proc/net/dev")
    line = next(line for line in table.splitlines() if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[0])


def shares(containers: list[str]) -> list[float]:
    """Return the share of each container in what all receive within a while."""
    before = [_received(one) for one in containers]
    threading.Event().wait(WINDOW)
    got = [_received(one) - was for one, was in zip(containers, before, strict=True)]
    return [one / max(1, sum(got)) for one in got]


def embedding_shares(compose: Compose, settings: Settings) -> Row:
    """A second embedding service, added under load, soon does its half of it."""
    with load(settings) as told:
        began = time.monotonic()
        compose.up(embedding=REPLICAS)
        wait_until(lambda: all_up(compose, "embedding"), "the replica is healthy", 120, every=1.0)
        ready = time.monotonic() - began
        containers = compose.containers("embedding")
        assert len(containers) == REPLICAS
        while min(seen := shares(containers)) < FAIR:
            since = time.monotonic() - began - ready
            assert since < SHARED_WITHIN, f"{seen} {since:.0f} s after the replica was healthy"
        after = time.monotonic() - began
    assert not told.failed, told.failed[:3]
    parts = " and ".join(f"{one:.0%}" for one in sorted(seen))
    return Row(
        f"an embedding replica added under load gets its share within {SHARED_WITHIN:.0f} s",
        f"healthy after {ready:.0f} s, {parts} of the traffic {after:.0f} s after it was asked "
        f"for; {told.asked} queries, none failed",
    )


def workers_share(compose: Compose, stack: Stack) -> Row:
    """Several workers share what is put, and all of it is indexed."""
    compose.up(worker=WORKERS)
    wait_until(lambda: all_up(compose, "worker"), "the workers are healthy", 120, every=1.0)
    before = stack.status().indexed
    pictures = [photograph(seed) for seed in range(16)]
    began, since = time.monotonic(), time.time()
    for number in range(PHOTOS):
        # What stands behind a JPEG's end makes it another object of the same picture.
        stack.put(f"shared/{number}.jpg", pictures[number % 16] + b"%d" % number)
    wait_until(stack.settled, "all is indexed", 300, every=0.5)
    took = time.monotonic() - began
    assert stack.status().indexed == before + PHOTOS
    done = Counter({one: _indexed(one, since) for one in compose.containers("worker")})
    assert len(done) == WORKERS
    assert min(done.values()) > 0, done
    assert sum(done.values()) >= PHOTOS, done
    counts = ", ".join(str(one) for one in sorted(done.values()))
    return Row(
        f"{WORKERS} workers share {PHOTOS} photographs of 1600 x 1200",
        f"{counts}; all indexed after {took:.0f} s",
    )


def _indexed(container: str, since: float) -> int:
    # A moment, not so many seconds ago: the command may be long in starting.
    lines = docker("logs", f"--since={int(since)}", container).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return sum(one["images"] for one in events if one["event"] == "indexed")


def embedding_dies(compose: Compose, settings: Settings) -> Row:
    """One of two embedding services is killed under load: no query fails, and it comes back."""
    with load(settings) as told:
        took = _kill(compose, "embedding")
    assert not told.failed, told.failed[:3]
    return Row(
        "one of two embedding services is killed under load: no query fails",
        f"{told.asked} queries; healthy again after {took:.0f} s",
    )


def heals(compose: Compose, service: str, works: Callable[[], bool]) -> Row:
    """A killed container is started again, and does its job."""
    took = _kill(compose, service)
    # What a killed worker had goes back in line after CRA_LEASE_SECONDS.
    wait_until(works, f"{service} does its job", HEALS_WITHIN, every=0.5)
    return Row(f"{service} is killed and heals", f"healthy again after {took:.0f} s")


def _kill(compose: Compose, service: str) -> float:
    """Kill a container's first process; return the seconds until it is healthy again.

    `docker kill` will not do: the engine leaves what it was told to kill as it is.
    """
    one = compose.containers(service)[0]
    state = inspect(one)["State"]
    born, process = state["StartedAt"], state["Pid"]
    outside = ["--rm", "--pid=host", "--user=0", "--entrypoint=python"]
    began = time.monotonic()
    docker("run", *outside, f"cra-init:{VERSION}", "-c", f"import os; os.kill({process}, 9)")

    def back() -> bool:
        state = inspect(one)
        return state["State"]["StartedAt"] != born and is_up(state)

    wait_until(back, f"{service} is back", HEALS_WITHIN, every=0.5)
    return time.monotonic() - began
