"""Ingest on a real object store, Milvus Lite and Redis; only the model is a fake."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import redis
from minio.commonconfig import CopySource
from pydantic import SecretStr

from cra.services.ingest import reconcile, tasks
from cra.services.ingest.events import parse_event
from cra.services.ingest.ledger import Ledger
from cra.services.ingest.reconcile import FEW_ORPHANS, Summary
from cra.services.ingest.sync import Synchronizer
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectDetails, ObjectRef, StoredObject, Version
from cra.shared.errors import AbortedError
from cra.shared.settings import Settings
from tests import ingesting
from tests.fakes import ColourEncoder, picture
from tests.ingesting import BLUE, GREEN, RED, A, B, C, World
from tests.odd_objects import KEYS_OF_OTHER_STORES
from tests.unit.test_events import minio


@pytest.fixture
def world(s3: Settings, vectors: MilvusVectorStore, redis_url: str) -> Iterator[World]:
    """Empty stores."""
    with ingesting.empty(s3, vectors, redis_url) as world:
        yield world


def test_sync_indexes_the_object_as_it_is(world: World) -> None:
    """A new object gets its vector, size, version and metadata; a second sync embeds nothing."""
    world.put(A, picture(RED, (64, 48)), {"caption": "红墙"})
    assert world.sync(A).done == [A]
    (record,) = world.vectors.records(world.encoder.fingerprint, [A])
    details = world.objects.look(A)
    assert details is not None
    assert (record.version, record.metadata) == (details.version, {"caption": "红墙"})
    assert (record.width, record.height) == (64, 48)
    assert world.holds(A, RED)
    world.sync(A)
    assert world.encoder.batches == [1]


def test_overwrite_delete_rename_and_reupload(world: World) -> None:
    """After each change a sync of the names concerned leaves exactly what the bucket holds."""
    world.put(A, picture(RED))
    world.put(B, picture(BLUE))
    world.sync(A, B)
    world.put(A, picture(GREEN))  # overwrite
    world.sync(A)
    assert world.holds(A, GREEN)
    world.client.copy_object("images", C.key, CopySource("images", A.key))  # rename
    world.remove(A)
    world.sync(C, A)
    assert world.index() == {B, C}
    assert world.holds(C, GREEN)
    world.remove(B)
    world.sync(B, B)
    assert world.index() == {C}
    world.put(B, picture(RED))  # re-upload
    world.sync(B)
    assert world.index() == {B, C}
    assert world.holds(B, RED)


def test_other_metadata_is_another_version(world: World) -> None:
    """The same picture with other metadata is written again."""
    world.put(A, picture(RED), {"caption": "一"})
    world.sync(A)
    world.put(A, picture(RED), {"caption": "二"})
    world.sync(A)
    (record,) = world.vectors.records(world.encoder.fingerprint, [A])
    assert record.metadata == {"caption": "二"}


def test_a_bad_file_fails_alone_and_is_not_found_by_its_past(world: World) -> None:
    """A bad file fails with its reason, harms no neighbour, and leaves the index if it was in."""
    world.put(A, picture(RED))
    world.sync(A)
    world.put(A, b"no image")
    world.put(B, picture(BLUE))
    world.put(C, picture(GREEN, (640, 480), "JPEG")[:-50])
    outcome = world.sync(A, B, C)
    assert outcome.done == [B]
    assert {failure.ref: failure.reason for failure in outcome.failed} == {
        A: "not_an_image",
        C: "truncated",
    }
    assert world.index() == {B}


def test_gigabytes_are_refused_by_their_size(world: World) -> None:
    """An object of five gigabytes fails by its size, before more of it comes than buffers hold.

    The store is a server that has five gigabytes to give and counts what it gets rid of. Fails when
    `fetch` calls `check` after it has read the answer.
    """
    size, sent = 5 * 2**30, []

    class Store(BaseHTTPRequestHandler):
        """Answers as S3 does, with zeros."""

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.send_header("ETag", '"five"')
            self.send_header("Last-Modified", formatdate(1_700_000_000, usegmt=True))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            block = bytes(2**16)
            with contextlib.suppress(ConnectionError):
                for _ in range(size // len(block)):
                    self.wfile.write(block)
                    sent.append(len(block))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever).start()
        endpoint = f"127.0.0.1:{server.server_port}"
        store = S3ObjectStore(world.settings.model_copy(update={"s3_endpoint": endpoint}))
        most = world.settings.max_object_bytes
        (failure,) = world.make_synchronizer(world.encoder, most, store).sync([A]).failed
        server.shutdown()
    assert failure.reason == "too_many_bytes"
    assert failure.message == f"it has {size} bytes; at most {most} are allowed"
    assert sum(sent) < 32 * 2**20


class Shelf:
    """A store that holds any key at all, as a listing shows it; the rest is the real one's."""

    def __init__(self, world: World, keys: Sequence[str]) -> None:
        self.keys = keys
        self.real = S3ObjectStore(world.settings)
        self.real.list = self.list  # type: ignore[method-assign]

    def list(self, bucket: str, prefix: str = "") -> Iterator[StoredObject]:
        """Yield what is there, in order."""
        for key in sorted(self.keys):
            if key.startswith(prefix):
                yield StoredObject(ObjectRef(bucket, key), Version("etag", 1000), 9)


def test_a_key_that_cannot_be_asked_for_fails_alone(world: World) -> None:
    """An object that the store lists, but the SDK does not take, is listed with that reason.

    It harms no neighbour of its batch. Fails when `_listed` is left out of `fetch`: the worker
    ended in an exception, its objects went back in line one by one, and this one for ever.
    """
    world.put(B, picture(BLUE))
    odd = [ObjectRef("images", key) for key in ("a/../b.jpg", "..", "./a.jpg")]
    shelf = Shelf(world, [*(ref.key for ref in odd), "../more"])
    synchronizer = world.make_synchronizer(world.encoder, objects=shelf.real)
    outcome = synchronizer.sync([odd[0], B, *odd[1:]])
    assert outcome.done == [B]
    assert {failure.ref: failure.reason for failure in outcome.failed} == dict.fromkeys(
        odd, "bad_key"
    )
    assert "'..' path segment" in outcome.failed[0].message
    assert outcome.failed[0].version == Version("etag", 1000)


@pytest.mark.parametrize("kind", KEYS_OF_OTHER_STORES)
def test_events_of_keys_that_cannot_be_leave_nothing_behind(world: World, kind: str) -> None:
    """An event of MinIO about any key S3 allows is worked off, beside a neighbour, at once."""
    key = KEYS_OF_OTHER_STORES[kind]
    world.put(B, picture(BLUE))
    line = parse_event(minio(key, B.key), ("images",))
    assert line == [ObjectRef("images", key), B]
    world.ledger.add(line)
    world.drain()
    assert world.ledger.waiting() == set()
    assert world.ledger.failures() == []
    assert world.index() == {B}


@pytest.mark.parametrize("last", ["overwritten", "deleted"])
def test_interleaved_syncs_leave_the_truth(world: World, last: str) -> None:
    """A slow sync of an old state that ends after a quick sync of the new one does no harm."""
    world.put(A, picture(RED))

    class Slow(ColourEncoder):
        """While it embeds, the object changes and another worker syncs it."""

        changed = False

        def begin(self, pixels: Sequence[bytes]) -> None:
            if not self.changed:
                self.changed = True
                if last == "deleted":
                    world.remove(A)
                else:
                    world.put(A, picture(BLUE))
                assert world.sync(A).done == [A]

    slow = world.make_synchronizer(Slow(world.encoder.fingerprint))
    assert slow.sync([A]).done == [A]
    if last == "deleted":
        assert world.index() == set()
    else:
        assert world.holds(A, BLUE)


def test_an_object_that_never_rests_goes_back_in_line(world: World) -> None:
    """An object that changes at every look is not called done."""
    world.put(A, picture(RED))

    class Restless(S3ObjectStore):
        looks = 0

        def look(self, ref: ObjectRef) -> ObjectDetails | None:
            self.looks += 1
            world.put(A, picture((self.looks, 0, 0)))
            return super().look(ref)

    objects = Restless(world.settings)
    synchronizer = world.make_synchronizer(world.encoder, objects=objects)
    assert synchronizer.sync([A]).unsettled == [A]


def test_draining_follows_events_in_any_order(world: World) -> None:
    """Duplicate, late and reversed events end in the same index."""
    world.put(A, picture(RED))
    world.ledger.add([A])
    world.drain()
    world.remove(A)
    world.put(B, picture(GREEN))
    world.ledger.add([B, A, B])
    world.ledger.add([A])
    world.drain()
    assert world.index() == {B}
    assert world.ledger.waiting() == set()


def test_workers_are_called_once_until_one_has_come(world: World) -> None:
    """However many events there are, no line of calls builds up before the reconcile.

    Break: `wake` that does not ask the ledger.
    """
    app = tasks.create_app(
        world.settings.model_copy(update={"redis_url": SecretStr(world.redis_url)})
    )
    with redis.Redis.from_url(world.redis_url) as client:
        for _ in range(50):
            tasks.wake(app, world.ledger)
        assert client.llen("celery") == 1
        world.drain()  # one has come
        for _ in range(50):
            tasks.wake(app, world.ledger)
        assert client.llen("celery") == 2
        assert 0 < client.pttl("cra:called") <= 60_000  # one that is lost is not waited for


def test_reconcile_finds_what_events_missed(world: World) -> None:
    """Missing, stale and orphaned are found, put in line, and gone after the line is drained."""
    for ref in (A, B, C):
        world.put(ref, picture(RED))
    world.sync(A, B)
    world.put(A, picture(BLUE))
    world.remove(B)
    *_, dry = world.reconciler.reconcile(dry_run=True)
    assert (dry.objects, dry.missing, dry.stale, dry.orphaned) == (2, 1, 1, 1)
    assert world.ledger.waiting() == set()
    *_, summary = world.reconciler.reconcile()
    assert summary.finished_at >= summary.started_at
    assert world.ledger.waiting() == {A, B, C}
    assert world.woken == 1
    world.drain()
    assert world.index() == {A, C}
    assert world.holds(A, BLUE)


def test_a_reconcile_puts_in_line_what_it_has_found_so_far(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large bucket the first objects are indexed while the rest is listed.

    Break: put them in line at the end.
    """
    monkeypatch.setattr(reconcile, "ADDED_AT_ONCE", 2)
    monkeypatch.setattr(reconcile, "PROGRESS_EVERY", 3)
    refs = [ObjectRef("images", f"{n}.png") for n in range(4)]
    for ref in refs:
        world.put(ref, picture(RED))
    summaries = world.reconciler.reconcile()
    assert next(summaries).objects == 3
    assert world.ledger.waiting() == set(refs[:2])
    assert world.woken == 1
    assert next(summaries).missing == 4
    assert world.ledger.waiting() == set(refs)


def test_one_worker_reconciles_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes longer than it is to the next holds that one off, and then no more.

    Break: `begin_reconcile` that is always true, or no `end_reconcile`.
    """
    done: list[bool] = []

    def meanwhile(*_: object) -> Iterator[Summary]:
        other = Ledger(world.redis_url, 60)
        done.append(tasks.reconcile(other, world.reconciler, world.settings))
        yield Summary(0.0)

    with monkeypatch.context() as patch:
        patch.setattr(world.reconciler, "reconcile", meanwhile)
        assert tasks.reconcile(world.ledger, world.reconciler, world.settings)
    assert done == [False]
    assert tasks.reconcile(world.ledger, world.reconciler, world.settings)


def test_the_lease_of_a_reconcile_is_renewed(world: World) -> None:
    """It lasts as long as the reconcile, and no longer than a lease after a worker that died."""
    assert world.ledger.begin_reconcile()
    with redis.Redis.from_url(world.redis_url) as client:
        client.pexpire("cra:reconciling", 1000)
        world.ledger.renew_reconcile()
        assert 50_000 < client.pttl("cra:reconciling") <= 60_000
    world.ledger.end_reconcile()
    world.ledger.end_reconcile()  # one that others hold by now is theirs


def test_a_bucket_that_is_taken_out_leaves_the_index(world: World) -> None:
    """What lies in none of CRA_BUCKETS is removed though it is there, once a reconcile asks.

    Break: look at it as at any object.
    """
    world.put(A, picture(RED))
    world.sync(A)
    others = Synchronizer(world.objects, world.vectors, world.encoder, 10**6, ("others",))
    assert others.sync([A]).done == [A]
    assert world.index() == set()


def test_a_failure_does_not_hide_the_vector_of_a_version_before(world: World) -> None:
    """What an old backup brings back of an object that has become bad goes again.

    Break: take a failure at the object's version for all there is to know of it.
    """
    world.put(A, picture(RED))
    world.sync(A)
    tower = world.encoder.fingerprint
    before = world.vectors.fetch(tower, [A])
    world.put(A, b"no image")
    world.ledger.add([A])
    world.drain()
    assert world.index() == set()
    world.vectors.upsert(tower, before)
    *_, summary = world.reconciler.reconcile()
    assert summary.stale == 1
    world.drain()
    assert world.index() == set()
    assert [failure.ref for failure in world.ledger.failures()] == [A]
    *_, summary = world.reconciler.reconcile()
    assert (summary.stale, summary.missing) == (0, 0)


def test_reconcile_stops_before_a_mass_deletion(world: World) -> None:
    """An index that would lose more than its share loses nothing until a person allows it.

    Status says so, and why. Break: `_refusal` that is always empty, or a summary that is noted
    only when the reconcile went through.
    """
    refs = [ObjectRef("images", f"{n}.png") for n in range(FEW_ORPHANS + 1)]
    for ref in refs:
        world.put(ref, picture(RED))
    world.sync(*refs)
    world.clear()
    with pytest.raises(AbortedError, match="21 of 21"):
        list(world.reconciler.reconcile())
    assert world.ledger.waiting() == set()
    last = world.reconciler.status().last_reconcile
    assert last is not None
    assert "21 of 21" in last.stopped
    assert last.orphaned == 21
    list(world.reconciler.reconcile(allow_mass_deletion=True))
    last = world.reconciler.status().last_reconcile
    assert last is not None
    assert last.stopped == ""
    world.drain()
    assert world.index() == set()


def test_the_refusal_names_a_whole_number() -> None:
    """A share of an index is seldom one, and nobody removes part of a vector.

    Break: print `most` as it is in `_refusal`.
    """
    mass = SimpleNamespace(_max_deletion_share=0.1)
    refusal = reconcile.Reconciler._refusal(mass, 500, 1638)  # type: ignore[arg-type]
    assert "at most 163 are removed unasked" in refusal


def test_status_adds_up(world: World) -> None:
    """Each object is counted under one heading, and the headings add up to the bucket."""
    indexed, waiting, failed, unknown, stale, orphan = (
        ObjectRef("images", f"{name}.png")
        for name in ("indexed", "waiting", "failed", "unknown", "stale", "orphan")
    )
    for ref in (indexed, waiting, unknown, stale, orphan):
        world.put(ref, picture(RED))
    world.put(failed, b"no image")
    world.ledger.add([indexed, failed, stale, orphan])
    world.drain()
    world.put(stale, picture(BLUE))
    world.remove(orphan)
    world.ledger.add([waiting])
    status = world.reconciler.status()
    assert (status.objects, status.indexed, status.waiting, status.failed) == (5, 1, 1, 1)
    assert (status.unaccounted, status.stale, status.orphaned) == (2, 1, 1)
    retried, unknown_refs = tasks.retry(world.ledger, [failed, unknown])
    assert (retried, unknown_refs) == (1, [unknown])
    assert failed in world.ledger.waiting()
