"""What the layout promises: who may import what, and what a bare installation needs."""

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(
    folder.name for folder in (ROOT / "services").iterdir() if (folder / "__init__.py").is_file()
)
HEAVY = ["torch", "torchvision", "cn_clip"]
TORCH = {
    f"cra.shared.model.{name}"
    for name in ("checkpoints", "convert", "image_tower", "text_tower", "torch_forward")
}

# Imports the modules named in argv[2] where those of argv[1] are not to be had.
_IMPORTER = """
import importlib, json, sys
blocked, modules = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
for module in modules:
    importlib.import_module(module)
"""


def _import_without(blocked: Iterable[str], modules: Iterable[str]) -> None:
    arguments = [json.dumps([*blocked]), json.dumps([*modules])]
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTER, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _files(folder: str) -> Iterator[Path]:
    for file in sorted((ROOT / folder).rglob("*.py")):
        if "pb" not in file.relative_to(ROOT).parts:
            yield file


def _module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(["cra", *(part for part in parts if part != "__init__")])


def _modules(*folders: str) -> list[str]:
    return [_module(file) for folder in folders for file in _files(folder)]


def _imports(file: Path) -> set[str]:
    """Return the modules that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_gateway_ingest_page_command_and_client_need_no_torch() -> None:
    """Everything but the towers and training imports where there is no torch and no cn_clip.

    The embedding service itself, too: only its tower processes load them.
    """
    shared = [module for module in _modules("shared") if module not in TORCH]
    assert "cra.shared.client" in shared
    light = [f"services/{name}" for name in SERVICES if name != "training"]
    assert {"services/gateway", "services/ingest", "services/cli", "services/web"} <= set(light)
    _import_without(HEAVY, [*shared, *_modules(*light)])


def test_the_guard_bites() -> None:
    """Where torch is not to be had, what imports it fails: the tests beside this one can fail."""
    with pytest.raises(AssertionError, match="torch is blocked"):
        _import_without(HEAVY, ["cra.shared.model.image_tower"])


def test_only_the_towers_and_their_checkpoints_import_torch() -> None:
    """The model has one place: what else is shared knows nothing of torch.

    But for the choice of a runtime, which asks torch for GPUs where there is a driver.
    """
    importers = {
        _module(file)
        for file in _files("shared")
        if {name.partition(".")[0] for name in _imports(file)} & set(HEAVY)
    }
    assert importers == TORCH | {"cra.shared.model.runtime"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other(service: str) -> None:
    """Services meet over the wire alone."""
    others = tuple(f"cra.services.{name}" for name in SERVICES if name != service)
    for file in _files(f"services/{service}"):
        crossing = [
            name
            for name in _imports(file)
            if f"{name}.".startswith(tuple(f"{other}." for other in others))
        ]
        assert not crossing, f"{file.relative_to(ROOT)} imports {crossing}"


def test_shared_imports_no_service() -> None:
    """What is shared stands below the services, and ports and domain below the adapters."""
    for file in _files("shared"):
        assert not [name for name in _imports(file) if name.startswith("cra.services")], file
    for name in ("domain", "errors", "ports"):
        imported = {
            one for one in _imports(ROOT / "shared" / f"{name}.py") if one.startswith("cra.")
        }
        allowed = tuple(f"cra.shared.{one}" for one in ("domain", "errors", "limits", "releases"))
        assert all(one.startswith(allowed) for one in imported), name


def test_nothing_imports_the_tests_or_the_stack() -> None:
    """Code that is installed needs nothing that is not: no tests, no deploy."""
    for folder in ("shared", "services"):
        for file in _files(folder):
            tops = {name.partition(".")[0] for name in _imports(file)}
            assert not tops & {"tests", "deploy", "shared", "services"}, file


def _project() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project


def test_the_list_of_packages_is_complete() -> None:
    """pyproject.toml packages what is on disk: no folder is forgotten, none is gone."""
    tool = _project()["tool"]
    assert isinstance(tool, dict)
    ours = {
        _module(file)
        for folder in ("shared", "services")
        for file in _files(folder)
        if file.name == "__init__.py"
    }
    stubs = {
        f"cra.{folder.parent.name}.{folder.name}"
        for folder in (ROOT / "shared" / "pb" / "cra").glob("*/v*")
    }
    assert len(stubs) == 3
    assert set(tool["setuptools"]["packages"]) == ours | stubs


def test_every_package_has_an_init() -> None:
    """A folder with code in it is a package, so that an installation has it."""
    for folder in ("shared", "services"):
        for file in _files(folder):
            assert (file.parent / "__init__.py").is_file(), file


def test_an_installation_has_every_file_that_is_no_code() -> None:
    """Templates and tables lie in the wheel too, those in folders below a package included.

    Break: `*.jinja` for `**/*.jinja`, which leaves out the templates of the evaluation.
    """
    tool = _project()["tool"]
    assert isinstance(tool, dict)
    (patterns,) = tool["setuptools"]["package-data"].values()
    there = {
        file
        for folder in ("shared", "services")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc"} and "pb" not in file.parts
    }
    assert {".jinja", ".typed"} <= {file.suffix for file in there}
    packages = {file.parent for folder in ("shared", "services") for file in _files(folder)}
    packaged = {file for one in packages for pattern in patterns for file in one.glob(pattern)}
    assert there <= packaged


def _closure(requirements: Iterable[str]) -> set[str]:
    """Return the names of what gets installed for requirements, without extras."""
    found: set[str] = set()
    waiting = [*map(Requirement, requirements)]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            waiting += map(Requirement, importlib.metadata.requires(name) or [])
    return found


def _others(requirements: Iterable[str]) -> set[str]:
    """Return all that can be imported here, but would not be after installing requirements."""
    installed = _closure(requirements) | {"cra"}
    return {
        top
        for top, names in importlib.metadata.packages_distributions().items()
        if not {*map(canonicalize_name, names)} & installed
    }


def test_the_client_needs_only_the_bare_project() -> None:
    """`pip install cra`, without an extra, is enough for the client and all stubs."""
    project = _project()["project"]
    assert isinstance(project, dict)
    others = _others(project["dependencies"])
    assert {"numpy", "pydantic", "PIL", "structlog", "grpc_health", *HEAVY} <= others
    stubs = [
        f"cra.{name}.v1.{name}_{kind}"
        for name in ("embedding", "ingest", "search")
        for kind in ("pb2", "pb2_grpc")
    ]
    _import_without(others, ["cra.shared.client", "cra.shared.errors", *stubs])


@pytest.mark.parametrize("service", ["cli", "embedding", "gateway", "ingest", "web"])
def test_an_extra_is_enough_for_its_service(service: str) -> None:
    """Installed with its own extra alone, a service imports, whatever the other extras hold."""
    project = _project()["project"]
    assert isinstance(project, dict)
    extras = project["optional-dependencies"]
    assert "cra[service]" in extras[service]
    own = [one for one in extras[service] if one != "cra[service]"]
    others = _others([*own, *extras["service"], *project["dependencies"]])
    # Its towers do need torch, in their own processes.
    _import_without({*others, *HEAVY}, _modules(f"services/{service}"))
