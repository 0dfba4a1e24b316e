"""A Docker engine and compose, driven by their commands."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.servers import ROOT

BUILDS_WITHIN: Final = 3600.0
"""Seconds for one image; a CUDA build of torch is a download of gigabytes."""
COMPOSES: Final = ("docker-compose", "docker compose")
"""The commands of compose: the one in Python, which is no more made, and the plugin."""


class NoEngineError(Exception):
    """No Docker engine answers, or there is no compose; the message is for people."""


def docker(*arguments: str, within: float = 120.0, env: Mapping[str, str] | None = None) -> str:
    """Run `docker` and return what it printed.

    Raises:
        AssertionError: it failed; with the end of what it printed.
    """
    return _run(["docker", *arguments], within, env)


def _run(command: Sequence[str], within: float, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}"
    return done.stdout.strip()


def find_engine() -> str:
    """Return the version of the engine that answers.

    Raises:
        NoEngineError: there is none.
    """
    if shutil.which("docker") is None:
        raise NoEngineError("there is no `docker` command")
    try:
        return docker("version", "--format", "{{.Server.Version}}", within=20).splitlines()[-1]
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise NoEngineError(f"no Docker engine answers: {error}") from error


def find_composes(wanted: Sequence[str] = COMPOSES) -> dict[str, str]:
    """Return the versions of those commands of compose that there are.

    Raises:
        NoEngineError: there is none of them.
    """
    found = {}
    for command in wanted:
        with contextlib.suppress(AssertionError, FileNotFoundError):
            found[command] = _run([*command.split(), "version", "--short"], 20, None)
    if not found:
        raise NoEngineError(f"there is no {' nor '.join(f'`{one}`' for one in wanted)}")
    return found


def inspect(what: str) -> Any:
    """Return what the engine knows of a container or an image."""
    return json.loads(docker("inspect", what))[0]


def has_image(name: str) -> bool:
    """Tell whether the engine has an image."""
    return bool(docker("images", "--quiet", name))


class Compose:
    """One compose project; its volumes go with it.

    Args:
        command: one that `find_composes` found.
        project: its name, apart from whatever else runs.
        env: for the variables of the compose file.
        profiles: that are on.
        scale: replicas by service, for good.
        files: compose files.
    """

    def __init__(
        self,
        command: str,
        project: str,
        env: Mapping[str, str],
        profiles: Sequence[str],
        scale: Mapping[str, int],
        files: Sequence[str] = ("docker-compose.yml",),
    ) -> None:
        self._command = [*command.split(), "-p", project]
        for file in files:
            self._command += ["-f", file]
        for profile in profiles:
            self._command += ["--profile", profile]
        self._env = dict(env)
        self.project: Final = project
        self.scale = dict(scale)

    def up(self, within: float = 600.0, **scale: int) -> None:
        """Bring everything up, with so many replicas from now on."""
        self.scale.update(scale)
        scales = [f"--scale={name}={count}" for name, count in self.scale.items()]
        self.run("up", "-d", "--no-build", *scales, within=within)

    def down(self) -> None:
        """Stop everything, and remove it with its volumes."""
        self.run("down", "--volumes", "--remove-orphans", within=300)

    def run(self, *arguments: str, within: float = 120.0) -> str:
        """Run a command of compose and return what it printed."""
        return _run([*self._command, *arguments], within, self._env)

    def containers(self, service: str = "") -> list[str]:
        """Return the ids of its containers, also of those that have ended."""
        filters = [f"label=com.docker.compose.project={self.project}"]
        if service:
            filters.append(f"label=com.docker.compose.service={service}")
        options = [f"--filter={one}" for one in filters]
        return docker("ps", "--all", "--quiet", "--no-trunc", *options).split()


def service_of(container: Any) -> str:
    """Return the compose service of an inspected container."""
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def is_up(container: Any) -> bool:
    """Tell whether a container is healthy, or has done what it was to do."""
    state = container["State"]
    if state["Status"] == "exited":
        return bool(state["ExitCode"] == 0)
    return bool(state.get("Health", {}).get("Status") == "healthy")


def address_of(container: str) -> str:
    """Return the address of a container in its network."""
    (network,) = inspect(container)["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])
