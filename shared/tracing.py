"""Traces: what one query, or one image, went through in every process. Off unless configured.

The place of a span in its trace goes from process to process as W3C's traceparent, a string of 55
characters; it is empty where nothing is traced. OpenTelemetry is imported when tracing is
configured, so that a client needs none, and what is off costs next to nothing.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, Self

if TYPE_CHECKING:  # neither is there where only a client is installed
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, Span, Tracer

    from cra.shared.settings import Settings

Kind = Literal["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]

EXPORTED_EVERY: Final = 1.0
"""Seconds that a span waits for others to leave with."""

EXPORTED_WITHIN: Final = 2.0
"""Seconds for a collector to take them; the end of a process waits for it, too."""

_MUTED: Final = f"00-{'f' * 32}-{'f' * 16}-00"
"""A place in a trace that nobody keeps."""

_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None
_current: "Final[ContextVar[Span | None]]" = ContextVar("span", default=None)


def configure(service: str, settings: "Settings") -> None:
    """Begin to trace this process, if the settings say where spans go to; not before a fork.

    Args:
        service: its name in traces.
        settings: `otlp_endpoint` and `trace_file`, either or both, and `trace_sample`.
    """
    global _provider, _tracer
    if not settings.otlp_endpoint and not settings.trace_file:
        return
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(settings.trace_sample),
        resource=Resource.create(
            {"service.name": service, "service.namespace": "cra", "process.pid": os.getpid()}
        ),
    )
    for exporter in _exporters(settings):
        provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=EXPORTED_EVERY * 1000)
        )
    _provider, _tracer = provider, provider.get_tracer("cra")


def _exporters(settings: "Settings") -> "Iterable[SpanExporter]":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult  # noqa: PLC0415

    class File(SpanExporter):
        """Appends spans to a file, each a line of JSON; processes may share it."""

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            lines = "".join(f"{span.to_json(indent=None)}\n" for span in spans).encode()
            # One write: what is appended so is never mixed with the lines of another process.
            file = os.open(settings.trace_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, lines)
            finally:
                os.close(file)
            return SpanExportResult.SUCCESS

    if settings.otlp_endpoint:
        endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        yield OTLPSpanExporter(endpoint=endpoint, timeout=EXPORTED_WITHIN)
    if settings.trace_file:
        yield File()


def close() -> None:
    """Send what is left and trace no more."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.shutdown()


def is_on() -> bool:
    """Tell whether this process is traced."""
    return _tracer is not None


def mute() -> None:
    """Have what this thread does from now on be traced nowhere: it is our own asking."""
    if _tracer is not None:
        from opentelemetry import trace  # noqa: PLC0415

        _current.set(trace.get_current_span(_context_of(_MUTED)))


def current() -> str:
    """Return the traceparent of the span that this thread is in; empty if there is none."""
    if _tracer is None:
        return ""
    span = _current.get()
    return "" if span is None else _traceparent(span)


def sampled() -> str:
    """Return the traceparent of the span that this thread is in, if that is kept; else empty."""
    traceparent = current()
    return traceparent if _is_sampled(traceparent) else ""


def inside(traceparent: str) -> str:
    """Return the innermost place known in a trace: this thread's span, if it is of that one."""
    here = sampled()
    return here if here[:35] == traceparent[:35] else traceparent


def ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the span that this thread is in, for its log lines."""
    traceparent = sampled()
    if not traceparent:
        return {}
    _, trace_id, span_id, _ = traceparent.split("-")
    return {"trace_id": trace_id, "span_id": span_id}


def _is_sampled(traceparent: str) -> bool:
    return traceparent != "" and traceparent[-1] in "13579bdf"  # its last bit says so


def _traceparent(span: "Span") -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context_of(traceparent: str) -> "Context":
    """Return the context of a traceparent; an empty one of what is none."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier = {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _links(traceparents: Iterable[str]) -> "list[Link]":
    from opentelemetry import trace  # noqa: PLC0415

    spans = (trace.get_current_span(_context_of(one)) for one in traceparents)
    return [trace.Link(span.get_span_context()) for span in spans]


class Scope:
    """A block that may be a span; this one is none."""

    traceparent = ""
    """Its place in its trace; empty if it is none."""

    def end(self) -> None:
        """End it, where it is not used as a block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        pass

    def note(self, **attributes: str | int | float | Sequence[str]) -> None:
        """Add attributes. Never the text of a query, nor a secret."""

    def rename(self, name: str) -> None:
        """Call it by what is known only now: what is done, the same for every request."""

    def fail(self, reason: str) -> None:
        """Mark it as failed, for a reason in a word: messages may hold what a query said."""


_NO_SPAN: Final = Scope()


class _Span(Scope):
    """A span that is current inside of its block.

    Args:
        span: has begun.
        others: places in further traces where it is to be seen, too.
    """

    def __init__(self, span: "Span", others: Sequence[str]) -> None:
        self._span, self._others = span, others
        self._began = time.time_ns()
        self.traceparent = _traceparent(span)

    def __enter__(self) -> Self:
        self._outer = _current.get()
        _current.set(self._span)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        _current.set(self._outer)
        if kind is not None and kind is not GeneratorExit:
            self.fail(kind.__name__)
        self.end()

    def end(self) -> None:
        self._span.end()
        name = getattr(self._span, "name", "")
        for other in self._others:
            record(name, self._began, time.time_ns(), other, [self.traceparent])

    def note(self, **attributes: str | int | float | Sequence[str]) -> None:
        self._span.set_attributes(_attributes(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.set_status(StatusCode.ERROR, reason)


def _attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes under names of ours, but for those of the standard, which hold a dot."""
    return {name if "." in name else f"cra.{name}": value for name, value in given.items()}


def span(
    name: str,
    parent: str | None = None,
    kind: Kind = "INTERNAL",
    links: Iterable[str] = (),
    **attributes: Any,
) -> Scope:
    """Return a block that is a span, if this process is traced.

    Args:
        name: what is done, the same for every request.
        parent: its traceparent; empty: a trace begins here. None: the span around it, and without
            that there is none.
        kind: which end of a call it is.
        links: traceparents of spans of other traces that have to do with it.
        attributes: as `Scope.note` takes them.
    """
    if _tracer is None:
        return _NO_SPAN
    if parent is None and _current.get() is None:
        return _NO_SPAN
    parent = current() if parent is None else parent
    return _Span(_start(name, parent, kind, attributes, links), ())


def shared_span(name: str, parents: Iterable[str], **attributes: Any) -> Scope:
    """Return a block that does something for several traces at once: a span in each of them.

    What it calls is seen in the first of them, to which the spans of the others link.
    """
    if _tracer is None:
        return _NO_SPAN
    first, *others = [*dict.fromkeys(filter(_is_sampled, parents))] or [""]
    if not first:
        return _NO_SPAN
    return _Span(_start(name, first, "INTERNAL", attributes), others)


def note(**attributes: Any) -> None:
    """Add attributes to the span that this thread is in; see `Scope.note`."""
    span = _current.get() if _tracer is not None else None
    if span is not None:
        span.set_attributes(_attributes(attributes))


def _start(
    name: str, parent: str, kind: Kind, attributes: Mapping[str, Any], links: Iterable[str] = ()
) -> "Span":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    assert _tracer is not None  # noqa: S101 - whoever calls has looked
    return _tracer.start_span(
        name,
        _context_of(parent),
        SpanKind[kind],
        _attributes(attributes),
        _links(links),
    )


def record(
    name: str, began: int, ended: int, parent: str, links: Iterable[str] = (), **attributes: Any
) -> None:
    """Add a span that is over.

    Args:
        name: what was done.
        began: Unix nanoseconds.
        ended: likewise.
        parent: traceparent; nothing is added if that is not kept.
        links: traceparents of spans that have to do with it.
        attributes: as `Scope.note` takes them.
    """
    if _tracer is None or not _is_sampled(parent):
        return
    _tracer.start_span(
        name,
        _context_of(parent),
        attributes=_attributes(attributes),
        links=_links(links),
        start_time=began,
    ).end(ended)
