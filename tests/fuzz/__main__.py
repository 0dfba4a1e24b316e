"""Runs the fuzzers one after the other, each for so many executions; exits 1 at a crash.

`python -m tests.fuzz [--runs N] [--merge] [TARGET ...]`; what breaks a target is kept in
found/TARGET, and `--merge` adds what reaches new code to corpus/TARGET, no more than is needed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.fuzz import FOLDER, TARGETS

RUNS: Final[Mapping[str, int]] = {
    "events": 500_000,
    "filters": 400_000,
    "images": 100_000,
    "text": 60_000,
}
"""Executions by default: over a million in all."""

LONGEST: Final[Mapping[str, int]] = {"events": 2048, "filters": 1024, "images": 4096, "text": 256}
"""Bytes of an input: enough to reach every branch, and few enough to try many."""

MEMORY: Final = 1536
"""MB that a target may hold."""
SECONDS: Final = 60
"""For one input."""
DICTIONARY: Final = FOLDER / "words.dict"
_DONE: Final = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def fuzz(target: str, runs: int, merge: bool) -> bool:
    """Run one target, print its figures and return whether it held."""
    corpus, found = FOLDER / "corpus" / target, FOLDER / "found" / target
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as new:
        began = time.monotonic()
        done = _libfuzzer(
            target, f"-runs={runs}", f"-artifact_prefix={found}/", new, str(corpus), str(found)
        )
        took = time.monotonic() - began
        counted = _DONE.search(done.stderr)
        executions = int(counted[1]) if counted else 0
        held = done.returncode == 0 and executions >= runs
        print(f"{target:8} {executions:>9,} executions in {took:.0f} s, "
              f"{len(list(Path(new).iterdir()))} new inputs: {'held' if held else 'BROKE'}",
              flush=True)  # fmt: skip
        if not held:
            print(done.stderr[-6000:], flush=True)
        elif merge:
            with tempfile.TemporaryDirectory() as least:
                _libfuzzer(target, "-merge=1", least, new, str(corpus)).check_returncode()
                shutil.rmtree(corpus)
                shutil.copytree(least, corpus)
    return held


def _libfuzzer(target: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.one", target]
    command += [
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={SECONDS}",
        "-len_control=20",
    ]
    command += [
        f"-max_len={LONGEST[target]}",
        f"-dict={DICTIONARY}",
        "-print_final_stats=1",
        *options,
    ]
    return subprocess.run(
        command,
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def main() -> None:
    """Run the targets that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--runs", type=int, help="executions of each target")
    parser.add_argument("--merge", action="store_true", help="keep what reaches new code")
    options = parser.parse_args()
    held = [fuzz(name, options.runs or RUNS[name], options.merge) for name in options.targets]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
