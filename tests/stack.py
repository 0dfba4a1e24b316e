"""The local stack as its users see it: every process real, driven from outside."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from dotenv import dotenv_values
from minio import Minio

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.shared import rpc
from cra.shared.adapters.object_store import connect, encode_metadata
from cra.shared.client import SearchClient
from cra.shared.settings import Settings
from deploy.local.environment import LocalSettings
from tests.servers import ROOT, free_ports, starting, wait_until

INGEST = "cra.ingest.v1.IngestService"
METRICS_PORTS = [name for name in Settings.model_fields if name.endswith("_metrics_port")]


class Stack:
    """A running stack and clients of it."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        names = {name.removeprefix("CRA_").lower(): value for name, value in env.items()}
        fields = {name: value for name, value in names.items() if name in Settings.model_fields}
        self.settings = Settings(**fields)  # type: ignore[arg-type]
        self.bucket: Minio = connect(self.settings)
        self.search = SearchClient.of(self.settings, timeout=20)
        self.ingest = self.ingest_stub(self.settings.service_token.get_secret_value())

    def ingest_stub(self, token: str) -> ingest_grpc.IngestServiceStub:
        """Return a stub of the ingest service that sends this token."""
        channel = rpc.open_channel(
            self.settings.ingest_target, INGEST, token, self.settings.client_tls
        )
        return ingest_grpc.IngestServiceStub(channel)

    def put(self, key: str, content: bytes, metadata: dict[str, str] | None = None) -> None:
        """Put an object into the bucket."""
        headers = encode_metadata(metadata or {})
        self.bucket.put_object("images", key, io.BytesIO(content), len(content), metadata=headers)

    def status(self) -> ingest.GetStatusResponse:
        """Count now."""
        return self.ingest.GetStatus(ingest.GetStatusRequest(refresh=True), timeout=20)

    def settled(self) -> bool:
        """Tell whether every object is indexed or failed and nothing else is left."""
        status = self.status()
        left = status.waiting + status.unaccounted + status.stale + status.orphaned
        return left == 0 and status.indexed + status.failed == status.objects

    def best(self, image: bytes) -> tuple[str, float]:
        """Return key and score of the first hit for a picture."""
        hits = self.search.search(image=image, top_k=1).hits
        return (hits[0].key, hits[0].score) if hits else ("", 0.0)

    def follows(self, image: bytes, key: str) -> None:
        """Wait until a picture is found under a key with a cosine above 0.99."""
        wait_until(lambda: self.best(image) > (key, 0.99) and self.best(image)[0] == key, key)

    def metrics(self) -> dict[str, str]:
        """Return what each process shows to Prometheus, by the setting of its port."""
        pages = {}
        for name in METRICS_PORTS:
            url = f"http://127.0.0.1:{getattr(self.settings, name)}/metrics"
            pages[name] = httpx.get(url, timeout=20).text
        return pages

    def cra(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        command = [str(Path(sys.executable).parent / "cra"), *arguments]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )


_PORTS = [
    name.removesuffix("_port").upper()
    for name in (*Settings.model_fields, *LocalSettings.model_fields)
    if name.endswith("_port")
]


@contextlib.contextmanager
def local_stack(folder: Path, model: Path, milvus: str, **changes: str) -> Iterator[Stack]:
    """Run the local stack on free ports.

    Args:
        folder: its data.
        model: that it serves.
        milvus: `server` or `lite`.
        changes: of its environment, without `CRA_`.
    """
    ports = dict(zip(_PORTS, map(str, free_ports(len(_PORTS))), strict=True))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CRA_")},
        **{f"CRA_{name}_PORT": port for name, port in ports.items()},
        "CRA_CONVERTED_MODELS": os.environ.get("CRA_CONVERTED_MODELS", ""),
        "CRA_DATA_DIR": str(folder),
        "CRA_LOCAL_MILVUS": milvus,
        "CRA_MODEL": str(model),
        **{f"CRA_{name}": value for name, value in changes.items()},
    }
    command = [sys.executable, "-m", "deploy.stack"]
    with starting():
        start = subprocess.run(
            [*command, "up", "--detach"],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert start.returncode == 0, start.stdout + start.stderr
    try:
        published = dotenv_values(folder / "run" / "stack.env")
        yield Stack({**env, **{name: value or "" for name, value in published.items()}})
    finally:
        subprocess.run([*command, "down"], env=env, cwd=ROOT, timeout=180, check=True)
