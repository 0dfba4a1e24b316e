"""docs/containers.md, of what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.containers.checks import Row
from tests.containers.images import Image

_HEAD = """# Containers

Written by `make containers`, which builds every image, brings `docker-compose.yml` up, and asks it
from outside. README says how the stack is run.
"""


def write(
    file: Path,
    about: Mapping[str, str],
    images: Sequence[Image],
    up: float,
    starts: Mapping[str, float],
    memory: Mapping[str, str],
    rows: Sequence[Row],
) -> None:
    """Write the page.

    Args:
        file: where.
        about: what figures depend on, by name.
        images: of ours.
        up: seconds until every container was healthy.
        starts: those of each service, from its container's start.
        memory: what each service takes after all of it.
        rows: what was checked.
    """
    text = [_HEAD, *(f"- {name}: {value}" for name, value in about.items()), "", "## Images", ""]
    text += [
        "Megabytes are 10^6 bytes. `first` is a build without a cache, each after those above it; "
        "`again` one after a line of `shared/` has changed.",
        "",
        "| image | MB | above Python's image, MB | first, s | again, s |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| `cra-{one.target}` | {one.size:.0f} | {one.above_base:.0f} | {one.first:.0f} "
            f"| {one.after_change:.1f} |"
            for one in images
        ),
        "",
        "## Start",
        "",
        f"`up` on empty volumes until every container was healthy: {up:.0f} s. Each service from "
        "its container's start; health is asked every 5 to 15 s.",
        "",
        "| service | healthy after, s | memory at the end |",
        "| --- | ---: | --- |",
        *(
            f"| {name} | {seconds:.0f} | {memory.get(name, '')} |"
            for name, seconds in starts.items()
        ),
        "",
        "## What held",
        "",
        "| claim | seen |",
        "| --- | --- |",
        *(f"| {row.claim} | {row.seen} |" for row in rows),
        "",
    ]
    file.write_text("\n".join(text), encoding="utf-8")
