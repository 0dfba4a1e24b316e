"""Options that the commands of training share: where a data set is and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.opening import open_dataset
from cra.services.training.data.reading import Columns
from cra.shared.settings import Settings

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
