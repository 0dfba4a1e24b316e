"""From the start of the embedding service to the moment it is ready."""

import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bench.measure import Comparison
from tests.bench.model import CONVERTED, FOLDER, converted, model
from tests.servers import free_ports, object_store, running

CONVERTING: Final = "the first start, which converts the model"


def run(rounds: int) -> list[Comparison]:
    """Compare starts with the converted model at hand and without it."""
    converted()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        fresh = folder / "fresh"
        (folder / "s3").mkdir()
        (folder / "logs").mkdir()
        with object_store(folder / "s3") as store:
            again, first = [], []
            for _ in range(rounds):
                again.append(_start(folder / "logs", CONVERTED, store.s3_endpoint))
                first.append(_start(folder / "logs", fresh, store.s3_endpoint))
                shutil.rmtree(fresh)
    title = "a start of the embedding service, until it is ready"
    return [Comparison(title, again, first, CONVERTING)]


def _start(folder: Path, store: Path, s3_endpoint: str) -> float:
    (port,) = free_ports(1)
    env = {
        "CRA_MODEL": str(model()),
        "CRA_CONVERTED_MODELS": str(store),
        "CRA_EMBEDDING_PORT": str(port),
        "CRA_S3_ENDPOINT": s3_endpoint,
        "CRA_S3_ACCESS_KEY": "tests",
        "CRA_S3_SECRET_KEY": "tests-secret",
    }

    def ready() -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    begun = time.perf_counter()
    with running([sys.executable, "-m", "cra.services.embedding"], folder, ready, env):
        return time.perf_counter() - begun
