"""`cra releases`: publish text towers, choose the active one, compare two on the live index."""

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

import click
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from cra.services.cli.comparison import Asked, Compared, compare, read_queries, summarise
from cra.services.cli.options import ReleaseName, as_json
from cra.services.cli.replicas import BASE, Replicas, ask_any, real_name
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.client import SearchClient
from cra.shared.console import err, examples, out
from cra.shared.errors import CraError, NotFoundError
from cra.shared.releases import Choice, Pointer
from cra.shared.settings import Settings

ACTIVE_WITHIN: Final = 10.0
"""Seconds."""
LOADED_WITHIN: Final = 120.0
"""Seconds."""
ASKED_AT_ONCE: Final = 8
MOVERS_SHOWN: Final = 5

_wait = click.option(
    "--wait/--no-wait", default=True, help="Return once every replica follows; the default."
)


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
    models, problem = ask_any(settings)
    try:
        published, pointer = store.list(), store.pointer()
    except NotFoundError:  # no bucket: nothing was ever published
        published, pointer = [], Pointer()
    known = {one.name: one for one in models.releases} if models else {}
    rows: list[dict[str, Any]] = []
    if models:
        base = known.get(models.base_release)
        rows.append(
            {
                "name": models.base_release,
                "active": base is not None and base.active,
                "state": BASE,
                "problem": "",
                "image_tower": models.image_tower.fingerprint,
            }
        )
    for one in published:
        served = known.get(one.name)
        row: dict[str, Any] = {
            "name": one.name,
            "active": served.active if served else pointer.release == one.name,
            "state": served.state.value if served else "unknown",
            "problem": served.problem if served else "",
            "published_at": one.published_at.isoformat(),
        }
        try:
            row |= store.manifest(one.name).model_dump(mode="json", exclude={"config", "files"})
        except CraError as error:
            row["problem"] = row["problem"] or error.message
        rows.append(row)
    if as_json:
        _print_json({"releases": rows, "pointer": pointer.model_dump(mode="json")})
        return
    table = Table()
    for column in ("release", "active", "state", "normalizer", "pairs", "created"):
        table.add_column(column, no_wrap=column == "release", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            "active" if row["active"] else "",
            row["state"],
            row.get("normalizer", ""),
            str(row.get("data", {}).get("pairs", "")),
            _minute(row.get("created_at", "")),
        )
    out.print(table)
    for row in rows:
        if row["problem"]:
            _warn(row["name"], row["problem"])
    if models is None:
        _warn("what is loaded is unknown", problem)
    elif models.releases_problem:
        _warn("the embedding service says", models.releases_problem)


@releases.command(epilog=examples("cra releases publish .data/releases/halls-0a1b2c3d"))
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@as_json
@click.pass_obj
def publish(settings: Settings, path: Path, as_json: bool) -> None:
    """Check the release in the folder PATH and copy it into the bucket of releases."""
    release = S3ReleaseStore(settings).publish(path)
    if as_json:
        _print_json({"name": release.name, "bucket": settings.releases_bucket})
    else:
        out.print(f"published {release.name} in {settings.releases_bucket}")


@releases.command(epilog=examples("cra releases activate halls-0a1b2c3d"))
@click.argument("name", type=ReleaseName())
@_wait
@as_json
@click.pass_obj
def activate(settings: Settings, name: str, wait: bool, as_json: bool) -> None:
    """Let NAME answer from now on; `base` is the model's own text tower."""
    if not name:
        raise click.UsageError("NAME is empty; `base` is the model's own text tower")
    store = S3ReleaseStore(settings)
    with Replicas(settings) as replicas:
        bases = {models.base_release for models in replicas.models.values()}
        choice = Choice(release="" if name in {BASE, *bases} else name)
        _check(choice, store, replicas, wait)
        began = time.monotonic()
        pointer = store.activate(choice.release, replicas.any.image_tower.fingerprint)
        _report(pointer, replicas, began, wait, as_json)


@releases.command(epilog=examples("cra releases rollback"))
@_wait
@as_json
@click.pass_obj
def rollback(settings: Settings, wait: bool, as_json: bool) -> None:
    """Go back to what was active before; again: to what was before that."""
    store = S3ReleaseStore(settings)
    with Replicas(settings) as replicas:
        _check(store.pointer().rolled_back(), store, replicas, wait)
        began = time.monotonic()
        pointer = store.rollback()
        _report(pointer, replicas, began, wait, as_json)


def _check(choice: Choice, store: S3ReleaseStore, replicas: Replicas, wait: bool) -> None:
    """Raise what would keep a choice from coming into force, before it is made."""
    if not choice.release:
        return
    replicas.check_fit(choice.release, store.manifest(choice.release))
    replicas.check_refused(choice.release)
    if wait:
        # All of them first, so that no query waits for one that is behind.
        replicas.wait_loaded(choice.release, LOADED_WITHIN)


def _report(pointer: Pointer, replicas: Replicas, began: float, wait: bool, as_json: bool) -> None:
    """Wait until a choice is in force, and say how long that took."""
    name = pointer.release or replicas.any.base_release
    if wait:
        replicas.wait_active(pointer.release, pointer.version, ACTIVE_WITHIN)
    seconds = round(time.monotonic() - began, 2)
    count = len(replicas.models)
    if as_json:
        report = {"release": name, "version": pointer.version, "replicas": count}
        _print_json({**report, "seconds": seconds if wait else None})
    elif wait:
        out.print(f"{name} is active on {count} replica{'s'[: count - 1]} after {seconds:.1f} s")
    else:
        out.print(f"{name} is to be active (version {pointer.version})")


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
        click.confirm(f"remove {name} from {settings.releases_bucket}?", abort=True, err=True)
    store.remove(name)
    if as_json:
        _print_json({"name": name, "bucket": settings.releases_bucket})
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
@click.option(
    "--queries",
    type=click.File(encoding="utf-8"),
    help='A query a line: a text, or {"text": …, "image_ids": […]}.',
)
@click.option("-q", "--query", "texts", multiple=True, metavar="TEXT", help="May be repeated.")
@click.option("-k", default=20, show_default=True, type=click.IntRange(1, 200))
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
    names = [real_name(settings, name) for name in (first, second)]
    with Replicas(settings) as replicas:
        for name in names:
            if name != replicas.any.base_release:
                S3ReleaseStore(settings).manifest(name)  # a name that is none is not waited for
                replicas.wait_loaded(name, LOADED_WITHIN)
    with SearchClient.of(settings, timeout=30) as client:

        def ask(query: Asked) -> Compared:
            before, after = (
                [hit.image_id for hit in client.search(query.text, top_k=k, text_release=name).hits]
                for name in names
            )
            return compare(query, before, after, k)

        with (
            Progress(console=err, disable=as_json, transient=True) as bar,
            ThreadPoolExecutor(ASKED_AT_ONCE) as pool,
        ):
            results = list(bar.track(pool.map(ask, asked), total=len(asked), description="asked"))
    if as_json:
        _print_json(
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


def _warn(about: str, problem: str) -> None:
    err.print(Text.assemble((about, "yellow"), f": {problem}"))


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, ensure_ascii=False, indent=2))
