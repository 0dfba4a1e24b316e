"""Command lines of `cra`, looked over without running them."""

import itertools
import shlex
from collections.abc import Iterator, Sequence

import click

from cra.services.cli.group import cra

_SHELL = frozenset({">", ">>", "|", "&&", "||", ";"})
_MISSING = ("does not exist", "No such file")
"""What click says of files that are named by an example and are not there."""


def words_of(line: str) -> list[str]:
    """Return the words of a line's first command, without what a shell does with its output."""
    words = shlex.split(line, comments=True)
    return list(itertools.takewhile(lambda word: word not in _SHELL, words))


def check_line(words: Sequence[str]) -> click.Command:
    """Return the command that a command line calls.

    Args:
        words: without `cra` itself.

    Raises:
        click.UsageError: there is no such command or option, or a value is bad.
    """
    command, parent, rest, name = cra, None, list(words), "cra"
    while True:
        try:
            context = command.make_context(name, rest, parent)
        except click.BadParameter as error:
            if not any(words in error.message for words in _MISSING):
                raise
            return command
        if not isinstance(command, click.Group):
            return command
        # What is left of a group's own options is the command below it.
        rest = [*context._protected_args, *context.args]
        found, below, rest = command.resolve_command(context, rest)
        assert found is not None
        assert below is not None
        command, parent, name = below, context, found  # type: ignore[assignment]


def commands(
    group: click.Group = cra, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and group below a group, with the words that call it."""
    context = click.Context(group, info_name="cra")
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
