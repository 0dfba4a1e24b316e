"""Runs faults on one local stack; writes docs/faults.md and docs/faults.json, and prints a table.

Exits with 1 unless every row is as it must be.
"""

import argparse
import importlib.util
import json
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.bench.measure import machine
from tests.commands import add_names
from tests.faults import rows, stand
from tests.faults.faults import FAULTS

DOCS: Final = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    add_names(parser, FAULTS)
    parser.add_argument(
        "--operations", type=int, default=2000, help="puts, overwrites and deletes during a fault"
    )
    parser.add_argument("--milvus", choices=("server", "lite"), default=_milvus())
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "faults.json"
    kept: dict[str, dict[str, Any]] = {}
    if options.names and file.is_file():  # what is not run again stands
        kept = {row["name"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}
    # It prints a traceback of each call that fails, before it raises it.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    # So that the stack and the disk go when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    about = {"operations": f"{options.operations} a fault", "Milvus": options.milvus, **machine()}
    ran: list[rows.Row] = []
    table = ""
    with (
        tempfile.TemporaryDirectory(prefix="cra-faults-") as folder,
        stand.running(Path(folder), options.milvus, RECONCILE_SECONDS="60") as broken,
    ):
        for name in options.names or FAULTS:
            print(f"{name}: {FAULTS[name].title}", flush=True)  # noqa: T201
            row = rows.run(broken, FAULTS[name], options.operations)
            ran.append(row)
            kept[name] = rows.as_json(row)
            table = rows.write(options.out, kept, about)
            print(_told(row), flush=True)  # noqa: T201
    print(table)  # noqa: T201
    for row in ran:
        if row.skipped:
            print(f"SKIPPED: {row.name}: {row.skipped}")  # noqa: T201
        for problem in row.problems:
            print(f"NOT AS IT MUST BE: {row.name}: {problem}")  # noqa: T201
    if any(row.problems for row in ran):
        sys.exit(1)


def _milvus() -> str:
    return "server" if importlib.util.find_spec("milvus") else "lite"


def _told(row: rows.Row) -> str:
    if row.skipped:
        return f"    SKIPPED: {row.skipped}"
    told = (
        f"    {row.objects} objects, {row.indexed} indexed, failed {row.failed}, lost {row.lost}; "
        f"back {row.back:.0f} s, healed {row.heal:.0f} s; {row.asked} queries, failed "
        f"{row.queries_failed}, wrong {row.wrong}"
    )
    return "\n".join([told, *(f"    ! {problem}" for problem in row.problems)])


if __name__ == "__main__":
    main()
