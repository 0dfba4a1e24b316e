"""What the images are made of: each package pinned with its hashes, and all that is needed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDS = {
    "gateway": ["gateway"],
    "ingest": ["ingest"],
    "embedding": ["embedding", "torch"],
    "web": ["web"],
    "cli": ["cli"],
    "training": ["training", "embedding", "torch"],
}
"""The locks that make an image, by its extra."""


def pins(lock: str) -> dict[str, Version]:
    """Return the packages of a lock; fail on one without a hash, or on any other line."""
    text = (LOCKS / f"{lock}.txt").read_text().replace("\\\n", " ")
    found: dict[str, Version] = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        what, *hashes = re.split(r"\s+--hash=", line.strip())
        assert hashes, line
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), line
        requirement = Requirement(what)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


@pytest.mark.parametrize("extra", sorted(NEEDS))
def test_a_lock_fits_what_is_required(extra: str) -> None:
    """Each requirement of an image is in its locks, at a version that it allows.

    Break: raise a version in pyproject.toml without `make locks`.
    """
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["service"], *extras[extra]]
    locked: dict[str, Version] = {}
    for lock in NEEDS[extra]:
        for name, version in pins(lock).items():
            assert locked.setdefault(name, version) == version, name
    for requirement in map(Requirement, wanted):
        if requirement.name != "cra":
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_the_rest_is_pinned_too() -> None:
    """What builds the project and what comes without its dependencies has hashes as well.

    Break: another CN_CLIP in the Makefile.
    """
    (build,) = map(Requirement, PROJECT["build-system"]["requires"])
    assert build.specifier.contains(pins("build")[build.name])
    named = re.search(r"^CN_CLIP := cn_clip==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert pins("cn_clip") == {"cn-clip": Version(named.group(1))}


def test_locks_name_no_index() -> None:
    """Where packages come from is the business of who builds.

    Break: `--emit-index-url` in the Makefile.
    """
    for lock in LOCKS.glob("*.txt"):
        assert "://" not in lock.read_text()


def test_images_install_nothing_without_a_hash() -> None:
    """Every installation in the Dockerfile asks for hashes, but for our own code and another torch.

    Break: `pip install '.[gateway]'`.
    """
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    installed = [one.strip(" \\") for one in re.findall(r"pip install ([^\n;&]*)", text)]
    loose = [one for one in installed if "--require-hashes" not in one]
    ours, torch = loose
    assert ours == "--no-deps --no-build-isolation --prefix /code ."
    assert torch == '--no-deps --index-url "$TORCH_INDEX"'


def test_torch_for_cpu_needs_what_torch_needs() -> None:
    """Its lock is that of torch without CUDA and without torch itself, which has another index."""
    cuda = ("torch", "triton", "nvidia", "cuda")
    rest = {name: pin for name, pin in pins("torch").items() if not name.startswith(cuda)}
    assert pins("torch_cpu") == rest


def test_the_base_is_pinned_to_the_byte() -> None:
    """Python's image has an exact version and a digest."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, re.MULTILINE
    )
