"""The ledger, on a real Redis."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cra.services.ingest.ledger import SINCE, TRACES, Failure, Ledger, Line
from cra.shared import tracing
from cra.shared.domain import ObjectRef, Version
from cra.shared.errors import UnavailableError
from cra.shared.settings import Settings
from tests.servers import free_ports

LEASE = 60.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The ledger's clock."""
    return Clock()


@pytest.fixture
def ledger(redis_url: str, clock: Clock) -> Iterator[Ledger]:
    """An empty ledger."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield Ledger(redis_url, LEASE, clock)


def refs(*keys: str) -> list[ObjectRef]:
    """Return objects of the bucket `images`."""
    return [ObjectRef("images", key) for key in keys]


def failure(key: str) -> Failure:
    """Return some failure."""
    return Failure(ObjectRef("images", key), "empty", "the file is empty", Version("e", 1), 1, 2.0)


def test_an_object_is_in_line_once(ledger: Ledger) -> None:
    """However many events name an object, it is taken once, the longest in line first."""
    assert ledger.add(refs("b")) == 1
    assert ledger.add(refs("b", "a")) == 1
    assert ledger.claim(10).refs == refs("a", "b")  # equal times: by name
    assert ledger.claim(10).refs == []


def test_an_event_during_the_work_is_not_lost(ledger: Ledger) -> None:
    """An object that changes while a worker holds it is taken again after that, and not before."""
    ledger.add(refs("a"))
    held = ledger.claim(1).refs
    ledger.add(refs("a"))
    assert ledger.claim(1).refs == []
    ledger.done(held)
    assert ledger.claim(1).refs == refs("a")


def test_a_lost_batch_comes_back_one_by_one(ledger: Ledger, clock: Clock) -> None:
    """When a worker dies, each of its objects comes back alone, with its losses counted."""
    ledger.add(refs("a", "b", "c"))
    assert len(ledger.claim(10).refs) == 3
    clock.now += LEASE + 1
    claims = [ledger.claim(10) for _ in range(4)]
    assert [claim.refs for claim in claims] == [refs("a"), refs("b"), refs("c"), []]
    assert [claim.losses for claim in claims] == [1, 1, 1, 0]
    ledger.done(refs("a", "b"))
    clock.now += LEASE + 1
    assert ledger.claim(10).losses == 2  # c again
    ledger.done(refs("c"))
    ledger.add(refs("c"))
    assert ledger.claim(10).losses == 0  # done wipes the slate


def test_a_lost_object_does_not_hold_up_the_others(ledger: Ledger, clock: Clock) -> None:
    """While one worker works on a suspect, others get the rest of the line in full batches."""
    ledger.add(refs("bad"))
    ledger.claim(1)
    clock.now += LEASE + 1
    ledger.add(refs("good1", "good2"))
    assert ledger.claim(10).refs == refs("bad")
    assert ledger.claim(10).refs == refs("good1", "good2")


def test_renewed_leases_last(ledger: Ledger, clock: Clock) -> None:
    """A worker that says it is alive keeps what it holds; what it let go of stays let go."""
    ledger.add(refs("a", "b"))
    ledger.claim(2)
    ledger.done(refs("b"))
    clock.now += LEASE - 1
    ledger.renew(refs("a", "b"))
    clock.now += LEASE - 1
    assert ledger.claim(10).refs == []
    assert ledger.waiting() == set(refs("a"))


def test_retries_pause_longer_each_time(ledger: Ledger, clock: Clock) -> None:
    """What is put back waits about twice as long each time, and a new event ends the wait."""
    ledger.add(refs("a"))
    for least, most in ((0.5, 1.0), (1.0, 2.0), (2.0, 4.0)):
        held = ledger.claim(1).refs
        assert held == refs("a")
        ledger.put_back(held)
        clock.now += least - 0.01
        assert ledger.claim(1).refs == []
        clock.now += most - least + 0.02
    held = ledger.claim(1).refs
    ledger.put_back(held)
    ledger.add(refs("a"))
    assert ledger.claim(1).refs == refs("a")


def test_what_is_put_back_together_does_not_come_back_together(
    ledger: Ledger, clock: Clock
) -> None:
    """The pauses of objects differ, so that an outage does not end in a stampede.

    Break: `put_back` without `random.uniform`.
    """
    many = refs(*(f"{n:02}" for n in range(50)))
    ledger.add(many)
    ledger.put_back(ledger.claim(50).refs)
    clock.now += 0.75
    assert 5 < len(ledger.claim(50).refs) < 45
    clock.now += 0.26
    ledger.claim(50)
    assert ledger.claim(50).refs == []


def test_blame_is_counted_by_object_and_forgotten_when_it_is_done(ledger: Ledger) -> None:
    """Each object has a count of its own; done and failed begin anew.

    Break: BLAMES left out of what `done` and `fail` forget.
    """
    assert ledger.blame(refs("a", "b")) == [1, 1]
    assert ledger.blame(refs("b")) == [2]
    ledger.done(refs("b"))
    ledger.fail([failure("a")])
    assert ledger.blame(refs("a", "b")) == [1, 1]
    assert ledger.blame([]) == []


def test_failures_are_listed_until_the_object_is_well(ledger: Ledger) -> None:
    """A failure keeps its reason, leaves the line, and goes when the object is done."""
    ledger.add(refs("b", "a"))
    ledger.claim(2)
    ledger.fail([failure("b"), failure("a")])
    assert ledger.failures() == [failure("a"), failure("b")]
    assert ledger.waiting() == set()
    ledger.done(refs("a"))
    assert ledger.failures() == [failure("b")]
    ledger.forget(refs("b"))
    assert ledger.failures() == []


def test_rate_counts_the_last_minute(ledger: Ledger, clock: Clock) -> None:
    """The rate is what was done over the last minute, a second."""
    ledger.done(refs("a", "b", "c"))
    assert ledger.rate() == pytest.approx(3 / 60)
    clock.now += 70
    assert ledger.rate() == 0


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[None]:
    """This process is traced."""
    tracing.configure("tests", Settings(trace_file=str(tmp_path / "traces")))
    yield
    tracing.close()


def put(ledger: Ledger, *keys: str) -> str:
    """Put objects in line as part of a trace of its own; return the place in it."""
    with tracing.span("event", "") as span:
        ledger.add(refs(*keys))
        return span.traceparent


@pytest.mark.usefixtures("traced")
def test_the_trace_of_an_event_waits_in_line_with_its_object(
    ledger: Ledger, clock: Clock, redis_url: str
) -> None:
    """It comes with the claim, also after the object was put back or lost, until it is done.

    Break: do not give TRACES to the claim, or HDEL it in `put_back`.
    """
    (a, b) = refs("a", "b")
    place = put(ledger, "a")
    ledger.add([b])
    assert ledger.claim(10).traces == {a: place}
    ledger.put_back([a])
    clock.now += 40
    assert ledger.claim(1).traces == {a: place}
    clock.now += LEASE + 1
    found = [ledger.claim(1) for _ in range(2)]
    assert {ref: trace for claim in found for ref, trace in claim.traces.items()} == {a: place}
    assert found[0].expired == 2
    ledger.done([a, b])
    ledger.add([a])
    assert ledger.claim(1).traces == {}
    ledger.fail([failure("a")])
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(TRACES, SINCE)


@pytest.mark.usefixtures("traced")
def test_an_event_during_the_work_brings_its_own_trace(ledger: Ledger, clock: Clock) -> None:
    """What is put in line while a worker holds it is another way of the object, from then on.

    Break: forget TRACES in `_FINISH` whatever waits.
    """
    (a,) = refs("a")
    put(ledger, "a")
    ledger.claim(1)
    clock.now += 5
    second = put(ledger, "a")
    ledger.done([a])
    clock.now += 2
    claim = ledger.claim(1)
    assert claim.traces == {a: second}
    assert claim.waited == {a: 2.0}


def test_a_trace_that_is_lost_or_broken_does_no_harm(ledger: Ledger, redis_url: str) -> None:
    """Without what stands beside the line, or with nonsense there, objects are taken all the same.

    Break: `float('')` of an age that is not there.
    """
    ledger.add(refs("a", "b"))
    with redis.Redis.from_url(redis_url) as client:
        client.delete(SINCE)
        client.hset(TRACES, "images/a", "nonsense")
    claim = ledger.claim(10)
    assert (claim.refs, claim.waited) == (refs("a", "b"), {})
    with tracing.shared_span("x", claim.traces.values()):
        ledger.done(claim.refs)
    assert ledger.claim(10).refs == []


def test_the_line_is_counted_and_its_oldest_known(ledger: Ledger, clock: Clock) -> None:
    """How much waits, is held and failed; and since when the oldest is open, retries included.

    Break: `zadd(SINCE, ...)` without `nx`.
    """
    assert ledger.line() == Line(0, 0, 0, 0.0)
    ledger.add(refs("a", "b", "c"))
    clock.now += 10
    ledger.add(refs("b", "d"))
    held = ledger.claim(1).refs
    ledger.fail([failure("x")])
    assert ledger.line() == Line(3, 1, 1, 10.0)
    ledger.put_back(held)
    clock.now += 10
    assert ledger.line() == Line(4, 0, 1, 20.0)
    ledger.claim(10)
    ledger.done(refs("a", "b", "c"))
    clock.now += 1
    assert ledger.line().oldest_seconds == 11.0


def test_a_silent_redis_is_unavailable_before_callers_give_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that takes connections and says nothing is not asked again and again.

    Break: the client's own retries, which take ten times as long.
    """
    monkeypatch.setattr("cra.services.ingest.ledger.ANSWERS_WITHIN", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = Ledger(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", LEASE)
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            ledger.ping()
        assert time.monotonic() - began < 1.5


def test_redis_down_is_unavailable() -> None:
    """Without Redis every call says so."""
    (port,) = free_ports(1)
    ledger = Ledger(f"redis://127.0.0.1:{port}/0", LEASE)
    for call in (
        ledger.ping,
        ledger.waiting,
        lambda: ledger.claim(1),
        lambda: ledger.add(refs("a")),
    ):
        with pytest.raises(UnavailableError):
            call()
