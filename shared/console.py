"""The terminal, for what `cra` prints: keys, captions and messages stand there as they are.

Nothing is read as markup, as emoji or as something to highlight: names that others chose hold
brackets and colons too. What is to be coloured is a `Text`.
"""

import json
from typing import Any, Final

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

out: Final = Console(markup=False, emoji=False, highlight=False)
err: Final = Console(stderr=True, markup=False, emoji=False, highlight=False)


def examples(*commands: str) -> str:
    """Return commands as the epilog of a command's help; click leaves their lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def count(number: int, one: str) -> str:
    """Return a number of things in words, such as `1 file` and `2 files`."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def table(*columns: str) -> Table:
    """Return a table that shows every cell whole, folded where the terminal is too narrow."""
    made = Table()
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def progress(quiet: bool, done: ProgressColumn) -> Progress:
    """Return a bar on stderr, with how much is done and how long it takes; none if it is quiet."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        done,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=quiet or not err.is_terminal,
        transient=True,
    )


def print_json(content: Any) -> None:
    """Print JSON, for programs."""
    click.echo(json.dumps(content, ensure_ascii=False, indent=2))


def warn(about: str, problem: str) -> None:
    """Say on stderr what is wrong with something."""
    err.print(Text.assemble((about, "yellow"), f": {problem}"))


def print_message(message: Message) -> None:
    """Print a message as JSON."""
    fields = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    click.echo(json.dumps(fields, ensure_ascii=False, indent=2))
