"""The environment of the local stack: settings, the env file, and what follows from them."""

import os
import shlex
import sys
import urllib.parse
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from dotenv import dotenv_values
from pydantic import Field

from cra.shared.errors import FailedPreconditionError
from cra.shared.settings import EnvironmentSettings, Port, Settings
from deploy.local.ports import find_free, holder, is_free

ROOT: Final = Path(__file__).resolve().parents[2]
"""The repository."""
ENV_FILE: Final = ROOT / "deploy" / "local.env"

_BIN: Final = Path(sys.executable).parent
"""Where the programs of this Python environment are."""


class StackError(Exception):
    """The stack cannot do as told; the message is for people."""


def _port_of(setting: str) -> int:
    default = Settings.model_fields[setting].default
    text = default if isinstance(default, str) else default.get_secret_value()
    port = urllib.parse.urlsplit(text if "://" in text else f"//{text}").port
    if port is None:
        raise ValueError(f"the default of {setting} names no port")
    return port


class LocalSettings(EnvironmentSettings):
    """Settings that only the local stack has."""

    data_dir: Path = Field(Path(".data"), description="folder of all data of the local stack")
    local_milvus: Literal["auto", "server", "lite"] = Field(
        "auto", description="which Milvus runs; auto: the server where its wheel is installed"
    )
    s3_port: Port = Field(_port_of("s3_endpoint"), description="port of the object store")
    milvus_port: Port = Field(_port_of("milvus_uri"), description="port of Milvus")
    redis_port: Port = Field(
        _port_of("redis_url"), description="port of Redis; the next free one if it is taken"
    )

    local_detour: bool = Field(
        False,
        description="services reach the servers at the addresses that are set, where something "
        "stands between that leads on to the local stack's own",
    )

    @property
    def data(self) -> Path:
        """The data folder, absolute."""
        return ROOT / self.data_dir

    @property
    def real_milvus(self) -> bool:
        """Run the Milvus server, not Milvus Lite."""
        if self.local_milvus == "auto":
            return find_spec("milvus") is not None
        return self.local_milvus == "server"


def load() -> tuple[Settings, LocalSettings]:
    """Put the env file's values below the environment's own and read the settings.

    Raises:
        StackError: names each variable that is wrong.
    """
    for name, value in dotenv_values(ENV_FILE).items():
        os.environ.setdefault(name, value or "")
    try:
        return Settings.load(), LocalSettings.load()
    except FailedPreconditionError as error:
        raise StackError(error.message) from error


def derive(settings: Settings, local: LocalSettings) -> dict[str, str]:
    """Return the variables that follow from the ports.

    Raises:
        StackError: the environment says something else.
    """
    derived = {
        "CRA_GATEWAY_TARGET": f"dns:///127.0.0.1:{settings.gateway_port}",
        "CRA_EMBEDDING_TARGET": f"dns:///127.0.0.1:{settings.embedding_port}",
        "CRA_INGEST_TARGET": f"dns:///127.0.0.1:{settings.ingest_port}",
        "CRA_S3_ENDPOINT": f"127.0.0.1:{local.s3_port}",
        "CRA_MILVUS_URI": f"http://127.0.0.1:{local.milvus_port}",
    }
    if local.local_detour:
        return {name: os.environ.get(name, value) for name, value in derived.items()}
    for name, value in derived.items():
        if os.environ.get(name, value) != value:
            port = name.replace("_TARGET", "_PORT").replace("_ENDPOINT", "_PORT")
            raise StackError(
                f"{name} is {os.environ[name]!r}, but the local stack runs its own server at "
                f"{value!r}: unset it, and set {port.replace('_URI', '_PORT')} to move the port"
            )
    return derived


def ports_of(settings: Settings) -> dict[str, int]:
    """Return the ports that our services listen on, by setting; 0 where none is wanted."""
    return {
        f"CRA_{name.upper()}": getattr(settings, name)
        for name in Settings.model_fields
        if name.endswith("_port")
    }


def check_ports(settings: Settings, local: LocalSettings) -> None:
    """Check that every port that is not moved by itself is free.

    Raises:
        StackError: names each port that is taken, the setting that moves it and who holds it.
    """
    needed = {
        **{name: (port, settings.host) for name, port in ports_of(settings).items()},
        "CRA_S3_PORT": (local.s3_port, "127.0.0.1"),
        "CRA_MILVUS_PORT": (local.milvus_port, "127.0.0.1"),
    }
    problems = []
    seen: dict[int, str] = {}
    for name, (port, host) in needed.items():
        if port == 0:  # none is wanted
            continue
        if port in seen:
            problems.append(f"port {port} is given to both {seen[port]} and {name}")
        elif not is_free(port, host):
            process = holder(port)
            problems.append(
                f"port {port} is taken{f' by process {process}' if process else ''}: "
                f"stop that, or move ours with {name}=ANOTHER"
            )
        seen[port] = name
    if problems:
        raise StackError("\n".join(problems))


def build(settings: Settings, local: LocalSettings) -> dict[str, str]:
    """Return the complete environment of the stack's processes.

    Raises:
        StackError: the environment contradicts what follows from the ports.
    """
    redis_port = find_free(local.redis_port, set())
    redis_url = f"redis://127.0.0.1:{redis_port}/0"
    if local.local_detour:
        redis_url = os.environ.get("CRA_REDIS_URL", redis_url)
    return {
        **os.environ,
        **derive(settings, local),
        "CRA_DATA_DIR": str(local.data),
        "CRA_CONVERTED_MODELS": settings.converted_models or str(local.data / "converted"),
        "CRA_HEARTBEAT_FOLDER": str(local.data / "run"),
        "CRA_WEB_THUMBNAILS": settings.web_thumbnails or str(local.data / "thumbnails"),
        "CRA_REDIS_PORT": str(redis_port),
        "CRA_REDIS_URL": redis_url,
        "PATH": os.pathsep.join([str(_BIN), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def _running_file(local: LocalSettings) -> Path:
    return local.data / "run" / "stack.env"


def publish(local: LocalSettings, env: dict[str, str]) -> Path:
    """Write the stack's own variables, for shells and commands that want to reach it."""
    file = _running_file(local)
    file.touch(mode=0o600)
    file.write_text(
        "".join(
            f"{name}={shlex.quote(value)}\n"
            for name, value in sorted(env.items())
            if name.startswith("CRA_")
        )
    )
    return file


def join(local: LocalSettings) -> Settings:
    """Take over the variables of the stack that is up, and return its settings."""
    for name, value in dotenv_values(_running_file(local)).items():
        os.environ[name] = value or ""
    return Settings.load()
