"""Redis behind TLS and a password: who it is gets checked, and the password stays unseen."""

import contextlib
import os
import socket
import ssl
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu import pools
from pydantic import SecretStr

from cra.services.ingest import tasks
from cra.services.ingest.ledger import Ledger
from cra.shared.errors import UnavailableError
from cra.shared.settings import Settings
from tests import servers
from tests.certificates import Authority

PASSWORD = "hush-hush-0123456789"


@contextlib.contextmanager
def tls_before(port: int, authority: Authority) -> Iterator[int]:
    """Run what speaks TLS on another port and passes on to this one; yield that port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("redis", "localhost"))
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with contextlib.suppress(ssl.SSLError):  # a client that does not trust us
                    client = context.wrap_socket(plain, server_side=True)
                    server = socket.create_connection(("127.0.0.1", port))
                    for pair in ((client, server), (server, client)):
                        threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis with a password."""
    with servers.redis_server(tmp_path_factory.mktemp("guarded")) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("requirepass", PASSWORD)
        port = urllib.parse.urlsplit(url).port
        assert port
        yield port


def test_redis_is_known_by_its_certificate(guarded: int, tmp_path: Path) -> None:
    """Ledger and Celery work over rediss:// with the right authority, and not with another.

    Break: `ssl_cert_reqs=none` in the URL, which the settings would refuse.
    """
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    with tls_before(guarded, ours) as port:
        for authority in (ours, other):
            url = (
                f"rediss://:{PASSWORD}@localhost:{port}/0"
                f"?ssl_cert_reqs=required&ssl_ca_certs={authority.ca}"
            )
            # It takes two connections that differ in their authority alone for one.
            pools.reset()  # type: ignore[no-untyped-call]
            ledger = Ledger(url, 60)
            app = tasks.create_app(Settings(redis_url=SecretStr(url)))
            if authority is ours:
                served = ledger
                ledger.ping()
                tasks.wake(app, ledger)
                continue
            with pytest.raises(UnavailableError) as by_ledger:
                ledger.ping()
            served.heard()  # or the call of before would do
            with pytest.raises(UnavailableError) as by_celery:
                tasks.wake(app, served)
            # Break: without `heard` in `wake`, who tries again takes it for a call on its way.
            with pytest.raises(UnavailableError):
                tasks.wake(app, served)
            for caught in (by_ledger, by_celery):
                assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("password", [PASSWORD, "wrong-" + PASSWORD], ids=["right", "wrong"])
def test_celery_s_logs_hold_no_password(guarded: int, password: str, tmp_path: Path) -> None:
    """A worker at DEBUG, let in or not, writes neither the password nor another secret.

    Break: log `settings.redis_url.get_secret_value()` in worker.py.
    """
    secrets = {"SERVICE_TOKEN": "hush-service-01234567", "S3_SECRET_KEY": "hush-store-01234567"}
    env = {
        **{f"CRA_{name}": value for name, value in secrets.items()},
        "CRA_REDIS_URL": f"redis://:{password}@127.0.0.1:{guarded}/0",
        "CRA_LOG_LEVEL": "DEBUG",
        "CRA_S3_ENDPOINT": "127.0.0.1:1",
        "CRA_WORKER_PROCESSES": "1",
    }
    program = str(Path(sys.executable).parent / "celery")
    command = [program, "-A", "cra.services.ingest.worker", "worker", "--loglevel", "DEBUG"]
    log = tmp_path / "server.log"
    said = "Connected to redis://" if password == PASSWORD else "invalid username-password pair"

    def told() -> bool:
        return said in log.read_text()

    assert not [name for name in env if os.environ.get(name)]
    with servers.running(command, tmp_path, told, env):
        assert told()
    text = log.read_text()
    assert ":**@127.0.0.1" in text or password != PASSWORD
    for secret in (password, PASSWORD, *secrets.values()):
        assert secret not in text
