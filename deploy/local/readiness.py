"""Whether the parts of the stack do their jobs, and waiting until they do."""

import hashlib
import itertools
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Final

import redis

from cra.shared.adapters import object_store
from cra.shared.rpc import LIVENESS
from cra.shared.settings import Settings
from deploy.healthcheck import beats, is_serving
from deploy.local.environment import LocalSettings, StackError
from deploy.local.milvus import metrics_port_file
from deploy.local.runner import tail
from deploy.local.state import StateFile

_PROBE_SECONDS: Final = 2.0
_ROOM: Final = 64 * 2**20
"""Bytes free on a disk from which on it is not full."""
_DATABASES: Final = 8
"""LevelDBs of SeaweedFS."""
_GIVE_UP_AFTER: Final = 4
"""Starts after which a part that is down again will not come up by itself."""


def probes(settings: Settings, local: LocalSettings) -> dict[str, Callable[[], bool]]:
    """Return for each part that can be asked a question that is True once it is ready."""
    return {
        "redis": lambda: _redis(settings),
        "s3": lambda: _buckets(settings),
        "milvus": lambda: _listens(local.milvus_port) and milvus_is_sound(local),
        "events": lambda: _http(f"http://127.0.0.1:{settings.events_port}/healthz"),
        "embedding": lambda: is_serving(settings.embedding_port, settings),
        "ingest": lambda: is_serving(settings.ingest_port, settings),
        "gateway": lambda: is_serving(settings.gateway_port, settings),
        "web": lambda: is_serving(settings.web_port, settings),
    }


def signs_of_life(
    settings: Settings, local: LocalSettings, admin: Settings
) -> dict[str, Callable[[], bool]]:
    """Return for each part a question that is False once its process has to be started again.

    What it depends on may be down meanwhile. A foundation that takes its time is not killed over
    it, only one that has come to an end by its own words.

    Args:
        settings: of the services.
        local: of the local stack.
        admin: settings of who may do everything in the object store.
    """
    folder = Path(settings.heartbeat_folder)
    return {
        "embedding": lambda: is_serving(settings.embedding_port, settings, LIVENESS),
        "ingest": lambda: is_serving(settings.ingest_port, settings, LIVENESS),
        "gateway": lambda: is_serving(settings.gateway_port, settings, LIVENESS),
        "web": lambda: is_serving(settings.web_port, settings, LIVENESS),
        "worker": lambda: beats(folder / "worker"),
        "beat": lambda: beats(folder / "beat"),
        "milvus": lambda: milvus_is_sound(local),
        "s3": lambda: store_takes_objects(admin, local.data),
    }


def store_takes_objects(admin: Settings, folder: Path) -> bool:
    """Tell whether the object store does not fail to note what is put, with room on its disk.

    SeaweedFS notes objects in several LevelDBs. One that had no room for a line writes no more,
    even when there is room again, until it is opened anew. So an empty object is put into each, and
    removed, in the bucket of releases, whose events go to nobody. A store that does not answer may
    be busy, or starting.

    Args:
        admin: settings of who may do everything in it.
        folder: of its data.
    """
    client, bucket = object_store.connect(admin), admin.releases_bucket
    for key in _a_key_for_each_database(bucket):
        try:
            for method in ("PUT", "DELETE"):
                url = client.get_presigned_url(method, bucket, key)
                request = urllib.request.Request(url, b"", method=method)  # noqa: S310  our own
                urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            full = shutil.disk_usage(folder).free < _ROOM
            if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR and not full:
                return False
        except (OSError, HTTPException):
            return True
    return True


def _a_key_for_each_database(bucket: str) -> list[str]:
    """Return keys that SeaweedFS notes in different LevelDBs, which it chooses by the folder.

    As `hashToBytes` of its store `leveldb2` does.
    """
    found: dict[int, str] = {}
    for number in itertools.count():
        folder = f".alive/{number}"
        digest = hashlib.md5(f"/buckets/{bucket}/{folder}".encode(), usedforsecurity=False).digest()
        found.setdefault(digest[-1] % _DATABASES, f"{folder}/x")
        if len(found) == _DATABASES:
            break
    return list(found.values())


def milvus_is_sound(local: LocalSettings) -> bool:
    """Tell whether the Milvus server does not call one of its components abnormal.

    One that lost its lease, because it was stopped for longer, says so and serves no more. It means
    to end then, but has been seen not to. One that does not answer may be busy, or starting.
    """
    try:
        port = int(metrics_port_file(local).read_text())
        _http(f"http://127.0.0.1:{port}/healthz")
    except urllib.error.HTTPError as error:
        return b"Abnormal" not in error.read()
    except (OSError, ValueError, HTTPException):
        return True
    return True


def missing(questions: Mapping[str, Callable[[], bool]]) -> list[str]:
    """Return the parts that are not ready now."""
    return [name for name, question in questions.items() if not _ask(question)]


def make_buckets(settings: Settings, stopped: Callable[[], bool]) -> list[str]:
    """Make the buckets as soon as the object store answers; return those that were new."""
    client = object_store.connect(settings)
    made = []
    for bucket in (*settings.buckets, settings.releases_bucket):
        while not stopped():
            try:
                if not client.bucket_exists(bucket):
                    client.make_bucket(bucket)
                    made.append(bucket)
                break
            except Exception:  # not up yet, in any of the ways of the SDK
                time.sleep(0.5)
    return made


def wait(settings: Settings, local: LocalSettings, file: StateFile, seconds: float) -> None:
    """Wait until every part is ready, and name on a line those that are not yet.

    Raises:
        StackError: a part keeps dying, or time is up; with the end of its log.
    """
    questions = probes(settings, local)
    began = time.monotonic()
    line = Line()
    while awaited := missing(questions):
        state = file.running()
        if state is None:
            line.end()
            raise StackError(f"the stack ended:\n{tail(local.data / 'logs' / 'stack.log')}")
        ends = {part.name: part.starts - (part.state == "running") for part in state.parts}
        named = [f"{name} (ended {ends[name]}×)" if ends.get(name) else name for name in awaited]
        line.show(f"waiting for {', '.join(named)}", time.monotonic() - began)
        for part in state.parts:
            if part.state != "running" and part.starts >= _GIVE_UP_AFTER:
                line.end()
                log = local.data / "logs" / f"{part.name}.log"
                raise StackError(f"{part.name} keeps ending; the last lines of {log}:\n{tail(log)}")
        if time.monotonic() - began > seconds:
            line.end()
            logs = local.data / "logs"
            tails = [f"{logs / name}.log:\n{tail(logs / f'{name}.log', 8)}" for name in awaited]
            raise StackError("\n".join([f"not ready after {seconds:g} s", *tails]))
        time.sleep(0.5)
    line.end()


class Line:
    """A line of progress: rewritten in place on a terminal, else printed when its text changes."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._text = ""

    def show(self, text: str, seconds: float) -> None:
        """Show what is going on."""
        if self._terminal:
            print(f"\r\033[K{text} ({seconds:.0f} s)", end="", flush=True)
        elif text != self._text:
            print(f"{text} ({seconds:.0f} s)", flush=True)
        self._text = text

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._text:
            print("\r\033[K", end="", flush=True)


def _ask(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except Exception:  # whatever is wrong, it is not ready
        return False


def _redis(settings: Settings) -> bool:
    url = settings.redis_url.get_secret_value()
    with redis.Redis.from_url(url, socket_timeout=_PROBE_SECONDS) as client:
        return bool(client.ping())


def _buckets(settings: Settings) -> bool:
    client = object_store.connect(settings)
    buckets = (*settings.buckets, settings.releases_bucket)
    return all(client.bucket_exists(bucket) for bucket in buckets)


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), _PROBE_SECONDS):
        return True


def _http(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=_PROBE_SECONDS) as answer:  # noqa: S310  our own
        return bool(answer.status == 200)
