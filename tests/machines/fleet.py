"""Two of everything of ours, each on a machine of its own, and other people's servers on one."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import redis
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from cra.shared.adapters.object_store import connect
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.settings import Settings
from tests.faults.tally import Tally
from tests.machines.network import Machine, Network, network
from tests.servers import ROOT, Place, milvus, object_store, redis_server, wait_until
from tests.stack import Stack

PARTS: Final = ("gateway", "embedding", "ingest", "worker", "beat", "web")
REPLICAS: Final = (1, 2)
STORES: Final = "stores"
"""The machine of other people's servers."""
CALLERS: Final = "callers"
READY_WITHIN: Final = 300.0
ANSWERS_WITHIN: Final = 3.0
TOKEN: Final = "machines"
TARGETS: Final = {"gateway": 50051, "embedding": 50052, "ingest": 50053}
EVENTS: Final = 8081
_BIN: Final = Path(sys.executable).parent

_USED: Final[Mapping[str, tuple[str, dict[str, str]]]] = {
    "gateway": ("cra_grpc_server_calls", {"service": "cra.search.v1.SearchService", "code": "OK"}),
    "embedding": ("cra_grpc_server_calls", {"code": "OK"}),
    "ingest": ("cra_grpc_server_calls", {"service": "cra.ingest.v1.IngestService", "code": "OK"}),
    "worker": ("cra_ingest_objects_processed", {"outcome": "done"}),
    "web": ("cra_http_requests", {"route": "/api/search", "code": "200"}),
}
"""What a replica of each part counts when it does its job: a metric, and labels of it."""


class Process:
    """One process of ours on its machine, which keeps what it says in a log.

    Args:
        name: of the replica.
        machine: where it runs.
        env: of it.
        folder: of its own; made here.
    """

    def __init__(self, name: str, machine: Machine, env: Mapping[str, str], folder: Path) -> None:
        self.name, self.part, self.machine = name, name.rpartition("-")[0], machine
        self.folder = folder
        folder.mkdir()
        self._env = {
            **env,
            "CRA_HEARTBEAT_FOLDER": str(folder),
            "CRA_WEB_THUMBNAILS": str(folder / "thumbnails"),
        }
        celery = [str(_BIN / "celery"), "-A", "cra.services.ingest.worker"]
        quiet = ["--loglevel", "WARNING"]
        self._command = {
            "worker": [*celery, "worker", "--pool", "prefork", "-n", f"{name}@%h", *quiet],
            "beat": [*celery, "beat", "-s", str(folder / "schedule"), "--pidfile=", *quiet],
        }.get(self.part, [sys.executable, "-m", f"cra.services.{self.part}"])
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        """`time.time()` of its last start."""

    def start(self) -> None:
        """Start it."""
        self.started = time.time()
        with (self.folder / "log").open("ab") as out:
            self._process = subprocess.Popen(
                self.machine.command(*self._command),
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill it, and every process that it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def ended(self) -> int | None:
        """Its exit code, if it has ended."""
        return self._process.poll() if self._process else None

    def log(self) -> str:
        """Return the end of what it has said."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]


class Fleet:
    """All processes of ours.

    Args:
        net: their machines.
        env: that all have.
        folder: of all their data and logs.
        line: Redis.
    """

    def __init__(
        self, net: Network, env: Mapping[str, str], folder: Path, line: redis.Redis
    ) -> None:
        self.net, self.env = net, dict(env)
        self.settings = _settings_of(env)
        self.outside = self.settings
        """Settings of who is on none of the machines, and knows no names."""
        self._line = line
        self._http = urllib3.PoolManager(timeout=ANSWERS_WITHIN, retries=False)
        self.processes: Final = {
            name: Process(name, net.machines[name], env, folder / name)
            for part in PARTS
            for name in names_of(part)
        }

    def start(self) -> None:
        """Start all, and return when every one does its job."""
        for process in self.processes.values():
            process.start()
        for name in self.processes:
            wait_until(lambda n=name: self.is_ready(n), f"{name} is ready", READY_WITHIN, 0.5)  # type: ignore[misc]

    def stop(self) -> None:
        """End all."""
        for process in self.processes.values():
            process.kill()

    def is_ready(self, name: str) -> bool:
        """Tell whether a process does its job, as far as it says so."""
        process = self.processes[name]
        if process.ended is not None:
            raise AssertionError(f"{name} has ended with {process.ended}: {process.log()}")
        if process.part == "beat":
            sign = process.folder / "beat"
            return sign.exists() and sign.stat().st_mtime > process.started
        if process.part == "web":
            return self._get(process, self.settings.web_port, "/readyz") is not None
        families = self._metrics(process)
        if process.part == "worker":  # it shows metrics once it takes tasks
            return families is not None
        ready = [family for family in families or () if family.name == "cra_ready"]
        return any(sample.value == 1 for family in ready for sample in family.samples)

    def raise_dead(self) -> list[str]:
        """Start again whatever has ended by itself, as a supervisor does; say what has."""
        found = []
        for name, process in self.processes.items():
            if process.ended is not None:
                found.append(f"{name} ended by itself, with {process.ended}")
                process.start()
        return found

    def uses(self, name: str) -> float | None:
        """Return how often a process has done its job; None while it cannot be asked.

        Beat counts nothing: that is the time of its last word to the broker.
        """
        process = self.processes[name]
        if process.part == "beat":
            return self._last_word(process)
        families = self._metrics(process)
        if families is None:
            return None
        metric, labels = _USED[process.part]
        return sum(
            float(sample.value)
            for family in families
            if family.name == metric
            for sample in family.samples
            if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
        )

    def _last_word(self, process: Process) -> float | None:
        start = f"{process.machine.address}:"
        idle = [
            float(client["idle"])
            for client in self._line.client_list()
            if client["addr"].startswith(start)
        ]
        # Redis tells whole seconds.
        return time.time() - min(idle) - 1 if idle else None

    def _metrics(self, process: Process) -> list[Any] | None:
        port = getattr(self.settings, f"{process.part}_metrics_port")
        page = self._get(process, port, "/metrics")
        return None if page is None else list(text_string_to_metric_families(page))

    def _get(self, process: Process, port: int, path: str) -> str | None:
        try:
            answer = self._http.request("GET", f"http://{process.machine.address}:{port}{path}")
        except urllib3.exceptions.HTTPError:
            return None
        return answer.data.decode() if answer.status == 200 else None


class Callers:
    """Who asks from a machine of its own, as long as the block lasts; see callers.py."""

    def __init__(self, fleet: Fleet, anchors: Mapping[str, bytes]) -> None:
        command = [sys.executable, "-m", "tests.machines.callers"]
        self._process = subprocess.Popen(
            fleet.net.machines[CALLERS].command(*command),
            cwd=ROOT,
            env=fleet.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said = {key: base64.b64encode(data).decode() for key, data in anchors.items()}
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "asking\n"

    def stop(self) -> list[dict[str, Any]]:
        """Stop asking; return what backends and visitors of the page were told."""
        told, _ = self._process.communicate(timeout=60)
        found: list[dict[str, Any]] = json.loads(told)
        return found

    def kill(self) -> None:
        """End, however it stands."""
        self._process.kill()
        self._process.wait()


def names_of(part: str) -> list[str]:
    """Return the names of a part's replicas."""
    return [f"{part}-{number}" for number in REPLICAS]


def _settings_of(env: Mapping[str, str]) -> Settings:
    """Return the settings in an environment."""
    fields = {name.removeprefix("CRA_").lower(): value for name, value in env.items()}
    return Settings(**{k: v for k, v in fields.items() if k in Settings.model_fields})  # type: ignore[arg-type]


@contextlib.contextmanager
def running(folder: Path, milvus_kind: str, **changes: str) -> Iterator[tuple[Fleet, Tally]]:
    """Run all of it, and return when every process does its job.

    Args:
        folder: of all data and logs; is there, and empty.
        milvus_kind: `server` or `lite`.
        changes: of the environment, without `CRA_`.

    Raises:
        NoMachinesError: there can be no machines here.
    """
    replicas = [name for part in PARTS for name in names_of(part)]
    hosts = {part: names_of(part) for part in ("gateway", "embedding", "ingest", "web")}
    hosts |= {"events": names_of("ingest"), STORES: [STORES]}
    for name in ("redis", "s3", "milvus"):
        (folder / name).mkdir()
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network([STORES, CALLERS, *replicas], hosts))
        place = Place(net.machines[STORES].address, tuple(net.machines[STORES].command()))
        redis_url = stack.enter_context(redis_server(folder / "redis", place))
        s3 = stack.enter_context(
            object_store(folder / "s3", place=place, events=f"http://events:{EVENTS}/events")
        )
        uri = stack.enter_context(milvus(folder / "milvus", milvus_kind, place))
        connect(s3).make_bucket("releases")
        outside = {
            "CRA_MODEL": str(ROOT / "deploy" / "models" / "miniature"),
            "CRA_HOST": "0.0.0.0",  # noqa: S104  there is nobody else on its machine
            "CRA_MILVUS_URI": uri,
            "CRA_REDIS_URL": redis_url,
            "CRA_S3_ENDPOINT": s3.s3_endpoint,
            "CRA_S3_ACCESS_KEY": s3.s3_access_key,
            "CRA_S3_SECRET_KEY": s3.s3_secret_key.get_secret_value(),
            "CRA_EVENT_TOKEN": s3.event_token.get_secret_value(),
            **{f"CRA_{name}": TOKEN for name in ("SERVICE_TOKEN", "PAGE_KEY", "WEB_KEY")},
            "CRA_CONVERTED_MODELS": os.environ.get("CRA_CONVERTED_MODELS", str(folder / "model")),
            "CRA_TOWER_THREADS": "1",
            "CRA_WORKER_PROCESSES": "2",
            "CRA_QUERY_CACHE": "0",
            "CRA_RECONCILE_SECONDS": "30",
            **{f"CRA_{name}": value for name, value in changes.items()},
        }
        own = {name: value for name, value in os.environ.items() if not name.startswith("CRA_")}
        inside = {
            **own,
            **outside,
            "PYTHONUNBUFFERED": "1",
            **{
                f"CRA_{part.upper()}_TARGET": f"dns:///{part}:{port}"
                for part, port in TARGETS.items()
            },
        }
        line = redis.Redis.from_url(redis_url, decode_responses=True)
        fleet = Fleet(net, inside, folder, line)
        stack.callback(fleet.stop)
        fleet.start()
        for part, port in TARGETS.items():
            behind = ",".join(f"{net.machines[one].address}:{port}" for one in names_of(part))
            outside[f"CRA_{part.upper()}_TARGET"] = f"ipv4:{behind}"
        seen = Stack({**own, **outside})
        fleet.outside = seen.settings
        tally = Tally(seen, seen.bucket, MilvusVectorStore(seen.settings), line)
        stack.callback(tally.close)
        tally.fill()
        yield fleet, tally
