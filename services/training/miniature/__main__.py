"""Command line: tune the shipped base model on professional captions, and measure what it gained.

Three seeds, buildings that no model has seen, a gallery of 2,000 pictures.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from cra.services.training import features
from cra.services.training.evaluation.exact import encode_texts
from cra.services.training.miniature import data, report
from cra.services.training.miniature.study import Encode, HeldOut, Outcome
from cra.services.training.tuning.console import ConsoleListener
from cra.services.training.tuning.export import export
from cra.services.training.tuning.run import tune
from cra.services.training.tuning.settings import TuningSettings
from cra.shared.model.checkpoints import ModelSource, find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from cra.shared.releases import Release

LABEL: Final = "cra-miniature"
SETTINGS: Final = TuningSettings(max_epochs=2, lr=5e-4, warmup=50)

_console = Console()


@dataclasses.dataclass(frozen=True)
class World:
    """Base model, data and features: what every run of the miniature shares."""

    source: ModelSource
    train: data.Part
    validation: data.Part
    test: HeldOut
    test_nd: features.Features
    work: Path

    @property
    def cache(self) -> Path:
        """Folder of image features."""
        return self.work / "features"


def prepare(model: Path, work: Path, workers: int) -> World:
    """Render what is not there yet, and compute the test set's features."""
    parts = {}
    for split, count in data.PICTURES.items():
        with Progress(console=_console) as bar:
            task = bar.add_task(f"rendering {split}", total=count)
            parts[split] = data.load(work, split, workers, partial(_show, bar, task))
    source = find_model(str(model))
    tower = ImageTower(source, "cpu")
    test_nd = features.load(parts["test"].dataset.images, tower, work / "features")[0]
    test = HeldOut(parts["test"], source.config["image_resolution"])
    return World(source, parts["train"], parts["validation"], test, test_nd, work)


def _show(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def encoder(source: ModelSource | Release) -> Encode:
    """Return a function from texts to vectors, by the tower as it is served."""
    tower = TextTower(source, "cpu")
    return lambda texts: encode_texts(tower, texts)


def run_seed(world: World, settings: TuningSettings) -> tuple[Release, Outcome]:
    """Tune with one seed, write the release, measure it on the test set."""
    work = world.work / f"run-{settings.seed}"
    with ConsoleListener(_console) as listener:
        tuned = tune(
            world.source,
            world.train.dataset,
            world.validation.dataset,
            settings,
            work=work,
            cache=world.cache,
            listener=listener,
        )
    release = export(tuned, settings, LABEL, work / "releases")
    return release, Outcome.of(world.test.rank(encoder(release), world.test_nd))


def main() -> None:
    """Run all seeds, print and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m cra.services.training.miniature", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--model", type=Path, default=Path("deploy/models/miniature"))
    parser.add_argument("--work", type=Path, default=Path(".data/miniature"))
    parser.add_argument("--out", type=Path, default=Path("docs/miniature.md"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    world = prepare(options.model, options.work, options.workers)
    base = Outcome.of(world.test.rank(encoder(world.source), world.test_nd))
    outcomes: list[Outcome] = []
    releases: list[Release] = []
    for seed in range(options.seeds):
        release, outcome = run_seed(world, dataclasses.replace(SETTINGS, seed=seed))
        _console.print(f"seed {seed}: {release.folder}")
        releases.append(release)
        outcomes.append(outcome)
    minutes = (time.monotonic() - begun) / 60
    text = report.miniature(world.test, base, outcomes, releases, minutes, options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    options.out.with_suffix(".json").write_text(_figures(base, outcomes), encoding="utf-8")
    _console.print(text)


def _figures(base: Outcome, outcomes: Sequence[Outcome]) -> str:
    figures = {
        name: {
            speech: {f"r@{k}": float(np.mean(hits)) for k, hits in by_k.items()}
            for speech, by_k in outcome.hits.items()
        }
        for name, outcome in [("base", base), *((f"seed {i}", o) for i, o in enumerate(outcomes))]
    }
    return json.dumps(figures, indent=1) + "\n"


if __name__ == "__main__":
    main()
