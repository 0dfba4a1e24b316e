"""`cra evaluate`: how well a release finds the images of a data set."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cra.services.training.commands.options import (
    RELEASES,
    DataOptions,
    cache_option,
    dataset_options,
    options_of,
    shares,
    split_options,
)
from cra.services.training.data.chinese_clip import has_split, read_texts
from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.folder import find_index
from cra.services.training.data.opening import has_splits
from cra.services.training.data.split import split as split_by_group
from cra.services.training.evaluation import predictions, report
from cra.services.training.evaluation.intervals import RESAMPLES
from cra.services.training.evaluation.live import LiveGallery
from cra.services.training.evaluation.run import MISSES, Listen, Options, Outcome, run
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.client import SearchClient
from cra.shared.console import err, examples, out
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import ModelSource, find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from cra.shared.releases import NAME, Release, read_release
from cra.shared.settings import Settings

BASE: Final = "base"
"""Stands for the text tower of the settings' model."""


@click.command(
    epilog=examples(
        "cra evaluate pairs/ --split test --release .data/releases/NAME --against base",
        "cra evaluate pairs/ --split test --live --out report/",
    )
)
@dataset_options
@click.option("--split", default="", help="Only this split: of the data, or as `cra train` does.")
@split_options
@click.option(
    "--release",
    default=BASE,
    show_default=True,
    metavar="PATH|NAME",
    help="Folder of a release, or the name of a published one; `base`: CRA_MODEL as it is.",
)
@click.option("--against", metavar="PATH|NAME", help="Compare with this release, such as `base`.")
@click.option("--live", is_flag=True, help="Ask the running gateway too; show the index's loss.")
@click.option(
    "--live-prefix",
    default="",
    metavar="BUCKET/PREFIX",
    help="Goes before an image's id to make its `bucket/key`; only such images are searched.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write report.json, report.md and report.html into this folder.",
)
@click.option(
    "--predictions",
    "predictions_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the best ten images of each caption, in Chinese CLIP's format.",
)
@click.option(
    "--misses",
    default=MISSES,
    show_default=True,
    type=click.IntRange(min=0),
    help="Worst misses in the report.",
)
@click.option("--resamples", default=RESAMPLES, show_default=True, type=click.IntRange(min=1000))
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the intervals."
)
@cache_option
@click.option(
    "--releases",
    type=click.Path(path_type=Path),
    default=RELEASES,
    show_default=True,
    help="Folder that published releases are fetched into.",
)
@click.option("--device", help="`cpu`, `cuda`, `cuda:N`; CRA_DEVICE if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def evaluate(settings: Settings, /, **parameters: Any) -> None:
    """Measure how well a release finds the images of LOCATION by their captions, and back.

    LOCATION is a folder with captions.jsonl or captions.csv, a folder in Chinese CLIP's format,
    or s3://bucket/prefix. Each different caption is one query, for which all images that it
    describes are right.
    """
    location, others = options_of(**parameters)
    dataset = _data(location, settings, others)
    text_ids = _text_ids(location, others["split"]) if others["predictions_file"] else None
    cache = Path(settings.model_cache) if settings.model_cache else None
    source = find_model(settings.model, settings.config, cache)
    device = others["device"] or settings.device
    names = [name for name in (others["against"], others["release"]) if name]
    # Torch has no int8, which a service may take.
    precision = "auto" if settings.precision == "int8" else settings.precision
    image_tower = ImageTower(source, device, precision)
    towers = [
        TextTower(_source(name, source, settings, others["releases"]), device, precision)
        for name in names
    ]
    options = Options(others["cache"], others["misses"], others["resamples"], others["seed"])
    with contextlib.ExitStack() as stack:
        gallery = None
        if others["live"]:
            client = stack.enter_context(SearchClient.of(settings, timeout=30, tries=5))
            ids = [image.image_id for image in dataset.images]
            gallery = LiveGallery(client, ids, others["live_prefix"])
        listen = stack.enter_context(_progress(disable=others["as_json"]))
        where = f"{location.location} {others['split']}".strip()
        outcome = run(dataset, where, image_tower, towers, options, gallery, listen)
    if others["out"]:
        report.write(outcome.report, outcome.pictures, others["out"])
    if others["predictions_file"]:
        _export(outcome, dataset, others["predictions_file"], text_ids)
    if others["as_json"]:
        click.echo(report.as_json(outcome.report))
    else:
        _print(outcome.report)
        if others["out"]:
            err.print(f"the worst misses are shown in {others['out'] / 'report.html'}")


def _data(location: DataOptions, settings: Settings, others: dict[str, Any]) -> DataSet:
    """Return what is measured on: all of the data, or the split that is named."""
    name = others["split"]
    if not name or has_splits(location.location, location.columns):
        return location.open(settings, name)
    whole = location.open(settings)
    parts = split_by_group(whole, shares(others), others["split_seed"])
    if name not in parts:
        raise click.UsageError(f"--split is {name}; there are {', '.join(parts)}")
    return DataSet(parts[name].images, whole.problems)


def _text_ids(location: DataOptions, split: str) -> dict[str, list[int]] | None:
    """Return the ids that a data set in Chinese CLIP's format gives its texts."""
    folder = Path(location.location)
    if not split or find_index(folder) is not None or not has_split(folder, split):
        return None
    found: dict[str, list[int]] = {}
    try:
        for text in read_texts(folder, split):
            found.setdefault(text.text, []).append(text.text_id)
    except BadDataError as error:
        raise FailedPreconditionError(
            f"--predictions needs the ids of all texts, and {error}"
        ) from error
    return found


def _source(
    name: str, base: ModelSource, settings: Settings, releases: Path
) -> ModelSource | Release:
    """Return what a text tower is loaded from."""
    if name == BASE:
        return base
    if Path(name).is_dir():
        return read_release(Path(name))
    if NAME.fullmatch(name):
        return S3ReleaseStore(settings).fetch(name, releases)
    raise FailedPreconditionError(
        f"{name!r} is neither a folder, nor the name of a published release, nor `{BASE}`"
    )


@contextlib.contextmanager
def _progress(*, disable: bool) -> Iterator[Listen]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=disable) as bar:
        tasks: dict[str, TaskID] = {}

        def listen(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(escape(what), total=total)
            bar.update(tasks[what], completed=done)

        yield listen


def _export(
    outcome: Outcome, dataset: DataSet, file: Path, text_ids: dict[str, list[int]] | None
) -> None:
    if "captions" not in outcome.asked:
        raise FailedPreconditionError("--predictions: there are no captions but everyday ones")
    asked = outcome.asked["captions"]
    answers = predictions.write(
        file,
        asked.queries,
        [image.image_id for image in dataset.images],
        outcome.images_nd,
        asked.answers.texts_qd,
        text_ids,
    )
    err.print(f"predictions are in {file}, the right answers in {answers}")


def _print(found: report.Report) -> None:
    for section in found.sections:
        for one in section.tables:
            table = Table(title=one.title, caption=one.note, title_justify="left")
            table.add_column(one.columns[0], overflow="fold", min_width=len("difference"))
            for column in one.columns[1:]:
                table.add_column(column, justify="right")
            for row in one.rows:
                table.add_row(*row)
            out.print(table)
    if found.data.left_out:
        err.print(f"{found.data.left_out} rows were left out; `cra dataset check` lists them")
