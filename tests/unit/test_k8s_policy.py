"""What every manifest has to keep, whatever Kubernetes would take."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from cra.services.ingest import ledger, tasks
from cra.shared.rpc import LIVENESS
from cra.shared.settings import Settings
from tests.manifests import (
    K8S,
    NAME,
    OVERLAYS,
    Manifest,
    container,
    of_kind,
    pods,
    raw_files,
    render,
)
from tests.servers import ROOT

KNOWN = {f"CRA_{name.upper()}" for name in Settings.model_fields}
SERVERS = {"gateway": "cra.search.v1.SearchService", "ingest": "cra.ingest.v1.IngestService",
           "embedding": "cra.embedding.v1.EmbeddingService"}  # fmt: skip
ONCE = {"reconcile", "training"}
"""Pods that do one thing and end: nobody waits for them to be ready."""
ALL = [(overlay, name) for overlay in OVERLAYS for name in pods(overlay)]


@pytest.mark.parametrize(("overlay", "name"), ALL)
def test_a_pod_has_no_rights(overlay: str, name: str) -> None:
    """No root, a read-only root file system, no capability, no account, the restricted standard.

    Break: drop `readOnlyRootFilesystem` from base/pod.yaml, or the patch from the CronJob.
    """
    spec = pods(overlay)[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert re.search(r"useradd .*\b10001\b", (ROOT / "deploy" / "Dockerfile").read_text())
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    assert container(pods(overlay)[name])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {kind for one in spec["volumes"] for kind in set(one) - {"name"}} <= {
        "emptyDir", "projected", "secret", "persistentVolumeClaim"}  # fmt: skip
    (namespace,) = of_kind(overlay, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("overlay", "name"), ALL)
def test_a_pod_takes_no_more_than_it_says(overlay: str, name: str) -> None:
    """CPU and memory are asked for and bounded, and so is each volume that is on the node's disk.

    Break: drop `limits` from a container, or `sizeLimit` from an emptyDir.
    """
    pod = pods(overlay)[name]
    resources = container(pod)["resources"]
    for kind in ("cpu", "memory"):
        assert 0 < number(resources["requests"][kind]) <= number(resources["limits"][kind])
    for volume in pod["spec"]["volumes"]:
        assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize(("overlay", "name"), ALL)
def test_an_image_does_not_change_by_itself(overlay: str, name: str) -> None:
    """An exact tag: never `latest`, never none.

    Break: `image: cra-gateway`, or `cra-gateway:latest`.
    """
    image = container(pods(overlay)[name])["image"]
    assert re.fullmatch(r"cra-[a-z]+:\d+\.\d+\.\d+(-\w+)?", image)


@pytest.mark.parametrize(("overlay", "name"), [one for one in ALL if one[1] not in ONCE])
def test_a_pod_is_started_again_only_when_it_is_stuck(overlay: str, name: str) -> None:
    """Its start and its liveness ask for what it does by itself; readiness for its whole job.

    A probe that started the gateway again because Milvus is down would make two outages of one.

    Break: give livenessProbe the service of readinessProbe, or drop a probe.
    """
    one = container(pods(overlay)[name])
    ports = {port["name"]: port["containerPort"] for port in one.get("ports", ())}
    start, life, ready = one["startupProbe"], one["livenessProbe"], one.get("readinessProbe", {})
    if name in SERVERS:
        port = Settings.model_fields[f"{name}_port"].default
        assert ports["grpc"] == port
        assert start["grpc"] == {"port": port, "service": LIVENESS}
        assert ready["grpc"] == {"port": port, "service": SERVERS[name]}
        assert life["exec"]["command"][-2:] == ["--works", str(port)]
    elif name == "web":
        assert ports["http"] == Settings.model_fields["web_port"].default
        assert start["httpGet"]["path"] == life["httpGet"]["path"] == "/healthz"
        assert ready["httpGet"]["path"] == "/readyz"
    else:
        assert not ready
        folder = shared(overlay)["CRA_HEARTBEAT_FOLDER"]
        for probe in (start, life):
            assert probe["exec"]["command"][-2:] == ["--works", f"{folder}/{name}"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 60


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_time_to_end(overlay: str) -> None:
    """The pause before SIGTERM and the time to drain end before the pod is killed.

    Break: raise CRA_DRAIN_SECONDS in cra.env to 60.
    """
    drain = float(
        shared(overlay).get("CRA_DRAIN_SECONDS", Settings.model_fields["drain_seconds"].default)
    )
    for name, deployment in of_kind(overlay, "Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        pause = 0.0
        if name in {*SERVERS, "web"}:
            pause = float(
                container(pods(overlay)[name])["lifecycle"]["preStop"]["exec"]["command"][1]
            )
        assert pause + drain + 5 < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_exists(overlay: str) -> None:
    """A variable, or a file of a secret, with a typing error would be ignored in silence.

    Break: write CRA_MILVUS_URL in cra.env, or CRA_PAGE_KEYS among a projected secret's items.
    """
    assert set(shared(overlay)) <= KNOWN
    for pod in pods(overlay).values():
        own = {one["name"] for one in container(pod).get("env", ())}
        assert own <= KNOWN
        assert {path for _, _, path in secret_files(pod)} <= KNOWN


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_valid_and_no_default(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services would start with them, and none says again what is so anyway.

    Break: CRA_LOG_FORMAT=xml, or CRA_LOG_LEVEL=INFO.
    """
    settings = shared(overlay)
    for name, value in settings.items():
        if name != "CRA_SECRETS_DIR":  # there is none here
            monkeypatch.setenv(name, value)
        assert value != str(Settings.model_fields[name.removeprefix("CRA_").lower()].default)
    loaded = Settings.load()
    for name in SERVERS:
        service = of_kind(overlay, "Service")[name]
        port = getattr(loaded, f"{name}_port")
        assert getattr(loaded, f"{name}_target") == f"dns:///{name}:{port}"
        # Headless: the channel is to see every replica.
        assert service["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_come_by_reference(overlay: str) -> None:
    """No secret stands in a manifest, a variable or the values of a chart.

    Break: add CRA_PAGE_KEY to cra.env, or a Secret to the base.
    """
    secret = {
        f"CRA_{name.upper()}" for name, field in Settings.model_fields.items()
        if "Secret" in str(field.annotation)
    } | {"CRA_S3_ACCESS_KEY"}  # fmt: skip
    assert {"CRA_PAGE_KEY", "CRA_REDIS_URL", "CRA_SERVICE_TOKEN"} <= secret
    assert not of_kind(overlay, "Secret")
    assert not secret & set(shared(overlay))
    for name, pod in pods(overlay).items():
        assert not secret & {one["name"] for one in container(pod).get("env", ())}
        folder = shared(overlay)["CRA_SECRETS_DIR"]
        for path, key, file in secret_files(pod):
            assert path == folder, name
            assert key == file


def test_values_of_charts_hold_no_secret() -> None:
    """What is called a password, a token or a key there is a reference, or empty.

    Break: `redisSecret: {password: hunter2}`.
    """
    seen = 0
    for file in sorted((K8S / "charts").glob("*.yaml")):
        for path, value in leaves(yaml.safe_load(file.read_text())):
            seen += 1
            if re.search("(?i)password|token|secret|key$", path[-1]):
                by_name = re.search("(?i)name$|existing|secretkey$|^key$", path[-1])
                assert by_name or not value, f"{file.name}: {path}"
    assert seen > 30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_finds_its_pods(overlay: str) -> None:
    """What selects pods selects those of the one workload whose name it bears.

    Break: `app.kubernetes.io/name: gatway` in a Service, a budget or a policy.
    """
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay).items()}
    for one in render(overlay):
        spec = one.get("spec", {})
        selector = spec.get("selector") if one["kind"] == "Service" else None
        if one["kind"] in {"Deployment", "PodDisruptionBudget"}:
            selector = spec["selector"]["matchLabels"]
        elif one["kind"] == "NetworkPolicy" and spec["podSelector"]:
            selector = spec["podSelector"]["matchLabels"]
        if selector is None:
            continue
        found = [name for name, has in labels.items() if selector.items() <= has.items()]
        assert found == [selector[NAME]], one["metadata"]
        if one["kind"] != "Service":
            assert one["metadata"]["name"] == selector[NAME]
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for one in of_kind(overlay, kind).values():
            target = one["spec"]["scaleTargetRef"]["name"]
            deployment = of_kind(overlay, "Deployment")[target]
            # Else every `kubectl apply` would set it back.
            assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_node_can_be_emptied_without_an_outage(overlay: str) -> None:
    """What has replicas has a budget, and a new one is ready before an old one goes.

    Break: drop a PodDisruptionBudget, or set `maxUnavailable: 100%`.
    """
    for name, deployment in of_kind(overlay, "Deployment").items():
        if name == "beat":
            assert deployment["spec"]["strategy"] == {"type": "Recreate"}
            continue
        assert of_kind(overlay, "PodDisruptionBudget")[name]["spec"]["maxUnavailable"] == 1
        least = least_replicas(overlay, name)
        assert least >= (1 if name == "worker" else 2)
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] < least


def test_workers_are_scaled_by_the_line_that_there_is() -> None:
    """KEDA counts the ledger's own key, and the CronJob calls a task that workers know.

    Break: `listName: celery`, or `call cra.reconcil`.
    """
    (scaled,) = of_kind("cpu", "ScaledObject").values()
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["listName"] == ledger.WAITING
    assert tasks.RECONCILE in container(pods("cpu")["reconcile"])["command"]


@pytest.mark.parametrize(("overlay", "name"), ALL)
def test_a_port_has_one_name(overlay: str, name: str) -> None:
    """A Service's port leads to a port that the container has, and volumes to volumes.

    Break: rename the port `grpc` of a container.
    """
    pod = pods(overlay)[name]
    names = {port["name"] for port in container(pod).get("ports", ())}
    for service in of_kind(overlay, "Service").values():
        if service["spec"]["selector"][NAME] == name:
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    mounts = container(pod)["volumeMounts"]
    assert {one["name"] for one in mounts} == {one["name"] for one in pod["spec"]["volumes"]}
    assert all(PurePosixPath(one["mountPath"]).is_absolute() for one in mounts)


def test_every_file_is_applied() -> None:
    """No manifest lies about that no overlay renders.

    Break: drop a line of `resources` in base/kustomization.yaml.
    """
    rendered = {(one["kind"], one["metadata"]["name"]) for one in render("training")}
    # The GPU has no autoscaler of embedding.
    rendered |= {(one["kind"], one["metadata"]["name"]) for one in render("cpu")}
    written = {(one["kind"], one["metadata"]["name"]) for file, one in raw_files()
               if "charts" not in file.parts}  # fmt: skip
    assert {kind for kind, _ in written} > {"Deployment", "NetworkPolicy"}
    assert not written - rendered


def least_replicas(overlay: str, name: str) -> int:
    """Return how many replicas a deployment has at least, by itself or by what scales it."""
    given = of_kind(overlay, "Deployment")[name]["spec"].get("replicas")
    if given is not None:
        return int(given)
    (spec,) = [
        one["spec"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for one in of_kind(overlay, kind).values()
        if one["spec"]["scaleTargetRef"]["name"] == name
    ]
    return int(spec.get("minReplicas", spec.get("minReplicaCount")))


def shared(overlay: str) -> dict[str, str]:
    """Return the settings that all pods of an overlay read."""
    (one,) = of_kind(overlay, "ConfigMap").values()
    for pod in pods(overlay).values():
        assert container(pod)["envFrom"] == [{"configMapRef": {"name": one["metadata"]["name"]}}]
    return dict(one["data"])


def secret_files(pod: Manifest) -> Iterator[tuple[str, str, str]]:
    """Yield folder, key and file of each secret that a pod has among its settings."""
    mounts = {one["name"]: one["mountPath"] for one in container(pod)["volumeMounts"]}
    for volume in pod["spec"]["volumes"]:
        for source in volume.get("projected", {}).get("sources", ()):
            for item in source["secret"]["items"]:
                yield mounts[volume["name"]], item["key"], item["path"]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of a document with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


def number(quantity: object) -> float:
    """Return a quantity of Kubernetes as a number."""
    match = re.fullmatch(r"(\d+)(m|Mi|Gi)?", str(quantity))
    assert match, quantity
    return int(match[1]) * {None: 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}[match[2]]


def test_the_env_file_is_what_is_rendered() -> None:
    """The ConfigMap is cra.env, to the letter."""
    assert shared("cpu") == dotenv_values(K8S / "base" / "cra.env")
