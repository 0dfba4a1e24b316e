"""`cra releases activate` and `rollback`: what answers, and from which image tower."""

import dataclasses
import time
from typing import Any, Final, TextIO

import click

from cra.services.cli.comparison import read_queries
from cra.services.cli.moving import check_gateway, count_images, measure_recall, wait_gateway
from cra.services.cli.options import Number, ReleaseName, as_json, depth_option, queries_option
from cra.services.cli.replicas import LOADED_WITHIN, Replicas
from cra.services.cli.towers import Towers
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.console import examples, out, print_json, warn
from cra.shared.errors import NotFoundError
from cra.shared.ports import ReleaseStore
from cra.shared.releases import Choice, Pointer
from cra.shared.settings import Settings

ACTIVE_WITHIN: Final = 10.0
"""Seconds."""

_wait = click.option(
    "--wait/--no-wait", default=True, help="Return once every replica follows; the default."
)


@click.command(
    epilog=examples(
        "cra releases activate halls-0a1b2c3d",
        "cra releases activate large-5e6f7a8b --queries queries.jsonl   # of another image tower",
    )
)
@click.argument("name", type=ReleaseName())
@queries_option
@depth_option
@click.option(
    "--may-lose",
    default=0.01,
    show_default=True,
    type=Number(0, 1),
    help="Recall that may be lost, from 0 to 1.",
)
@click.option(
    "--filled",
    default=0.99,
    show_default=True,
    type=Number(0, 1),
    help="Least images in another image tower's collection, as a share of the old one's.",
)
@click.option("--force", is_flag=True, help="Whatever the images and the recall are.")
@_wait
@as_json
@click.pass_obj
def activate(
    settings: Settings,
    name: str,
    queries: TextIO | None,
    k: int,
    may_lose: float,
    filled: float,
    force: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Let NAME answer from now on; `base` is the model's own text tower.

    Where NAME is of another image tower, searches move to its collection, once that is filled. With
    --queries recall is measured before, and must not fall.
    """
    if not name:
        raise click.UsageError("NAME is empty; `base` is the model's own text tower")
    asked = read_queries(queries) if queries else []
    store = S3ReleaseStore(settings)
    with Towers(settings) as towers:
        choice, replicas = towers.find(name, store)
        _check_loaded(choice, replicas, wait)
        real = choice.release or replicas.any.base_release
        before = _answering(store, towers)
        moves = before.image_tower != choice.image_tower
        told: dict[str, Any] = {"changed": moves or before.release != choice.release}
        if moves:
            images = count_images(settings, before.image_tower, choice.image_tower)
            told["images"] = dataclasses.asdict(images)
            if not force:
                images.check(filled)
            check_gateway(settings, real, choice.image_tower)
        if queries:
            recall = measure_recall(settings, asked, real, k, quiet=as_json)
            told["recall"] = dataclasses.asdict(recall)
            if not as_json:
                out.print(recall)
            if not force:
                recall.check(may_lose)
        elif moves:
            warn("recall was not measured", "--queries FILE does it before anything is changed")
        began = time.monotonic()
        if moves:
            # So that the way back names the image tower, whatever is set then.
            store.activate(before.release, before.image_tower)
        pointer = store.activate(choice.release, choice.image_tower)
        _report(settings, pointer, replicas, began, told, moved=moves, wait=wait, as_json=as_json)


@click.command(epilog=examples("cra releases rollback"))
@_wait
@as_json
@click.pass_obj
def rollback(settings: Settings, wait: bool, as_json: bool) -> None:
    """Go back to what was active before; again: to what was before that."""
    store = S3ReleaseStore(settings)
    with Towers(settings) as towers:
        choice = store.pointer().rolled_back()
        replicas = towers.of_image_tower(choice.image_tower)
        if choice.release:
            replicas.check_fit(choice.release, store.manifest(choice.release))
            replicas.check_refused(choice.release)
        _check_loaded(choice, replicas, wait)
        moves = _answering(store, towers).image_tower != replicas.fingerprint
        began = time.monotonic()
        pointer = store.rollback()
        _report(settings, pointer, replicas, began, {}, moved=moves, wait=wait, as_json=as_json)


def _answering(store: ReleaseStore, towers: Towers) -> Choice:
    """Return what is active, and the image tower that answers."""
    try:
        choice = store.pointer().choice
    except NotFoundError:  # no bucket: nobody ever chose
        choice = Choice()
    if choice.image_tower:
        return choice
    answering = towers.of_image_tower("").fingerprint
    return choice.model_copy(update={"image_tower": answering})


def _check_loaded(choice: Choice, replicas: Replicas, wait: bool) -> None:
    """Have all replicas load a release first, so that no query waits for one that is behind."""
    if choice.release and wait:
        replicas.wait_loaded(choice.release, LOADED_WITHIN)


def _report(
    settings: Settings,
    pointer: Pointer,
    replicas: Replicas,
    began: float,
    told: dict[str, Any],
    *,
    moved: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Wait until a choice is in force, and say how long that took."""
    name = pointer.release or replicas.any.base_release
    if wait:
        replicas.wait_active(pointer.release, pointer.version, ACTIVE_WITHIN)
        if moved:
            wait_gateway(settings, replicas.fingerprint, ACTIVE_WITHIN)
    seconds = round(time.monotonic() - began, 2)
    count = len(replicas.models)
    if as_json:
        report = {"release": name, "version": pointer.version, "replicas": count, **told}
        report |= {"image_tower": replicas.fingerprint, "moved": moved}
        print_json({**report, "seconds": seconds if wait else None})
        return
    if "images" in told:
        out.print("images: {before} before, {after} after".format(**told["images"]))
    if not told.get("changed", True):
        out.print(f"{name} was active already; what answers is unchanged")
        return
    where = f", of the image tower {replicas.fingerprint}," if moved else ""
    if wait:
        on = f"{count} replica{'s'[: count - 1]}"
        out.print(f"{name}{where} is active on {on} after {seconds:.1f} s")
    else:
        out.print(f"{name}{where} is to be active (version {pointer.version})")
