"""The report of an evaluation, as JSON, as Markdown, and as an HTML page with the worst misses."""

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from cra.services.training.evaluation import intervals
from cra.services.training.evaluation.exact import Comparison, Evaluation
from cra.services.training.evaluation.live import LiveEvaluation
from cra.services.training.evaluation.misses import Miss
from cra.services.training.evaluation.queries import Kind
from cra.services.training.evaluation.tables import TITLES, Table, tables


@dataclass(frozen=True)
class Data:
    """What was searched."""

    location: str
    digest: str
    images: int
    groups: int
    left_out: int
    """Rows that could not be used."""


@dataclass(frozen=True)
class Section:
    """All that was measured with one kind of captions."""

    kind: Kind
    evaluations: tuple[Evaluation, ...]
    """Of each model; the one under evaluation comes last."""
    comparison: Comparison | None = None
    live: tuple[LiveEvaluation, ...] = ()
    misses: tuple[Miss, ...] = ()

    @property
    def title(self) -> str:
        """What people call these captions."""
        return TITLES[self.kind]

    @property
    def tables(self) -> list[Table]:
        """All figures."""
        return tables(self.evaluations, self.comparison, self.live)


@dataclass(frozen=True)
class Report:
    """What `cra evaluate` found."""

    data: Data
    models: tuple[str, ...]
    """Text releases; the one under evaluation comes last."""
    image_tower: str
    """Fingerprint."""
    created_at: datetime.datetime
    resamples: int
    seed: int
    sections: tuple[Section, ...]


def as_json(report: Report) -> str:
    """Return the report as JSON; the field names are those of the classes."""
    fields: dict[str, Any] = dataclasses.asdict(report)
    fields["created_at"] = report.created_at.isoformat()
    fields["confidence"] = intervals.CONFIDENCE
    return json.dumps(fields, ensure_ascii=False, indent=1)


def as_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    return _templates(autoescape=False).get_template("report.md.jinja").render(_context(report))


def as_html(report: Report, pictures: Mapping[int, str]) -> str:
    """Return the report as one page that needs nothing else.

    Args:
        report: all figures.
        pictures: data URIs of the images that the misses show, by place.
    """
    template = _templates(autoescape=True).get_template("report.html.jinja")
    return template.render(_context(report), pictures=pictures)


def write(report: Report, pictures: Mapping[int, str], folder: Path) -> None:
    """Write `report.json`, `report.md` and `report.html`; the folder is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "report.json": as_json(report) + "\n",
        "report.md": as_markdown(report),
        "report.html": as_html(report, pictures),
    }.items():
        (folder / name).write_text(content, encoding="utf-8")


def _context(report: Report) -> dict[str, Any]:
    return {"report": report, "percent": round(100 * intervals.CONFIDENCE)}


def _templates(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=autoescape,  # noqa: S701 - off for Markdown alone, which has `cell`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["rank"] = lambda rank: f"{rank:,.10g}" if rank % 1 else f"{rank:,.0f}"
    return environment


def _cell(text: str) -> str:
    """Return text that means itself in Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
