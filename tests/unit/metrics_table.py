"""Tables of metrics in docs/observability.md: `python -m tests.unit.metrics_table` writes them."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from cra.services.embedding import metrics as embedding
from cra.services.gateway import metrics as gateway
from cra.services.gateway import query_cache
from cra.services.ingest import metrics as ingest
from cra.services.ingest.ledger import Line
from cra.services.ingest.reconcile import Status
from cra.services.web import metrics as web
from cra.shared import metrics as shared
from tests.servers import ROOT

DOCS = ROOT / "docs" / "observability.md"
BETWEEN = re.compile("(?<=<!-- metrics -->\n).*(?=<!-- /metrics -->)", re.DOTALL)

INFO = {
    "cra_model_info": ("model", "image_tower", "engine", "device", "precision"),
}
"""What metrics say in labels that have no other value."""

STATUS = Status(1, 1, 1, 1, 1, 1, 1, 1.0, None, 1.0, "", ())

ALL = "More than one service"
SECTIONS: dict[str, tuple[ModuleType, ...]] = {
    ALL: (shared,),
    "Gateway": (gateway, query_cache),
    "Embedding": (embedding,),
    "Ingest: the service, and the worker": (ingest,),
    "Search page": (web,),
}


@dataclass(frozen=True)
class Row:
    """One metric."""

    name: str
    """As its samples are called, but for the endings of a histogram."""
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def samples(self) -> set[str]:
        """The names of its samples."""
        if self.kind != "histogram":
            return {self.name}
        return {f"{self.name}_{ending}" for ending in ("bucket", "count", "sum")}


class _Ledger:
    """Knows of one open object and one reconcile."""

    def line(self) -> Line:
        return Line(1, 1, 1, 1.0)

    def last_reconcile(self) -> dict[str, Any]:
        return dict.fromkeys(("finished_at", "stopped", "missing", "stale", "orphaned"), 1)


def rows() -> dict[str, list[Row]]:
    """Return the metrics of each section, by name."""
    found = {}
    for section, modules in SECTIONS.items():
        ours = [row for module in modules for row in _rows(vars(module).values())]
        if ingest in modules:
            state = ingest.StateMetrics(_Ledger(), lambda: STATUS)  # type: ignore[arg-type]
            ours += map(_of_family, state.collect())
        found[section] = sorted(ours, key=lambda row: row.name)
    return found


def _rows(values: Iterable[object]) -> Iterator[Row]:
    for value in values:
        if isinstance(value, MetricWrapperBase) and not value._labelvalues:
            family = next(iter(value.describe()))
            labels = tuple(value._labelnames)
            name = _name(family)
            yield Row(name, family.type, INFO.get(name, labels), family.documentation)


def _of_family(family: Metric) -> Row:
    labels = {label for sample in family.samples for label in sample.labels}
    return Row(_name(family), family.type, tuple(sorted(labels)), family.documentation)


def _name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def tables() -> str:
    """Return all tables."""
    text = ""
    for section, metrics in rows().items():
        text += (
            f"### {section}\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
        )
        for row in metrics:
            labels = ", ".join(f"`{label}`" for label in row.labels)
            text += f"| `{row.name}` | {row.kind} | {labels} | {row.meaning} |\n"
        text += "\n"
    return text


def written() -> str | None:
    """Return the tables as they stand in the docs, or None if their place is not marked."""
    found = BETWEEN.search(DOCS.read_text(encoding="utf-8"))
    return found.group() if found else None


def documented() -> set[str]:
    """Return the names of metrics that the docs list."""
    return set(re.findall(r"^\| `(cra_\w+)` \|", written() or "", re.MULTILINE))


def main() -> None:
    """Write the tables into the docs, between their two comments."""
    if written() is None:
        sys.exit(f"{DOCS} has no place for them: <!-- metrics --> and <!-- /metrics -->")
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(BETWEEN.sub(lambda _: tables(), text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
