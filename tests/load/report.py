"""What `make load` measured: Markdown and charts."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.load.sampling import GROWTH, KINDS, SETTLED

GOOD: Final = "#2a7f62"
BAD: Final = "#c0392b"
UNITS: Final = {"memory": "MiB", "threads": "threads", "descriptors": "open files"}


def markdown(sections: dict[str, Any]) -> str:
    """Return all figures as Markdown; what was not run is left out."""
    parts = [
        "# Load",
        "",
        "`make load` measures again; `.venv/bin/python -m tests.load NAME` one part, "
        "`--minutes` sets how long the soak lasts. The load comes from the same machine as what "
        "bears it, so that figures are for comparing within a run.",
    ]
    for name, write in {
        "overload": _overload,
        "restarts": _restarts,
        "soak": _soak,
    }.items():
        if name in sections:
            section = sections[name]
            parts += ["", *write(section["results"]), "", *_held(section["results"]["held"])]
            where = ", ".join(f"{key} {value}" for key, value in section["machine"].items())
            parts += ["", f"Measured with {where}; model: {section['model']}."]
    return "\n".join(parts) + "\n"


def _held(held: dict[str, bool]) -> list[str]:
    failed = [name for name, one in held.items() if not one]
    if len(held) > 10:  # of the soak: flat, each kind of each process
        return [
            f"Held: {len(held) - len(failed)} of {len(held)}.",
            *(f"- **no**: {one}" for one in failed),
        ]
    return [f"- {'held' if one else '**not held**'}: {name}" for name, one in held.items()]


def _overload(found: dict[str, Any]) -> list[str]:
    rows = {
        "a caller alone, p50": _ms(found["alone p50"]),
        f"served to {found['callers']} callers that wait for each answer": (
            f"{found['capacity']:.0f} a second, p50 {_ms(found['full p50'])}, "
            f"p99 {_ms(found['full p99'])}"
        ),
        "offered, whether answered or not": (
            f"{found['offered']:.0f} a second "
            f"({found['offered'] / found['capacity']:.1f} times as much)"
        ),
        "accepted": (
            f"{found['accepted']:.0f} a second, p50 {_ms(found['accepted p50'])}, "
            f"p99 {_ms(found['accepted p99'])} ({found['tail']:.2f} times that at capacity)"
        ),
        "refused with RESOURCE_EXHAUSTED": (
            f"{found['refused']}, p50 after {_ms(found['refused p50'])}, p99 "
            f"{_ms(found['refused p99'])}; {found['with a hint']:.1%} with the time to try again"
        ),
        "as before after": f"{found['recovery']:.1f} s",
        "memory before, and at most": "; ".join(
            f"{name} {before:.0f}, {most:.0f} MiB"
            for name, (before, most) in found["memory"].items()
        ),
    }
    return [
        "## Ten times too much",
        "",
        "| what | measured |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "![Each call by when it came and how long its answer took](load.svg)",
    ]


def _restarts(found: dict[str, Any]) -> list[str]:
    return [
        "## Restarts in turn",
        "",
        f"Two of each service, asked without a pause; SIGTERM to one after the other. "
        f"{found['calls']} calls, of which {found['failed']} failed; {found['objects']} objects "
        f"put, {found['indexed']} indexed.",
        "",
        "| part | until it did its job again | calls meanwhile | failed |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['part']} | {row['seconds']:.1f} s | {row['calls']} | {len(row['failed'])} |"
            for row in found["rows"]
        ),
    ]


def _soak(found: dict[str, Any]) -> list[str]:
    calls = ", ".join(f"{count} {code}" for code, count in sorted(found["codes"].items()))
    bounds = "; ".join(
        f"{kind} {share:.0%} or {least:g}" for kind, (share, least) in GROWTH.items()
    )
    return [
        f"## {found['minutes']:g} minutes at four fifths",
        "",
        f"{found['rate']:.0f} of {found['capacity']:.0f} queries a second, and objects overwritten "
        f"meanwhile: {calls}; p99 of half a minute {_ms(min(found['p99']))} to "
        f"{_ms(max(found['p99']))}. What each process and its children have come to hold more, by "
        f"the median slope after the first {SETTLED:.0%} of the time (allowed: {bounds}):",
        "",
        "| part | memory, MiB | threads | open files |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {' | '.join(f'{one[kind]:+.1f}' for kind in KINDS)} |"
            for name, one in found["growth"].items()
        ),
        "",
        "![Memory, threads and open files of each process](soak.svg)",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def charts(sections: dict[str, Any], folder: Path) -> None:
    """Draw what was run."""
    with mpl.rc_context({"svg.hashsalt": "cra", "font.size": 7}):
        if "overload" in sections:
            _draw_overload(sections["overload"]["results"]).savefig(
                folder / "load.svg", format="svg", metadata={"Date": None}
            )
        if "soak" in sections:
            _draw_soak(sections["soak"]["results"]).savefig(
                folder / "soak.svg", format="svg", metadata={"Date": None}
            )


def _draw_overload(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for ok, colour, label in ((True, GOOD, "accepted"), (False, BAD, "refused")):
        points = [
            (begun, seconds * 1000)
            for begun, seconds, one in zip(
                found["begun"], found["seconds"], found["ok"], strict=True
            )
            if one is ok
        ]
        if points:
            begun, seconds = zip(*points, strict=True)
            axes.scatter(begun, seconds, s=2, color=colour, label=label)
    axes.axhline(found["full p99"] * 1000, color="black", linewidth=1, label="p99 at capacity")
    axes.set_yscale("log")
    axes.set_xlabel("second in which the call came")
    axes.set_ylabel("milliseconds until its answer")
    axes.legend(loc="upper right")
    return figure


def _draw_soak(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    for kind, axes in zip(KINDS, figure.subplots(len(KINDS), 1, sharex=True), strict=True):
        for name, samples in found["samples"].items():
            axes.plot([t / 60 for t in samples["times"]], samples[kind], linewidth=1, label=name)
        axes.set_ylabel(UNITS[kind])
        axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    figure.axes[0].legend(loc="upper right", ncols=3)
    return figure
