"""`make up` with settings that cannot work: it ends, and its last words say why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import NO_METRICS, ROOT, free_ports


def up(data: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `make up` in a data folder, on free ports, until it ends by itself."""
    names = ("GATEWAY", "EMBEDDING", "INGEST", "EVENTS", "S3", "MILVUS", "REDIS")
    ports = zip(names, map(str, free_ports(len(names))), strict=True)
    others = {name: value for name, value in os.environ.items() if not name.startswith("CRA_")}
    return subprocess.run(
        [sys.executable, "-m", "deploy.stack", "up", *options],
        cwd=ROOT,
        env={
            **others,
            **NO_METRICS,
            **{f"CRA_{name}_PORT": port for name, port in ports},
            "CRA_DATA_DIR": str(data),
            "CRA_LOCAL_MILVUS": "lite",
            **settings,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("CRA_MAX_BATCH", "many"), ("CRA_LOCAL_MILVUS", "big"), ("CRA_BUCKETS", "UPPER")],
)
def test_a_bad_setting_is_one_line(name: str, value: str, tmp_path: Path) -> None:
    """It names the variable, for settings of the services and of the stack itself alike."""
    done = up(tmp_path, **{name: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "stack.json").exists()


def test_a_page_without_a_key_is_not_waited_for(tmp_path: Path) -> None:
    """Where the gateway asks for keys the page has to have one, or it is never ready.

    Break: no `_lacks_key` in `launch`.
    """
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    done = up(tmp_path, "--detach", CRA_API_KEYS_FILE=str(keys))
    assert done.returncode == 1
    assert "the search page needs CRA_API_KEY" in done.stderr


def test_a_model_that_is_missing_stops_the_stack(tmp_path: Path) -> None:
    """The embedding service is not started for ever; its own words are the last ones."""
    done = up(tmp_path, CRA_MODEL="no-such-model")
    assert done.returncode == 1
    assert "embedding cannot start:" in done.stderr
    assert "no model 'no-such-model': neither a file nor one of" in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting again" not in (tmp_path / "logs" / "embedding.log").read_text()
    assert not (tmp_path / "run" / "stack.json").exists()
