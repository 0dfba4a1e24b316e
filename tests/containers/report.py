"""docs/containers.md, of what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.containers.checks import Row
from tests.containers.images import Image

_HEAD = """# Containers

Written by `make containers`, which builds every image, brings `docker-compose.yml` up, and asks it
from outside. README says how the stack is run.
"""


@dataclass(frozen=True)
class Run:
    """What was seen with one command of compose."""

    up: float
    """Seconds until every container was healthy."""
    starts: Mapping[str, float]
    """Those of each service, from its container's start."""
    memory: Mapping[str, str]
    """What each service takes after all of it but the monitoring."""
    rows: Sequence[Row]


def write(
    file: Path,
    about: Mapping[str, str],
    images: Sequence[Image],
    rows: Sequence[Row],
    runs: Mapping[str, Run],
) -> None:
    """Write the page.

    Args:
        file: where.
        about: what figures depend on, by name.
        images: of ours.
        rows: what was checked of the images alone.
        runs: by the command of compose.
    """
    text = [
        _HEAD,
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        "## Images",
        "",
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
        *_held(rows),
    ]
    for command, run in runs.items():
        text += [
            f"## With {command}",
            "",
            f"`up` on empty volumes until every container was healthy: {run.up:.0f} s. Each "
            "service from its container's start; health is asked every 5 to 15 s.",
            "",
            "| service | healthy after, s | memory at the end |",
            "| --- | ---: | --- |",
            *(
                f"| {name} | {seconds:.0f} | {run.memory.get(name, '')} |"
                for name, seconds in run.starts.items()
            ),
            "",
            *_held(run.rows),
        ]
    file.write_text("\n".join(text), encoding="utf-8")


def _held(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {row.claim} | {row.seen} |" for row in rows]
    return ["| what held | seen |", "| --- | --- |", *lines, ""]
