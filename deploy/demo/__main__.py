"""Shows the whole path: pictures in, searches, changes that the index follows, recall."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from minio.error import MinioException
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from cra.ingest.v1 import ingest_pb2
from cra.search.v1 import search_pb2 as pb
from cra.services.training.buildings.attributes import Speech
from cra.services.training.buildings.dataset import Picture, read_dataset, write_dataset
from cra.shared.client import SearchClient
from cra.shared.errors import CraError
from cra.shared.settings import Settings
from deploy import stack
from deploy.demo.gallery import PREFIX, Gallery, finds_itself, follows, is_gone
from deploy.demo.recall import Recall, choose_queries, measure
from deploy.demo.releases import SEARCHES as PROFESSIONAL
from deploy.demo.releases import Towers, side_by_side
from deploy.local import environment
from deploy.local.environment import StackError
from deploy.local.state import StateFile

GALLERY: Final = 2000
"""Pictures in the bucket when recall is measured."""
CHANGED: Final = 10
"""Pictures that are deleted, and as many that are overwritten."""
QUERIES: Final = 1000
ENOUGH: Final = 0.8
"""Share of the ceiling that R@20 must reach."""
SEARCHES: Final = (
    "红色木房子，屋角高高翘起",
    "一座两层灰砖房子，门前有台阶",
    "有圆顶的白房子，一排白色圆柱",
    "茅草屋顶的黄土房子",
    "又高又细的尖顶，上面尖的窗户",
    "平屋顶的玻璃房子，夜里",
)

_console = Console()


class Phases:
    """How long each phase took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block, and head its output with its name."""
        _console.rule(name, align="left")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def table(self) -> Table:
        """Return all phases and their sum."""
        table = Table("phase", "seconds")
        table.columns[1].justify = "right"
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:.1f}")
        table.add_row("all", f"{sum(self.seconds.values()):.1f}", style="bold")
        return table


def run(phases: Phases) -> list[str]:
    """Run the demo on a stack of its own, or on the one that is up; return what did not hold."""
    _, local = environment.load()
    theirs = StateFile(local.data).running() is not None
    if theirs:
        _console.print(f"A stack is up in {local.data}: the demo uses it and removes its pictures.")
    else:
        folder = local.data_dir / "demo"
        os.environ["CRA_DATA_DIR"] = str(folder)
        shutil.rmtree(environment.ROOT / folder, ignore_errors=True)
        local = stack.launch()
    gallery: Gallery | None = None
    problems = ["it did not end"]
    try:
        with phases.phase("render held-out buildings"):
            pictures = _render(local.data / "demo-pictures")
        with phases.phase("wait for the stack"):
            settings = stack.await_ready(local) if not theirs else environment.join(local)
        gallery = Gallery(settings)
        problems = _show(phases, settings, gallery, pictures, alone=not theirs)
    finally:
        with phases.phase("clean up"):
            if gallery is not None:
                if theirs:
                    gallery.delete(list(gallery.pictures))
                gallery.close()
            shutil.rmtree(local.data / "demo-pictures", ignore_errors=True)
            if not theirs:
                stack.down(local)
                if problems:
                    _console.print(f"data and logs are kept in {local.data}")
                else:
                    shutil.rmtree(local.data)
    return problems


def run_deployed(phases: Phases) -> list[str]:
    """Run the demo on the deployment that `CRA_*` name; return what did not hold.

    Its pictures are removed at the end; the bucket may hold others.
    """
    settings = Settings.load()
    with tempfile.TemporaryDirectory(prefix="cra-demo-") as folder:
        with phases.phase("render held-out buildings"):
            pictures = _render(Path(folder))
        gallery = Gallery(settings)
        try:
            alone = gallery.status().objects == 0
            return _show(phases, settings, gallery, pictures, alone=alone)
        finally:
            with phases.phase("clean up"):
                gallery.delete(list(gallery.pictures))
                gallery.close()


def _render(folder: Path) -> list[Picture]:
    count = GALLERY + CHANGED
    with _bar("rendering", count) as (bar, task):
        write_dataset(
            folder,
            "test",
            count,
            lambda done: bar.update(task, completed=done),
            workers=os.cpu_count() or 1,
        )
    return read_dataset(folder)


def _show(
    phases: Phases, settings: Settings, gallery: Gallery, pictures: list[Picture], *, alone: bool
) -> list[str]:
    problems: list[str] = []
    keys = [f"{PREFIX}{picture.file.name}" for picture in pictures]
    # Other people's pictures must not stand between; without any there is nothing to restrict.
    where = None if alone else pb.Filter(buckets=[gallery.bucket], key_prefix=PREFIX)
    with phases.phase("put pictures into the bucket"), _bar("uploading", len(keys)) as (bar, task):
        gallery.put(zip(keys, pictures, strict=True), lambda: bar.advance(task))
    with phases.phase("wait until all are indexed"):
        _wait_indexed(gallery)
    with SearchClient.of(settings, timeout=20, tries=5) as client:
        with phases.phase("search"):
            for text in SEARCHES:
                _console.print(_hits(text, client.search(text, top_k=5, where=where)))
        with phases.phase("delete and overwrite"):
            problems += _change(gallery, client, keys, pictures)
            _wait_indexed(gallery)
        towers = Towers(settings)
        try:
            with phases.phase("the same queries with base and with CRA"):
                _console.print(
                    f"published {towers.tuned}; loaded after {towers.loaded_after:.1f} s, "
                    "no image was embedded again"
                )
                side_by_side(_console, client, towers, where)
                if alone:
                    problems += _switch(client, towers)
            with phases.phase("recall"):
                problems += _recalls(gallery, client, where, towers)
        finally:
            towers.close()
    return problems


def _switch(client: SearchClient, towers: Towers) -> list[str]:
    """Make the tuned tower active and go back: answers name it, and then the base again."""
    problems = []
    for name, change, done in (
        (towers.tuned, towers.activate, "activated"),
        (towers.base, towers.roll_back, "rolled back to"),
    ):
        seconds = change()
        left, more = follows([partial(_is_answering, client, name)])
        _console.print(f"{done} {name}: answers name it after {seconds + more:.1f} s")
        if left:
            problems.append(f"{name} does not answer")
    return problems


def _wait_indexed(gallery: Gallery) -> None:
    with _bar("indexing", None) as (bar, task):

        def show(status: ingest_pb2.GetStatusResponse) -> None:
            bar.update(task, total=status.objects, completed=status.indexed)

        status = gallery.wait_indexed(show)
    _console.print(
        f"objects {status.objects} = indexed {status.indexed} + waiting {status.waiting} "
        f"+ failed {status.failed} + unaccounted {status.unaccounted}"
    )


def _hits(text: str, answer: pb.SearchResponse) -> Table:
    milliseconds = answer.timing.total.ToMilliseconds()
    table = Table("image", "score", title=f"{text}  ({milliseconds} ms)", title_justify="left")
    table.add_column("caption", overflow="fold")
    for hit in answer.hits:
        table.add_row(hit.image_id, f"{hit.score:.3f}", hit.metadata.get("caption", ""))
    return table


def _change(
    gallery: Gallery, client: SearchClient, keys: list[str], pictures: list[Picture]
) -> list[str]:
    """Delete the last pictures and put them in the place of those before them."""
    deleted, overwritten = keys[-CHANGED:], keys[-2 * CHANGED : -CHANGED]
    gallery.delete(deleted)
    gallery.put(zip(overwritten, pictures[-CHANGED:], strict=True), lambda: None)
    problems = []
    gone = [lambda key=key: is_gone(client, gallery.image_id(key)) for key in deleted]
    left, seconds = follows(gone)
    _console.print(
        f"deleted {CHANGED}: NOT_FOUND for {CHANGED - left} after {seconds:.1f} s, "
        f"such as {gallery.image_id(deleted[0])}"
    )
    if left:
        problems.append(f"{left} deleted images are still found")
    new = [
        lambda key=key: finds_itself(client, gallery.image_id(key), gallery.pictures[key].file)
        for key in overwritten
    ]
    left, seconds = follows(new)
    _console.print(
        f"overwrote {CHANGED}: {CHANGED - left} are first for their new picture after "
        f"{seconds:.1f} s more, such as {gallery.image_id(overwritten[0])}"
    )
    if left:
        problems.append(f"{left} overwritten images are not found by their new picture")
    return problems


def _is_answering(client: SearchClient, name: str) -> bool:
    """Tell whether a release answers when none is named."""
    return client.search(PROFESSIONAL[0], top_k=1).text_release == name


def _recalls(
    gallery: Gallery, client: SearchClient, where: pb.Filter | None, towers: Towers
) -> list[str]:
    """Measure both towers with both ways of speaking; what must hold is that of `ENOUGH`."""
    problems = []
    asked: tuple[tuple[Speech, str, str], ...] = (
        ("plain", towers.base, "base"),
        ("plain", towers.tuned, "CRA"),
        ("professional", towers.base, "base"),
        ("professional", towers.tuned, "CRA"),
    )
    for speech, name, label in asked:
        last = _recall(gallery, client, where, towers, speech, name, label)
        must = (speech, label) in {("plain", "base"), ("professional", "CRA")}
        if must and last.measured < ENOUGH * last.ceiling:
            problems.append(f"R@{last.k} of {speech} queries is below {ENOUGH:.0%} of the ceiling")
    return problems


def _recall(
    gallery: Gallery,
    client: SearchClient,
    where: pb.Filter | None,
    towers: Towers,
    speech: Speech,
    name: str,
    label: str,
) -> Recall:
    tower = towers.models.image_tower
    queries = choose_queries(gallery.pictures, QUERIES, speech)
    began = time.monotonic()
    with _bar("searching", len(queries)) as (bar, task):
        results = measure(
            client,
            gallery.pictures,
            gallery.image_id,
            queries,
            where,
            tower.input_size,
            lambda: bar.advance(task),
            name,
        )
    rate = len(queries) / (time.monotonic() - began)
    table = Table("", "R@k", "chance", "ceiling", "of the ceiling")
    for result in results:
        table.add_row(
            f"R@{result.k}",
            f"{result.measured:.1%}",
            f"{result.chance:.2%}",
            f"{result.ceiling:.1%}",
            f"{result.measured / result.ceiling:.0%}",
        )
    table.title = (
        f"{label} ({name}): {len(queries)} held-out {speech} queries, "
        f"{len(gallery.pictures)} images at {tower.input_size} pixels, {rate:.0f} queries a second"
    )
    _console.print(table)
    return results[-1]


@contextlib.contextmanager
def _bar(name: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console) as progress:
        yield progress, progress.add_task(name, total=total)


def main() -> None:
    """Run the demo; exit 0 only if everything held."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument(
        "--deployed",
        action="store_true",
        help="show it on the deployment that CRA_* name, not on a local stack",
    )
    parser.add_argument("--began", type=float, help="Unix seconds when installing began")
    options = parser.parse_args()
    phases = Phases()
    if options.began is not None:
        phases.seconds["install"] = time.time() - options.began
    try:
        problems = run_deployed(phases) if options.deployed else run(phases)
    except (StackError, CraError, MinioException) as error:
        problems = [str(error)]
    except KeyboardInterrupt:
        problems = ["interrupted"]
    _console.print(phases.table())
    for problem in problems:
        _console.print(f"[bold red]did not hold:[/] {problem}")
    if problems:
        sys.exit(1)
    _console.print("[bold green]everything held[/]")
    if not options.deployed:
        port = Settings.load().web_port
        _console.print(f"the search page, while `make up` runs: http://127.0.0.1:{port}")


if __name__ == "__main__":
    main()
