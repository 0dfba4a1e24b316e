"""Exits 0 if a gRPC server of this container says that it is serving: `healthcheck.py gateway`.

Under TLS its certificate must name the host of the service's target, `CRA_GATEWAY_TARGET`.
"""

import sys
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cra.shared import rpc
from cra.shared.settings import Settings

SERVICES = {
    "gateway": "cra.search.v1.SearchService",
    "embedding": "cra.embedding.v1.EmbeddingService",
    "ingest": "cra.ingest.v1.IngestService",
}


def is_serving(name: str, settings: Settings, timeout: float) -> bool:
    """Ask one of SERVICES on this machine, as a client with these settings.

    Raises:
        grpc.RpcError: it does not answer within `timeout` seconds.
    """
    port: int = getattr(settings, f"{name}_port")
    target: str = getattr(settings, f"{name}_target")
    with rpc.open_channel(
        f"ipv4:127.0.0.1:{port}",
        SERVICES[name],
        tls=settings.client_tls,
        authority=rpc.authority_of(target),
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Ask once."""
    sys.exit(not is_serving(sys.argv[1], Settings.load(), timeout=4))


if __name__ == "__main__":
    main()
