"""The CronJob `reconcile` as its pod would run it, on a real Redis."""

import json
import os
import subprocess
import sys
from pathlib import Path

import redis

from cra.services.ingest import tasks
from tests.manifests import container, pods
from tests.servers import ROOT
from tests.unit.test_k8s_policy import secret_files, shared


def mount(folder: Path, files: dict[str, str]) -> None:
    """Lay files out as Kubernetes does in a volume: links to those of a dated folder."""
    dated = folder / "..2026_11_25"
    dated.mkdir(parents=True)
    (folder / "..data").symlink_to(dated.name)
    for name, value in files.items():
        (dated / name).write_text(value)
        (folder / name).symlink_to(f"..data/{name}")


def test_the_job_puts_a_reconcile_in_line(redis_url: str, tmp_path: Path) -> None:
    """With the settings and secrets that its pod has, and no others, a worker is asked for one.

    Break: take CRA_REDIS_URL from the CronJob's secret, or misspell the task.
    """
    pod = pods("cpu")["reconcile"]
    values = {"CRA_REDIS_URL": redis_url}
    mount(tmp_path / "secrets", {name: values[name] for _, _, name in secret_files(pod)})
    env = {name: value for name, value in os.environ.items() if not name.startswith("CRA_")}
    env |= shared("cpu") | {"CRA_SECRETS_DIR": str(tmp_path / "secrets")}
    program, *arguments = container(pod)["command"]
    with redis.Redis.from_url(redis_url) as client:
        client.delete("celery")
        done = subprocess.run(
            [str(Path(sys.executable).parent / program), *arguments],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (message,) = client.lrange("celery", 0, -1)
        client.delete("celery")
    headers = json.loads(message)["headers"]
    assert headers["task"] == tasks.RECONCILE
    assert headers["expires"]
