"""Ports of the local stack: taken ones are named, Redis moves, addresses follow."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cra.shared.settings import Settings
from deploy.local import environment
from deploy.local.environment import LocalSettings, StackError
from deploy.local.ports import find_free, holder, is_free
from tests.servers import NO_METRICS, ROOT, free_ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CRA_")]:
        monkeypatch.delenv(name)


def test_a_taken_port_is_not_free_and_its_holder_is_known(taken: int) -> None:
    """Listening sockets are seen, and on Linux whose they are."""
    assert not is_free(taken)
    if sys.platform == "linux":
        assert holder(taken).startswith(f"{os.getpid()} (")


def test_find_free_passes_over_what_is_taken_or_promised(taken: int) -> None:
    """No port is given out twice."""
    promised = {taken + 1}
    found = find_free(taken, promised)
    assert found > taken + 1
    assert found in promised


def test_up_names_the_port_the_setting_and_the_process(taken: int, tmp_path: Path) -> None:
    """Who reads the message knows what to do; the exit code is 1 and nothing was started."""
    names = ("EMBEDDING", "INGEST", "EVENTS", "S3", "MILVUS")
    ports = zip((f"CRA_{n}_PORT" for n in names), map(str, free_ports(5)), strict=True)
    env = {
        **os.environ,
        **NO_METRICS,
        **dict(ports),
        "CRA_GATEWAY_PORT": str(taken),
        "CRA_DATA_DIR": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-m", "deploy.stack", "up"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert f"port {taken} is taken" in result.stderr
    assert "CRA_GATEWAY_PORT=ANOTHER" in result.stderr
    if sys.platform == "linux":
        assert f"process {os.getpid()} (" in result.stderr
    assert not (tmp_path / "run" / "stack.json").exists()


def test_one_port_for_two_servers_is_refused() -> None:
    """Before either of them starts."""
    (port,) = free_ports(1)
    settings = Settings(gateway_port=port, embedding_port=port)
    with pytest.raises(StackError, match="CRA_GATEWAY_PORT and CRA_EMBEDDING_PORT"):
        environment.check_ports(settings, LocalSettings())


def test_redis_moves_to_a_free_port(taken: int) -> None:
    """Another Redis on the machine is in nobody's way."""
    env = environment.build(Settings(), LocalSettings(redis_port=taken))
    moved = int(env["CRA_REDIS_PORT"])
    assert moved > taken
    assert env["CRA_REDIS_URL"] == f"redis://127.0.0.1:{moved}/0"


def test_addresses_follow_the_ports() -> None:
    """A port is set once; where clients look for the server follows."""
    derived = environment.derive(
        Settings(gateway_port=1111, ingest_port=1112), LocalSettings(s3_port=1113, milvus_port=1114)
    )
    assert derived["CRA_GATEWAY_TARGET"] == "dns:///127.0.0.1:1111"
    assert derived["CRA_INGEST_TARGET"] == "dns:///127.0.0.1:1112"
    assert derived["CRA_S3_ENDPOINT"] == "127.0.0.1:1113"
    assert derived["CRA_MILVUS_URI"] == "http://127.0.0.1:1114"


def test_an_address_that_contradicts_its_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than ignored: the local stack always runs its own servers."""
    monkeypatch.setenv("CRA_MILVUS_URI", "http://elsewhere:19530")
    with pytest.raises(StackError, match="set CRA_MILVUS_PORT to move the port"):
        environment.derive(Settings(), LocalSettings())


def test_a_detour_is_taken_when_it_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the addresses that are set stand, and those that are not follow the ports."""
    monkeypatch.setenv("CRA_MILVUS_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("CRA_REDIS_URL", "redis://127.0.0.1:2/0")
    env = environment.build(Settings(), LocalSettings(local_detour=True, s3_port=1113))
    assert env["CRA_MILVUS_URI"] == "http://127.0.0.1:1"
    assert env["CRA_REDIS_URL"] == "redis://127.0.0.1:2/0"
    assert env["CRA_S3_ENDPOINT"] == "127.0.0.1:1113"


def test_default_ports_of_servers_are_those_of_the_settings() -> None:
    """One value per fact: they are read from the settings' own defaults."""
    local = LocalSettings()
    assert (local.s3_port, local.milvus_port, local.redis_port) == (9000, 19530, 6379)


def test_up_refuses_a_second_stack(tmp_path: Path) -> None:
    """And says how to stop the first one."""
    from deploy.local.state import StateFile

    first = StateFile(tmp_path)
    assert first.acquire()
    result = subprocess.run(
        [sys.executable, "-m", "deploy.stack", "up"],
        cwd=ROOT,
        env={**os.environ, "CRA_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "a stack is up already" in result.stderr
