"""One replica killed or cut off while everything is asked and written, and what came of it."""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Final, Literal

import grpc

from tests.faults.tally import Tally
from tests.faults.traffic import Writer
from tests.machines.fleet import Callers, Fleet, names_of
from tests.servers import last, wait_until

KILLED_FOR: Final = 5.0
"""Seconds until a supervisor starts again what was killed."""
CUT_FOR: Final = 20.0
BEFORE: Final = 5.0
"""Seconds of calls and writing before a fault."""
BACK_WITHIN: Final = 120.0
HEALS_WITHIN: Final = 120.0
OPERATIONS: Final = 100_000
"""More than there will be: the writer is stopped."""
APART: Final = 0.1
"""Seconds between two of them."""
KEYS: Final = 300

How = Literal["killed", "cut off"]
KILLED: Final[How] = "killed"
CUT_OFF: Final[How] = "cut off"


@dataclass
class Row:
    """What came of one fault."""

    part: str
    how: How
    queries: int = 0
    failed: int = 0
    """Of the queries, those that were answered with an error, or wrongly."""
    slowest: float = 0.0
    slowest_page: float = 0.0
    """Seconds."""
    put: int = 0
    overwritten: int = 0
    deleted: int = 0
    lost: int = 0
    duplicates: int = 0
    orphans: int = 0
    back: float = 0.0
    """Seconds from the end of the fault until both replicas do their job again."""
    heal: float = 0.0
    """Seconds from then until everything adds up."""
    problems: list[str] = field(default_factory=list)
    """Why the row is not as it must be; empty if it is."""


def run(fleet: Fleet, tally: Tally, part: str, how: How) -> Row:
    """Kill or cut off the first replica of a part, and have it back.

    The row has problems unless every query was answered in full, by one release, and within
    `HEALS_WITHIN` seconds every object is indexed at its current ETag or on the failure list for a
    reason, and nothing is there twice or too much.
    """
    row = Row(part, how)
    record = tally.record
    puts, overwrites, deletions = record.puts, record.overwrites, record.deletions
    writer = Writer(tally.bucket, record, KEYS, seed=len(part) + puts)
    callers = Callers(fleet, tally.anchors)
    try:
        writer.start(OPERATIONS, OPERATIONS * APART)
        last(BEFORE)
        _hit(fleet, names_of(part)[0], how)
        row.back = _both_used(fleet, tally, part)
        writer.stop()
        if writer.problem is not None:
            raise writer.problem
        sums, row.heal, problems = tally.heal(HEALS_WITHIN)
        row.problems += problems
        row.lost = len(sums.lost) + len(sums.unkept)
        row.duplicates, row.orphans = len(sums.duplicates), len(sums.orphans)
        _note(row, callers)
    except Exception as error:  # it is one row; the others are to be run all the same
        row.problems.append(f"{type(error).__name__}: {error}")
    finally:
        writer.stop()
        callers.kill()
    row.problems += fleet.raise_dead() + tally.not_found()
    row.put = record.puts - puts - (record.overwrites - overwrites)
    row.overwritten, row.deleted = record.overwrites - overwrites, record.deletions - deletions
    return row


def _hit(fleet: Fleet, name: str, how: How) -> None:
    """Let the fault hit, and pass."""
    process = fleet.processes[name]
    if how == KILLED:
        process.kill()
        last(KILLED_FOR)
        process.start()
        return
    process.machine.cut()
    try:
        last(CUT_FOR)
    finally:
        process.machine.connect()


def _both_used(fleet: Fleet, tally: Tally, part: str) -> float:
    """Wait until each replica of a part has done its job since now; return the seconds."""
    began = time.monotonic()
    first: dict[str, float] = {}
    """What each had done when it could be asked; of beat, when that was."""
    if part == "beat":
        first = dict.fromkeys(names_of(part), time.time())
    busy: set[str] = set()

    def used() -> bool:
        if part == "ingest":  # which nobody else asks
            with contextlib.suppress(grpc.RpcError):
                tally.stack.status()
        for name in names_of(part):
            done = fleet.uses(name)
            if done is not None and done > first.setdefault(name, done):
                busy.add(name)
        return len(busy) == len(names_of(part))

    wait_until(used, f"both of {part} are used", BACK_WITHIN, every=0.5)
    return time.monotonic() - began


def _note(row: Row, callers: Callers) -> None:
    """Stop asking; write down what was answered."""
    backends, visitors = told = callers.stop()
    row.queries = sum(one["asked"] for one in told)
    row.failed = sum(sum(one["failed"].values()) + len(one["wrong"]) for one in told)
    row.slowest, row.slowest_page = backends["slowest"], visitors["slowest"]
    for one in told:
        row.problems += [f"{count} queries: {problem}" for problem, count in one["failed"].items()]
        row.problems += list(dict.fromkeys(one["wrong"]))[:5]
    if len(backends["releases"]) != 1:
        row.problems.append(f"queries were answered by {backends['releases']}")
