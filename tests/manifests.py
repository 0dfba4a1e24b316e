"""The manifests for Kubernetes as they would be applied: rendered by the real Kustomize."""

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.servers import ROOT

K8S: Final = ROOT / "deploy" / "k8s"
OVERLAYS: Final = ("cpu", "gpu", "training")
NAME: Final = "app.kubernetes.io/name"
CUSTOM: Final = frozenset({"ScaledObject", "TriggerAuthentication"})
"""Kinds that KEDA brings, of which Kubernetes itself has no schema."""

Manifest = dict[str, Any]


def kubectl() -> str:
    """Return the program, whose `kustomize` renders.

    Without it, the test that asks is skipped, or the whole file that asks while it is collected.
    """
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        reason = "no kubectl beside Python or on PATH: manifests are not rendered"
        pytest.skip(reason, allow_module_level=True)
    return found


@functools.cache
def render(overlay: str) -> list[Manifest]:
    """Return what `kubectl apply -k` would send for an overlay; it is not to be changed."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(K8S / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def pod_of(manifest: Manifest) -> Manifest | None:
    """Return the template of the pods that a manifest makes; None if it makes none."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Manifest | None = spec.get("template")
    return template if manifest["kind"] in {"Deployment", "Job", "CronJob"} else None


def pods(overlay: str) -> dict[str, Manifest]:
    """Return the templates of all pods by the name of what makes them."""
    found = ((one["metadata"]["name"], pod_of(one)) for one in render(overlay))
    return {name: pod for name, pod in found if pod is not None}


def container(pod: Manifest) -> Manifest:
    """Return the one container of a pod."""
    (only,) = pod["spec"]["containers"]
    return dict(only)


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    """Return the manifests of a kind by name."""
    return {one["metadata"]["name"]: one for one in render(overlay) if one["kind"] == kind}


def raw_files() -> Iterator[tuple[Path, Manifest]]:
    """Yield each whole manifest as it stands in the repository, unrendered, with its file."""
    for file in sorted(K8S.glob("*/**/*.yaml")):
        for one in yaml.safe_load_all(file.read_text()):
            if isinstance(one, dict) and {"apiVersion", "kind", "metadata"} <= set(one):
                yield file, one
