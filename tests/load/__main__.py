"""Runs load tests; writes docs/load.json, .md and charts, keeping what it does not run."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.bench.measure import machine
from tests.bench.model import CONVERTED, converted
from tests.bench.model import model as large
from tests.commands import add_names
from tests.load import overload, report, restarts, soak

DOCS: Final = Path(__file__).parents[2] / "docs"
LARGE: Final = "the shape of ViT-B/16, random weights"
SMALL: Final = "deploy/models/miniature"
"""For what does not ask how much the cores serve."""


def main() -> None:
    """Measure, write, print; exit with 1 if something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    names = ("overload", "restarts", "soak")
    add_names(parser, names)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--milvus", choices=("server", "lite"), default="server")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    file = options.out / "load.json"
    sections: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    runs: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
        # Of a size at which the load that is made costs little beside what bears it.
        "overload": (
            LARGE,
            lambda model: overload.run(model, options.milvus),
        ),
        "restarts": (SMALL, lambda model: restarts.run(model, options.milvus)),
        "soak": (SMALL, lambda model: soak.run(model, options.minutes, options.milvus)),
    }
    held = True
    for name in options.names or names:
        print(f"measuring: {name}", flush=True)  # noqa: T201
        said, run = runs[name]
        with pytest.MonkeyPatch.context() as patch:
            if said != SMALL:
                converted()
                patch.setenv("CRA_CONVERTED_MODELS", str(CONVERTED))
            results = run(SMALL if said == SMALL else str(large()))
        sections[name] = {
            "machine": machine(),
            "model": f"{said}; Milvus: {options.milvus}",
            "results": results,
        }
        held = held and all(results["held"].values())
        # After each: what follows may be interrupted.
        text = report.markdown(sections)
        (options.out / "load.md").write_text(text, encoding="utf-8")
        report.charts(sections, options.out)
        file.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(text)  # noqa: T201
    sys.exit(not held)


if __name__ == "__main__":
    main()
