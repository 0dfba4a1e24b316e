"""`cra dataset`: look a data set over before anything is learnt from it."""

import json
import sys
from collections import Counter
from typing import Any

import click
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from cra.services.training.commands.options import dataset_options, options_of
from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.duplicates import NEAR, Duplicate, find_duplicates
from cra.services.training.data.opening import check_images, open_dataset, without
from cra.shared.console import err, examples, out
from cra.shared.settings import Settings

_SHOWN = 50

# Captions and file names stand there as they are: they hold brackets and colons too.


@click.group(epilog=examples("cra dataset check pairs/"))
def dataset() -> None:
    """Look data sets over."""


@dataset.command(
    epilog=examples(
        "cra dataset check pairs/",
        "cra dataset check pairs/captions.csv --caption-column text --duplicates",
    )
)
@dataset_options
@click.option("--split", default="", help="The split to read, where the data has several.")
@click.option("--images/--no-images", default=True, help="Decode every image; the default.")
@click.option("--duplicates", is_flag=True, help="Look for duplicates and near-duplicates.")
@click.option(
    "--near",
    default=NEAR,
    show_default=True,
    type=click.IntRange(0, 64),
    help="Bits of 64 in which near-duplicates differ at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(settings: Settings, /, **parameters: Any) -> None:
    """Read LOCATION, and say what is in it and what is wrong with it.

    LOCATION is a folder with captions.jsonl or captions.csv, a folder in Chinese CLIP's format,
    or s3://bucket/prefix. Exits 1 if anything is wrong.
    """
    options, others = options_of(**parameters)
    twice: list[Duplicate] = []
    try:
        found = open_dataset(options.location, options.columns, others["split"], settings)
        with Progress(console=err, disable=others["as_json"]) as bar:
            if others["images"]:
                task = bar.add_task("decoding", total=len(found))
                problems = check_images(found.images, lambda done: bar.update(task, completed=done))
                found = without(found, problems)
            if others["duplicates"]:
                again = bar.add_task("comparing", total=len(found))
                twice = find_duplicates(
                    found, others["near"], lambda done: bar.update(again, completed=done)
                )
    except BadDataError as error:
        found = DataSet((), tuple(error.problems))
    if others["as_json"]:
        click.echo(json.dumps(_as_json(found, twice), ensure_ascii=False, indent=2))
    else:
        _print(found, twice)
    if found.problems:
        sys.exit(1)


def _counts(found: DataSet) -> dict[str, int]:
    captions = Counter(caption for _, caption in found.pairs())
    return {
        "images": len(found),
        "groups": len({image.group for image in found.images}),
        "pairs": captions.total(),
        "different captions": len(captions),
        "images without captions": sum(not image.captions for image in found.images),
        "most captions of an image": max((len(i.captions) for i in found.images), default=0),
        "most images of a caption": max(captions.values(), default=0),
        "everyday captions": sum(1 for _ in found.general_pairs()),
        "problems": len(found.problems),
    }


def _as_json(found: DataSet, twice: list[Duplicate]) -> dict[str, Any]:
    return {
        **{name.replace(" ", "_"): count for name, count in _counts(found).items()},
        "digest": found.digest,
        "problem_list": [{"where": p.where, "message": p.message} for p in found.problems],
        "duplicates": [one.__dict__ for one in twice],
    }


def _print(found: DataSet, twice: list[Duplicate]) -> None:
    table = Table(show_header=False)
    for name, count in _counts(found).items():
        table.add_row(name, f"{count:,}")
    out.print(table)
    if twice:
        ids = (Column(name, overflow="fold") for name in ("image", "and"))
        shown = Table("", *ids, "across groups", "")
        for one in twice[:_SHOWN]:
            across = "yes" if one.across_groups else ""
            shown.add_row(one.kind, one.first, one.second, across, one.detail)
        out.print(shown)
        _more(len(twice), "duplicates")
    _list(found.problems)


def _list(problems: tuple[Problem, ...]) -> None:
    for problem in problems[:_SHOWN]:
        err.print(Text.assemble((problem.where, "red"), " ", problem.message))
    _more(len(problems), "problems")


def _more(count: int, what: str) -> None:
    if count > _SHOWN:
        err.print(f"and {count - _SHOWN:,} more {what}; --json lists all")
