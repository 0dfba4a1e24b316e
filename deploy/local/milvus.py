"""Becomes the stack's Milvus: the real server where its wheel is installed, else Milvus Lite.

The wheel's own `milvus-server` does not notice when its server dies, moves to another port while
old connections of the last run are closing, and outlives SIGTERM; so this prepares what it
prepares and then *is* the server, which the stack can watch and stop like any process. The
server listens on all interfaces; its wheel offers no way to bind it to loopback.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Final

from deploy.local import environment
from deploy.local.ports import find_free

_METRICS_PORT: Final = 9091
_ETCD_PORT: Final = 2379
SEGMENTS: Final = {"maxSize": 2048, "compactableProportion": 0.5}
"""Megabytes, a quarter as many graphs to search as with the default; and small ones are merged as
soon as together they are no longer small, so that fewer are left over."""


def main() -> None:
    """Replace this process by Milvus."""
    _, local = environment.load()
    folder = local.data / "milvus"
    folder.mkdir(parents=True, exist_ok=True)
    metrics_port_file(local).unlink(missing_ok=True)
    if local.real_milvus:
        metrics_port = find_free(_METRICS_PORT, set())
        metrics_port_file(local).write_text(str(metrics_port))
        _become_server(folder / "server", local.milvus_port, metrics_port)
    program = str(Path(sys.executable).parent / "milvus-lite")
    arguments = ["--data-dir", str(folder / "lite"), "--host", "127.0.0.1"]
    os.execv(program, [program, "server", *arguments, "--port", str(local.milvus_port)])  # noqa: S606


def metrics_port_file(local: environment.LocalSettings) -> Path:
    """Return the file with the port of the server's metrics and health; Milvus Lite has none."""
    return local.data / "milvus" / "metrics.port"


def _become_server(folder: Path, port: int, metrics_port: int) -> None:
    import milvus  # noqa: PLC0415  only where its wheel is installed

    class Config(milvus.MilvusServerConfig):  # type: ignore[misc]
        def try_bind_port(self, port: int) -> socket.socket | None:
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.close()
                return None
            return probe

    # An option, unlike a default, is a port that it must get; its helpers' ports still move.
    config = Config(data_dir=str(folder), proxy_port=port)
    # Killed and started again, it loads no collection until the leases of its last run are over.
    config.set("common.session.ttl", 10)
    for name, value in SEGMENTS.items():
        config.set(f"dataCoord.segment.{name}", value)
    config.set("log.level", "warn")
    config.set("log.stdout", "false")
    config.resolve()
    milvus._initialize_data_files(str(folder))
    binary = folder / "bin" / "milvus"
    env = {
        # A search reads memory at random: with huge pages it waits less for the tables of pages.
        "MALLOC_CONF": "thp:always",
        **os.environ,
        "DEPLOY_MODE": "STANDALONE",
        "ETCD_CONFIG_PATH": str(_write_etcd(folder / "configs" / "etcd.yaml")),
        "METRICS_PORT": str(metrics_port),
        "MILVUS_RUN_DIR": str(folder / "run"),
        "LD_LIBRARY_PATH": os.pathsep.join(
            [str(binary.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        ),
    }
    # Much of its talk escapes these options; what it dies of goes to stderr.
    with (folder / "logs" / "stdout.log").open("w") as talk:
        os.dup2(talk.fileno(), 1)
    os.chdir(folder)
    os.execve(binary, [str(binary), "run", "standalone"], env)  # noqa: S606


def _write_etcd(file: Path) -> Path:
    """Give the etcd inside ports of its own: by default two such servers want the same."""
    taken: set[int] = set()
    client, peer = (f"http://127.0.0.1:{find_free(_ETCD_PORT, taken)}" for _ in range(2))
    urls = {
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    file.write_text("".join(f"{name}: {url}\n" for name, url in urls.items()))
    return file


if __name__ == "__main__":
    main()
