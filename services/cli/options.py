"""Options that several commands share."""

import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from cra.services.cli.replicas import BASE
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.errors import CraError, FailedPreconditionError
from cra.shared.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

METADATA_NAME: Final = re.compile("[A-Za-z0-9-]+")
_FINGERPRINT: Final = re.compile("[0-9a-f]{1,64}")

as_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
queries_option: Final = click.option(
    "--queries",
    type=click.File(encoding="utf-8"),
    help='A query a line: a text, or {"text": …, "image_ids": […]}.',
)
depth_option: Final = click.option(
    "-k",
    default=20,
    show_default=True,
    type=click.IntRange(1, 200),
    help="Hits that are looked at.",
)


def _pairs(
    _context: click.Context, _option: click.Parameter, items: tuple[str, ...]
) -> list[tuple[str, str]]:
    pairs = []
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not METADATA_NAME.fullmatch(name):
            raise click.UsageError(
                f"--meta takes NAME=VALUE, the name of letters, digits and hyphens, not {item!r}"
            )
        pairs.append((name, value))
    return pairs


def metadata_option(meaning: str) -> Callable[[Command], Command]:
    """Return the option `--meta NAME=VALUE`, which may be repeated; it gives a list of pairs."""
    return click.option(
        "--meta", "meta", multiple=True, metavar="NAME=VALUE", callback=_pairs, help=meaning
    )


class Moment(click.ParamType[datetime]):
    """A date or time in ISO 8601; one without an offset is local. Gives an aware datetime."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Read one."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(f"{value!r} is no date or time such as 2026-05-01 or 2026-05-01T08:30")


class Number(click.FloatRange):
    """A number in a range; what is no number is in none, though every comparison lets it pass."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read one."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class BucketName(click.ParamType[str]):
    """A bucket's name; the shell completes those that are indexed."""

    name = "bucket"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the buckets of the settings that begin so."""
        settings = settings_of(ctx)
        return [
            CompletionItem(name)
            for name in (settings.buckets if settings else ())
            if name.startswith(incomplete)
        ]


class ReleaseName(click.ParamType[str]):
    """A release's name; the shell completes those that are published."""

    name = "release"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the published releases that begin so; none while the store does not answer."""
        settings = settings_of(ctx)
        try:
            published = S3ReleaseStore(settings).list() if settings else []
        except CraError:
            published = []  # a completion must not write into the line that is typed
        names = [BASE, *(one.name for one in published)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class TowerName(click.ParamType[str]):
    """An image tower's fingerprint."""

    name = "fingerprint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read one."""
        if not _FINGERPRINT.fullmatch(value):
            self.fail(f"{value!r} is no fingerprint, which has up to 64 hex digits")
        return str(value)


def settings_of(context: click.Context) -> Settings | None:
    """Return the settings while a shell completes, when no command has read them; None if bad."""
    try:
        return Settings.load(context.find_root().params.get("env_file"))
    except FailedPreconditionError:
        return None
