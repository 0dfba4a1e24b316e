"""`cra keys`: make, list and revoke API keys of the gateway."""

import json
from collections.abc import Iterable
from pathlib import Path

import click

from cra.services.cli.options import BucketName, as_json
from cra.shared.api_keys import ApiKey, change_keys, digest_of, new_key, read_keys
from cra.shared.console import err, examples, out, table
from cra.shared.errors import FailedPreconditionError, NotFoundError
from cra.shared.settings import Settings


@click.group(
    epilog=examples(
        "cra keys add shop --bucket images --rate 20 --burst 40",
        "cra keys list",
        "cra keys revoke shop",
    )
)
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of keys; that of CRA_API_KEYS_FILE if not given.",
)
@click.pass_context
def keys(context: click.Context, file: Path | None) -> None:
    """Make, list and revoke API keys.

    A gateway that runs follows the file within two seconds.
    """
    settings = context.find_object(Settings)
    named = settings.api_keys_file if settings else ""
    context.obj = file or (Path(named) if named else None)


def _given(file: Path | None) -> Path:
    """Return the file of keys; asked for by each command, so that the help of none needs one."""
    if file is None:
        raise click.UsageError("give --file, or set CRA_API_KEYS_FILE")
    return file


@keys.command(epilog=examples("cra keys add shop --bucket images --rate 20 --burst 40"))
@click.argument("name")
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    type=BucketName(),
    help="Only this bucket; may be repeated.",
)
@click.option("--rate", type=float, help="Searches a second; no limit if not given.")
@click.option("--burst", type=int, help="Searches at once after a pause; those of a second.")
@click.pass_obj
def add(
    file: Path | None, name: str, buckets: tuple[str, ...], rate: float | None, burst: int | None
) -> None:
    """Make a key and print it, this one time; the file keeps only its digest."""
    file = _given(file)
    if burst is not None and rate is None:
        raise click.UsageError("--burst has no effect without --rate")
    secret = new_key()
    try:
        key = ApiKey(name=name, sha256=digest_of(secret), buckets=buckets, rate=rate, burst=burst)
    except ValueError as error:
        raise click.UsageError(_first_problem(error)) from error

    def extend(there: tuple[ApiKey, ...]) -> Iterable[ApiKey]:
        if name in {one.name for one in there}:
            raise FailedPreconditionError(f"there is a key {name!r} already; revoke it first")
        return (*there, key)

    change_keys(file, extend)
    err.print(f"the key {name!r}, which is not shown again:")
    click.echo(secret)


@keys.command("list", epilog=examples("cra keys list --json"))
@as_json
@click.pass_obj
def list_(file: Path | None, as_json: bool) -> None:
    """List the keys: what they may do, not what they are."""
    found = read_keys(_given(file))
    if as_json:
        click.echo(json.dumps([key.model_dump(exclude={"sha256"}) for key in found]))
        return
    shown = table("name", "buckets", "rate", "burst")
    for key in found:
        limits = (f"{key.rate:g}/s", str(key.most_at_once)) if key.rate else ("unlimited", "")
        shown.add_row(key.name, ", ".join(key.buckets) or "all", *limits)
    out.print(shown)


@keys.command(epilog=examples("cra keys revoke shop"))
@click.argument("name")
@click.pass_obj
def revoke(file: Path | None, name: str) -> None:
    """Take a key out of the file."""
    file = _given(file)

    def without(there: tuple[ApiKey, ...]) -> Iterable[ApiKey]:
        if name not in {one.name for one in there}:
            raise NotFoundError(f"there is no key {name!r} in {file}")
        return [one for one in there if one.name != name]

    read_keys(file)  # a file that is not there is no file without keys
    change_keys(file, without)
    out.print(f"revoked {name}")


def _first_problem(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    first = details(include_input=False)[0]
    option = {"name": "NAME", "buckets": "--bucket"}.get(first["loc"][0], f"--{first['loc'][0]}")
    return f"{option}: {first['msg'].removeprefix('Value error, ')}"
