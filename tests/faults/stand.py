"""The local stack as a thing to break: its processes, its networks, its disk, and counts of ours.

Counts are taken beside the services, from the bucket, the index and the failure list themselves,
and compared with what the writer knows must be there.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import psutil
import redis

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.shared.adapters.object_store import connect
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectRef
from cra.shared.errors import CraError
from deploy.local import readiness
from deploy.local.environment import LocalSettings
from deploy.local.state import PartState, StateFile
from tests.checkpoints import make_checkpoint
from tests.faults.proxy import Proxy
from tests.faults.traffic import BUCKET, Record, Writer
from tests.servers import free_ports, wait_until
from tests.stack import Stack, local_stack

PARTS: Final = ("redis", "s3", "milvus", "embedding", "gateway", "ingest", "web", "worker", "beat")
NETWORKS: Final = ("redis", "milvus", "s3", "embedding")
"""Servers that services reach through a network which can be broken."""

ANCHORS: Final = 30
COUNTS_APART: Final = 1.0
"""Seconds between two counts."""

DISK: Final = "6g"
"""Size of the disk while it is not full."""


@dataclass
class Sums:
    """What is where, counted beside the services; each list should be as its name says."""

    objects: int = 0
    indexed: int = 0
    """At the current ETag, once."""
    failed: Counter[str] = field(default_factory=Counter)
    """Objects on the failure list at their current ETag, by reason."""
    lost: list[str] = field(default_factory=list)
    """In the bucket, and neither indexed nor on the failure list at their current ETag."""
    unkept: list[str] = field(default_factory=list)
    """Acknowledged by the store, and not there as written; or deleted and there."""
    duplicates: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """Rows of another version than the object's, or of an object on the failure list."""
    blamed: list[str] = field(default_factory=list)
    """On the failure list with nothing wrong with them."""
    status: str = ""
    """In what GetStatus says otherwise."""

    def problems(self) -> list[str]:
        """Return what does not add up, in words."""
        found = [
            f"{len(keys)} {name}, such as {keys[0]}"
            for name in ("lost", "unkept", "duplicates", "orphans", "stale", "blamed")
            if (keys := getattr(self, name))
        ]
        return [*found, self.status] if self.status else found


class Stand:
    """A running stack, what was put into it, and the means to break it."""

    def __init__(
        self, stack: Stack, folder: Path, proxies: Mapping[str, Proxy], *, own_disk: bool = False
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.proxies = proxies
        self.own_disk = own_disk
        """The data folder is a disk of its own, which can be filled."""
        self.record = Record()
        self.anchors: dict[str, bytes] = {}
        self._state = StateFile(folder)
        direct = stack.settings.model_copy(
            update={
                "s3_endpoint": f"127.0.0.1:{stack.env['CRA_S3_PORT']}",
                "milvus_uri": f"http://127.0.0.1:{stack.env['CRA_MILVUS_PORT']}",
            }
        )
        self.bucket = connect(direct)
        self.index = MilvusVectorStore(direct)
        self.redis = redis.Redis(port=int(stack.env["CRA_REDIS_PORT"]), decode_responses=True)
        self._local = LocalSettings(
            data_dir=folder,
            s3_port=int(stack.env["CRA_S3_PORT"]),
            milvus_port=int(stack.env["CRA_MILVUS_PORT"]),
        )
        self.tower = stack.status().image_tower

    def close(self) -> None:
        """Close connections."""
        self.index.close()
        self.redis.close()

    # Its processes.

    def part(self, name: str) -> PartState:
        """Return a part as the stack's runner sees it, when it runs."""
        found: list[PartState] = []

        def runs() -> bool:
            state = self._state.running()
            assert state is not None, "the stack itself has ended"
            found[:] = [part for part in state.parts if part.name == name and part.pid]
            return bool(found) and psutil.pid_exists(found[0].pid or 0)

        wait_until(runs, f"{name} runs", 60)
        return found[0]

    def pid(self, name: str) -> int:
        """Return the process that leads a part."""
        pid = self.part(name).pid
        assert pid is not None
        return pid

    def kill_children(self, name: str, told: str) -> None:
        """Kill the processes below a part whose command line holds `told`; at least one."""
        killed = []
        for process in psutil.Process(self.pid(name)).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if told in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process)
        assert killed, f"{name} has no process {told!r}"
        _, alive = psutil.wait_procs(killed, timeout=10)
        assert not alive

    def kill(self, *names: str) -> None:
        """Kill parts with SIGKILL, and wait until the runner has started each anew."""
        before = {name: self.part(name) for name in names}
        for part in before.values():
            os.kill(part.pid or 0, signal.SIGKILL)
        for name, part in before.items():
            wait_until(lambda n=name, p=part: self.part(n).starts > p.starts, f"{name} anew", 60)  # type: ignore[misc]

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Stop a part and all its processes, until the block ends."""
        group = self.pid(name)
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)

    def in_mid_batch(self) -> None:
        """Wait until a worker holds objects."""
        wait_until(lambda: int(self.redis.zcard("cra:claimed")) > 0, "a worker is at work")

    # Its disk.

    def fill_disk(self) -> None:
        """Leave no byte free in the data folder."""

        def full() -> bool:
            # What was written in between makes it too small to be taken.
            used = psutil.disk_usage(str(self.folder)).used
            return _remount(self.folder, f"{used // 1024}k")

        wait_until(full, "the disk is full", 10)

    def free_disk(self) -> None:
        """Give it its room back."""
        assert _remount(self.folder, DISK)

    # Whether it is well.

    def missing(self) -> list[str]:
        """Return the parts that do not do their jobs."""
        missing = readiness.missing(readiness.probes(self.stack.settings, self._local))
        state = self._state.running()
        running = {part.name for part in state.parts if part.pid} if state else set()
        try:
            if not self.index.records(self.tower, [ObjectRef(BUCKET, next(iter(self.anchors)))]):
                missing.append("milvus")
        except CraError:
            missing.append("milvus")
        return sorted({*missing, *(set(PARTS) - running)})

    def sums(self) -> Sums:
        """Count everything.

        Raises:
            Exception: in the ways of each SDK, while a part does not answer.
        """
        sums = Sums()
        listed = {
            item.object_name or "": (item.etag or "").strip('"')
            for item in self.bucket.list_objects(BUCKET, recursive=True)
        }
        wanted = {key: content.etag for key, content in self.record.there.items()}
        sums.objects = len(listed)
        sums.unkept = sorted(
            key for key in {*listed, *wanted} if listed.get(key) != wanted.get(key)
        )
        rows = list(self.index.entries(self.tower))
        keys = Counter(row.ref.key for row in rows)
        sums.duplicates = [key for key, count in keys.items() if count > 1]
        sums.orphans = [key for key in keys if key not in listed]
        failures = {failure.image_id: failure for failure in self.failures()}
        current = {
            str(image_id).removeprefix(f"{BUCKET}/"): failure.reason
            for image_id, failure in failures.items()
            if failure.etag == listed.get(image_id.removeprefix(f"{BUCKET}/"))
        }
        sums.failed = Counter(current.values())
        sums.stale = [
            row.ref.key
            for row in rows
            if row.ref.key in current or row.version.etag != listed.get(row.ref.key, "")
        ]
        at_current = {row.ref.key for row in rows if row.version.etag == listed.get(row.ref.key)}
        sums.indexed = len(at_current)
        sums.lost = [key for key in listed if key not in at_current and key not in current]
        sums.blamed = [key for key in current if key in self.record.there and self.good(key)]
        status = self.stack.status()
        said = (status.objects, status.indexed, status.failed)
        left = (status.waiting, status.unaccounted, status.stale, status.orphaned)
        ours = (sums.objects, sums.indexed, sum(sums.failed.values()))
        if said != ours or any(left) or status.down:
            sums.status = (
                f"status says (objects, indexed, failed) {said}, counted are {ours}; waiting, "
                f"unaccounted, stale, orphaned: {left}; down: {list(status.down)}"
            )
        return sums

    def good(self, key: str) -> bool:
        """Tell whether what is there is an image."""
        return self.record.there[key].good

    def failures(self) -> list[ingest.Failure]:
        """Return the failure list."""
        found: list[ingest.Failure] = []
        token = ""
        while True:
            request = ingest.ListFailuresRequest(page_size=1000, page_token=token)
            page = self.stack.ingest.ListFailures(request, timeout=20)
            found += page.failures
            token = page.next_page_token
            if not token:
                return found

    def heal(self, seconds: float) -> tuple[Sums, float, list[str]]:
        """Wait until everything adds up, or so many seconds; return counts, time and problems."""
        began = time.monotonic()
        sums, problems = Sums(), ["nothing could be counted"]

        def healed() -> bool:
            nonlocal sums, problems
            try:
                sums = self.sums()
                problems = sums.problems()
            except Exception as error:  # whatever does not answer yet
                problems = [f"cannot be counted: {error!r}"]
            return not problems

        with contextlib.suppress(AssertionError):
            wait_until(healed, "it adds up", seconds, every=COUNTS_APART)
        return sums, time.monotonic() - began, problems

    def indexed(self) -> set[str]:
        """Return the keys in the index."""
        return {entry.ref.key for entry in self.index.entries(self.tower)}

    def next_reconcile(self) -> str:
        """Wait until the next reconcile has ended; return why it stopped, if it did."""
        asked = time.time()
        found: list[ingest.ReconcileSummary] = []

        def done() -> bool:
            with contextlib.suppress(grpc.RpcError):
                found[:] = [self.stack.status().last_reconcile]
            return bool(found) and found[0].started_at.ToNanoseconds() / 1e9 > asked

        wait_until(done, "the next reconcile", 150, every=COUNTS_APART)
        return found[0].stopped

    def delete_share(self, share: float) -> set[str]:
        """Delete this share of what is there, anchors aside.

        Returns the keys that were indexed, without those in line: a worker looks at them anyway.
        """
        keys = sorted(key for key in self.record.there if key not in self.anchors)
        gone = set(keys[: round(share * len(keys))])
        in_line = {
            str(image_id).removeprefix(f"{BUCKET}/")
            for line in ("cra:waiting", "cra:claimed")
            for image_id in self.redis.zrange(line, 0, -1)
        }
        indexed = (gone & self.indexed()) - in_line
        for key in gone:
            Writer(self.bucket, self.record, 0, 0).delete(key)
        return indexed

    def fill(self) -> None:
        """Put the anchors, which nobody changes, and wait until they are indexed."""
        writer = Writer(self.bucket, self.record, 0, 0)
        for number in range(ANCHORS):
            key = f"anchors/{number}.jpg"
            writer.put(key)
            self.anchors[key] = self.record.there[key].data
        _, _, problems = self.heal(120)
        assert not problems, problems


@contextlib.contextmanager
def running(folder: Path, milvus: str, **changes: str) -> Iterator[Stand]:
    """Run the stack behind proxies, and on a disk of its own where that is allowed.

    Args:
        folder: where its data and model go.
        milvus: `server` or `lite`.
        changes: of its environment, without `CRA_`.
    """
    model = make_checkpoint(folder / "model")
    data = folder / "data"
    data.mkdir()
    own_disk = _mount(data)
    # Not the first that are free, which the stack will take for its services.
    last = free_ports(24)[-2 * len(NETWORKS) :]
    servers = dict(zip(NETWORKS, last[: len(NETWORKS)], strict=True))
    networks = dict(zip(NETWORKS, last[len(NETWORKS) :], strict=True))
    with contextlib.ExitStack() as cleanup:
        if own_disk:
            cleanup.callback(subprocess.run, ["umount", str(data)], check=True)
        proxies = {name: Proxy(networks[name], servers[name]) for name in NETWORKS}
        for proxy in proxies.values():
            cleanup.callback(proxy.close)
        stack = cleanup.enter_context(
            local_stack(
                data,
                model,
                milvus,
                **{f"{name.upper()}_PORT": str(port) for name, port in servers.items()},
                LOCAL_DETOUR="true",
                EMBEDDING_TARGET=f"dns:///127.0.0.1:{networks['embedding']}",
                S3_ENDPOINT=f"127.0.0.1:{networks['s3']}",
                MILVUS_URI=f"http://127.0.0.1:{networks['milvus']}",
                REDIS_URL=f"redis://127.0.0.1:{networks['redis']}/0",
                **changes,
            )
        )
        made = Stand(stack, data, proxies, own_disk=own_disk)
        cleanup.callback(made.close)
        made.fill()
        yield made


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _remount(folder: Path, size: str) -> bool:
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
