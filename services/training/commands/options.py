"""Options that the commands of training share: where a data set is and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.opening import open_dataset
from cra.services.training.data.reading import Columns
from cra.shared.settings import Settings

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"

RELEASES: Final = Path(".data/releases")
"""Folder of releases, unless another is named."""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class DataOptions:
    """A data set as it was named on the command line."""

    location: str
    columns: Columns

    def open(self, settings: Settings, split: str = "") -> DataSet:
        """Read it.

        Raises:
            ClickException: it cannot be read; every problem is listed.
        """
        try:
            return open_dataset(self.location, self.columns, split, settings)
        except BadDataError as error:
            lines = "\n".join(map(str, error.problems))
            raise click.ClickException(f"{self.location}:\n{lines}") from error


def dataset_options(command: Command) -> Command:
    """Add LOCATION and the options that say how it is read; see `options_of`."""
    for add in reversed(
        (
            click.argument("location"),
            click.option("--caption-column", default="caption", show_default=True),
            click.option("--general-column", default="", help="Holds everyday captions."),
            click.option(
                "--group-column",
                default="group",
                show_default=True,
                help="Names the building or project; `folder`: that of the image.",
            ),
            click.option(
                "--attribute-column",
                "attribute_columns",
                multiple=True,
                metavar="NAME",
                help="Holds a category, for recall by category; may be repeated.",
            ),
            click.option("--split-column", default="", help="Names the split of a row."),
            click.option(
                "--on-error",
                type=click.Choice(["continue", "stop"]),
                default="continue",
                show_default=True,
                help="Leave bad rows out, or stop at the first.",
            ),
        )
    ):
        command = add(command)
    return command


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(".data/features"),
    show_default=True,
    help="Image features, by tower.",
)


def options_of(
    location: str,
    caption_column: str,
    general_column: str,
    group_column: str,
    attribute_columns: tuple[str, ...],
    split_column: str,
    on_error: Any,
    **others: Any,
) -> tuple[DataOptions, dict[str, Any]]:
    """Take a command's parameters apart: the data set, and the rest."""
    columns = Columns(
        caption_column, general_column, group_column, attribute_columns, split_column, on_error
    )
    return DataOptions(location, columns), others


def split_options(command: Command) -> Command:
    """Add the options that say how data is split whose own files name no splits; see `shares`."""
    for add in reversed(
        (
            click.option(
                "--validation-share",
                default=0.1,
                show_default=True,
                type=click.FloatRange(0, 1, min_open=True, max_open=True),
                help="Where the data names no splits: share of the groups for validation.",
            ),
            click.option(
                "--test-share",
                default=0.1,
                show_default=True,
                type=click.FloatRange(0, 1, max_open=True),
                help="And share that is kept out of training, for `cra evaluate --split test`.",
            ),
            click.option(
                "--split-seed", default=0, show_default=True, help="Another one splits otherwise."
            ),
        )
    ):
        command = add(command)
    return command


def shares(others: dict[str, Any]) -> dict[str, float]:
    """Return the shares of train, validation and test."""
    left = 1 - others["validation_share"] - others["test_share"]
    if left <= 0:
        raise click.UsageError("--validation-share and --test-share leave nothing to learn")
    found = {TRAIN: left, VALIDATION: others["validation_share"]}
    return found | ({TEST: others["test_share"]} if others["test_share"] else {})
