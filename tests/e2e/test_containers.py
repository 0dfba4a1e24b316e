"""The images and compose with a real Docker engine, where there is one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.engine import NoEngineError, find_composes, find_engine
from tests.servers import ROOT


@pytest.mark.slow
def test_compose_comes_up_and_does_its_job(tmp_path: Path) -> None:
    """Every image builds, all containers get healthy, and the checks of `make containers` hold."""
    try:
        find_engine()
        find_composes()
    except NoEngineError as error:
        pytest.skip(f"NOTHING OF CONTAINERS WAS CHECKED: {error}")
    command = [sys.executable, "-m", "tests.containers", "--out", str(tmp_path / "containers.md")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
