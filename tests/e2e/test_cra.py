"""The `cra` command on the running stack, as an operator uses it."""

import json
import re
from pathlib import Path

import pytest

from cra.services.cli import part_checks
from cra.services.cli.findings import Facts, Finding, State
from cra.services.cli.probe import event_path
from tests.e2e.test_stack import photograph
from tests.servers import wait_until
from tests.stack import Stack


def test_put_waits_until_all_is_indexed(stack: Stack, tmp_path: Path) -> None:
    """`cra put --wait` returns when the files can be found, and names those that cannot be.

    What is not in the bucket is no part of the count.

    Break: count `uploads` in `_wait`, those that failed included.
    """
    (tmp_path / "good.jpg").write_bytes(photograph(901))
    (tmp_path / "bad.jpg").write_bytes(b"this is text")
    (tmp_path / "un\\put.jpg").write_bytes(photograph(902))
    done = stack.cra("put", str(tmp_path), "--prefix", "waited/", "--wait")
    assert done.returncode == 1
    assert "2 of 3 files are in images: 2 put" in done.stdout
    assert "1 of 2 files are indexed" in done.stdout
    assert "not indexed images/waited/bad.jpg: " in done.stderr
    assert stack.best(photograph(901)) > ("waited/good.jpg", 0.99)
    stack.bucket.remove_object("images", "waited/bad.jpg")
    (tmp_path / "bad.jpg").unlink()
    (tmp_path / "un\\put.jpg").unlink()
    again = stack.cra("put", str(tmp_path), "--prefix", "waited/", "--wait")
    assert again.returncode == 0, again.stderr
    assert "1 there already" in again.stdout


def test_search_writes_a_page(stack: Stack, tmp_path: Path) -> None:
    """`cra search --html` shows each hit's own picture, without credentials of the object store."""
    stack.put("page/红.jpg", photograph(920), {"caption": "<红墙>"})
    stack.follows(photograph(920), "page/红.jpg")
    file = tmp_path / "hits.html"
    done = stack.cra("search", "红墙", "--prefix", "page/", "--html", str(file))
    assert done.returncode == 0, done.stderr
    page = file.read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == 1
    assert "images/page/红.jpg" in page
    assert "&lt;红墙&gt;" in page
    assert not re.search(r"https?://", page)


def test_doctor_finds_the_stack_well(stack: Stack) -> None:
    """Every part is ok, or tells that it cannot be seen; the probe goes the whole way.

    Warnings there may be: of objects that other tests have made fail.
    """
    wait_until(stack.settled, "nothing is under way", 60)
    done = stack.cra("doctor", "--probe", "--json")
    said = json.loads(done.stdout)
    told = [one for one in said["checks"] if one["state"] not in {"ok", "warning"}]
    assert (done.returncode, told) == (0, [])
    parts = {one["part"] for one in said["checks"]}
    assert {"object store", "Milvus", "Redis", "embedding", "gateway", "ingest", "events"} <= parts
    assert {"workers", "certificates", "clock", "disk", "agreement", "event path"} <= parts
    assert {"ok": True, "checks": said["checks"]} == said
    assert "was found" in said["checks"][-1]["found"]
    left = stack.bucket.list_objects("images", prefix="cra-doctor/", recursive=True)
    assert list(left) == []
    shown = stack.cra("doctor")
    assert shown.returncode == 0
    assert "0 wrong" in shown.stderr


SECRETS = {
    "CRA_API_KEY": ("gateway",),
    "CRA_SERVICE_TOKEN": ("ingest", "embedding"),
    "CRA_EVENT_TOKEN": ("events",),
    "CRA_S3_SECRET_KEY": ("object store",),
}
PLACES = {
    "CRA_BUCKETS": ("object store",),
    "CRA_MILVUS_URI": ("Milvus",),
    "CRA_REDIS_URL": ("Redis",),
    "CRA_INGEST_TARGET": ("ingest",),
}
ELSEWHERE = {
    "CRA_BUCKETS": "images,plans",
    "CRA_MILVUS_URI": "http://127.0.0.1:9",
    "CRA_REDIS_URL": "redis://127.0.0.1:9/0",
    "CRA_INGEST_TARGET": "dns:///127.0.0.1:9",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [(dict.fromkeys(SECRETS, "wrong"), SECRETS), (ELSEWHERE, PLACES)],
    ids=["secrets", "places"],
)
def test_doctor_names_what_is_broken(
    stack: Stack, changes: dict[str, str], expected: dict[str, tuple[str, ...]]
) -> None:
    """Each setting that does not fit the stack is found, and the way to mend it names it."""
    done = Stack({**stack.env, **changes}).cra("doctor", "--json")
    assert done.returncode == 1
    wrong = [one for one in json.loads(done.stdout)["checks"] if one["state"] == "wrong"]
    for setting, parts in expected.items():
        for part in parts:
            told = [one for one in wrong if one["part"] == part]
            assert any(setting in one["mend"] + one["found"] for one in told), (setting, wrong)


def test_doctor_sees_failures_and_the_probe_alone(stack: Stack) -> None:
    """What cannot be indexed is a warning with the commands that help; the probe can be timed."""
    stack.put("doctor/bad.jpg", b"this is text")

    def failed() -> bool:
        return any("cannot be indexed" in one.found for one in found())

    def found() -> list[Finding]:
        return list(part_checks.index(stack.settings, Facts()))

    wait_until(failed, "it is on the list")
    (told,) = [one for one in found() if "cannot be indexed" in one.found]
    assert told.state is State.WARNING
    assert "cra failures --retry" in told.mend
    stack.bucket.remove_object("images", "doctor/bad.jpg")
    (probed,) = event_path(stack.settings, Facts())
    assert probed.state is State.OK
