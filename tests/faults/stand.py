"""The local stack as a thing to break: its processes, its networks, its disk."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil
import redis

from cra.shared.adapters.object_store import connect
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectRef
from cra.shared.errors import CraError
from deploy.local import readiness
from deploy.local.environment import LocalSettings
from deploy.local.state import PartState, StateFile
from tests.checkpoints import make_checkpoint
from tests.faults.proxy import Proxy
from tests.faults.tally import Tally
from tests.faults.traffic import BUCKET
from tests.servers import free_ports, wait_until
from tests.stack import Stack, local_stack

PARTS: Final = ("redis", "s3", "milvus", "embedding", "gateway", "ingest", "web", "worker", "beat")
NETWORKS: Final = ("redis", "milvus", "s3", "embedding")
"""Servers that services reach through a network which can be broken."""

DISK: Final = "6g"
"""Size of the disk while it is not full."""


class Stand(Tally):
    """A running stack, what was put into it, and the means to break it."""

    def __init__(
        self, stack: Stack, folder: Path, proxies: Mapping[str, Proxy], *, own_disk: bool = False
    ) -> None:
        direct = stack.settings.model_copy(
            update={
                "s3_endpoint": f"127.0.0.1:{stack.env['CRA_S3_PORT']}",
                "milvus_uri": f"http://127.0.0.1:{stack.env['CRA_MILVUS_PORT']}",
            }
        )
        line = redis.Redis(port=int(stack.env["CRA_REDIS_PORT"]), decode_responses=True)
        super().__init__(stack, connect(direct), MilvusVectorStore(direct), line)
        self.folder = folder
        self.proxies = proxies
        self.own_disk = own_disk
        """The data folder is a disk of its own, which can be filled."""
        self._state = StateFile(folder)
        self._local = LocalSettings(
            data_dir=folder,
            s3_port=int(stack.env["CRA_S3_PORT"]),
            milvus_port=int(stack.env["CRA_MILVUS_PORT"]),
        )

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
