"""Says by its exit code whether a part of the stack is ready, or at least works.

`healthcheck.py PORT`: the gRPC server on this port of this host does its job. `healthcheck.py
--works PORT`: it works itself, whatever it depends on; if not, start it again. `healthcheck.py
--works FILE`: so does the process that touches this file.
"""

import sys
import time
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cra.shared.rpc import LIVENESS

WITHIN: Final = 4.0
"""Seconds for one answer."""

FRESH: Final = 20.0
"""Seconds since which a file has to have been touched."""


def serves(target: str, service: str = "") -> bool:
    """Tell whether a gRPC server says that it serves; no answer is no."""
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WITHIN)
        except grpc.RpcError as error:
            # It has so much to do that it takes no more calls: it works.
            full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return full and service == LIVENESS
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def beats(file: Path) -> bool:
    """Tell whether a file was touched just now."""
    return file.exists() and time.time() - file.stat().st_mtime < FRESH


def main() -> None:
    """Ask once."""
    *options, asked = sys.argv[1:]
    works = options == ["--works"]
    if not asked.isdigit():
        sys.exit(not beats(Path(asked)))
    sys.exit(not serves(f"127.0.0.1:{asked}", LIVENESS if works else ""))


if __name__ == "__main__":
    main()
