"""Says by its exit code whether a part of the stack is ready, or at least works.

`healthcheck.py PORT`: the server on this port of this host does its job, as standard gRPC health or
the search page's `/readyz` tells. `healthcheck.py --works PORT`: it works itself, whatever it
depends on; if not, start it again. `healthcheck.py --works FILE`: so does the process that touches
this file. Under TLS a server's certificate must name the host of the service's target, such as
`CRA_GATEWAY_TARGET`.
"""

import argparse
import sys
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cra.shared import rpc
from cra.shared.rpc import LIVENESS
from cra.shared.settings import Settings

WITHIN: Final = 4.0
"""Seconds for one answer."""

FRESH: Final = 20.0
"""Seconds since which a file has to have been touched."""


def is_serving(port: int, settings: Settings, name: str = "") -> bool:
    """Ask a server of ours on this machine, as a client with these settings; no answer is no.

    Args:
        port: where it listens.
        settings: which service has which port, and how to speak to it.
        name: under which health is asked for: LIVENESS, or empty for readiness.
    """
    if port == settings.web_port:
        return _answers(f"http://127.0.0.1:{port}/{'healthz' if name == LIVENESS else 'readyz'}")
    service, target = _services(settings)[port]
    with rpc.open_channel(
        f"ipv4:127.0.0.1:{port}",
        service,
        tls=settings.client_tls,
        authority=rpc.authority_of(target),
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WITHIN)
        except grpc.RpcError as error:
            # It has so much to do that it takes no more calls: it works.
            full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return full and name == LIVENESS
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _services(settings: Settings) -> dict[int, tuple[str, str]]:
    """Return the name and the target of each gRPC service by its port."""
    return {
        settings.gateway_port: ("cra.search.v1.SearchService", settings.gateway_target),
        settings.embedding_port: ("cra.embedding.v1.EmbeddingService", settings.embedding_target),
        settings.ingest_port: ("cra.ingest.v1.IngestService", settings.ingest_target),
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=WITHIN) as answer:  # noqa: S310  our own
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def beats(file: Path) -> bool:
    """Tell whether a file was touched just now."""
    return file.exists() and time.time() - file.stat().st_mtime < FRESH


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description="Ask whether a part of the stack is ready.")
    parser.add_argument("--works", action="store_true", help="whether it works itself")
    parser.add_argument("asked", metavar="PORT|FILE", help="of a server, or which it touches")
    options = parser.parse_args()
    if not options.asked.isdigit():
        sys.exit(not beats(Path(options.asked)))
    settings, port = Settings.load(), int(options.asked)
    known = [*_services(settings), settings.web_port]
    if port not in known:
        parser.error(f"port {port} is none of our servers': {', '.join(map(str, known))}")
    sys.exit(not is_serving(port, settings, LIVENESS if options.works else ""))


if __name__ == "__main__":
    main()
