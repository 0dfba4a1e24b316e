"""Ingest while parts fail, or are slow: what waits stays in line, and nobody is blamed for it."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis

from cra.services.ingest import sync, tasks
from cra.services.ingest.ledger import CLAIMED, Ledger
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectDetails, ObjectRef
from cra.shared.errors import DeadlineExceededError, UnavailableError
from cra.shared.settings import Settings
from tests import ingesting
from tests.embedding import wait_until
from tests.fakes import ColourEncoder, picture
from tests.ingesting import BLUE, GREEN, RED, A, B, C, World


@pytest.fixture
def world(s3: Settings, vectors: MilvusVectorStore, redis_url: str) -> Iterator[World]:
    """Empty stores."""
    with ingesting.empty(s3, vectors, redis_url) as world:
        yield world


def test_an_outage_keeps_the_work_in_line(world: World) -> None:
    """While the encoder is down nothing is failed and nothing is lost."""
    world.put(A, picture(RED))
    world.ledger.add([A])

    class Down(ColourEncoder):
        def begin(self, pixels: Sequence[bytes]) -> None:
            raise UnavailableError("down")

    down = world.make_synchronizer(Down(world.encoder.fingerprint))
    assert not tasks.drain(world.ledger, down, world.objects, world.settings)
    assert world.ledger.waiting() == {A}
    assert world.ledger.failures() == []
    world.ledger.add([A])
    world.drain()
    assert world.index() == {A}


class Poisoned(ColourEncoder):
    """An encoder that does not get over blue, or over anything."""

    everything = False

    def begin(self, pixels: Sequence[bytes]) -> None:
        """See `ColourEncoder`."""
        if self.everything or any(np.frombuffer(one, np.uint8)[2] > 150 for one in pixels):
            raise UnavailableError("no answer")


def test_an_object_that_always_fails_keeps_nobody_waiting_and_is_given_up(world: World) -> None:
    """Its neighbours are indexed at once; after so many tries it is on the failure list, and why.

    Break: `Attempt.run` without halving (its neighbours wait for ever), or without `_given_up`
    (so does it).
    """
    refs = [ObjectRef("images", f"{n:02}.png") for n in range(16)]
    for ref in refs[1:]:
        world.put(ref, picture(RED))
    world.put(refs[0], picture(BLUE))
    poisoned = world.make_synchronizer(Poisoned(world.encoder.fingerprint))
    settings = world.settings.model_copy(update={"max_tries": 3})
    world.ledger.add(refs)
    assert not tasks.drain(world.ledger, poisoned, world.objects, settings, seconds=60)
    assert world.index() == set(refs[1:])
    assert world.ledger.waiting() == {refs[0]}
    for tries in (2, 3):
        assert world.ledger.failures() == []
        world.ledger.add(refs[:1])  # instead of waiting for its pause to end
        tasks.drain(world.ledger, poisoned, world.objects, settings, seconds=1)
        assert (world.ledger.waiting() == set()) is (tries == 3)
    (failure,) = world.ledger.failures()
    assert (failure.ref, failure.reason, failure.attempts) == (refs[0], "gave_up", 3)
    assert "no answer" in failure.message
    details = world.objects.look(refs[0])
    assert details is not None
    assert failure.version == details.version
    # It expires when the object changes: the reconcile puts the other version in line.
    world.put(refs[0], picture(GREEN))
    list(world.reconciler.reconcile())
    world.drain()
    assert world.ledger.failures() == []
    assert world.holds(refs[0], GREEN)


def test_an_outage_that_no_question_shows_blames_nobody(world: World) -> None:
    """When nothing gets through, nobody is to blame, though every part answers when asked.

    Break: `blamed` that returns all that failed alone.
    """
    refs = [ObjectRef("images", f"{n:02}.png") for n in range(8)]
    for ref in refs:
        world.put(ref, picture(RED))
    down = Poisoned(world.encoder.fingerprint)
    down.everything = True
    settings = world.settings.model_copy(update={"max_tries": 1})
    world.ledger.add(refs)
    assert not tasks.drain(
        world.ledger, world.make_synchronizer(down), world.objects, settings, seconds=60
    )
    assert world.ledger.failures() == []
    assert world.ledger.waiting() == set(refs)
    assert world.ledger.blame(refs) == [1] * 8


def test_a_bug_that_one_object_brings_out_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no domain error is put down to its object as well.

    Break: `except CraError` alone in `Attempt.run`.
    """
    world.put(A, picture(RED))
    world.put(B, picture(GREEN))
    fetch = world.objects.fetch

    def broken(ref: ObjectRef, *args: Any) -> Any:
        if ref == A:
            raise ZeroDivisionError
        return fetch(ref, *args)

    monkeypatch.setattr(world.objects, "fetch", broken)
    settings = world.settings.model_copy(update={"max_tries": 1})
    world.ledger.add([A, B])
    tasks.drain(world.ledger, world.synchronizer, world.objects, settings, seconds=60)
    assert world.index() == {B}
    (failure,) = world.ledger.failures()
    assert (failure.ref, failure.reason) == (A, "gave_up")
    assert "ZeroDivisionError" in failure.message


def test_an_object_that_takes_workers_down_fails(world: World) -> None:
    """After three lost workers an object is on the failure list and is not tried again."""
    world.put(A, picture(RED))
    world.ledger.add([A])
    impatient = Ledger(world.redis_url, -1)  # leases that are over at once
    for losses in range(3):
        assert impatient.claim(1).losses == losses
    tasks.drain(impatient, world.synchronizer, world.objects, world.settings, seconds=1)
    (failure,) = world.ledger.failures()
    assert (failure.ref, failure.reason, failure.attempts) == (A, "worker_lost", 3)
    assert world.ledger.waiting() == set()


def lose(world: World, ref: ObjectRef) -> Ledger:
    """Have three workers die over an object; return a ledger whose leases are over at once."""
    impatient = Ledger(world.redis_url, -1)
    world.ledger.add([ref])
    for losses in range(3):
        assert impatient.claim(1).losses == losses
    return impatient


def test_an_object_that_takes_workers_down_is_not_found_by_its_past(world: World) -> None:
    """Nor is it stale for the next reconcile, which would have three more workers die.

    Break: `Attempt.give_up` that removes nothing.
    """
    world.put(A, picture(RED))
    world.sync(A)
    world.put(A, picture(GREEN))
    tasks.drain(lose(world, A), world.synchronizer, world.objects, world.settings, seconds=1)
    assert [failure.reason for failure in world.ledger.failures()] == ["worker_lost"]
    assert world.index() == set()
    *_, summary = world.reconciler.reconcile()
    assert (summary.missing, summary.stale) == (0, 0)
    assert world.ledger.waiting() == set()


def test_what_cannot_be_removed_now_is_given_up_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus down, an object whose last try it was goes back in line, with nothing forgotten.

    Break: an error of `remove` that is not caught, or one after which the object fails.
    """
    world.put(A, picture(RED))
    impatient = lose(world, A)

    def down(*_: object) -> None:
        raise UnavailableError("Milvus does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(world.vectors, "delete", down)
        again = tasks.drain(impatient, world.synchronizer, world.objects, world.settings, seconds=1)
    assert not again
    assert world.ledger.failures() == []
    assert world.ledger.waiting() == {A}
    world.ledger.add([A])  # instead of waiting for its pause to end
    tasks.drain(world.ledger, world.synchronizer, world.objects, world.settings, seconds=1)
    assert [failure.attempts for failure in world.ledger.failures()] == [3]


def test_a_new_version_begins_anew(world: World) -> None:
    """What an object did to workers and neighbours before it was overwritten is forgotten.

    A reconcile, which finds it different for as long as it is not indexed, forgets nothing.
    Break: an `add` that heeds no `changed`.
    """
    world.put(A, picture(RED))
    impatient = lose(world, A)
    world.ledger.blame([A])
    list(world.reconciler.reconcile())
    assert world.ledger.claim(1).losses == 3
    world.ledger.put_back([A])
    world.ledger.add([A], changed=True)
    assert world.ledger.blame([A]) == [1]
    tasks.drain(impatient, world.synchronizer, world.objects, world.settings, seconds=1)
    assert world.index() == {A}
    assert world.ledger.failures() == []


class Clock:
    """Stands still, but when something takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        clock = SimpleNamespace(time=time.time, time_ns=time.time_ns, monotonic=lambda: self.now)
        for module in (sync, tasks):
            monkeypatch.setattr(module, "time", clock)


class Far(S3ObjectStore):
    """A store where each object takes so long, and which notes what is read."""

    def __init__(
        self, settings: Settings, clock: Clock | None = None, seconds: float = 0.0
    ) -> None:
        super().__init__(settings)
        self.read: list[ObjectRef] = []
        self._clock, self._seconds = clock, seconds

    def fetch(
        self, ref: ObjectRef, check: Callable[[ObjectDetails], None] = lambda _: None
    ) -> tuple[ObjectDetails, bytes] | None:
        """See `ports.ObjectStore`."""
        self.read.append(ref)
        if self._clock is not None:
            self._clock.now += self._seconds
        return super().fetch(ref, check)


class Slow(ColourEncoder):
    """An encoder that has time for so many images."""

    most = 3
    encoded = 0

    def begin(self, pixels: Sequence[bytes]) -> None:
        """See `ColourEncoder`."""
        if len(pixels) > self.most:
            raise DeadlineExceededError("no answer in time")
        self.encoded += len(pixels)


def test_a_slow_encoder_is_given_fewer_images_at_once(world: World) -> None:
    """While queries leave it little time ingest goes on in small steps; none is encoded twice.

    Nor is more read than it is given, and nobody is blamed. Break: `ClaimSize.note` that learns
    nothing (nothing is ever indexed), or `_apply` without `except` (somebody is blamed).
    """
    refs = [ObjectRef("images", f"{n:02}.png") for n in range(24)]
    for ref in refs:
        world.put(ref, picture(RED))
    encoder = Slow(world.encoder.fingerprint)
    near = Far(world.settings)
    slow, size = world.make_synchronizer(encoder, objects=near), tasks.ClaimSize(32)
    settings = world.settings.model_copy(update={"max_tries": 1})
    indexed = [0]
    while indexed[-1] < len(refs):
        world.ledger.add(refs)  # instead of waiting for their pauses to end
        assert not tasks.drain(world.ledger, slow, world.objects, settings, size=size)
        indexed.append(len(world.index()))
        assert len(indexed) < 30
    assert encoder.encoded == 24
    assert len(near.read) == sum(encoder.batches)
    # Halved until they are few enough, then one more each time, until those are too many.
    assert encoder.batches[:6] == [24, 12, 6, 3, 4, 2]
    assert max(encoder.batches[4:]) == 4
    assert indexed[:5] == [0, 0, 0, 0, 3]
    assert world.ledger.failures() == []


def test_what_there_is_no_time_to_read_goes_back_in_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many seconds no further object is read; what was read is indexed.

    Break: `see` that does not look at the clock.
    """
    monkeypatch.setattr(sync, "READERS", 1)
    for ref in (A, B, C):
        world.put(ref, picture(RED))
    far = Far(world.settings, Clock(monkeypatch), 0.6 * sync.READ_SECONDS)
    synchronizer = world.make_synchronizer(world.encoder, objects=far)
    outcome = synchronizer.sync([A, B, C])
    assert (outcome.done, outcome.unsettled, far.read) == ([A, B], [C], [A, B])
    assert "took over 20 s" in outcome.late
    assert synchronizer.sync([A, B, C]).done == [A, B, C]
    assert far.read == [A, B, C]


def test_an_object_that_changes_is_not_looked_at_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that changes at every look, and takes long, goes back in line when time is up.

    Break: `_sync` that gives each round as much time as the first.
    """
    world.put(A, picture(RED))
    far = Far(world.settings, Clock(monkeypatch), 0.6 * sync.READ_SECONDS)
    look, looks = far.look, iter(range(256))

    def restless(ref: ObjectRef) -> ObjectDetails | None:
        world.put(ref, picture((next(looks), 0, 0)))
        return look(ref)

    monkeypatch.setattr(far, "look", restless)
    synchronizer = world.make_synchronizer(world.encoder, objects=far)
    assert synchronizer.sync([A]).unsettled == [A]
    assert far.read == [A, A]


def test_an_object_that_is_silent_is_found_in_small_claims(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose store says nothing for long is given up, and its neighbours are indexed.

    No task takes longer than its limit, by which it would be killed and all of its claim be
    suspects. Break: `Attempt.run` without a look at the clock.
    """
    refs = [ObjectRef("images", f"{n:02}.png") for n in range(8)]
    for ref in refs:
        world.put(ref, picture(RED))
    clock = Clock(monkeypatch)
    fetch = world.objects.fetch

    def silent(ref: ObjectRef, *args: Any) -> Any:
        if ref == refs[0]:
            clock.now += tasks.LAST_WAITS
            raise UnavailableError("no answer for 40 s")
        return fetch(ref, *args)

    monkeypatch.setattr(world.objects, "fetch", silent)
    settings = world.settings.model_copy(update={"max_tries": 2})
    size = tasks.ClaimSize(8)
    took: list[float] = []
    while not world.ledger.failures():
        world.ledger.add(sorted(set(refs) - world.index()) if took else refs)
        begun = clock.now
        tasks.drain(world.ledger, world.synchronizer, world.objects, settings, size=size)
        took.append(clock.now - begun)
        assert len(took) < 30
    (failure,) = world.ledger.failures()
    assert (failure.ref, failure.reason) == (refs[0], "gave_up")
    assert world.index() == set(refs[1:])
    assert max(took) < tasks.drain_limit(settings)


def test_a_lease_lasts_while_a_batch_is_encoded(world: World) -> None:
    """However long the encoder takes, its objects stay with their worker.

    Break: `_Leases` without its thread.
    """
    world.put(A, picture(RED))
    settings = world.settings.model_copy(update={"lease_seconds": 0.2})

    class Patient(ColourEncoder):
        def begin(self, pixels: Sequence[bytes]) -> None:
            first = until()
            wait_until(lambda: until() > first)

    with redis.Redis.from_url(world.redis_url) as client:

        def until() -> float:
            return float(client.zscore(CLAIMED, A.image_id) or 0.0)

        world.ledger.add([A])
        patient = world.make_synchronizer(Patient(world.encoder.fingerprint))
        tasks.drain(world.ledger, patient, world.objects, settings, seconds=1)
    assert world.index() == {A}
