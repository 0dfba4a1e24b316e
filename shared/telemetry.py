"""Structured logs, one line an event, with the ids of its request, task and trace; and metrics."""

import logging
import secrets
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from cra.shared import tracing
from cra.shared.errors import FailedPreconditionError


def configure_logging(service: str, log_format: str = "console", level: str = "INFO") -> None:
    """Send structlog's and the standard library's lines to stderr in one format."""

    def add_origin(
        _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["service"] = service
        event.update(tracing.ids())
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        add_origin,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # It logs each failed request with a traceback; our adapter raises, and who catches logs.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    # An outage is told by the adapter's error; these would tell it again at every try.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def serve_metrics(host: str, port: int, registry: CollectorRegistry = REGISTRY) -> None:
    """Show metrics to Prometheus at `/metrics`, unless `port` is 0.

    Args:
        host: address to listen on.
        port: likewise.
        registry: what is shown; this process's own metrics, unless given.

    Raises:
        FailedPreconditionError: the port is taken.
    """
    if not port:
        return
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot listen on {host}:{port}: {error.strerror}"
        ) from error


def new_id() -> str:
    """Return a fresh id for a request or task: 32 hex digits."""
    return secrets.token_hex(16)
