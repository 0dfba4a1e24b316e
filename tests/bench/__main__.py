"""Runs benchmarks; writes docs/benchmarks.json, .md and .svg, keeping what it does not run.

Exits with 1 if something that it measured is not as asked.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.bench import gpu, ingest, lit, memory, milvus, page, report, search, start, text
from tests.bench.measure import machine
from tests.commands import add_names

# The shortest first.
BENCHMARKS: Final = {
    "text": text.run,
    "gpu": gpu.run,
    "start": start.run,
    "page": page.run,
    "search": search.run,
    "ingest": ingest.run,
    "lit": lit.run,
    "memory": memory.run,
    "milvus": milvus.run,
}
DOCS: Final = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add_names(parser, BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    # What was started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "benchmarks.json"
    sections: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    missed: list[str] = []
    for name in options.names or BENCHMARKS:
        print(f"measuring: {name}", flush=True)  # noqa: T201
        try:
            results = [one.as_json() for one in BENCHMARKS[name](options.rounds)]
            sections[name] = {"machine": machine(), "results": results}
            missed += [f"{name}: {one['title']}" for one in results if one["held"] is False]
        except (gpu.NoDeviceError, pytest.skip.Exception) as error:  # no GPU, no Chromium
            # What was measured on another machine stands.
            sections.setdefault(name, {"skipped": str(error)})
            print(f"SKIPPED: {name}: {error}")  # noqa: T201
        # After each: what follows may be interrupted.
        text_of_all = report.markdown(sections)
        (options.out / "benchmarks.md").write_text(text_of_all, encoding="utf-8")
        report.chart(sections, options.out / "benchmarks.svg")
        file.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(text_of_all)  # noqa: T201
    if missed:
        sys.exit("not as asked: " + "; ".join(missed))


if __name__ == "__main__":
    main()
