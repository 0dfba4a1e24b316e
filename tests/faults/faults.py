"""The faults. Each is a generator: what comes before its `yield` hits, what comes after lifts.

Every docstring ends with a break of the services that its row is meant for. Of those that say so
the row was seen red; the others have not been tried.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from tests.faults.stand import PARTS, Stand

FREEZE_SECONDS: Final = 30.0
NETWORK_SECONDS: Final = 20.0
DISK_SECONDS: Final = 20.0
DELAY: Final = 0.5

Hitting = Generator[None, None, None]
Hit = Callable[[Stand], Hitting]

# What an UNAVAILABLE may name, by the part that is down.
_GATEWAY: Final = "gateway"
_EMBEDDING: Final = "embedding service|tower"
_MILVUS: Final = "Milvus"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while the stack works."""

    name: str
    title: str
    hit: Hit
    names: str = ""
    """What a query that fails meanwhile may name as down, a pattern; empty: none may fail."""
    seconds: float = 0.0
    """How long it lasts; 0: it is over at once, and only its consequences are not."""
    rest: bool = False
    """It hits when the writer is done and all has settled."""


FAULTS: Final[dict[str, Fault]] = {}


def _fault(
    name: str, title: str, names: str = "", seconds: float = 0.0, *, rest: bool = False
) -> Callable[[Hit], Hit]:
    def add(hit: Hit) -> Hit:
        FAULTS[name] = Fault(name, title, hit, names, seconds, rest)
        return hit

    return add


# kill -9


@_fault("kill-worker-child", "kill -9: a worker's pool of processes, in mid-batch")
def kill_worker_child(stand: Stand) -> Hitting:
    """What it held is done by another once its lease is over.

    Break: leases that never end, in the script that claims. Then it is `waiting` for ever.
    """
    stand.in_mid_batch()
    stand.kill_children("worker", "worker")
    yield


@_fault("kill-worker", "kill -9: the worker, in mid-batch")
def kill_worker(stand: Stand) -> Hitting:
    """As above, and the tasks that it had taken from the broker are lost with it.

    Break, seen red: as above.
    """
    stand.in_mid_batch()
    stand.kill("worker")
    yield


@_fault("kill-embedding", "kill -9: the embedding service", _EMBEDDING)
def kill_embedding(stand: Stand) -> Hitting:
    """Batches go back in line, blamed on nobody.

    Break: a sync that puts what could not be encoded on the failure list. Then good ones are there.
    """
    stand.in_mid_batch()
    stand.kill("embedding")
    yield


@_fault("kill-towers", "kill -9: the processes of both towers", _EMBEDDING)
def kill_towers(stand: Stand) -> Hitting:
    """The service notices and starts others; what they were at fails as UNAVAILABLE.

    Break: no `_replace` when a pipe ends. Then every query fails from then on.
    """
    stand.in_mid_batch()
    stand.kill_children("embedding", "spawn_main")
    yield


@_fault("kill-gateway", "kill -9: the gateway", _GATEWAY)
def kill_gateway(stand: Stand) -> Hitting:
    """Callers are told that the gateway does not answer, and find it again.

    Break: a gateway whose errors name nobody; `from_rpc_error` without the server's name.
    """
    stand.kill("gateway")
    yield


@_fault("kill-ingest", "kill -9: the ingest service, which receives events")
def kill_ingest(stand: Stand) -> Hitting:
    """Events that are lost meanwhile are found by the reconcile; queries do not notice.

    Break: no reconcile in the schedule. Then objects are unaccounted, which is lost.
    """
    stand.kill("ingest")
    yield


@_fault("kill-beat", "kill -9: beat, which keeps the schedule")
def kill_beat(stand: Stand) -> Hitting:
    """Ticks and reconciles go on.

    Break: a pid file that outlives it (`--pidfile` in the Procfile). Then it does not start again.
    """
    stand.kill("beat")
    yield


@_fault("kill-redis", "kill -9: Redis, its append-only file on")
def kill_redis(stand: Stand) -> Hitting:
    """The line survives, and every service connects again.

    Break: `appendonly no`, and no reconcile. Then what was in line is lost.
    """
    stand.in_mid_batch()
    stand.kill("redis")
    yield


@_fault("kill-milvus", "kill -9: Milvus", _MILVUS)
def kill_milvus(stand: Stand) -> Hitting:
    """What it acknowledged is there again; a search meanwhile is an error and never empty.

    Break, seen red: a `search` that returns [] for an outage, as adapters do elsewhere: 184 wrong
    answers.
    """
    stand.in_mid_batch()
    stand.kill("milvus")
    yield


@_fault("kill-s3", "kill -9: the object store")
def kill_s3(stand: Stand) -> Hitting:
    """Nothing is taken for deleted because the store did not answer; queries do not notice.

    Break: no reconcile in the schedule: the events that die with the store are never made up for.
    A `look` that returns None for an outage does not turn it red: the reconcile mends that in time.
    """
    stand.in_mid_batch()
    stand.kill("s3")
    yield


@_fault("kill-all", "kill -9: all of them at once", f"{_GATEWAY}|{_EMBEDDING}|{_MILVUS}")
def kill_all(stand: Stand) -> Hitting:
    """Everything starts in whatever order, and goes on.

    Break: a worker that ends for good when Redis does not answer at its start.
    """
    stand.in_mid_batch()
    stand.kill(*PARTS)
    yield


# SIGSTOP


def _frozen(part: str, names: str = "") -> None:
    def freeze(stand: Stand) -> Hitting:
        with stand.frozen(part):
            yield

    freeze.__doc__ = f"""{part} says nothing for a while, and then goes on as if nothing had been.

    Break: calls without a deadline or a timeout; see each adapter. Then callers hang as long.
    """
    _fault(f"freeze-{part}", f"SIGSTOP for {FREEZE_SECONDS:g} s: {part}", names, FREEZE_SECONDS)(
        freeze
    )


_frozen("worker")
_frozen("embedding", _EMBEDDING)
_frozen("gateway", _GATEWAY)
_frozen("ingest")
_frozen("redis")
_frozen("milvus", _MILVUS)
_frozen("s3")


# The network


def _network(server: str, names: str = "") -> None:
    def broken(act: str) -> Hit:
        def hit(stand: Stand) -> Hitting:
            proxy = stand.proxies[server]
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(proxy.mend)
                if act == "delay":
                    proxy.delay(DELAY)
                elif act == "cut":
                    proxy.cut()
                else:
                    proxy.freeze()
                yield

        hit.__doc__ = f"""The network to {server}: {act}.

        Break: a client that does not connect again, or without a timeout. For delay: a timeout
        below it, such as CRA_MILVUS_TIMEOUT=0.4.
        """
        return hit

    for act, words in {
        "cut": "cut",
        "silence": "takes everything, says nothing",
        "delay": f"{DELAY * 1000:g} ms slower",
    }.items():
        _fault(
            f"{act}-{server}",
            f"network to {server}, {NETWORK_SECONDS:g} s: {words}",
            "" if act == "delay" else names,
            NETWORK_SECONDS,
        )(broken(act))


_network("redis")
_network("milvus", _MILVUS)
_network("s3")
_network("embedding", _EMBEDDING)


# The disk


@_fault(
    "full-disk",
    f"disk of the data folder full for {DISK_SECONDS:g} s",
    f"{_GATEWAY}|{_EMBEDDING}|{_MILVUS}",
    DISK_SECONDS,
)
def full_disk(stand: Stand) -> Hitting:
    """Redis, Milvus, the object store and logs can write nothing; then they can again.

    Break: a runner that ends with the state that it cannot write. Then nothing is started again.
    """
    stand.fill_disk()
    try:
        yield
    finally:
        stand.free_disk()


# Too much to remove


@_fault("mass-deletion", "a quarter of the bucket deleted unheard: the reconcile stops", rest=True)
def mass_deletion(stand: Stand) -> Hitting:
    """It removes nothing and status says why; with a person's word it removes what is to go.

    Break: a `_refusal` that is always empty. Then the vectors are gone before anybody was asked.
    """
    network = stand.proxies["redis"]
    network.cut()  # the receiver refuses every event
    try:
        gone = stand.delete_share(0.25)
        stand.kill("s3")  # and with it go the events that it would have sent again
        yield
    finally:
        network.mend()
    # Twice, since the second must not take the first for a leave.
    for _ in range(2):
        stopped = stand.next_reconcile()
        assert "allow mass deletion" in stopped, f"the reconcile did not stop: {stopped!r}"
    # What SeaweedFS's five senders had in hand may have been heard after all.
    removed = gone - stand.indexed()
    assert len(removed) <= 5, f"{len(removed)} of {len(gone)} vectors were removed unasked"
    orphaned = stand.stack.status().orphaned
    assert orphaned >= len(gone - removed), f"{orphaned} orphans of {len(gone)} told"
    shown = stand.stack.cra("status")
    assert "reconcile stopped" in shown.stderr, shown.stderr
    answer = stand.stack.cra("reconcile", "--allow-mass-deletion")
    assert answer.returncode == 0, answer.stderr
