"""`cra trace`: traces of the file that services append them to, as trees."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cra.shared.console import examples, out
from cra.shared.settings import Settings

_SHOWN: Final = ("cra.objects", "cra.object", "cra.items", "cra.hits", "cra.release", "cra.limit")
"""Attributes that are shown beside a span."""

_PIPE: Final = 1000
"""Columns where there is no terminal."""


@dataclass(frozen=True)
class Span:
    """One line of the file; times are Unix seconds."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    began: float
    ended: float
    error: str
    attributes: dict[str, Any]

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a span as OpenTelemetry's SDK writes it.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        row = json.loads(line)
        status = row["status"]
        failed = status["status_code"] == "ERROR"
        return cls(
            row["context"]["trace_id"].removeprefix("0x"),
            row["context"]["span_id"].removeprefix("0x"),
            (row["parent_id"] or "").removeprefix("0x"),
            row["name"],
            row["resource"]["attributes"]["service.name"],
            _seconds(row["start_time"]),
            _seconds(row["end_time"]),
            status.get("description", "failed") if failed else "",
            row["attributes"] or {},
        )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def read_spans(lines: Iterable[str]) -> Iterator[Span]:
    """Yield the spans of a file; the last line may be half written, and is left out then."""
    for line in lines:
        if line.endswith("\n"):
            try:
                yield Span.parse(line)
            except (ValueError, KeyError, TypeError) as error:
                raise click.ClickException(f"no span of a trace: {line[:80]!r}") from error


def by_trace(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Return the spans of each trace by their beginning, the trace that began first first."""
    traces = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    for found in traces.values():
        found.sort(key=lambda span: (span.began, -span.ended))
    return dict(sorted(traces.items(), key=lambda item: item[1][0].began))


def tree(spans: list[Span]) -> Tree:
    """Return one trace as a tree: what was done, where, how long it took and when it began."""
    ids = {span.span_id for span in spans}
    inside = defaultdict(list)
    for span in spans:
        # What it belongs to may be a caller's that we do not see.
        inside[span.parent_id if span.parent_id in ids else ""].append(span)

    def grow(node: Tree, span_id: str) -> None:
        for span in inside[span_id]:
            grow(node.add(_text(span, spans[0].began)), span.span_id)

    whole = Tree(f"trace {spans[0].trace_id}")
    grow(whole, "")
    return whole


def _text(span: Span, start: float) -> Text:
    shown = {name.removeprefix("cra."): span.attributes.get(name) for name in _SHOWN}
    details = [f"{name}={_short(value)}" for name, value in shown.items() if value is not None]
    took, since = (span.ended - span.began) * 1000, (span.began - start) * 1000
    return Text("  ").join(
        [
            Text(span.name, "bold"),
            Text(span.service, "cyan"),
            Text(f"{took:.1f} ms", "green"),
            Text(" ".join([f"+{since:.1f} ms", *details]), "dim"),
            *([Text(span.error, "red")] if span.error else []),
        ]
    )


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


@click.command(
    "trace",
    epilog=examples(
        "cra trace Search             # the last queries",
        "cra trace images/gate.jpg    # what became of this image",
        "cra trace 4bf92f3577b34da6   # the trace of a log line",
    ),
)
@click.argument("words", nargs=-1)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of traces; CRA_TRACE_FILE unless given.",
)
@click.option("--last", default=10, show_default=True, type=click.IntRange(1), help="So many.")
@click.option("--json", "as_json", is_flag=True, help="Print the spans as JSON lines.")
@click.pass_obj
def trace(
    settings: Settings, words: tuple[str, ...], file: Path | None, last: int, as_json: bool
) -> None:
    """Show traces as trees: what a query or an image went through, and how long each step took.

    WORDS choose those that hold all of them somewhere: a trace id, a request id, the key of an
    object, the name of a step.
    """
    path = file or (Path(settings.trace_file) if settings.trace_file else None)
    if path is None or not path.exists():
        raise click.ClickException(
            "no file of traces: start the services with CRA_TRACE_FILE=FILE, or give --file"
        )
    with path.open(encoding="utf-8") as lines:
        traces = by_trace(read_spans(lines))
    found = [spans for spans in traces.values() if all(_holds(spans, word) for word in words)]
    if not found:
        raise click.ClickException("no trace holds that" if words else f"{path} holds no trace")
    for spans in found[-last:]:
        if as_json:
            for span in spans:
                click.echo(json.dumps(vars(span), ensure_ascii=False))
        else:
            # Whole lines for a pipe: what is looked for in them must not be cut off.
            wide = Console(width=_PIPE, markup=False, emoji=False, highlight=False)
            (out if out.is_terminal else wide).print(tree(spans), soft_wrap=True)


def _holds(spans: list[Span], word: str) -> bool:
    return any(
        word in text
        for span in spans
        for text in (span.trace_id, span.name, *map(str, span.attributes.values()))
    )
