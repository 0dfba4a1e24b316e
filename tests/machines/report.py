"""docs/machines.md, of what was seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.traffic import ASKERS, BAD_EVERY
from tests.machines.checks import Check
from tests.machines.rows import APART, CUT_FOR, HEALS_WITHIN, KILLED_FOR, Row

_HEAD = (
    "# More than one machine",
    "",
    "Written by `make machines`, which needs Linux and root. It runs two of everything of ours, "
    "each process in a network namespace with an address of its own, and kills and cuts off the "
    "first of each in turn. Milvus, Redis and the object store share another, and stay. A name has "
    "the addresses of both replicas, as those of Kubernetes' headless services have.",
    "",
    f"Meanwhile, from one more, {ASKERS} threads query through `SearchClient` at "
    "`dns:///gateway:50051` with its defaults, by text and by pictures that must be found, and one "
    "searches by the page's JSON, at the other page where one says nothing. A writer puts, "
    f"overwrites and deletes {1 / APART:.0f} objects a second; one put in {BAD_EVERY} is of a file "
    "that is no image.",
    "",
    f"*Killed*: `kill -9` of the process and of all that it has started; {KILLED_FOR:.0f} s later "
    f"it is started again. *Cut off*: for {CUT_FOR:.0f} s its packets go nowhere, both ways, and "
    "nobody is told; it runs on. A query has failed if its caller was told an error, after what "
    "the client tries by itself, or not all that there is. *Used again after* counts from the new "
    "start, or from when the cable is back, until both replicas have done their job once more. "
    "What is lost, there twice, or there without its object, is counted in bucket, index and "
    f"failure list, within {HEALS_WITHIN:.0f} s of then.",
    "",
)


def write(
    file: Path, about: Mapping[str, str], checks: Sequence[Check], rows: Sequence[Row]
) -> str:
    """Write the page; return it."""
    text = [
        *_HEAD,
        "| one of two | fault | queries | failed | slowest query | slowest page | put "
        "| overwritten | deleted | lost | duplicates | orphans | used again after | as it must be "
        "|",
        "| --- | --- | " + "---: | " * 11 + "--- |",
    ]
    for row in rows:
        counts = ("put", "overwritten", "deleted", "lost", "duplicates", "orphans")
        cells = [
            row.part,
            row.how,
            str(row.queries),
            str(row.failed),
            f"{row.slowest:.1f} s",
            f"{row.slowest_page:.1f} s",
            *(str(getattr(row, name)) for name in counts),
            f"{row.back:.0f} s",
            "**no**" if row.problems else "yes",
        ]
        text.append(f"| {' | '.join(cells)} |")
    text += ["", "While nothing is wrong:", "", "| claim | seen |", "| --- | --- |"]
    text += [f"| {one.claim} | {one.seen}{'' if one.holds else ' **no**'} |" for one in checks]
    told = "; ".join(f"{name} {value}" for name, value in about.items())
    text += ["", f"Run with {told}.", ""]
    page = "\n".join(text)
    file.write_text(page, encoding="utf-8")
    return page
