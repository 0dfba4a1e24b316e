"""`cra index`: the index saved in a file, and loaded from it."""

import contextlib
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import click
from rich.progress import MofNCompleteColumn, TaskProgressColumn

from cra.services.cli import index_file
from cra.services.cli.index_file import Header
from cra.services.cli.options import TowerName, as_json
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.console import count, err, examples, out, print_json, progress
from cra.shared.domain import IndexedImage
from cra.shared.errors import FailedPreconditionError
from cra.shared.ports import ImageTowerInfo, VectorStore
from cra.shared.settings import Settings

BATCH: Final = 1000
"""Images that are looked up and written at once. With all the metadata that they may have it is
half of what Milvus takes in one request."""
MEGA: Final = 1_000_000


@click.group(
    epilog=examples(
        "cra index save index.jsonl.gz",
        "cra index load index.jsonl.gz && cra reconcile",
    )
)
def index() -> None:
    """Save the index in a file, and load it from there in place of embedding every image again."""


@index.command(
    epilog=examples(
        "cra index save index.jsonl.gz",
        'cra index save "backup/$(date +%a).jsonl.gz"   # from cron: a week of them',
    )
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--image-tower",
    type=TowerName(),
    metavar="FINGERPRINT",
    help="Save the index of this image tower; that of the one that is served if not given.",
)
@as_json
@click.pass_obj
def save(settings: Settings, file: Path, image_tower: str | None, as_json: bool) -> None:
    """Save every vector and its record in FILE: gzip of JSON lines.

    Searches and ingest go on meanwhile. FILE is replaced once the new one is whole.
    """
    began = time.monotonic()
    tower = image_tower or _served(settings).fingerprint
    with _store(settings) as store:
        dimension = store.dimension(tower)
        total = store.count(tower) if dimension is not None else 0
        if dimension is None or not total:
            raise FailedPreconditionError(
                f"the index of the image tower {tower} is empty: nothing is saved, and a file of "
                "before is left as it was"
            )
        header = Header(image_tower=tower, dimension=dimension, saved_at=datetime.now(UTC))
        with progress(as_json, MofNCompleteColumn()) as bar, _replacing(file) as raw:
            images = bar.track(store.images(tower), total, description="saved")
            saved = index_file.write(raw, header, images)
    seconds, size = time.monotonic() - began, file.stat().st_size
    if as_json:
        print_json(
            {
                "file": str(file),
                "image_tower": tower,
                "images": saved,
                "bytes": size,
                "seconds": round(seconds, 3),
            }
        )
        return
    out.print(
        f"{count(saved, 'image')} of the image tower {tower} in {file}: {size / MEGA:.1f} MB in "
        f"{seconds:.1f} s"
    )


@index.command(
    epilog=examples(
        "cra index load index.jsonl.gz && cra reconcile",
        "cra index load old.jsonl.gz --image-tower 0a1b2c3d4e5f6071",
    )
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--image-tower",
    type=TowerName(),
    metavar="FINGERPRINT",
    help="Load the index of this image tower though another one is served.",
)
@as_json
@click.pass_obj
def load(settings: Settings, file: Path, image_tower: str | None, as_json: bool) -> None:
    """Load what `cra index save` has put in FILE; then `cra reconcile` finds what changed since.

    The whole file is checked before anything is written. What the index holds from the same time
    or later stays, so that the same command goes on where Ctrl-C or an outage ended it.
    """
    began = time.monotonic()
    with file.open("rb") as raw, _store(settings) as store:
        try:
            header = index_file.read_header(raw)
            _check_tower(store, header, image_tower, settings)
            total = _check(raw, as_json)
            store.ensure_collection(header.image_tower, header.dimension)
            with progress(as_json, MofNCompleteColumn()) as bar:
                images = bar.track(index_file.read(raw), total, description="loaded")
                written = sum(
                    _write_older(store, header.image_tower, batch) for batch in _batches(images)
                )
        except FailedPreconditionError as error:
            raise FailedPreconditionError(f"{file}: {error.message}") from error
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {
                "file": str(file),
                "image_tower": header.image_tower,
                "saved_at": header.saved_at.isoformat(),
                "images": total,
                "written": written,
                "kept": total - written,
                "seconds": round(seconds, 3),
            }
        )
        return
    out.print(
        f"{count(total, 'image')} of {header.saved_at.astimezone():%Y-%m-%d %H:%M} in {file}: "
        f"{written} written, {total - written} there already or newer; {seconds:.1f} s"
    )
    err.print("what changed in the buckets since is put right by: cra reconcile")


def _served(settings: Settings) -> ImageTowerInfo:
    with contextlib.closing(RemoteEncoder.of(settings)) as encoder:
        return encoder.models().image_tower


@contextlib.contextmanager
def _store(settings: Settings) -> Iterator[VectorStore]:
    # Not at the top: `cra --help` and a search need not wait for pymilvus and pandas.
    from cra.shared.adapters.vector_store import MilvusVectorStore  # noqa: PLC0415

    # What is wrong it raises; what it prints beside that would be a mail from cron every night.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    with contextlib.closing(MilvusVectorStore(settings)) as store:
        yield store


def _check_tower(
    store: VectorStore, header: Header, image_tower: str | None, settings: Settings
) -> None:
    """Check that the vectors are of the tower that is wanted, and go into its collection."""
    ours = header.image_tower
    if image_tower is None:
        served = _served(settings)
        if (served.fingerprint, served.dimension) != (ours, header.dimension):
            raise FailedPreconditionError(
                f"its vectors of {header.dimension} are of the image tower {ours}, and embedding "
                f"serves {served.fingerprint} with vectors of {served.dimension}, which would "
                f"not search them. To load them beside its own: --image-tower {ours}"
            )
    elif image_tower != ours:
        raise FailedPreconditionError(
            f"its vectors are of the image tower {ours}, not {image_tower}"
        )
    there = store.dimension(ours)
    if there not in {None, header.dimension}:
        raise FailedPreconditionError(
            f"its vectors have {header.dimension} dimensions, those of the index {there}"
        )


def _check(raw: IO[bytes], as_json: bool) -> int:
    """Read all of a file; return how many images it has."""
    size = os.fstat(raw.fileno()).st_size
    found = 0
    with progress(as_json, TaskProgressColumn()) as bar:
        task = bar.add_task("checked", total=size)
        for found, _ in enumerate(index_file.read(raw), 1):
            if found % BATCH == 0:
                bar.update(task, completed=raw.tell())
    return found


def _batches(images: Iterable[IndexedImage]) -> Iterator[list[IndexedImage]]:
    rest = iter(images)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _write_older(store: VectorStore, image_tower: str, images: Sequence[IndexedImage]) -> int:
    """Write those that the index lacks or has from before; return how many.

    A worker may write a newer one in between. That is lost then until the reconcile, which finds
    that the version is not the bucket's.
    """
    known = store.records(image_tower, [image.record.ref for image in images])
    since = {record.ref: record.ingested_at for record in known}
    older = [
        image
        for image in images
        if since.get(image.record.ref, float("-inf")) < image.record.ingested_at
    ]
    if older:
        store.upsert(image_tower, older)
    return len(older)


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that takes the place of another one once all is written."""
    file = file.resolve()
    if file.exists() and not file.is_file():  # root could replace /dev/null
        raise click.BadParameter(f"{file} is no regular file", param_hint="FILE")
    try:
        with tempfile.NamedTemporaryFile(
            dir=file.parent, prefix=f"{file.name}.part-", delete=False
        ) as new:
            try:
                yield new.file
                new.flush()
                os.fsync(new.fileno())
                Path(new.name).replace(file)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
