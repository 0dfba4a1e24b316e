"""Command line: write a data set of rendered buildings into a folder."""

import argparse
import sys
from pathlib import Path

from rich.progress import Progress

from cra.services.training.buildings.dataset import CAPTIONS, write_dataset
from cra.services.training.buildings.scene import SEED, SPLITS


def main() -> None:
    """Write a data set, with a progress bar; exit with 1 if the folder cannot be written to."""
    parser = argparse.ArgumentParser(
        prog="python -m cra.services.training.buildings",
        description="Write rendered buildings with Chinese captions: JPEGs and captions.jsonl.",
    )
    parser.add_argument("folder", type=Path, help="where to; made if missing")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=2000, help="pictures, two of each building")
    parser.add_argument("--start", type=int, default=0, help="place of the first in its split")
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="of each, in each speech")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args()
    if options.count < 1:
        parser.error(f"--count is {options.count}; at least 1 is needed")
    try:
        _write(options)
    except OSError as error:
        sys.exit(f"cannot write to {options.folder}: {error.strerror}")


def _write(options: argparse.Namespace) -> None:
    with Progress() as bar:
        task = bar.add_task(f"rendering {options.split}", total=options.count)
        write_dataset(
            options.folder,
            options.split,
            options.count,
            lambda done: bar.update(task, completed=done),
            options.seed,
            options.workers,
            options.start,
            options.captions,
        )


if __name__ == "__main__":
    main()
