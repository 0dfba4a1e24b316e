"""Command line: measure each feature of search, on against off; writes docs/quality.md.

2,000 rendered pictures of buildings that no tower has seen.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from cra.services.training.miniature.data import PICTURES
from cra.services.training.quality import crops, duplicates, expansion, folding, relevance, report
from cra.services.training.quality.world import World

_console = Console()


def _show(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def main() -> None:
    """Run every study, print and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m cra.services.training.quality", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--model", type=Path, default=Path("deploy/models/miniature"))
    parser.add_argument(
        "--release", type=Path, default=Path("deploy/models/releases/cra-miniature-3e470a83")
    )
    parser.add_argument("--work", type=Path, default=Path(".data/miniature"))
    parser.add_argument("--out", type=Path, default=Path("docs/quality.md"))
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test",
        help="constants are chosen on validation, the page is made on test",
    )  # fmt: skip
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    with Progress(console=_console) as bar:
        task = bar.add_task(f"rendering {options.split}", total=PICTURES[options.split])
        world = World.load(
            options.model,
            options.release,
            options.work,
            options.split,
            options.workers,
            options.resamples,
            partial(_show, bar, task),
        )
    rows = []
    for study in (folding, expansion, relevance, duplicates, crops):
        _console.print(
            f"{study.__name__.rpartition('.')[2]} after {time.monotonic() - begun:.0f} s"
        )
        rows += study.study(world)
    page = report.Page(
        split=options.split,
        pictures=len(world.pictures),
        towers={label: tower.release for label, tower in world.towers.items()},
        rows=rows,
        grid=expansion.grid(world),
        areas=relevance.areas(world),
        rates=relevance.rates(world),
        fitted=relevance.fit(world),
        scales=relevance.scales(world),
        bounds=duplicates.bounds(world),
        minutes=(time.monotonic() - begun) / 60,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = report.markdown(page)
    options.out.write_text(text, encoding="utf-8")
    options.out.with_suffix(".json").write_text(report.figures(page), encoding="utf-8")
    _console.print(text)


if __name__ == "__main__":
    main()
