"""Exits 0 if the gRPC server on a port of this container says that it is serving."""

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main() -> None:
    """Ask once."""
    with grpc.insecure_channel(f"127.0.0.1:{int(sys.argv[1])}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=4)
    sys.exit(answer.status != health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    main()
