"""Every service with as many replicas as wanted, on real stores and free ports."""

import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.search.v1 import search_pb2_grpc as search_grpc
from cra.shared import rpc
from cra.shared.adapters.object_store import connect
from cra.shared.rpc import LIVENESS
from cra.shared.settings import Settings
from deploy.healthcheck import beats, is_serving
from deploy.local.parts import Part
from deploy.local.runner import Runner
from deploy.local.state import PartState
from tests.fakes import picture
from tests.servers import (
    NO_METRICS,
    ROOT,
    free_ports,
    milvus,
    object_store,
    redis_server,
    wait_until,
)

TOKEN: Final = "load"
READY_WITHIN: Final = 240.0
KINDS: Final = ("embedding", "gateway", "ingest", "worker")
PORTS: Final = ("EMBEDDING", "GATEWAY", "INGEST")


class Fleet:
    """The services, kept running by the local stack's own runner, and clients of them."""

    def __init__(
        self,
        env: Mapping[str, str],
        folder: Path,
        ports: Mapping[str, list[int]],
        replicas: int,
        kinds: Sequence[str],
    ) -> None:
        self.env = env
        fields = {name.removeprefix("CRA_").lower(): value for name, value in env.items()}
        self.settings = Settings(
            **{k: v for k, v in fields.items() if k in Settings.model_fields}  # type: ignore[arg-type]
        )
        self._folder = folder
        self._states: list[PartState] = []
        self._bin = Path(sys.executable).parent
        self._ports = ports
        parts, works, self._ready = [], {}, {}
        for number in range(replicas):
            for kind in kinds:
                name = f"{kind}-{number + 1}"
                parts.append(Part(name, self._command(kind, name, number), 30.0))
                if kind == "worker":
                    works[name] = self._ready[name] = self._beats(name, "worker")
                else:
                    port = ports[kind.upper()][number]
                    own = self.settings.model_copy(update={f"{kind}_port": port})
                    works[name] = functools.partial(is_serving, port, own, LIVENESS)
                    self._ready[name] = functools.partial(is_serving, port, own)
        if "worker" in kinds:
            parts.append(Part("beat", self._command("beat", "beat", 0), 30.0))
            works["beat"] = self._ready["beat"] = self._beats("beat", "beat")
        self.names = [part.name for part in parts]
        self.runner = Runner(
            parts, {**os.environ, **env}, ROOT, folder / "logs", (), self._report, works
        )

    def _beats(self, name: str, file: str) -> Any:
        sign = self._folder / "run" / name / file
        # What the process before this one has touched is no sign of this one.
        return lambda: beats(sign) and sign.stat().st_mtime > self.state(name).since

    def _command(self, kind: str, name: str, number: int) -> tuple[str, ...]:
        own = [f"CRA_HEARTBEAT_FOLDER={self._folder / 'run' / name}"]
        own += [f"CRA_{one}_PORT={self._ports[one][number]}" for one in PORTS]
        own += [f"CRA_EVENTS_PORT={self._ports['EVENTS'][number]}"]
        celery = [str(self._bin / "celery"), "-A", "cra.services.ingest.worker"]
        command = {
            "worker": [*celery, "worker", "--pool", "prefork", "-n", f"{name}@%h"],
            "beat": [*celery, "beat", "-s", str(self._folder / "schedule"), "--pidfile="],
        }.get(kind, [sys.executable, "-m", f"cra.services.{kind}"])
        quiet = ["--loglevel", "WARNING"] if kind in {"worker", "beat"} else []
        return ("env", *own, *command, *quiet)

    def _report(self, states: list[PartState]) -> None:
        self._states = states

    def state(self, name: str) -> PartState:
        """Return what the runner last said of a part."""
        return next(one for one in self._states if one.name == name)

    def pids(self) -> dict[str, int]:
        """Return the process of each part that runs."""
        return {one.name: one.pid for one in self._states if one.pid is not None}

    def is_ready(self, name: str) -> bool:
        """Tell whether a part does its job."""
        return bool(self._ready[name]())

    def restart(self, name: str) -> None:
        """End a part as an orderly restart does, and return when its successor does its job."""
        before = self.state(name)
        assert before.pid is not None
        os.kill(before.pid, signal.SIGTERM)
        wait_until(lambda: self.state(name).starts > before.starts, f"{name} is started", 60)
        wait_until(lambda: self.is_ready(name), f"{name} is ready", READY_WITHIN)

    @contextlib.contextmanager
    def search(self) -> Iterator[search_grpc.SearchServiceStub]:
        """Yield a stub of the gateways, on a channel as the client opens it."""
        service = "cra.search.v1.SearchService"
        with rpc.open_channel(self.settings.gateway_target, service) as channel:
            yield search_grpc.SearchServiceStub(channel)

    @contextlib.contextmanager
    def line(self) -> Iterator[ingest_grpc.IngestServiceStub]:
        """Yield a stub of the ingest services."""
        service = "cra.ingest.v1.IngestService"
        with rpc.open_channel(self.settings.ingest_target, service, TOKEN) as channel:
            yield ingest_grpc.IngestServiceStub(channel)

    def put(self, number: int) -> None:
        """Put a picture into the bucket; another number is another picture."""
        colour = (number * 37 % 256, number * 91 % 256, number * 151 % 256)
        content = picture(colour, (320, 240), "JPEG")
        connect(self.settings).put_object(
            "images", f"{number:06}.jpg", io.BytesIO(content), len(content)
        )

    def status(self) -> ingest.GetStatusResponse:
        """Count now."""
        with self.line() as stub:
            return stub.GetStatus(ingest.GetStatusRequest(refresh=True), timeout=30)

    def settled(self) -> bool:
        """Tell whether every object is indexed or failed, and nothing else is left."""
        try:
            now = self.status()
        except grpc.RpcError:
            return False
        left = now.waiting + now.unaccounted + now.stale + now.orphaned
        return left == 0 and now.indexed + now.failed == now.objects


def _target(ports: list[int]) -> str:
    return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)


@contextlib.contextmanager
def running(
    folder: Path,
    model: str,
    replicas: int,
    kind: str = "server",
    kinds: Sequence[str] = KINDS,
    **changes: str,
) -> Iterator[Fleet]:
    """Run all of it, and return when every part does its job.

    Args:
        folder: of all data and logs; is there, and empty.
        model: that is served.
        replicas: of each service and of the worker.
        kind: of Milvus, `server` or `lite`.
        kinds: which services; all, unless given.
        changes: of the environment, without `CRA_`.
    """
    found = free_ports(4 * replicas + 40)[40:]  # what others are about to take is left alone
    ports = {
        name: found[n * replicas : (n + 1) * replicas] for n, name in enumerate((*PORTS, "EVENTS"))
    }
    for name in ("redis", "s3", "milvus", "logs"):
        (folder / name).mkdir()
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(redis_server(folder / "redis"))
        s3 = stack.enter_context(object_store(folder / "s3", ports["EVENTS"][0]))
        uri = stack.enter_context(milvus(folder / "milvus", kind))
        connect(s3).make_bucket("releases")
        env = {
            "CRA_MODEL": model,
            "CRA_MILVUS_URI": uri,
            "CRA_REDIS_URL": redis_url,
            "CRA_S3_ENDPOINT": s3.s3_endpoint,
            "CRA_S3_ACCESS_KEY": s3.s3_access_key,
            "CRA_S3_SECRET_KEY": s3.s3_secret_key.get_secret_value(),
            "CRA_EVENT_TOKEN": s3.event_token.get_secret_value(),
            "CRA_SERVICE_TOKEN": TOKEN,
            "CRA_PAGE_KEY": TOKEN,
            **NO_METRICS,
            "CRA_RECONCILE_SECONDS": "20",
            "CRA_CONVERTED_MODELS": os.environ.get("CRA_CONVERTED_MODELS", str(folder / "model")),
            **{
                f"CRA_{name}_TARGET": "ipv4:"
                + ",".join(f"127.0.0.1:{port}" for port in ports[name])
                for name in PORTS
            },
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            **{f"CRA_{name}": value for name, value in changes.items()},
        }
        fleet = Fleet(env, folder, ports, replicas, kinds)
        fleet.runner.start()
        stack.callback(fleet.runner.stop)
        for name in fleet.names:
            wait_until(functools.partial(fleet.is_ready, name), f"{name} is ready", READY_WITHIN)
        fleet.runner.settle()
        yield fleet
