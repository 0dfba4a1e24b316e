"""The compose stack and the local stack describe the same processes with the same settings."""

import re
import shlex
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from honcho.environ import parse_procfile

from cra.shared.settings import Settings
from deploy.local.environment import ENV_FILE, ROOT, LocalSettings
from deploy.local.parts import FOUNDATIONS, PROCFILE
from deploy.s3.policies import ROLES as ROLES_OF_STORE

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROCESSES: dict[str, str] = parse_procfile(PROCFILE.read_text()).processes
COMPOSE_ENV = dotenv_values(ROOT / "deploy" / "compose.env")
OWN_ENV = {file.stem: dotenv_values(file) for file in (ROOT / "deploy" / "compose").glob("*.env")}
"""What only some of the services may know."""
OURS = sorted(set(PROCESSES) - FOUNDATIONS)
ROLES = {**dict.fromkeys(("ingest", "worker", "beat"), "ingest"), "gateway": "gateway",
         "embedding": "embedding", "web": "web"}  # fmt: skip
ONCE = {"s3-setup", "seaweedfs-setup", "training"}
"""Runs once and ends."""
BUILT = sorted(name for name, service in SERVICES.items() if "build" in service)
MONITORING = {"prometheus", "grafana", "jaeger"}


def test_every_process_of_the_local_stack_is_in_compose() -> None:
    """What runs on one machine runs in containers too, under the same name."""
    assert set(PROCESSES) <= set(SERVICES)


@pytest.mark.parametrize("name", sorted(set(PROCESSES) - FOUNDATIONS))
def test_a_service_runs_by_the_same_command(name: str) -> None:
    """But for folders of data, a command is the Procfile's."""

    def words(command: str) -> list[str]:
        return [word for word in shlex.split(command) if not word.endswith("/schedule")]

    assert words(SERVICES[name]["command"]) == words(PROCESSES[name])


@pytest.mark.parametrize("name", OURS)
def test_a_service_reads_what_it_may_know(name: str) -> None:
    """Settings stand in the one file of all services, and secrets of a role in that role's alone.

    Break: give the gateway ingest.env, or root.env, too.
    """
    role = ROLES[name]
    events = ["deploy/compose/events.env"] if role == "ingest" else []
    assert SERVICES[name]["env_file"] == [
        "deploy/compose.env",
        *events,
        f"deploy/compose/{role}.env",
    ]
    # Where compose is run it is said whether there is somebody to take traces.
    assert SERVICES[name]["environment"] == {"CRA_OTLP_ENDPOINT": "${CRA_OTLP_ENDPOINT:-}"}


def test_the_store_s_root_is_nobody_else() -> None:
    """Only the store and what sets it up have its root credentials; each role has its own.

    Break: one key for two roles, or CRA_S3_SECRET_KEY in compose.env.
    """
    have = {
        name for name, service in SERVICES.items()
        if "deploy/compose/root.env" in service.get("env_file", [])
    }  # fmt: skip
    assert have == {"s3", "s3-setup", "seaweedfs-setup"}
    keys = [values["CRA_S3_ACCESS_KEY"] for values in OWN_ENV.values() if len(values) > 1
            and "CRA_S3_ACCESS_KEY" in values]  # fmt: skip
    assert len(keys) == len({*keys, OWN_ENV["root"]["MINIO_ROOT_USER"]}) - 1 == 5
    assert not {name for name in COMPOSE_ENV if name.startswith("CRA_S3_") and "KEY" in name}
    assert set(ROLES_OF_STORE) == set(OWN_ENV) - {"root", "events"}


@pytest.mark.parametrize("name", [*BUILT, "redis"])
def test_a_container_has_no_root_and_nothing_to_write_on(name: str) -> None:
    """No root, a read-only root file system, no capability, no way to new rights.

    Break: drop `read_only` from `x-service`, or `USER cra` from the Dockerfile.
    """
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert service.get("user", "redis") == "redis"
    for volume in service.get("volumes", []):
        assert volume.partition(":")[2] == "/data" or volume.endswith(":ro")


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"milvus"}))
def test_a_container_gets_no_new_rights(name: str) -> None:
    """No program of a container gains rights by a set-uid bit.

    Break: drop `security_opt` from a service.
    """
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_env_files_name_only_settings_that_exist() -> None:
    """A variable with a typing error would be ignored in silence."""
    known = {f"CRA_{name.upper()}" for name in Settings.model_fields}
    local = {f"CRA_{name.upper()}" for name in LocalSettings.model_fields}
    assert set(COMPOSE_ENV) <= known
    for name, values in OWN_ENV.items():
        assert set(values) <= known or name == "root"
    assert set(dotenv_values(ENV_FILE)) <= known | local


def test_env_files_repeat_no_default() -> None:
    """One value per fact: what is a default already is not stated again."""
    for values in (COMPOSE_ENV, dotenv_values(ENV_FILE), *OWN_ENV.values()):
        for name, value in values.items():
            if name.startswith("MINIO_"):
                continue
            default = Settings.model_fields[name.removeprefix("CRA_").lower()].default
            assert value != default


def test_compose_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services would start with them."""
    for name, value in {**COMPOSE_ENV, **OWN_ENV["gateway"], **OWN_ENV["events"]}.items():
        monkeypatch.setenv(name, value or "")
    settings = Settings()
    assert settings.gateway_target == f"dns:///gateway:{settings.gateway_port}"
    assert settings.embedding_target == f"dns:///embedding:{settings.embedding_port}"
    assert settings.ingest_target == f"dns:///ingest:{settings.ingest_port}"
    assert f"ingest:{settings.events_port}/" in str(SERVICES["s3"]["environment"])
    assert f"ingest:{settings.events_port}/" in str(SERVICES["seaweedfs-setup"]["command"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_have_exact_tags(name: str) -> None:
    """No image changes by itself: a full version, never `latest` or a major version alone."""
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-\w+)?|RELEASE\.\d{4}(-\d\d){2}T(\d\d-){2}\d\dZ", tag)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_every_service_has_a_health_check_and_comes_back(name: str) -> None:
    """A container that is up but not healthy shows; one that dies is started again.

    How an image of ours is asked stands in the Dockerfile, unless it is run by another command.
    """
    default = ["CMD"] if "build" in SERVICES[name] else []
    assert SERVICES[name]["healthcheck"].get("test", default)[0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["embedding", "gateway", "ingest", "web"])
def test_a_health_check_asks_the_service_s_own_port(name: str) -> None:
    """The health of this server, not of another."""
    port = Settings.model_fields[f"{name}_port"].default
    asked = f'CMD ["python", "/app/deploy/healthcheck.py", "{port}"]'
    stage = stages()[SERVICES[name]["build"]["target"]]
    assert re.search(r"^HEALTHCHECK .*\\\n +" + re.escape(asked), stage, re.MULTILINE)
    assert "test" not in SERVICES[name]["healthcheck"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_wait_for_what_they_need(name: str) -> None:
    """Each dependency exists, and is waited for until it is healthy or done."""
    for needed, how in (SERVICES[name].get("depends_on") or {}).items():
        done = "service_completed_successfully"
        assert how["condition"] == (done if needed in ONCE else "service_healthy")
        assert needed in SERVICES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_published_on_loopback_only(name: str) -> None:
    """The secrets of the compose stack are public, so its ports are not."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_dockerfile_has_every_target_and_no_root() -> None:
    """Each image that compose builds is a target of the Dockerfile and runs as a user."""
    for name in BUILT:
        stage = stages()[SERVICES[name]["build"]["target"]]
        # A number: Kubernetes cannot tell of a name that it is not root.
        assert "\nUSER 10001:10001\n" in stage
        assert "org.opencontainers.image.version=$VERSION" in stage


def test_build_arguments_are_the_dockerfile_s() -> None:
    """Each is one that a stage takes, and empty where it is not set.

    docker-compose 1.29 passes one without a value as `None`. Break: a list of names for `args`.
    """
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    for name in BUILT:
        for argument, value in SERVICES[name]["build"]["args"].items():
            assert value == f"${{{argument}:-}}"
            assert re.search(rf"^ARG {argument}\b", text, re.MULTILINE)


def stages() -> dict[str, str]:
    """Return the Dockerfile's stages by name."""
    parts = re.split(r"^FROM ", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)
    return {part.split(maxsplit=3)[2]: part for part in parts[1:]}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_a_service_says_what_it_may_take(name: str) -> None:
    """As in a Kubernetes deployment: limits of all, and replicas and updates of what is deployed.

    Break: drop `deploy` of a service.
    """
    deploy = SERVICES[name]["deploy"]
    assert set(deploy["resources"]["limits"]) == {"cpus", "memory"}
    if name not in MONITORING:
        assert deploy["replicas"] == 1
        assert deploy["update_config"]["order"] in {"start-first", "stop-first"}


def test_a_service_is_given_time_to_drain() -> None:
    """Compose kills nothing that is still within its drain time."""
    drain = Settings.model_fields["drain_seconds"].default
    for name in OURS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain


def test_what_stands_in_for_another_has_its_name() -> None:
    """SeaweedFS is found as the object store, and encoders on CUDA as encoders."""
    for name, other in {"seaweedfs": "s3", "embedding-gpu": "embedding"}.items():
        assert SERVICES[name]["networks"]["default"]["aliases"] == [other]
        assert SERVICES[name]["profiles"]


@pytest.mark.parametrize("name", ["worker", "beat"])
def test_a_process_without_a_port_shows_its_heartbeat(name: str) -> None:
    """The check looks at the file that this process touches, where the settings put it."""
    folder = COMPOSE_ENV["CRA_HEARTBEAT_FOLDER"]
    assert SERVICES[name]["healthcheck"]["test"][-2:] == ["--works", f"{folder}/{name}"]
    assert f'_heartbeat("{name}")' in (ROOT / "services" / "ingest" / "worker.py").read_text()
