"""The `cra` command: search, put and see how far the index is."""

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from cra.search.v1 import search_pb2 as search_pb
from cra.services.cli.ingest import failures, reconcile, status
from cra.services.cli.keys import keys
from cra.services.cli.releases import releases
from cra.services.cli.upload import find_uploads, put_all
from cra.shared.adapters.object_store import call_s3, connect
from cra.shared.client import SearchClient
from cra.shared.console import err, out, print_message, table
from cra.shared.errors import CraError, PermissionDeniedError, UnauthenticatedError
from cra.shared.settings import Settings

METADATA_NAME = re.compile("[A-Za-z0-9-]+")
_CREDENTIALS = (
    "Credentials are settings, which --env-file or CRA_ENV_FILE reads from a file; "
    "the local stack's is .data/run/stack.env"
)

_EXTRA = {point.name: point for point in entry_points(group="cra.commands")}


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
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise click.ClickException(f"{error.message}. {_CREDENTIALS}") from error
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
@click.option("--min-relevance", type=click.FloatRange(0, 1), help="Leave out what is less so.")
@click.option("--fold", is_flag=True, help="Show one of images that are copies of each other.")
@click.option(
    "--expand/--no-expand",
    default=None,
    help="Search for other names of terms too, such as 扶拱垛 for 飞扶壁.",
)
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
    min_relevance: float | None,
    fold: bool,
    expand: bool | None,
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
    with SearchClient.of(settings) as client:
        response = client.search(
            text,
            image=image.read_bytes() if image else None,
            image_id=like,
            top_k=top_k,
            min_score=min_score,
            min_relevance=min_relevance,
            fold_duplicates=fold,
            expand=expand,
            where=where,
        )
    if as_json:
        print_message(response)
        return
    out.print(_hits(response))
    milliseconds = response.timing.total.ToNanoseconds() / 1e6
    err.print(f"{len(response.hits)} hits in {milliseconds:.1f} ms ({response.text_release})")


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
    if bucket not in settings.buckets:
        raise click.BadParameter(
            f"{bucket!r} is not indexed; CRA_BUCKETS has: {', '.join(settings.buckets)}",
            param_hint="--bucket",
        )
    try:
        uploads = find_uploads(paths, prefix)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not uploads:
        raise click.ClickException("there is no image file below these paths")
    client = connect(settings)
    # Once, instead of with each file.
    if not call_s3(lambda: client.bucket_exists(bucket)):
        raise click.ClickException(f"the bucket {bucket!r} does not exist")
    with Progress(console=err, disable=as_json) as bar:
        task = bar.add_task(f"put into {bucket}", total=len(uploads))
        problems = put_all(client, bucket, uploads, dict(_pairs(meta)), lambda _: bar.advance(task))
    if as_json:
        failed = [{"file": str(upload.file), "problem": text} for upload, text in problems]
        click.echo(json.dumps({"put": len(uploads) - len(problems), "failed": failed}))
    else:
        for upload, text in problems:
            err.print(Text.assemble(("not put", "red"), f" {upload.file}: {text}"))
        out.print(f"{len(uploads) - len(problems)} of {len(uploads)} files put into {bucket}")
    if problems:
        sys.exit(1)


for _command in (status, failures, reconcile, releases, keys):
    main.add_command(_command)


def _hits(response: search_pb.SearchResponse) -> Table:
    shown = table("#", "score", "relevance", "image", "metadata")
    for hit in response.hits:
        details = "  ".join(f"{name}={value}" for name, value in sorted(hit.metadata.items()))
        relevance = f"{hit.relevance:.2f}" if hit.HasField("relevance") else ""
        copies = f" (+{len(hit.duplicates)} alike)" if hit.duplicates else ""
        shown.add_row(str(hit.rank), f"{hit.score:.4f}", relevance, hit.image_id + copies, details)
    return shown


def _lacks(command: str, problem: str) -> None:
    raise click.ClickException(
        f"`cra {command}` needs more than is installed ({problem}): pip install 'cra[training]'"
    )


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


if __name__ == "__main__":
    main()
