"""The figures as a table and as a chart."""

import statistics
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

TITLES: Final = {
    "text": "A query encoded",
    "search": "Search over gRPC",
    "page": "The search page, in Chromium, with the model that ships and 2,000 rendered buildings",
    "ingest": "Images dropped into the bucket",
    "milvus": "Milvus by size",
    "memory": "Memory",
    "start": "Start",
    "gpu": "On CUDA",
    "lit": "Tuning",
}


def markdown(sections: dict[str, Any]) -> str:
    """Return all results as Markdown.

    Args:
        sections: by name of the benchmark, `machine` and `results`, or why it was `skipped`.
    """
    parts = [
        "# Benchmarks",
        "",
        "`make bench` measures again; `.venv/bin/python -m tests.bench NAME` one part. All is done "
        "with the shape of ViT-B/16 and RoBERTa-wwm-ext-base and random weights, but for the "
        "search page. Figures are medians over rounds in which all that is compared took turns, "
        "on one machine; the ratio says how many times as good ours is in the same round, with the "
        "smallest and the largest. Less is better in every row.",
        "",
        "![Ratios beside what is asked](benchmarks.svg)",
    ]
    for name, title in TITLES.items():
        section = sections.get(name)
        if section is None:
            continue
        parts += ["", f"## {title}", ""]
        if "skipped" in section:
            parts.append(f"**Not measured**: {section['skipped']}.")
            continue
        parts += [
            "| what | ours | against | that | ratio | asked | held |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_row(one) for one in section["results"]),
        ]
        notes = [
            f"- {one['title']}: " + "; ".join(f"{k}: {v}" for k, v in one["notes"].items())
            for one in section["results"]
            if one["notes"]
        ]
        parts += ["", *notes] if notes else []
        where = ", ".join(f"{key} {value}" for key, value in section["machine"].items())
        parts += ["", f"Measured with {where}."]
    return "\n".join(parts) + "\n"


def _row(one: dict[str, Any]) -> str:
    asked = "" if one["at_least"] is None else f"at least {one['at_least']:.3g}"
    held = {None: "", True: "yes", False: "**no**"}[one["held"]]
    low, high = one["spread"]
    spread = f" ({low:.3g} to {high:.3g})" if len(one["ours"]) > 1 else ""
    ratio = _number(one["ratio"]) + spread
    return (
        f"| {one['title']} | {_value(one['ours'], one['unit'])} | {one['against']} | "
        f"{_value(one['rival'], one['unit'])} | {ratio} | {asked} | {held} |"
    )


def _value(values: list[float], unit: str) -> str:
    return f"{_number(statistics.median(values))} {unit}".strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart(sections: dict[str, Any], file: Path) -> None:
    """Draw each ratio, on a scale on which what is asked is 1; above that is held."""
    rows = [
        (f"{one['title']}\nagainst {one['against']}", one["ratio"] / one["at_least"])
        for name in TITLES
        for one in sections.get(name, {}).get("results", [])
        if one["at_least"] is not None
    ]
    with mpl.rc_context({"svg.hashsalt": "cra", "font.size": 7}):
        figure = Figure(figsize=(9, 0.36 * len(rows) + 1), layout="constrained")
        axes = figure.subplots()
        labels = [label for label, _ in reversed(rows)]
        values = [value for _, value in reversed(rows)]
        colours = ["#2a7f62" if value >= 1 else "#c0392b" for value in values]
        axes.barh(labels, values, color=colours)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlabel("how many times as good as is asked (logarithmic)")
        figure.savefig(file, format="svg", metadata={"Date": None})
