"""Runs two of everything in namespaces of the network, kills and cuts off one of each in turn.

Writes docs/machines.md. Exits with 1 if something does not hold, and where namespaces cannot be
made: then nothing was checked.
"""

import argparse
import importlib.util
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.bench.measure import machine
from tests.commands import add_names
from tests.machines import checks, report, rows
from tests.machines.fleet import PARTS, running
from tests.machines.network import NoMachinesError

DOCS: Final = Path(__file__).parents[2] / "docs" / "machines.md"


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description=__doc__)
    add_names(parser, PARTS)
    parser.add_argument("--milvus", choices=("server", "lite"), default=_milvus())
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints what it raises
    # So that machines and processes go when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        problems = _run(options.names or PARTS, options.milvus, options.out)
    except NoMachinesError as error:
        sys.exit(f"NOTHING WAS CHECKED: {error}")
    for problem in problems:
        print(f"NOT AS IT MUST BE: {problem}")  # noqa: T201
    sys.exit(bool(problems))


def _run(parts: tuple[str, ...], milvus: str, out: Path) -> list[str]:
    about = {"Milvus": milvus, "model": "deploy/models/miniature", **machine()}
    done: list[rows.Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="cra-machines-", ignore_cleanup_errors=True) as folder,
        running(Path(folder), milvus) as (fleet, tally),
    ):
        seen = [*checks.load_spreads(fleet, tally), checks.releases_agree(fleet)]
        for check in seen:
            print(f"{check.claim}: {check.seen}", flush=True)  # noqa: T201
        for part in parts:
            for how in (rows.KILLED, rows.CUT_OFF):
                row = rows.run(fleet, tally, part, how)
                print(row, flush=True)  # noqa: T201
                done.append(row)
                page = report.write(out, about, seen, done)  # what follows may be interrupted
    print(page)  # noqa: T201
    found = [f"{one.claim}: {one.seen}" for one in seen if not one.holds]
    return found + [f"{row.part} {row.how}: {one}" for row in done for one in row.problems]


def _milvus() -> str:
    return "server" if importlib.util.find_spec("milvus") else "lite"


if __name__ == "__main__":
    main()
