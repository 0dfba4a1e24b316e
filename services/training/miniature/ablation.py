"""Which part of the recipe brings what: one thing changed at a time, on the miniature.

Every row sees the same number of pairs with one seed; beside it stands the paired difference to
the recipe, with its interval over buildings.
"""

import argparse
import dataclasses
import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from cra.services.training.evaluation.intervals import differences, means
from cra.services.training.metrics import Values
from cra.services.training.miniature import report
from cra.services.training.miniature.__main__ import SETTINGS, World, encoder, prepare
from cra.services.training.miniature.data import fewer_pairs
from cra.services.training.miniature.study import SPEECHES, Outcome
from cra.services.training.miniature.unlocked import tune_both
from cra.services.training.tuning.captions import Captions
from cra.services.training.tuning.console import ConsoleListener
from cra.services.training.tuning.export import export
from cra.services.training.tuning.run import tune
from cra.services.training.tuning.settings import TuningSettings

RECIPE: Final = dataclasses.replace(SETTINGS, max_epochs=1)
K: Final = 20

_console = Console()


@dataclass(frozen=True)
class Row:
    """One variant."""

    name: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the settings."""
    pairs: int | None = None
    """Captions that are learnt; all if None."""


ROWS: Final = (
    Row("the recipe"),
    Row("hard positives: only a caption's own image is right", {"soft_positives": False}),
    Row("group positives 0.5: the other views of a building too", {"group_positives": 0.5}),
    Row("no tokens for unknown characters", {"add_tokens": False}),
    Row("negatives of the batch, not of the gallery", {"negatives": "batch"}),
    Row("hard negatives: a quarter of each batch", {"hard_negatives": 0.25}),
    Row("label smoothing 0.1", {"label_smoothing": 0.1}),
    Row("three views of each image", {"views": 3}),
    Row("layer-wise decay 0.7", {"layer_decay": 0.7}),
    Row("LoRA of rank 8", {"lora_rank": 8}),
    Row("LoRA of rank 32", {"lora_rank": 32, "lora_alpha": 64.0}),
    Row("no WiSE-FT", {"wise_ft": False}),
    Row("everyday captions are not kept", {"kd_loss_weight": 0.0}),
    Row("neither kept nor WiSE-FT", {"kd_loss_weight": 0.0, "wise_ft": False}),
    *(Row(f"{count:,} pairs", pairs=count) for count in (100, 300, 1_000, 3_000, 10_000, 30_000)),
)
UNLOCKED: Final = "nothing locked: both towers learn, every image must be embedded again"


def run(world: World, row: Row) -> Outcome:
    """Tune one variant and measure it on the test set."""
    settings = dataclasses.replace(RECIPE, **row.changes)
    train = world.train.dataset
    steps = len(list(train.pairs())) // settings.batch_size
    if row.pairs is not None:
        train = fewer_pairs(train, row.pairs, settings.seed)
        an_epoch = max(1, row.pairs // settings.batch_size)
        settings = dataclasses.replace(
            settings,
            max_epochs=max(1, round(steps / an_epoch)),
            # As often as in the other rows would say nothing; few pairs are soon learnt by heart.
            valid_step_interval=max(1, steps // 8),
        )
    work = world.work / "ablation" / _slug(row.name)
    with ConsoleListener(_console) as listener:
        tuned = tune(
            world.source,
            train,
            world.validation.dataset,
            settings,
            work=work,
            cache=world.cache,
            listener=listener,
        )
    release = export(tuned, settings, "ablation", work / "releases")
    return Outcome.of(world.test.rank(encoder(release), world.test_nd))


def run_unlocked(world: World) -> Outcome:
    """Tune both towers and measure them on the test set, its images embedded again."""

    def show(step: int, total: int, loss: float) -> None:
        if step % 20 == 0:
            _console.print(f"both towers: step {step} of {total}, loss {loss:.3f}")

    model, tokenizer, encode = tune_both(world.source, world.train.dataset, RECIPE, show)
    return Outcome.of(
        world.test.rank(
            lambda texts: Captions(texts, tokenizer).encode_all(model, "cpu"),
            encode(world.test.part.dataset),
        )
    )


def outcomes(world: World, rows: tuple[Row, ...]) -> Iterator[tuple[str, Outcome]]:
    """Yield what each row reached; one that was measured before is read from the work folder."""
    variants = {row.name: partial(run, world, row) for row in rows}
    for name, measure in {**variants, UNLOCKED: partial(run_unlocked, world)}.items():
        file = world.work / "ablation" / f"{_slug(name)}.json"
        if not file.is_file():
            begun = time.monotonic()
            hits = {
                speech: {str(k): values.tolist() for k, values in by_k.items()}
                for speech, by_k in measure().hits.items()
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            seconds = time.monotonic() - begun
            file.write_text(json.dumps({"hits": hits, "seconds": seconds}), encoding="utf-8")
        stored = json.loads(file.read_text(encoding="utf-8"))
        yield (
            name,
            Outcome(
                {
                    speech: {int(k): np.array(values) for k, values in by_k.items()}
                    for speech, by_k in stored["hits"].items()
                }
            ),
        )


def main() -> None:
    """Run all rows; print and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m cra.services.training.miniature.ablation",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--model", type=Path, default=Path("deploy/models/miniature"))
    parser.add_argument("--work", type=Path, default=Path(".data/miniature"))
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    world = prepare(options.model, options.work, options.workers)
    base = Outcome.of(world.test.rank(encoder(world.source), world.test_nd))
    found = {"base, not tuned": base}
    for name, outcome in outcomes(world, ROWS):
        found[name] = outcome
        _console.print(
            f"{name}: " + ", ".join(f"{100 * outcome.recall(s, K):.1f}" for s in SPEECHES)
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(_page(world, found, RECIPE), encoding="utf-8")


def _page(world: World, found: dict[str, Outcome], settings: TuningSettings) -> str:
    rows = []
    for name, outcome in found.items():
        cells = [name]
        for speech in SPEECHES:
            groups = report.groups(world.test, speech)
            hits = _at_k(outcome, speech)
            cells.append(report.with_interval(means(hits, groups)[0]))
            if name != ROWS[0].name and ROWS[0].name in found:
                apart = differences(_at_k(found[ROWS[0].name], speech), hits, groups)[0]
                cells.append(report.points(apart))
            else:
                cells.append("")
        rows.append(cells)
    header = ["", *(cell for speech in SPEECHES for cell in (f"{speech}, R@{K}", "to the recipe"))]
    pairs = sum(1 for _ in world.train.dataset.pairs())
    return f"""# What each part of the recipe brings

    python -m cra.services.training.miniature.ablation

One thing changed at a time in the miniature (docs/miniature.md): {pairs:,} pairs seen once in
batches of {settings.batch_size}, one seed; rows with fewer pairs see them as often as it takes for
as many steps, and keep the best validation. With nothing locked, every step encodes its images
anew, negatives are the batch's, and neither everyday captions are kept nor weights interpolated.
Per cent with the 95 % interval by bootstrap over buildings; differences are paired.

{report.table(header, rows)}

Measured on {datetime.date.today().isoformat()}.
"""


def _at_k(outcome: Outcome, speech: str) -> Values:
    hits = outcome.hits[speech][K]
    return hits[:, None]


def _slug(name: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in name)[:60]


if __name__ == "__main__":
    main()
