"""Runs every benchmark and writes docs/benchmarks.json and docs/benchmarks.md."""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from tests.bench import lit
from tests.bench.measure import Comparison, machine

BENCHMARKS: Final = {"lit": lit.run}
DOCS: Final = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=BENCHMARKS, help="all if none is given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = [BENCHMARKS[name](options.rounds) for name in options.names or BENCHMARKS]
    where = {**machine(), "threads": str(options.threads)}
    text = report(found, where)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "benchmarks.md").write_text(text, encoding="utf-8")
    figures = {"machine": where, "results": [as_json(one) for one in found]}
    (options.out / "benchmarks.json").write_text(
        json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(text)  # noqa: T201


def as_json(one: Comparison) -> dict[str, object]:
    """Return a comparison as plain values."""
    return {
        "title": one.title,
        "ours_s": one.ours,
        "theirs_s": one.theirs,
        "ratio": one.ratio,
        "notes": one.notes,
    }


def report(found: Sequence[Comparison], where: dict[str, str]) -> str:
    """Return the report as Markdown."""
    rows = []
    for one in found:
        low, high = one.spread
        rows.append(
            f"| {one.title} | {statistics.median(one.ours):.3f} | "
            f"{statistics.median(one.theirs):.3f} | {one.ratio:.1f} ({low:.1f} to {high:.1f}) |"
        )
    notes = [
        f"- {one.title}: " + "; ".join(f"{name}: {value}" for name, value in one.notes.items())
        for one in found
    ]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "`make bench` measures again. Seconds are medians; the ratio is the median over "
            "rounds in which both took turns, with the smallest and the largest.",
            "",
            "| what | ours, s | rival, s | times faster |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            *notes,
            "",
            "Measured with " + ", ".join(f"{name} {value}" for name, value in where.items()) + ".",
            "",
        ]
    )


if __name__ == "__main__":
    main()
