"""Exits 0 if the gRPC server on a port of this container says that it is serving.

Under TLS its certificate must name the host of the service's target, such as `CRA_GATEWAY_TARGET`.
"""

import sys
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cra.shared import rpc
from cra.shared.settings import Settings


def is_serving(port: int, settings: Settings, timeout: float) -> bool:
    """Ask a server of ours on this machine, as a client with these settings.

    Raises:
        grpc.RpcError: it does not answer within `timeout` seconds.
    """
    service, target = {
        settings.gateway_port: ("cra.search.v1.SearchService", settings.gateway_target),
        settings.embedding_port: ("cra.embedding.v1.EmbeddingService", settings.embedding_target),
        settings.ingest_port: ("cra.ingest.v1.IngestService", settings.ingest_target),
    }[port]
    with rpc.open_channel(
        f"ipv4:127.0.0.1:{port}",
        service,
        tls=settings.client_tls,
        authority=rpc.authority_of(target),
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Ask once."""
    sys.exit(not is_serving(int(sys.argv[1]), Settings.load(), timeout=4))


if __name__ == "__main__":
    main()
