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
from deploy.local.parts import FOUNDATIONS, POLICIES, PROCFILE

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROCESSES: dict[str, str] = parse_procfile(PROCFILE.read_text()).processes
COMPOSE_ENV = dotenv_values(ROOT / "deploy" / "compose.env")
OWN_ENV = {file.stem: dotenv_values(file) for file in (ROOT / "deploy" / "compose").glob("*.env")}
"""What only some of the services may know."""
OURS = sorted(set(PROCESSES) - FOUNDATIONS)
ROLES = {**dict.fromkeys(("ingest", "worker", "beat"), "ingest"), "gateway": "gateway",
         "embedding": "embedding", "web": "web"}  # fmt: skip
ONCE = {"s3-setup"}
"""Runs once and ends."""


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
    assert "environment" not in SERVICES[name]


def test_the_store_s_root_is_nobody_else() -> None:
    """Only the store and what sets it up have its root credentials; each role has its own.

    Break: one key for two roles, or CRA_S3_SECRET_KEY in compose.env.
    """
    have = {
        name for name, service in SERVICES.items()
        if "deploy/compose/root.env" in service.get("env_file", [])
    }  # fmt: skip
    assert have == {"s3", "s3-setup"}
    keys = [values["CRA_S3_ACCESS_KEY"] for values in OWN_ENV.values() if len(values) > 1
            and "CRA_S3_ACCESS_KEY" in values]  # fmt: skip
    assert len(keys) == len({*keys, OWN_ENV["root"]["MINIO_ROOT_USER"]}) - 1 == 5
    assert not {name for name in COMPOSE_ENV if name.startswith("CRA_S3_") and "KEY" in name}
    setup = str(SERVICES["s3-setup"]["command"])
    assert "for role in gateway ingest embedding web operator;" in setup
    assert {file.stem for file in POLICIES.glob("*.json")} == set(OWN_ENV) - {"root", "events"}


@pytest.mark.parametrize("name", [*OURS, "redis"])
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
        assert volume.partition(":")[2] == "/data"


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"etcd", "milvus", "milvus-store"}))
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
    setup = str(SERVICES["s3-setup"]["command"])
    assert f"{{CRA_RELEASES_BUCKET:-{settings.releases_bucket}}}" in setup


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_have_exact_tags(name: str) -> None:
    """No image changes by itself: a full version, never `latest` or a major version alone."""
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-\w+)?|RELEASE\.\d{4}(-\d\d){2}T(\d\d-){2}\d\dZ", tag)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_every_service_has_a_health_check_and_comes_back(name: str) -> None:
    """A container that is up but not healthy shows; one that dies is started again."""
    assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["embedding", "gateway", "ingest", "web"])
def test_a_health_check_asks_the_service_s_own_port(name: str) -> None:
    """The health of this server, not of another."""
    port = Settings.model_fields[f"{name}_port"].default
    assert SERVICES[name]["healthcheck"]["test"][-1] == str(port)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_wait_for_what_they_need(name: str) -> None:
    """Each dependency exists, and is waited for until it is healthy or done."""
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        done = "service_completed_successfully"
        assert how["condition"] == (done if needed in ONCE else "service_healthy")
        assert needed in SERVICES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_published_on_loopback_only(name: str) -> None:
    """The secrets of the compose stack are public, so its ports are not."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_dockerfile_has_every_target_and_no_root() -> None:
    """Each image that compose builds is a target of the Dockerfile and runs as a user."""
    stages = re.split(r"^FROM ", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)
    by_name = {stage.split(maxsplit=3)[2]: stage for stage in stages[1:]}
    wanted = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert wanted <= set(by_name)
    for target in wanted:
        assert "\nUSER cra\n" in by_name[target]


@pytest.mark.parametrize("name", ["worker", "beat"])
def test_a_process_without_a_port_shows_its_heartbeat(name: str) -> None:
    """The check looks at the file that this process touches, where the settings put it."""
    folder = COMPOSE_ENV["CRA_HEARTBEAT_FOLDER"]
    assert SERVICES[name]["healthcheck"]["test"][-2:] == ["--works", f"{folder}/{name}"]
    assert f'_heartbeat("{name}")' in (ROOT / "services" / "ingest" / "worker.py").read_text()
