"""What stands still or has come to an end is seen: a real worker, beat and Milvus server."""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cra.shared.adapters.object_store import connect
from cra.shared.settings import Settings
from deploy.healthcheck import beats
from deploy.local import readiness
from deploy.local.environment import LocalSettings
from deploy.local.parts import Part
from deploy.local.runner import Runner
from deploy.local.state import PartState
from tests.servers import NO_METRICS, ROOT, free_ports, milvus_process, wait_until


@pytest.mark.slow
def test_a_worker_and_beat_that_stand_still_are_started_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP to the main process of each: within moments others do their jobs.

    Broken on purpose: without `_WorkerTurns` among the consumer's steps, the worker's file is never
    touched, and it is not seen to work at all.
    """
    monkeypatch.setattr("deploy.local.runner.ASKED_EVERY", 1.0)
    monkeypatch.setattr("deploy.healthcheck.FRESH", 12.0)
    celery = [str(Path(sys.executable).parent / "celery"), "-A", "cra.services.ingest.worker"]
    parts = [
        Part("worker", (*celery, "worker", "--pool", "prefork", "--loglevel", "WARNING"), 20.0),
        Part("beat", (*celery, "beat", "-s", str(tmp_path / "schedule"), "--pidfile="), 20.0),
    ]
    env = {
        **os.environ,
        **NO_METRICS,
        "CRA_REDIS_URL": redis_url,
        "CRA_HEARTBEAT_FOLDER": str(tmp_path / "signs"),
        "CRA_WORKER_PROCESSES": "1",
    }
    settings = Settings(heartbeat_folder=str(tmp_path / "signs"))
    history: list[list[PartState]] = []
    works = readiness.signs_of_life(settings, LocalSettings(data_dir=tmp_path), settings)
    runner = Runner(parts, env, ROOT, tmp_path, (), history.append, works)
    runner.start()

    def working(starts: int) -> bool:
        # What was touched before a start is no sign of what was started.
        return all(
            part.starts == starts
            and beats(file := tmp_path / "signs" / part.name)
            and file.stat().st_mtime > part.since
            for part in history[-1]
        )

    try:
        wait_until(lambda: bool(history) and working(1), "both work", 60)
        for part in history[-1]:
            assert part.pid is not None
            os.kill(part.pid, signal.SIGSTOP)
        wait_until(lambda: working(2), "both work again", 90)
    finally:
        runner.stop()


@pytest.mark.slow
def test_a_milvus_that_lost_its_lease_is_known(tmp_path: Path) -> None:
    """Stopped for longer than its lease it serves no more, and the runner is told to kill it.

    Break: `Initializing` for `Abnormal`.
    """
    pytest.importorskip("milvus", reason="the Milvus server's wheel does not install here")
    local = LocalSettings(data_dir=tmp_path)
    with milvus_process(tmp_path, "server") as (_, pid):
        assert readiness.milvus_is_sound(local)
        lease = threading.Event()
        os.kill(pid, signal.SIGSTOP)
        lease.wait(14)  # it is of ten seconds
        assert readiness.milvus_is_sound(local), "what does not answer is not killed"
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not readiness.milvus_is_sound(local), "it says so", 30)


def test_a_store_that_notes_nothing_more_is_known(
    releases_s3: Settings, s3_folder: Path, tmp_path: Path
) -> None:
    """One that answers with an error of its own is not sound, and one that does not answer may be.

    Every database of the store is asked for a line, and nothing is left in the bucket.

    Break: `return True` for every answer; or one key for all.
    """
    (databases,) = s3_folder.rglob("filerldb2")

    def sizes() -> list[int]:
        folders = sorted(databases.iterdir())
        return [sum(log.stat().st_size for log in folder.glob("*.log")) for folder in folders]

    before = sizes()
    assert readiness.store_takes_objects(releases_s3, tmp_path)
    assert len(before) > 1
    assert all(now > then for now, then in zip(sizes(), before, strict=True))
    bucket = releases_s3.releases_bucket
    assert not list(connect(releases_s3).list_objects(bucket, prefix=".", recursive=True))
    nobody = releases_s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{free_ports(1)[0]}"})
    assert readiness.store_takes_objects(nobody, tmp_path)

    class Broken(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_error(500)

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        broken = releases_s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{server.server_port}"})
        assert not readiness.store_takes_objects(broken, tmp_path)
        server.shutdown()
