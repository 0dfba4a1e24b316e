"""`cra releases`: publish text towers, choose the active one, compare two on the live index."""

import dataclasses
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

import click
from rich.table import Table

from cra.services.cli.activation import activate, rollback
from cra.services.cli.comparison import Asked, Compared, read_queries, summarise
from cra.services.cli.moving import ask_both
from cra.services.cli.options import ReleaseName, as_json, depth_option, queries_option
from cra.services.cli.replicas import BASE
from cra.services.cli.towers import Towers
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.console import examples, out, print_json, warn
from cra.shared.errors import CraError, NotFoundError
from cra.shared.ports import Models
from cra.shared.releases import Pointer
from cra.shared.settings import Settings

MOVERS_SHOWN: Final = 5


@click.group(
    epilog=examples(
        "cra releases list",
        "cra releases publish .data/releases/halls-0a1b2c3d",
        "cra releases activate halls-0a1b2c3d   # `base`: the model's own text tower",
        "cra releases compare base halls-0a1b2c3d -q 庑殿顶 --each",
        "cra releases rollback",
        "cra releases remove halls-0a1b2c3d",
    )
)
def releases() -> None:
    """Publish tuned text towers, choose the active one, compare two on the live index."""


@releases.command("list", epilog=examples("cra releases list --json"))
@as_json
@click.pass_obj
def list_releases(settings: Settings, as_json: bool) -> None:
    """List what is published, and how far the embedding service is with each."""
    store = S3ReleaseStore(settings)
    try:
        published, pointer = store.list(), store.pointer()
    except NotFoundError:  # no bucket: nothing was ever published
        published, pointer = [], Pointer()
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    served: list[Models] = []
    answering: Models | None = None
    two = False
    try:
        with Towers(settings) as towers:
            two, served = towers.two, [one.any for one in towers.all]
            answering = towers.answering(pointer) if two else served[0]
            problems = [
                *towers.problems,
                *(
                    one.releases_problem
                    for one in served
                    if one.releases_problem and not towers.stands_by(one)
                ),
            ]
    except CraError as error:
        problems = [error.message]
    for models in served:
        base = models.release(models.base_release)
        rows.append(
            {
                "name": models.base_release,
                "active": models is answering and base is not None and base.active,
                "state": BASE,
                "problem": "",
                "image_tower": models.image_tower.fingerprint,
            }
        )
    for one in published:
        row: dict[str, Any] = {"name": one.name, "problem": ""}
        try:
            about = store.manifest(one.name).model_dump(mode="json", exclude={"config", "files"})
        except CraError as error:
            about = {"problem": error.message}
        # Who is alone says what is known of all releases.
        owner = _owner(served, about.get("image_tower", "")) if two else next(iter(served), None)
        known = owner.release(one.name) if owner else None
        row |= {
            "active": known.active and owner is answering if known else pointer.release == one.name,
            "state": known.state.value if known else "unknown",
            "published_at": one.published_at.isoformat(),
            **about,
        }
        if known and known.problem:
            row["problem"] = known.problem
        rows.append(row)
    if as_json:
        print_json({"releases": rows, "pointer": pointer.model_dump(mode="json")})
        return
    table = Table()
    for column in ("release", "active", "state", "image tower", "normalizer", "pairs", "created"):
        table.add_column(column, no_wrap=column == "release", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            "active" if row["active"] else "",
            row["state"],
            row.get("image_tower", ""),
            row.get("normalizer", ""),
            str(row.get("data", {}).get("pairs", "")),
            _minute(row.get("created_at", "")),
        )
    out.print(table)
    for row in rows:
        if row["problem"]:
            warn(row["name"], row["problem"])
    for problem in problems:
        warn("the embedding service says" if served else "what is loaded is unknown", problem)


def _owner(served: Sequence[Models], image_tower: str) -> Models | None:
    """Return what serves an image tower."""
    return next((one for one in served if one.image_tower.fingerprint == image_tower), None)


@releases.command(epilog=examples("cra releases publish .data/releases/halls-0a1b2c3d"))
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@as_json
@click.pass_obj
def publish(settings: Settings, path: Path, as_json: bool) -> None:
    """Check the release in the folder PATH and copy it into the bucket of releases."""
    release = S3ReleaseStore(settings).publish(path)
    if as_json:
        print_json({"name": release.name, "bucket": settings.releases_bucket})
    else:
        out.print(f"published {release.name} in {settings.releases_bucket}")


releases.add_command(activate)
releases.add_command(rollback)


@releases.command(epilog=examples("cra releases remove halls-0a1b2c3d --yes"))
@click.argument("name", type=ReleaseName())
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@click.pass_obj
def remove(settings: Settings, name: str, yes: bool, as_json: bool) -> None:
    """Remove NAME from the bucket of releases; its folder here stays, if there is one.

    Never the active one, nor the one that a rollback would go back to.
    """
    store = S3ReleaseStore(settings)
    store.manifest(name)  # a name that is none is told before anything is asked
    if not yes:
        try:
            agreed = click.confirm(f"remove {name} from {settings.releases_bucket}?", err=True)
        except click.Abort:
            if sys.stdin.isatty():  # Ctrl-C or Ctrl-D
                raise
            raise click.UsageError("nobody is there to be asked: give --yes") from None
        if not agreed:
            raise click.Abort
    store.remove(name)
    if as_json:
        print_json({"name": name, "bucket": settings.releases_bucket})
    else:
        out.print(f"removed {name} from {settings.releases_bucket}")


@releases.command(
    "compare",
    epilog=examples(
        "cra releases compare base halls-0a1b2c3d -q 庑殿顶 -q 雪中的石桥 --each",
        "cra releases compare base halls-0a1b2c3d --queries queries.jsonl -k 10 --json",
    ),
)
@click.argument("first", type=ReleaseName())
@click.argument("second", type=ReleaseName())
@queries_option
@click.option("-q", "--query", "texts", multiple=True, metavar="TEXT", help="May be repeated.")
@depth_option
@click.option("--each", is_flag=True, help="Show each query too.")
@as_json
@click.pass_obj
def compare_releases(
    settings: Settings,
    first: str,
    second: str,
    queries: TextIO | None,
    texts: tuple[str, ...],
    k: int,
    each: bool,
    as_json: bool,
) -> None:
    """Ask the live index with two releases, and show how far their answers differ.

    Recall is the share of queries that find one of their image_ids among the first K hits.
    """
    asked = [*read_queries(queries or ()), *map(Asked, texts)]
    if not asked:
        raise click.UsageError("give --queries FILE or -q TEXT")
    store = S3ReleaseStore(settings)
    with Towers(settings) as towers:
        names = [towers.prepare(name, store) for name in (first, second)]
    results = ask_both(settings, asked, names, k, quiet=as_json)
    if as_json:
        print_json(
            {
                "releases": names,
                "k": k,
                "summary": dataclasses.asdict(summarise(results)),
                "queries": [dataclasses.asdict(one) for one in results],
            }
        )
        return
    if each:
        out.print(_table_of_queries(results, k))
    out.print(_table_of_summary(results, names, k))


def _table_of_queries(results: list[Compared], k: int) -> Table:
    table = Table("query", f"overlap@{k}", "rank change", "found", "moved most")
    for one in results:
        movers = [
            f"{mover.image_id} {mover.before or '-'} → {mover.after or '-'}"
            for mover in one.movers[:MOVERS_SHOWN]
        ]
        found = "" if one.found is None else " → ".join("yes" if f else "no" for f in one.found)
        table.add_row(
            one.text, f"{one.overlap:.0%}", _number(one.rank_change), found, "\n".join(movers)
        )
    return table


def _table_of_summary(results: list[Compared], names: list[str], k: int) -> Table:
    summary = summarise(results)
    table = Table("", *names)
    table.add_row("queries", str(summary.queries), "")
    table.add_row(f"overlap@{k}", f"{summary.overlap:.1%}", "")
    table.add_row("same first image", f"{summary.same_first:.1%}", "")
    table.add_row("mean rank change of what both find", _number(summary.rank_change), "")
    if summary.recall is not None:
        before, after = (f"{share:.1%}" for share in summary.recall)
        table.add_row(f"recall@{k} of {summary.judged} queries", before, after)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _minute(stamp: str) -> str:
    return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M}" if stamp else ""
