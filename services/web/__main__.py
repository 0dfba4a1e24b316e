"""Runs the search page."""

import socket

import structlog
import uvicorn

from cra.services.web.app import create_app
from cra.services.web.backends import Backends
from cra.shared.errors import FailedPreconditionError
from cra.shared.server import run_service
from cra.shared.settings import Settings
from cra.shared.telemetry import serve_metrics

_log = structlog.get_logger()


def main(settings: Settings) -> None:
    """Serve until SIGTERM, drain."""
    backends = Backends.of(settings)
    # Bound here, so that a port that is taken ends the service at once.
    try:
        listener = socket.create_server((settings.host, settings.web_port))
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot listen on {settings.host}:{settings.web_port}: {error.strerror}"
        ) from error
    # asyncio sets this for sockets of its own making alone; accepted ones inherit it. Without it an
    # answer in two pieces waits 40 ms for the other side's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    serve_metrics(settings.host, settings.web_metrics_port)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, backends),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(settings.drain_seconds),
        )
    )
    _log.info("serving", address=f"http://{settings.host}:{settings.web_port}")
    server.run(sockets=[listener])
    backends.close()


if __name__ == "__main__":
    run_service("web", main)
