"""The `cra` command: its groups, its exit codes, and commands of other extras."""

import ast
import functools
import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

import click

from cra.services.cli import interrupts
from cra.services.cli.completion import completion
from cra.services.cli.doctor import doctor
from cra.services.cli.exit_codes import INTERRUPTED, LATER
from cra.services.cli.index import index
from cra.services.cli.ingest import failures, reconcile, status
from cra.services.cli.keys import keys
from cra.services.cli.put import put
from cra.services.cli.releases import releases
from cra.services.cli.search import search
from cra.services.cli.traces import trace
from cra.shared import tracing
from cra.shared.console import examples
from cra.shared.errors import (
    CraError,
    DeadlineExceededError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from cra.shared.settings import Settings

_CREDENTIALS = (
    "Credentials are settings: CRA_API_KEY for searches, CRA_SERVICE_TOKEN for embedding and "
    "ingest, CRA_S3_ACCESS_KEY and CRA_S3_SECRET_KEY for the object store. --env-file or "
    "CRA_ENV_FILE reads them from a file; the local stack's is .data/run/stack.env"
)

_WITHOUT_SETTINGS: Final = {"completion", "doctor"}
"""Commands that do not stop at bad settings: one needs none, one says what is wrong with them."""

_EXTRA = {point.name: point for point in entry_points(group="cra.commands")}


class _LaterError(click.ClickException):
    exit_code = LATER


class _Group(click.Group):
    """Turns domain errors into one line and an exit code, and finds commands of other extras.

    Those are entry points of `cra.commands`; they are imported when they are called, so that
    `cra search` needs no torch.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_EXTRA})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _EXTRA:
            return super().get_command(ctx, cmd_name)
        # Enough for the list of commands, which must not take the seconds of importing torch.
        return click.Command(cmd_name, help=_docstring(_EXTRA[cmd_name]))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in _EXTRA else command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interrupts.raised():
                return super().invoke(ctx)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise click.ClickException(f"{error.message}. {_CREDENTIALS}") from error
        except (UnavailableError, ResourceExhaustedError, DeadlineExceededError) as error:
            raise _LaterError(error.message) from error
        except CraError as error:
            raise click.ClickException(error.message) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "cra put photos/            # a folder of images into the bucket",
        "cra status                 # how far they are indexed",
        "cra search 飞檐下的红色大门   # some of them",
        "cra doctor                 # what is wrong, and how to mend it",
    ),
)
@click.option(
    "--env-file",
    envvar="CRA_ENV_FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read settings from this file too, such as .data/run/stack.env; the environment wins.",
)
@click.version_option(package_name="cra")
@click.pass_context
def cra(context: click.Context, env_file: Path | None) -> None:
    """Find architecture images by Chinese text.

    Exit codes: 0 done; 1 something is wrong, or a file was not put; 2 the command line is wrong;
    3 a part does not answer or has too much to do, so that the same may do later; 130 Ctrl-C.
    """
    if context.invoked_subcommand not in _WITHOUT_SETTINGS:
        context.obj = Settings.load(env_file)
        if context.invoked_subcommand != trace.name:
            tracing.configure("cra", context.obj)
            context.call_on_close(tracing.close)
            context.with_resource(tracing.span(f"cra {context.invoked_subcommand}", ""))


def _taking_utf8(command: click.Command) -> click.Command:
    """Have a command, and those below it, refuse texts that are no UTF-8; a Path may be none."""
    for one in command.params:
        one.callback = functools.partial(_check_utf8, one.callback)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _taking_utf8(below)
    return command


def _check_utf8(
    then: Callable[..., Any] | None, context: click.Context, one: click.Parameter, value: Any
) -> Any:
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and text != text.encode(errors="replace").decode():
            # Bytes that are no UTF-8 stand in an argument as surrogates.
            raise click.BadParameter(f"{os.fsencode(text)!r} is no UTF-8", context, one)
    return then(context, one, value) if then else value


for _command in (
    completion, doctor, failures, index, keys, put, reconcile, releases, search, status, trace,
):  # fmt: skip
    cra.add_command(_taking_utf8(_command))


def _load(name: str) -> click.Command:
    """Import a command of another extra."""
    try:
        command: click.Command = _EXTRA[name].load()
    except ModuleNotFoundError as error:
        problem = str(error)
        return click.Command(
            name,
            callback=lambda **_: _lacks(name, problem),
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
    return _taking_utf8(command)


def _docstring(point: EntryPoint) -> str:
    """Return the docstring of a command of another extra, which is read and not imported."""
    spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = (
        one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == point.attr
    )
    return next((ast.get_docstring(one) or "" for one in found), "")


def _lacks(command: str, problem: str) -> None:
    raise click.ClickException(
        f"`cra {command}` needs more than is installed ({problem}): pip install 'cra[training]'"
    )
