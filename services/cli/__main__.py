"""The `cra` command: search, put and see how far the index is."""

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.search.v1 import search_pb2 as search_pb
from cra.services.cli.releases import releases
from cra.services.cli.upload import find_uploads, put_all
from cra.shared import rpc
from cra.shared.adapters.object_store import connect
from cra.shared.client import SearchClient
from cra.shared.errors import CraError
from cra.shared.settings import Settings

METADATA_NAME = re.compile("[A-Za-z0-9-]+")
INGEST = "cra.ingest.v1.IngestService"

_EXTRA = {point.name: point for point in entry_points(group="cra.commands")}

_out = Console()
_err = Console(stderr=True)


class _Group(click.Group):
    """Turns domain errors into one line and exit code 1, and finds commands of other extras.

    Those are entry points of `cra.commands`; they are imported when they are called, so that
    `cra search` needs no torch.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_EXTRA})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _EXTRA:
            return super().get_command(ctx, cmd_name)
        try:
            command: click.Command = _EXTRA[cmd_name].load()
        except ModuleNotFoundError as error:
            problem = str(error)
            return click.Command(
                cmd_name,
                callback=lambda **_: _lacks(cmd_name, problem),
                context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
                short_help="needs the extra `training`",
            )
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CraError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--env-file",
    envvar="CRA_ENV_FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read settings from this file too, such as deploy/local.env; the environment wins.",
)
@click.pass_context
def main(context: click.Context, env_file: Path | None) -> None:
    """Find architecture images by Chinese text.

    \b
    cra put photos/             put a folder of images into the bucket
    cra status                  see how far they are indexed
    cra search 飞檐下的红色大门   find some
    """  # noqa: D301 - \b keeps click from filling the lines
    context.obj = Settings.load(env_file)


@main.command()
@click.argument("text", required=False)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Search by this picture.",
)
@click.option("--like", metavar="IMAGE_ID", help="Search by this indexed image.")
@click.option("--top-k", default=20, show_default=True, type=click.IntRange(1, 200))
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Leave out lower scores.")
@click.option("--bucket", "buckets", multiple=True, help="Only this bucket; may be repeated.")
@click.option("--prefix", default="", help="Only keys that begin with this.")
@click.option("--meta", "meta", multiple=True, metavar="NAME=VALUE", help="Only this metadata.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def search(
    settings: Settings,
    text: str | None,
    image: Path | None,
    like: str | None,
    top_k: int,
    min_score: float | None,
    buckets: tuple[str, ...],
    prefix: str,
    meta: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the images that fit TEXT, a picture or an indexed image best."""
    if sum(part is not None for part in (text, image, like)) != 1:
        raise click.UsageError("give exactly one of TEXT, --image and --like")
    where = search_pb.Filter(buckets=buckets, key_prefix=prefix)
    for name, value in _pairs(meta):
        where.metadata[name].values.append(value)
    with SearchClient(settings.gateway_target) as client:
        response = client.search(
            text,
            image=image.read_bytes() if image else None,
            image_id=like,
            top_k=top_k,
            min_score=min_score,
            where=where,
        )
    if as_json:
        _print_json(response)
        return
    table = Table("#", "score", "image", "metadata")
    for hit in response.hits:
        details = "  ".join(f"{name}={value}" for name, value in sorted(hit.metadata.items()))
        table.add_row(str(hit.rank), f"{hit.score:.4f}", hit.image_id, details)
    _out.print(table)
    milliseconds = response.timing.total.ToNanoseconds() / 1e6
    _err.print(f"{len(response.hits)} hits in {milliseconds:.1f} ms ({response.text_release})")


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--bucket", help="Bucket to put into; the first of CRA_BUCKETS if not given.")
@click.option("--prefix", default="", help="Put before each key, such as `campus/`.")
@click.option("--meta", "meta", multiple=True, metavar="NAME=VALUE", help="User metadata to set.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def put(
    settings: Settings,
    paths: tuple[Path, ...],
    bucket: str | None,
    prefix: str,
    meta: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put image files, and the images below folders, into a bucket."""
    bucket = bucket or settings.buckets[0]
    try:
        uploads = find_uploads(paths, prefix)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not uploads:
        raise click.ClickException("there is no image file below these paths")
    with Progress(console=_err, disable=as_json) as bar:
        task = bar.add_task(f"put into {bucket}", total=len(uploads))
        problems = put_all(
            connect(settings), bucket, uploads, dict(_pairs(meta)), lambda _: bar.advance(task)
        )
    if as_json:
        failed = [{"file": str(upload.file), "problem": text} for upload, text in problems]
        click.echo(json.dumps({"put": len(uploads) - len(problems), "failed": failed}))
    else:
        for upload, text in problems:
            _err.print(f"[red]not put[/red] {upload.file}: {text}")
        _out.print(f"{len(uploads) - len(problems)} of {len(uploads)} files put into {bucket}")
    if problems:
        sys.exit(1)


@main.command()
@click.option("--refresh", is_flag=True, help="Count again now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(settings: Settings, refresh: bool, as_json: bool) -> None:
    """Print how far the index follows the buckets."""
    response = _call(settings, "GetStatus", ingest.GetStatusRequest(refresh=refresh))
    if as_json:
        _print_json(response)
        return
    table = Table(show_header=False)
    for name in (
        "objects", "indexed", "waiting", "failed", "unaccounted", "stale", "orphaned", "rate",
        "image_tower",
    ):  # fmt: skip
        value = getattr(response, name)
        table.add_row(name, f"{value:.1f}/s" if name == "rate" else str(value))
    finished = response.last_reconcile.finished_at
    table.add_row("last reconcile", finished.ToJsonString() if finished.seconds else "never")
    table.add_row("as of", response.as_of.ToJsonString())
    _out.print(table)


@main.command()
@click.option("--retry", is_flag=True, help="Put all of them back in line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def failures(settings: Settings, retry: bool, as_json: bool) -> None:
    """List the objects that cannot be indexed, and why."""
    if retry:
        response = _call(settings, "RetryFailures", ingest.RetryFailuresRequest(all=True))
        _print_json(response) if as_json else _out.print(f"{response.retried} put back in line")
        return
    found: list[ingest.Failure] = []
    request = ingest.ListFailuresRequest(page_size=1000)
    while True:
        page = _call(settings, "ListFailures", request)
        found += page.failures
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if as_json:
        _print_json(ingest.ListFailuresResponse(failures=found))
        return
    table = Table("image", "reason", "message", "failed at")
    for failure in found:
        table.add_row(
            failure.image_id, failure.reason, failure.message, failure.failed_at.ToJsonString()
        )
    _out.print(table)


@main.command()
@click.option("--dry-run", is_flag=True, help="Only report what differs.")
@click.option(
    "--allow-mass-deletion", is_flag=True, help="Remove orphaned vectors however many there are."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def reconcile(settings: Settings, dry_run: bool, allow_mass_deletion: bool, as_json: bool) -> None:
    """Compare buckets and index, and put in line what differs."""
    request = ingest.ReconcileRequest(dry_run=dry_run, allow_mass_deletion=allow_mass_deletion)
    last = ingest.ReconcileResponse()
    try:
        for last in _ingest(settings).Reconcile(request):
            if not last.done and not as_json:
                _err.print(f"{last.summary.objects} objects compared")
    except grpc.RpcError as error:
        raise rpc.from_rpc_error(error) from error
    if as_json:
        _print_json(last)
        return
    summary = last.summary
    _out.print(
        f"{summary.objects} objects: {summary.missing} missing, {summary.stale} stale, "
        f"{summary.orphaned} orphaned" + (" (nothing changed)" if dry_run else ", all put in line")
    )


main.add_command(releases)


def _lacks(command: str, problem: str) -> None:
    raise click.ClickException(
        f"`cra {command}` needs more than is installed ({problem}): pip install 'cra[training]'"
    )


def _ingest(settings: Settings) -> ingest_grpc.IngestServiceStub:
    channel = rpc.open_channel(
        settings.ingest_target, INGEST, settings.service_token.get_secret_value()
    )
    return ingest_grpc.IngestServiceStub(channel)


def _call(settings: Settings, method: str, request: Message) -> Any:
    try:
        return getattr(_ingest(settings), method)(request, timeout=60)
    except grpc.RpcError as error:
        raise rpc.from_rpc_error(error) from error


def _pairs(items: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not METADATA_NAME.fullmatch(name):
            raise click.UsageError(
                f"--meta takes NAME=VALUE, the name of letters, digits and hyphens, not {item!r}"
            )
        pairs.append((name, value))
    return pairs


def _print_json(message: Message) -> None:
    fields = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    click.echo(json.dumps(fields, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
