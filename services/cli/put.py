"""`cra put`: files into a bucket, and waiting until they are indexed."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.progress import MofNCompleteColumn
from rich.text import Text

from cra.services.cli.exit_codes import INTERRUPTED, LATER
from cra.services.cli.ingest import wait_indexed
from cra.services.cli.options import BucketName, as_json, metadata_option
from cra.services.cli.upload import INTERRUPTED as STOPPED
from cra.services.cli.upload import PARALLEL, Summary, Upload, find_uploads, put_all
from cra.shared.adapters.object_store import call_s3, connect
from cra.shared.console import count, err, examples, out, progress
from cra.shared.settings import Settings

MEGA = 1_000_000


def _key_prefix(_context: click.Context, option: click.Parameter, prefix: str) -> str:
    *folders, rest = prefix.replace("\\", "/").split("/")
    kept = "/".join([*filter(None, folders), rest])
    if kept != prefix:
        raise click.BadParameter(
            f"{prefix!r} begins with / or has // or a backslash, of which the object store would "
            f"make another prefix: give {kept!r}",
            param=option,
        )
    if not {".", ".."}.isdisjoint(folders):
        raise click.BadParameter(
            f"{prefix!r} has a folder `.` or `..`, which the object store refuses", param=option
        )
    return prefix


@click.command(
    epilog=examples(
        "cra put photos/                          # every image below the folder",
        "cra put photos/ --meta city=西安 --wait   # and return when they can be found",
        "cra put a.jpg b.heic --prefix campus/",
    )
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--bucket",
    type=BucketName(),
    help="Bucket to put into; the first of CRA_BUCKETS if not given.",
)
@click.option(
    "--prefix", default="", callback=_key_prefix, help="Put before each key, such as `campus/`."
)
@metadata_option("User metadata to set; it replaces all that an object has.")
@click.option("--force", is_flag=True, help="Put what the bucket holds already, too.")
@click.option(
    "--parallel",
    default=PARALLEL,
    show_default=True,
    type=click.IntRange(1, 32),
    help="Files at a time.",
)
@click.option("--wait", is_flag=True, help="Return once everything in line is indexed.")
@as_json
@click.pass_obj
def put(
    settings: Settings,
    paths: tuple[Path, ...],
    bucket: str | None,
    prefix: str,
    meta: list[tuple[str, str]],
    force: bool,
    parallel: int,
    wait: bool,
    as_json: bool,
) -> None:
    """Put image files, and the images below folders, into a bucket.

    What the bucket holds already is skipped: an object of the same key, size and content, and with
    --meta of the same metadata. So the same command goes on where Ctrl-C or an outage ended it.
    """
    bucket = bucket or settings.buckets[0]
    if bucket not in settings.buckets:
        raise click.BadParameter(
            f"{bucket!r} is not indexed; CRA_BUCKETS has: {', '.join(settings.buckets)}",
            param_hint="--bucket",
        )
    with _stopped_by_ctrl_c() as stop:
        try:
            uploads, others = find_uploads(paths, prefix)
        except (ValueError, FileNotFoundError) as error:
            raise click.ClickException(str(error)) from error
        if not uploads:
            raise click.ClickException("there is no image file below these paths")
        client = connect(settings)
        # Once, instead of with each file.
        if not stop.is_set() and not call_s3(lambda: client.bucket_exists(bucket)):
            raise click.ClickException(f"the bucket {bucket!r} does not exist")
        with progress(as_json, MofNCompleteColumn()) as bar:
            task = bar.add_task(f"put into {bucket}", total=len(uploads))
            summary = put_all(
                client,
                bucket,
                uploads,
                dict(meta),
                lambda so_far: bar.update(task, completed=len(uploads) - so_far.left),
                parallel=parallel,
                force=force,
                stop=stop,
            )
        told = _fields(summary, others)
        if not as_json:
            _report(summary, bucket, len(uploads), others)
        elif not wait:
            _print(told)
    try:
        if summary.stopped not in {"", STOPPED}:
            sys.exit(LATER)
        if stop.is_set():  # while it summed up, perhaps
            sys.exit(INTERRUPTED)
        if wait:
            failed = {upload for upload, _ in summary.failed}
            there = [upload for upload in uploads if upload not in failed]
            told |= _wait(settings, bucket, there, as_json)
    finally:  # what was put is told even if ingest does not answer
        if as_json and wait:
            _print(told)
    if summary.failed or told.get("not_indexed"):
        sys.exit(1)


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets, wherever it falls; the second one ends at once.

    A KeyboardInterrupt would be raised between any two steps, those of summing up included.
    """
    stop = threading.Event()
    asked = 0

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        stop.set()
        if asked == 1:
            return
        shown = "\x1b[?25h" if err.is_terminal else ""  # the cursor, which the bar has hidden
        # Not by `err` or `sys.stderr`, which this may have interrupted.
        os.write(2, f"{shown}interrupted twice; files that were under way are not put\n".encode())
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # whoever started this wants no Ctrl-C to reach it
        yield stop
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _fields(summary: Summary, others: int) -> dict[str, Any]:
    return {
        "put": summary.put,
        "skipped": summary.skipped,
        "failed": [
            {"file": click.format_filename(one.file), "problem": text}
            for one, text in summary.failed
        ],
        "left": summary.left,
        "not_images": others,
        "bytes": summary.bytes,
        "seconds": round(summary.seconds, 3),
        "stopped": summary.stopped,
    }


def _report(summary: Summary, bucket: str, total: int, others: int) -> None:
    for upload, text in summary.failed:
        said = Text.assemble(("not put", "red"), f" {click.format_filename(upload.file)}: {text}")
        err.print(said, soft_wrap=True)  # one line for each, which can be searched for
    seconds = max(summary.seconds, 1e-3)
    speed = (
        f"; {summary.bytes / MEGA:.1f} MB in {seconds:.1f} s: {summary.put / seconds:.0f} files/s, "
        f"{summary.bytes / MEGA / seconds:.1f} MB/s"
    )
    out.print(
        f"{summary.put + summary.skipped} of {count(total, 'file')} {_are(total)} in {bucket}: "
        f"{summary.put} put, {summary.skipped} there already, {len(summary.failed)} failed, "
        f"{summary.left} left{speed if summary.put else ''}"
    )
    if others:
        err.print(
            f"left out: {count(others, 'other')}: no image's name, or no file, such as a link to "
            "nothing or to a folder",
            soft_wrap=True,
        )
    if summary.stopped:
        err.print(f"stopped: {summary.stopped}; the same command goes on from here")


def _print(told: dict[str, Any]) -> None:
    click.echo(json.dumps(told, ensure_ascii=False))


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _wait(settings: Settings, bucket: str, there: list[Upload], as_json: bool) -> dict[str, Any]:
    """Wait until everything is indexed; return what became of the files that are in the bucket."""
    with progress(as_json, MofNCompleteColumn()) as bar:
        task = bar.add_task("indexed", total=None)
        failures = wait_indexed(
            settings, lambda done, total: bar.update(task, completed=done, total=total)
        )
    ours = {f"{bucket}/{upload.key}": upload for upload in there}
    bad = [failure for failure in failures if failure.image_id in ours]
    indexed = len(ours) - len(bad)
    if not as_json:
        for failure in bad:
            said = f" {failure.image_id}: {failure.message}"
            err.print(Text.assemble(("not indexed", "red"), said))
        out.print(f"{indexed} of {count(len(ours), 'file')} {_are(len(ours))} indexed")
    return {
        "indexed": indexed,
        "not_indexed": [
            {"file": click.format_filename(ours[one.image_id].file), "problem": one.message}
            for one in bad
        ],
    }
