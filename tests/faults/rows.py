"""One fault from beginning to end, and what came of it as a row of the table."""

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.faults import FAULTS, Fault
from tests.faults.stand import Stand
from tests.faults.traffic import BAD_EVERY, Askers, Writer
from tests.servers import last, wait_until

HEALS_WITHIN: Final = 120.0
"""Seconds, from when everything is back and the writer is done."""
BACK_WITHIN: Final = 120.0
WRITTEN_WITHIN: Final = 600.0
"""Seconds that the writer may take longer; on a busy machine it is not its pace that is tested."""
SETTLING: Final = 5.0
"""Seconds of writing before a fault, and after it."""
FASTEST: Final = 60.0
"""Operations a second of the writer."""


@dataclass
class Row:
    """What came of one fault."""

    name: str
    title: str
    put: int = 0
    deleted: int = 0
    objects: int = 0
    indexed: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """By reason."""
    lost: int = 0
    duplicates: int = 0
    orphans: int = 0
    back: float = 0.0
    """Seconds from the hit, or from the end of what lasts, until every part does its job."""
    heal: float = 0.0
    """Seconds from then, and from the writer's last operation, until everything adds up."""
    asked: int = 0
    queries_failed: dict[str, int] = field(default_factory=dict)
    """By status."""
    wrong: int = 0
    told: dict[str, int] = field(default_factory=dict)
    """Messages of failed queries."""
    problems: list[str] = field(default_factory=list)
    """Why the row is not as it must be; empty if it is."""
    skipped: str = ""


def run(stand: Stand, fault: Fault, operations: int, heals_within: float = HEALS_WITHIN) -> Row:
    """Let one fault hit while `operations` are written and queries are asked.

    The row has problems unless, within `heals_within` seconds, every object is indexed at its
    current ETag or on the failure list for a reason, nothing is there twice or too much, and every
    query was answered in full or failed with the right status, naming what was down.
    """
    row = Row(fault.name, fault.title)
    if fault.name == "full-disk" and not stand.own_disk:
        row.skipped = "a file system for the data folder cannot be mounted here; that needs root"
        return row
    puts, deleted = stand.record.puts, stand.record.deletions
    writer = Writer(stand.bucket, stand.record, operations, seed=len(fault.name) + puts)
    askers = Askers(stand.stack.settings, stand.anchors, fault.names)
    try:
        seconds = max(2 * SETTLING + fault.seconds, operations / FASTEST)
        if fault.rest:
            seconds = operations / FASTEST
        writer.start(operations, seconds)
        if fault.rest:
            writer.join(seconds + WRITTEN_WITHIN)
            _, _, problems = stand.heal(heals_within)
            row.problems += problems
        else:
            wait_until(
                lambda: writer.done >= operations // 5, "the writer is at work", seconds + 30
            )
        row.back = _hit(stand, fault)
        writer.join(seconds + WRITTEN_WITHIN)
        sums, row.heal, problems = stand.heal(heals_within)
        row.problems += problems
        row.objects, row.indexed, row.failed = sums.objects, sums.indexed, dict(sums.failed)
        row.lost = len(sums.lost) + len(sums.unkept)
        row.duplicates, row.orphans = len(sums.duplicates), len(sums.orphans)
    except Exception as error:  # it is one row; the others are to be run all the same
        row.problems.append(f"{type(error).__name__}: {error}")
    finally:
        answers = askers.stop()
        writer.stop()
    row.put, row.deleted = stand.record.puts - puts, stand.record.deletions - deleted
    row.asked, row.wrong = answers.asked, len(answers.wrong)
    row.queries_failed, row.told = dict(answers.failed), dict(answers.told.most_common(5))
    row.problems += list(dict.fromkeys(answers.wrong))[:5]
    if not fault.names and answers.failed:
        row.problems.append(f"queries failed though all that they need lives: {row.told}")
    row.problems += stand.not_found()
    return row


def _hit(stand: Stand, fault: Fault) -> float:
    """Let the fault hit and pass; return the seconds until every part did its job again."""
    began = time.monotonic()
    hit = fault.hit(stand)
    try:
        next(hit)
        if fault.seconds:
            last(fault.seconds)
            began = time.monotonic()
        with contextlib.suppress(StopIteration):
            next(hit)
    finally:
        hit.close()
    wait_until(lambda: not stand.missing(), "every part is back", BACK_WITHIN, every=0.5)
    return time.monotonic() - began


def markdown(rows: Iterable[dict[str, Any]], about: dict[str, str]) -> str:
    """Return the table, and what it means."""
    lines = [
        "# Faults",
        "",
        "`make faults` runs them again, all on one local stack; `.venv/bin/python -m tests.faults "
        "NAME…` some; `--help` names them. Each hits while a writer puts, overwrites and deletes "
        f"objects (one put in {BAD_EVERY} of a file that is no image) and two askers query the "
        "gateway by text and by pictures that must be found. Nobody helps; a reconcile runs every "
        "minute. Counted are bucket, index and failure list themselves, compared with what the "
        "writer knows, and with `GetStatus`.",
        "",
        "A row is as it must be when, within two minutes of everything being back and the writer "
        "being done, every object is indexed at its current ETag or on the failure list with a "
        "reason that it deserves; nothing is lost, there twice, or there without its object; and "
        "each query was either answered in full or failed as UNAVAILABLE naming what is down, "
        "DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED, and that only where it needs what is down. "
        "`tests/faults/faults.py` says of each fault which break of the code turns its row red.",
        "",
        "| fault | put | deleted | objects | indexed | failed | lost | duplicates | orphans | back "
        "after | healed after | queries | of them failed | wrong | as it must be |",
        "| --- | " + "---: | " * 12 + "---: | --- |",
    ]
    for row in rows:
        if row["skipped"]:
            lines.append(f"| {row['title']} | **not run**: {row['skipped']} |" + " |" * 13)
            continue
        lines.append(
            "| "
            + " | ".join(
                [
                    row["title"],
                    *(str(row[name]) for name in ("put", "deleted", "objects", "indexed")),
                    _counts(row["failed"]),
                    *(str(row[name]) for name in ("lost", "duplicates", "orphans")),
                    f"{row['back']:.0f} s",
                    f"{row['heal']:.0f} s",
                    str(row["asked"]),
                    _counts(row["queries_failed"]),
                    str(row["wrong"]),
                    "**no**" if row["problems"] else "yes",
                ]
            )
            + " |"
        )
    told = "; ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([*lines, "", f"Run with {told}."]) + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "0"


def write(docs: Path, rows: dict[str, dict[str, Any]], about: dict[str, str]) -> str:
    """Write docs/faults.json and docs/faults.md; return the table."""
    ordered = [rows[name] for name in FAULTS if name in rows]
    (docs / "faults.json").write_text(
        json.dumps({"about": about, "rows": ordered}, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    table = markdown(ordered, about)
    (docs / "faults.md").write_text(table, "utf-8")
    return table


def as_json(row: Row) -> dict[str, Any]:
    """Return a row as JSON holds it."""
    return asdict(row)
