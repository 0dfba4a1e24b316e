"""`cra put` on a real object store: it goes on where it ended, and what goes wrong is said once."""

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner, Result
from minio import Minio

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.services.cli import upload
from cra.services.cli.group import cra
from cra.services.cli.upload import Upload, etag_of, held_objects, put_all
from cra.shared.adapters.object_store import connect
from cra.shared.errors import UnavailableError
from cra.shared.settings import Settings
from tests.fakes import picture
from tests.faults.proxy import Proxy
from tests.servers import free_ports, wait_until

put_module = importlib.import_module("cra.services.cli.put")
ingest_module = importlib.import_module("cra.services.cli.ingest")


def environment(s3: Settings) -> dict[str, str]:
    """Return the settings that reach the store, as variables."""
    return {
        "COLUMNS": "4000",
        "CRA_S3_ENDPOINT": s3.s3_endpoint,
        "CRA_S3_ACCESS_KEY": s3.s3_access_key,
        "CRA_S3_SECRET_KEY": s3.s3_secret_key.get_secret_value(),
    }


def put(s3: Settings, *arguments: str, **changes: str) -> Result:
    """Run `cra put` against the store."""
    return CliRunner().invoke(cra, ["put", *arguments], env={**environment(s3), **changes})


def put_json(s3: Settings, *arguments: str) -> dict[str, Any]:
    """Run `cra put --json` and return what it says."""
    done = put(s3, *arguments, "--json")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture
def bucket(s3: Settings) -> Minio:
    """The SDK itself."""
    return connect(s3)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture whose name is full of markup."""
    file = tmp_path / "plan[red][ :smile:.png"
    file.write_bytes(picture((200, 30, 30)))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve files, two levels deep, whose names sort in another order as folders than as keys."""
    for number in range(12):
        file = tmp_path / "photos" / f"hall{'-b' * (number % 2)}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % number * (number + 1))
    return tmp_path / "photos"


def test_a_file_that_is_not_put_is_named_once(s3: Settings, photo: Path) -> None:
    """A key over the store's limit neither fills the screen nor stops the other files."""
    long = "/".join(["长" * 60] * 8)
    done = put(s3, str(photo), "--prefix", f"{long}/")
    assert done.exit_code == 1, done.output
    assert f"not put {photo}: " in done.output
    assert long not in done.output
    assert put(s3, str(photo)).exit_code == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [(b"\xff.jpg", "its name is no UTF-8"), (b"a\\b.jpg", "its name has a backslash")],
)
def test_a_name_that_can_be_no_key_is_told_in_words(
    s3: Settings, tmp_path: Path, name: bytes, told: str
) -> None:
    """Alone, where the listing before would fail for it, and beside a file that is put.

    Break: no `key_problem` in `put_all`.
    """
    Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"x")
    for number in range(2):
        where = ("--prefix", f"named/{tmp_path.name}/{number}/")
        done = put(s3, str(tmp_path), *where)
        assert done.exit_code == 1, done.output
        assert told in done.stderr
        assert f"{number} put, 0 there already, 1 failed, 0 left" in done.stdout
        ((problem, file),) = [
            (one["problem"], one["file"]) for one in put_json(s3, str(tmp_path), *where)["failed"]
        ]
        assert told in problem
        assert file == click.format_filename(os.fsdecode(bytes(tmp_path) + b"/" + name))
        (tmp_path / "good.jpg").write_bytes(b"x")


def test_a_file_that_is_gone_is_told_from_a_store_that_is_down(s3: Settings, photo: Path) -> None:
    """It is the file that is at fault, and the others are put."""
    gone, there = Upload(photo.with_name("gone.png"), "gone.png"), Upload(photo, "there.png")
    summary = put_all(connect(s3), "images", [gone, there], {}, lambda _: None, force=True)
    assert summary.failed == [(gone, "No such file or directory")]
    assert (summary.put, summary.left, summary.stopped) == (1, 0, "")


def test_denied_credentials_point_at_the_settings_file(s3: Settings, photo: Path) -> None:
    """Who has not said CRA_ENV_FILE is told of it, once and before any file."""
    for key in ("", "wrong"):
        done = put(s3, str(photo.parent), CRA_S3_ACCESS_KEY=key)
        assert done.exit_code == 1
        assert "CRA_ENV_FILE" in done.output
        assert "not put" not in done.output


def test_what_the_bucket_holds_is_skipped(s3: Settings, bucket: Minio, folder: Path) -> None:
    """A second run puts nothing, a third what changed alone, in size or in content; --force all.

    Break: compare sizes alone in `_is_held`.
    """
    where = ("--prefix", "skipped/")
    first = put_json(s3, str(folder), *where)
    assert (first["put"], first["skipped"]) == (12, 0)
    assert first["bytes"] == sum(file.stat().st_size for file in folder.rglob("*.jpg"))
    again = put_json(s3, str(folder), *where)
    assert (again["put"], again["skipped"], again["bytes"]) == (0, 12, 0)
    changed = folder / "hall" / "4.jpg"
    changed.write_bytes(b"x" * changed.stat().st_size)
    bucket.remove_object("images", "skipped/hall-b/5.jpg")
    third = put_json(s3, str(folder), *where)
    assert (third["put"], third["skipped"]) == (2, 10)
    assert bucket.get_object("images", "skipped/hall/4.jpg").read() == changed.read_bytes()
    assert put_json(s3, str(folder), *where, "--force")["put"] == 12
    said = put(s3, str(folder), *where).stdout
    assert said == "12 of 12 files are in images: 0 put, 12 there already, 0 failed, 0 left\n"


def test_what_is_left_out_is_counted(s3: Settings, folder: Path) -> None:
    """Files of a folder that are no images are not put, and the summary says how many.

    Break: print no `others` in `_report`.
    """
    (folder / "notes.txt").write_bytes(b"x")
    where = ("--prefix", "notes/")
    assert put_json(s3, str(folder), *where)["not_images"] == 1
    assert "left out: 1 other: no image's name, or no file" in put(s3, str(folder), *where).stderr
    (folder / "notes.txt").unlink()
    assert "left out" not in put(s3, str(folder), *where).output


class Ingest:
    """Says that everything is indexed but one object."""

    Reconcile = RetryFailures = SyncObjects = None  # which nobody asks for

    def __init__(self, bad: str) -> None:
        self._bad = bad

    def GetStatus(  # noqa: N802
        self, request: ingest.GetStatusRequest, context: grpc.ServicerContext
    ) -> ingest.GetStatusResponse:
        """See proto/cra/ingest/v1."""
        return ingest.GetStatusResponse(objects=12, indexed=11, failed=1)

    def ListFailures(  # noqa: N802
        self, request: ingest.ListFailuresRequest, context: grpc.ServicerContext
    ) -> ingest.ListFailuresResponse:
        """See proto/cra/ingest/v1."""
        failures = [ingest.Failure(image_id=f"images/{self._bad}", message="no picture")]
        return ingest.ListFailuresResponse(failures=failures)


@contextlib.contextmanager
def ingesting(port: int, bad: str) -> Iterator[None]:
    """Serve `Ingest` on a port."""
    server = grpc.server(ThreadPoolExecutor(2))
    ingest_grpc.add_IngestServiceServicer_to_server(Ingest(bad), server)  # type: ignore[arg-type]
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def test_only_what_is_in_the_bucket_counts_as_indexed(s3: Settings, folder: Path) -> None:
    """A file that was never put is neither indexed nor waited for; JSON says what text does.

    Break: count `uploads` in place of `there` in `put`.
    """
    (port,) = free_ports(1)
    target = f"dns:///127.0.0.1:{port}"
    (folder / "un\\put.jpg").write_bytes(b"x")
    arguments = (str(folder), "--prefix", "counted/", "--wait")
    with ingesting(port, "counted/hall/4.jpg"):
        done = put(s3, *arguments, CRA_INGEST_TARGET=target)
        as_json = put(s3, *arguments, "--json", CRA_INGEST_TARGET=target)
    assert (done.exit_code, as_json.exit_code) == (1, 1)
    assert "12 of 13 files are in images" in done.stdout
    assert "11 of 12 files are indexed" in done.stdout
    assert "not indexed images/counted/hall/4.jpg: no picture" in done.stderr
    said = json.loads(as_json.stdout)
    assert said["indexed"] == 11
    bad = str(folder / "hall" / "4.jpg")
    assert said["not_indexed"] == [{"file": bad, "problem": "no picture"}]
    assert [one["file"] for one in said["failed"]] == [str(folder / "un\\put.jpg")]


def test_waiting_lasts_over_a_restart_of_ingest(
    s3: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While ingest is silent it is asked again, and that is said once; at last it is given up.

    What was put is told all the same. Break: raise at the first error in `wait_indexed`.
    """
    (port,) = free_ports(1)
    arguments = (str(folder), "--prefix", "patient/", "--wait", "--json")
    target = f"dns:///127.0.0.1:{port}"
    silent = threading.Event()
    real = ingest_module.call_ingest

    def call(*given: Any) -> Any:
        try:
            return real(*given)
        except UnavailableError:
            silent.set()
            raise

    def restart() -> None:
        silent.wait(30)
        with ingesting(port, "patient/hall/4.jpg"):
            done.wait(60)

    monkeypatch.setattr(ingest_module, "call_ingest", call)
    done = threading.Event()
    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        waited = put(s3, *arguments, CRA_INGEST_TARGET=target)
    finally:
        done.set()
        restarting.join()
    assert waited.exit_code == 1, waited.output
    assert json.loads(waited.stdout)["indexed"] == 11
    assert waited.stderr.count("does not answer") == 1
    monkeypatch.setattr(ingest_module, "SILENCE", 0.1)
    given_up = put(s3, *arguments, CRA_INGEST_TARGET=target)
    assert given_up.exit_code == 3
    assert "indexed" not in json.loads(given_up.stdout)
    assert given_up.stderr.count("does not answer") == 2


def test_metadata_counts_where_it_is_given(s3: Settings, bucket: Minio, folder: Path) -> None:
    """Files that are there are put again for other metadata, and kept with theirs without --meta.

    Break: `return True` without a look in `_is_held`.
    """
    where = ("--prefix", "described/")
    put_json(s3, str(folder), *where)
    meta = ("--meta", "City=西安")
    assert put_json(s3, str(folder), *where, *meta)["put"] == 12
    assert put_json(s3, str(folder), *where, *meta)["skipped"] == 12
    assert put_json(s3, str(folder), *where)["skipped"] == 12
    there = bucket.stat_object("images", "described/hall/0.jpg").metadata
    assert there is not None
    assert there["x-amz-meta-city"] == "%E8%A5%BF%E5%AE%89"
    assert put_json(s3, str(folder), *where, "--meta", "city=北京")["put"] == 12


def test_metadata_replaces_all_that_there_was(s3: Settings, bucket: Minio, folder: Path) -> None:
    """As the help says: a name that is not given again is gone."""
    where = ("--prefix", "replaced/")
    put_json(s3, str(folder), *where, "--meta", "desc=hall")
    assert put_json(s3, str(folder), *where, "--meta", "period=tang")["put"] == 12
    there = bucket.stat_object("images", "replaced/hall/0.jpg").metadata
    assert there is not None
    assert there["x-amz-meta-period"] == "tang"
    assert "x-amz-meta-desc" not in there


@pytest.mark.parametrize("size", [0, 1, 9 * 2**20, upload.PART, upload.PART + 1])
def test_the_stores_etag_is_foretold(
    s3: Settings, bucket: Minio, tmp_path: Path, size: int
) -> None:
    """A file's ETag is what the store lists, below, at and above one part and the store's chunks.

    Break: another part size in `_put` than in `etag_of`.
    """
    file = tmp_path / f"{size}.jpg"
    file.write_bytes(os.urandom(size))
    one = Upload(file, f"etag/{file.name}")
    assert put_all(bucket, "images", [one], {}, lambda _: None).put == 1
    held = held_objects(bucket, "images", [one])
    assert held[one.key] == (size, etag_of(file, size))
    assert put_all(bucket, "images", [one], {}, lambda _: None).skipped == 1


def test_a_store_that_is_gone_is_no_list_of_failures(
    s3: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing is answered any more it ends, leaves the rest, and says that it can go on."""
    monkeypatch.setattr(upload, "PAUSES", ())
    (port,) = free_ports(1)
    nowhere = connect(s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{port}"}))
    found, _ = upload.find_uploads([folder], "gone/")
    # Enough that some are left however late the first failure is seen.
    uploads = [Upload(one.file, f"{number}/{one.key}") for number in range(50) for one in found]
    summary = put_all(nowhere, "images", uploads, {}, lambda _: None, parallel=2, force=True)
    assert "does not answer" in summary.stopped
    assert summary.left > 0
    assert len(summary.failed) + summary.left == 600
    done = put(s3, str(folder), CRA_S3_ENDPOINT=f"127.0.0.1:{port}")
    assert done.exit_code == 3
    assert "does not answer" in done.output


def test_ctrl_c_ends_cleanly_and_the_same_goes_on(
    s3: Settings, bucket: Minio, tmp_path: Path
) -> None:
    """Interrupted midway it sums up with exit code 130; the same command puts exactly the rest.

    Break: no look at `stop` in `_Putter`.
    """
    for number in range(3000):
        (tmp_path / f"{number:04}.jpg").write_bytes(b"%04d" % number * 500)
    (port,) = free_ports(1)
    slow = Proxy(port, int(s3.s3_endpoint.rsplit(":", 1)[1]))
    slow.delay(0.02)  # so that it is not done before it is interrupted
    far = s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{port}"})
    command = [sys.executable, "-m", "cra.services.cli", "put", str(tmp_path)]
    command += ["--prefix", "cut/", "--parallel", "2", "--json"]
    with (
        subprocess.Popen(
            command,
            env={**os.environ, **environment(far)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        contextlib.closing(slow),
    ):
        wait_until(lambda: any(bucket.list_objects("images", "cut/")), "it has begun")
        process.send_signal(signal.SIGINT)
        told, complaints = process.communicate(timeout=30)
    assert process.returncode == 130, complaints
    said = json.loads(told)
    assert said["stopped"] == "interrupted"
    assert 0 < said["put"] < 3000
    assert (said["put"] + said["left"], said["failed"]) == (3000, [])
    keys = {one.object_name for one in bucket.list_objects("images", "cut/", recursive=True)}
    assert len(keys) == said["put"]
    rest = put_json(s3, str(tmp_path), "--prefix", "cut/")
    assert (rest["put"], rest["skipped"]) == (said["left"], said["put"])


def test_a_second_ctrl_c_waits_for_nothing(s3: Settings, bucket: Minio, tmp_path: Path) -> None:
    """Files under way to a store that hangs would take their time: it ends at once, with 130.

    Break: `return` for every Ctrl-C in `_stopped_by_ctrl_c`.
    """
    for number in range(300):
        (tmp_path / f"{number:03}.jpg").write_bytes(b"%03d" % number)
    (port,) = free_ports(1)
    hanging = Proxy(port, int(s3.s3_endpoint.rsplit(":", 1)[1]))
    hanging.delay(0.02)
    far = s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{port}"})
    command = [sys.executable, "-m", "cra.services.cli", "put", str(tmp_path)]
    with (
        subprocess.Popen(
            [*command, "--prefix", "twice/", "--parallel", "2"],
            env={**os.environ, **environment(far)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        contextlib.closing(hanging),
    ):
        wait_until(lambda: any(bucket.list_objects("images", "twice/")), "it has begun")
        hanging.freeze()

        def ended() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        wait_until(ended, "it ends", 10)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted twice; files that were under way are not put" in complaints


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (put_module, "find_uploads"),
        (put_module, "connect"),
        (upload, "held_objects"),
        (upload, "ThreadPoolExecutor"),
        (upload, "as_completed"),
        (put_module, "_report"),
    ],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_one_ctrl_c_sums_up_wherever_it_falls(
    s3: Settings,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: ModuleType,
    name: str,
    side: str,
) -> None:
    """While files are looked for, listed, submitted, put or summed up: a summary, and 130.

    Break: raise KeyboardInterrupt in `_stopped_by_ctrl_c`.
    """
    real = getattr(where, name)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if side == "before":
            signal.raise_signal(signal.SIGINT)
        done = real(*arguments, **named)
        if side == "after":
            signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(where, name, interrupted)
    done = put(s3, str(folder), "--prefix", f"once/{name}/{side}/")
    assert done.exit_code == 130, done.output
    counts = re.search("([0-9]+) put, 0 there already, 0 failed, ([0-9]+) left", done.stdout)
    assert counts is not None, done.output
    assert int(counts[1]) + int(counts[2]) == 12
    assert "twice" not in done.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
