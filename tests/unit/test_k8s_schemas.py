"""Manifests against the schemas of several versions of Kubernetes."""

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate as kubernetes
import pytest

from tests.manifests import CUSTOM, OVERLAYS, Manifest, kubectl, of_kind, raw_files, render

VERSIONS = ["1.30", "1.32", "1.34", "1.36", "1.37"]
PARTIAL = {"overlays/gpu/embedding.yaml"}
"""What is no whole manifest but is laid over one."""


def problems(manifests: list[Manifest], version: str) -> list[str]:
    """Return what a version of Kubernetes would refuse, unknown fields included."""
    found = []
    for one in manifests:
        if one["kind"] in CUSTOM:
            continue
        try:
            kubernetes.validate(one, version, strict=True)
        except kubernetes.ValidationError as error:
            found.append(f"{one['kind']} {one['metadata']['name']}: {error.message}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_is_rendered(version: str) -> None:
    """Each version takes every manifest of every overlay, without a field that it does not know.

    Break: write `readinesProbe`, or give a port as "50051x".
    """
    manifests: list[Manifest] = []
    for overlay in OVERLAYS:
        assert len(render(overlay)) > 30
        manifests += [one for one in render(overlay) if one not in manifests]
    assert not problems(manifests, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_is_written(version: str) -> None:
    """So it does with the files themselves, wherever Kustomize cannot be had.

    Break: as above.
    """
    manifests = [
        one for file, one in raw_files()
        if not any(str(file).endswith(part) for part in PARTIAL)
        and one["apiVersion"].partition("/")[0] != "kustomize.config.k8s.io"
    ]  # fmt: skip
    assert len(manifests) > 30
    assert not problems(manifests, version)


def test_a_bad_manifest_is_found() -> None:
    """The tests above can fail: by a misspelt field, a wrong type, a kind that is gone."""
    gateway = of_kind("cpu", "Deployment")["gateway"]
    assert not problems([gateway], VERSIONS[0])
    for path, value in (("readinesProbe", {}), ("image", 7)):
        bad = copy.deepcopy(gateway)
        bad["spec"]["template"]["spec"]["containers"][0][path] = value
        assert problems([bad], VERSIONS[0])
    with pytest.raises(kubernetes.SchemaNotFoundError):
        problems([gateway | {"apiVersion": "extensions/v1beta1"}], VERSIONS[0])


def test_without_kubectl_files_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Kustomize cannot be had, files that render while they are collected are skipped too.

    An error there would end the whole run, other tests' with it.

    Break: drop `allow_module_level` in tests/manifests.py.
    """
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(pytest.skip.Exception, match="no kubectl") as skipped:
        kubectl()
    assert skipped.value.allow_module_level


def is_scaled_object(spec: dict[str, Any]) -> bool:
    """Tell whether the parts that KEDA needs are there, and as text where it wants text."""
    return (
        set(spec) <= {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "cooldownPeriod",
                      "pollingInterval", "triggers"}
        and set(spec["scaleTargetRef"]) <= {"name", "kind", "apiVersion"}
        and 0 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        and all(
            one["type"] == "redis"
            and {"address", "listName", "listLength"} <= set(one["metadata"])
            and all(isinstance(value, str) for value in one["metadata"].values())
            for one in spec["triggers"]
        )
    )  # fmt: skip


def test_keda_takes_its_own() -> None:
    """What Kubernetes has no schema of has the fields that KEDA's documentation asks for.

    Break: give listLength as a number, or name another TriggerAuthentication.
    """
    (scaled,) = of_kind("cpu", "ScaledObject").values()
    assert is_scaled_object(scaled["spec"])
    bad = copy.deepcopy(scaled["spec"])
    bad["triggers"][0]["metadata"]["listLength"] = 500
    assert not is_scaled_object(bad)
    asked = {one["authenticationRef"]["name"] for one in scaled["spec"]["triggers"]}
    known = of_kind("cpu", "TriggerAuthentication")
    assert asked == set(known)
    for one in known.values():
        for ref in one["spec"]["secretTargetRef"]:
            assert set(ref) == {"parameter", "name", "key"}
