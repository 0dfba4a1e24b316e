"""This machine's package index, for builds: pip's own settings, and files on its disk over HTTP."""

import contextlib
import functools
import glob
import http.server
import os
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PASSED: Final = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  of the standard library
        pass


def pip_settings() -> dict[str, str]:
    """Return what pip is told here about where packages come from, by option."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _PASSED:
            found[option] = " ".join(shlex.split(value))
    return found


@contextlib.contextmanager
def package_index(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the build arguments that have packages installed from where this machine has them.

    Files cannot be reached from a build, so folders are served on loopback, where a build with the
    host's network finds them.

    Args:
        folder: empty; it is what is served.
    """
    settings = pip_settings()
    wheels = folder / "wheels"
    wheels.mkdir()
    handler = functools.partial(_Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    here = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def served(place: str) -> str:
        path = Path(place.removeprefix("file://"))
        if "://" in place and not place.startswith("file://"):
            return place
        # A whole tree of which the index is a part: its pages name files beside them.
        link = folder / re.sub(r"\W", "-", str(path.parent))
        if not link.exists():
            link.symlink_to(path.parent)
        return f"{here}/{link.name}/{path.name}/"

    try:
        arguments = {
            f"PIP_{option.upper().replace('-', '_')}": " ".join(map(served, value.split()))
            if option.endswith(("url", "links"))
            else value
            for option, value in settings.items()
        }
        arguments |= _cpu_torch(settings.get("find-links", "").split(), wheels, f"{here}/wheels/")
        yield arguments
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _cpu_torch(places: list[str], wheels: Path, index: str) -> dict[str, str]:
    """Return the build arguments of torch for CPU: those that are set, else a wheel that is here.

    Raises:
        AssertionError: there is neither.
    """
    asked = {name: os.environ[name] for name in ("TORCH_INDEX", "TORCH_PINS") if name in os.environ}
    if "TORCH_INDEX" in asked:
        return asked
    found = [
        file for place in places for file in glob.glob(f"{place.removeprefix('file://')}/torch-*")
        if "+cpu-cp311-" in file and "x86_64" in file
    ]  # fmt: skip
    assert found, "set TORCH_INDEX to an index of PyTorch's CPU wheels"
    wheel = Path(sorted(found)[-1])
    version = wheel.name.split("-")[1]
    major, minor, patch = version.partition("+")[0].split(".")
    assert major == "2", version
    vision = f"0.{int(minor) + 15}.{patch}"
    # An index has a folder a package.
    for package in ("torch", "torchvision"):
        (wheels / package).mkdir()
    (wheels / "torch" / wheel.name).symlink_to(wheel)
    _torchvision(vision, wheels / "torchvision")
    return {
        "TORCH_INDEX": index,
        "TORCH_PINS": f"torch=={version} torchvision=={vision}+cpu",
    }


def _torchvision(version: str, folder: Path) -> None:
    """Make torchvision's wheel for CPU of the one for CUDA, which does not load beside CPU torch.

    Its compiled operators are left out; of torchvision, only transforms in Python are ever used.
    """
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    wanted = ["--only-binary=:all:", "--python-version=3.11", f"torchvision=={version}"]
    subprocess.run([*download, *wanted], check=True)
    (cuda,) = folder.glob("torchvision-*.whl")
    package, rest = cuda.name.split(f"-{version}-")
    with (
        zipfile.ZipFile(cuda) as old,
        zipfile.ZipFile(
            folder / f"{package}-{version}+cpu-{rest}", "w", zipfile.ZIP_DEFLATED
        ) as new,
    ):
        for entry in old.namelist():
            if entry.endswith((".so", "/RECORD")):
                continue
            data = old.read(entry)
            if entry == "torchvision/_meta_registrations.py":
                data = b""
            if entry.endswith("/METADATA"):
                data = data.replace(
                    f"Version: {version}".encode(), f"Version: {version}+cpu".encode(), 1
                )
            name = entry.replace(f"-{version}.dist-info", f"-{version}+cpu.dist-info")
            new.writestr(name, data)
        new.writestr(f"torchvision-{version}+cpu.dist-info/RECORD", "")
    cuda.unlink()
