"""`cra doctor`, check by check: each is shown something broken, and has to say so."""

import datetime
import email.utils
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.services.cli import checks, embedding_checks, part_checks
from cra.services.cli.findings import Facts, Finding, State, host_of, is_local
from cra.services.cli.group import cra
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.client import SERVICE
from cra.shared.errors import DeadlineExceededError
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests import embedding
from tests.certificates import Authority
from tests.servers import free_ports


def states(found: Iterator[Finding]) -> list[tuple[str, str]]:
    """Return states and words, and check that what is not well says how to mend it."""
    listed = list(found)
    for one in listed:
        assert bool(one.mend) is (one.state in {State.WARNING, State.WRONG}), one
    return [(one.state.value, one.found) for one in listed]


def settings(**fields: object) -> Settings:
    """Return settings with these alone, whatever the environment says."""
    return Settings.model_validate(
        {"s3_access_key": "a", "s3_secret_key": "b", "service_token": "c", **fields}
    )


def test_bad_settings_are_all_named(tmp_path: Path) -> None:
    """Settings that no other command starts with are findings, one each, and the exit code is 1.

    Break: let `Settings.load` raise.
    """
    file = tmp_path / "bad.env"
    file.write_text("CRA_GATEWAY_PORT=none\nCRA_MAX_CALLS=0\n")
    done = CliRunner().invoke(cra, ["--env-file", str(file), "doctor", "--json"])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert not said["ok"]
    assert [one["found"].partition(":")[0] for one in said["checks"]] == [
        "CRA_GATEWAY_PORT",
        "CRA_MAX_CALLS",
    ]
    assert all(str(file) in one["mend"] for one in said["checks"])


def test_missing_secrets_are_told() -> None:
    """No S3 credentials is wrong, no service token a warning, and so is plaintext to elsewhere."""
    assert states(checks.secrets(settings(), Facts())) == [("ok", "what is set was looked at")]
    bare = states(checks.secrets(settings(s3_access_key="", service_token=""), Facts()))
    assert [state for state, _ in bare] == ["wrong", "warning", "ok"]
    afar = settings(gateway_target="dns:///gateway:50051", s3_endpoint="store:9000")
    told = states(checks.secrets(afar, Facts()))
    assert [state for state, _ in told] == ["warning", "warning", "ok"]
    assert "CRA_GATEWAY_TARGET is not on this machine" in told[0][1]


def test_hosts_of_targets() -> None:
    """Where a target leads is read from each way to write one."""
    assert host_of("dns:///gateway:50051") == "gateway"
    assert host_of("ipv4:10.0.0.1:50051") == "10.0.0.1"
    assert host_of("store:9000") == "store"
    assert is_local("dns:///127.0.0.1:50051")
    assert not is_local("dns:///gateway:50051")


def test_certificates_that_end_are_told(tmp_path: Path) -> None:
    """An expired file is wrong, one that ends soon a warning, one that is none wrong.

    Break: compare with `SOON` alone.
    """
    assert states(checks.certificates(settings(), Facts()))[0][0] == "skipped"
    authority = Authority(tmp_path)
    good = authority.issue("good")
    expired = authority.issue("expired", expired=True)
    soon = authority.issue("soon", ends=datetime.datetime.now(datetime.UTC) + checks.SOON / 2)
    none = tmp_path / "none.pem"
    none.write_text("text")
    for (cert, key), state in [
        (good, "ok"),
        (expired, "wrong"),
        (soon, "warning"),
        ((str(none), str(none)), "wrong"),
    ]:
        told = states(checks.certificates(settings(tls_cert=cert, tls_key=key), Facts()))
        assert [one for one, _ in told] == [state], told


def test_certificates_that_servers_show_are_looked_at(tmp_path: Path) -> None:
    """A server's expired certificate, one for another host, plaintext and silence are wrong.

    Break: `check_hostname = False`.
    """
    authority = Authority(tmp_path)
    ports = free_ports(3)
    targets = ("gateway_target", "embedding_target", "ingest_target")
    client = {
        **authority.client(),
        **{name: f"dns:///127.0.0.1:{port}" for name, port in zip(targets, ports, strict=True)},
    }
    expired = authority.issue("expired", expired=True)
    with (
        _server(ports[0], authority.server()),
        _server(ports[1], dict(zip(("tls_cert", "tls_key"), expired, strict=True))),
    ):
        told = states(checks.certificates(settings(**client), Facts()))
    assert [state for state, _ in told] == ["ok", "ok", "ok", "wrong", "wrong"]
    assert "certificate has expired" in told[3][1]
    assert "no TLS with ingest" in told[4][1]
    with _server(ports[0], authority.server("elsewhere.test")), _server(ports[1], {}):
        told = states(checks.certificates(settings(**client), Facts()))
    assert "not accepted" in told[2][1]
    assert "no TLS with embedding" in told[3][1]


@contextmanager
def _server(port: int, tls: dict[str, str]) -> Iterator[None]:
    """Run a gRPC server of no service."""
    server = Server(settings(**tls), SERVICE, port, lambda _: None, lambda: None)
    server.start()
    try:
        yield
    finally:
        server.stop()


@contextmanager
def _http(headers: dict[str, str], status: int = 200) -> Iterator[int]:
    """Serve one answer to everything; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("off", "state"), [(0, "ok"), (60, "warning"), (-3600, "wrong")])
def test_a_clock_that_is_off_is_told(off: int, state: str) -> None:
    """What counts is the object store's clock, which refuses requests of another time."""
    with _http({"date": email.utils.formatdate(time.time() + off, usegmt=True)}) as port:
        told = states(checks.clock(settings(s3_endpoint=f"127.0.0.1:{port}"), Facts()))
    assert [one for one, _ in told] == [state]


def test_a_clock_that_nobody_tells_is_skipped() -> None:
    """A store that is silent, or says no time, is no reason to call the clock right."""
    (port,) = free_ports(1)
    assert states(checks.clock(settings(s3_endpoint=f"127.0.0.1:{port}"), Facts()))[0][0] == (
        "skipped"
    )
    with _http({}) as port:
        told = states(checks.clock(settings(s3_endpoint=f"127.0.0.1:{port}"), Facts()))
    assert told == [("skipped", "the object store does not say what time it is")]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Less room than is needed is wrong, little a warning; each disk is named once."""
    plain = settings(converted_models=str(tmp_path / "not" / "yet"))
    told = states(checks.disk(plain, [tmp_path], least=2**80))
    assert [state for state, _ in told] == ["wrong"]
    assert states(checks.disk(plain, [tmp_path], little=2**80, least=0))[0][0] == "warning"
    assert states(checks.disk(plain, [tmp_path], least=0, little=0))[0][0] == "ok"


def test_a_worker_that_does_not_beat_is_told(tmp_path: Path) -> None:
    """A file that is old, or not there, is of a worker that does not work."""
    assert states(checks.workers(settings(), Facts()))[0][0] == "skipped"
    here = settings(heartbeat_folder=str(tmp_path))
    (tmp_path / "worker").touch()
    told = states(checks.workers(here, Facts()))
    assert told == [
        ("ok", "worker works"),
        ("wrong", f"{tmp_path / 'beat'} is not there: beat never ran"),
    ]
    (tmp_path / "beat").touch()
    os.utime(tmp_path / "worker", (time.time() - 100,) * 2)
    assert [state for state, _ in states(checks.workers(here, Facts()))] == ["wrong", "ok"]


def test_parts_that_are_down_are_wrong() -> None:
    """Each part that does not answer is named, with the setting that says where it is."""
    (port,) = free_ports(1)
    target = f"dns:///127.0.0.1:{port}"
    down = settings(
        gateway_target=target,
        embedding_target=target,
        ingest_target=target,
        s3_endpoint=f"127.0.0.1:{port}",
        milvus_uri=f"http://127.0.0.1:{port}",
        redis_url=f"redis://127.0.0.1:{port}/0",
        events_port=port,
        event_token="t",
    )
    for check in (
        part_checks.object_store,
        part_checks.milvus,
        part_checks.broker,
        embedding_checks.embedding,
        part_checks.gateway,
        part_checks.index,
        part_checks.events,
    ):
        told = states(check(down, Facts()))
        assert [state for state, _ in told] == ["wrong"], (check, told)


def test_what_is_not_set_is_not_asked() -> None:
    """Where Milvus, Redis and embedding are nobody has said: no default is called broken."""
    bare = settings(embedding_target="").model_copy(
        update={"embedding_target": f"dns:///127.0.0.1:{free_ports(1)[0]}"}
    )
    object.__setattr__(bare, "__pydantic_fields_set__", {"s3_access_key"})
    for check in (
        part_checks.milvus,
        part_checks.broker,
        embedding_checks.embedding,
        part_checks.events,
    ):
        assert [state for state, _ in states(check(bare, Facts()))] == ["skipped"], check


@pytest.mark.parametrize(
    ("indexed", "waiting", "state"), [(0, 0, "wrong"), (0, 1, "warning"), (599, 0, "warning")]
)
def test_objects_of_which_none_is_indexed_are_wrong(
    monkeypatch: pytest.MonkeyPatch, indexed: int, waiting: int, state: str
) -> None:
    """An index that lost everything is not only warned of: every search there finds nothing."""
    unaccounted = 600 - indexed - waiting
    status = ingest.GetStatusResponse(
        objects=600, indexed=indexed, waiting=waiting, unaccounted=unaccounted
    )
    monkeypatch.setattr(part_checks, "call_ingest", lambda *_: status)
    (told, last) = states(part_checks.index(settings(), Facts()))
    assert told[0] == state
    assert told[1].startswith("unaccounted: ")
    assert last[0] == "ok"


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [(200, "ok", "takes events"), (401, "wrong", "CRA_EVENT_TOKEN"), (500, "wrong", "500")],
)
def test_a_receiver_that_refuses_is_told(status: int, state: str, words: str) -> None:
    """A token that it does not take, and an error, are wrong; so is having no token."""
    with _http({}, status) as port:
        there = settings(events_port=port, event_token="t")
        ((said, found),) = states(part_checks.events(there, Facts()))
        assert said == state
        assert words in found
        tokenless = there.model_copy(update={"event_token": SecretStr("")})
        assert states(part_checks.events(tokenless, Facts()))[0][1].startswith("CRA_EVENT_TOKEN")


def test_probe_is_not_recommended_to_who_gives_it() -> None:
    """A receiver that cannot be seen is tried by --probe, or has been."""
    ((_, plain),) = states(part_checks.events(settings(), Facts()))
    assert "--probe tries the path" in plain
    ((_, probed),) = states(part_checks.events(settings(), Facts(probed=True)))
    assert "--probe" not in probed
    assert "`event path`" in probed


def test_parts_that_disagree_are_told() -> None:
    """More than one image tower or active release is wrong, and every part's own is named."""
    facts = Facts({"embedding": "aa", "gateway": "aa", "ingest": "bb"}, releases={"gateway": "r1"})
    told = states(part_checks.agreement(settings(), facts))
    assert told == [
        ("wrong", "more than one image tower: embedding: aa, gateway: aa, ingest: bb"),
        ("skipped", "fewer than two parts name the active release"),
    ]
    facts = Facts(
        {"embedding": "aa", "gateway": "aa"}, releases={"gateway": "r1", "the pointer": "r2"}
    )
    assert [state for state, _ in states(part_checks.agreement(settings(), facts))] == [
        "ok",
        "wrong",
    ]


def test_ingest_may_fill_the_image_tower_that_stands_by() -> None:
    """While an image tower moves two are named, by ingest alone; a gateway that is behind is wrong.

    Break: compare `facts.towers` in `agreement`.
    """
    facts = Facts({"embedding": "aa", "gateway": "aa", "ingest": "bb"}, stand_by={"bb"})
    assert states(part_checks.agreement(settings(), facts))[0] == ("ok", "one image tower: aa")
    facts.towers["gateway"] = "bb"
    assert states(part_checks.agreement(settings(), facts))[0][0] == "wrong"


def test_embedding_is_asked_for_its_towers_and_a_text() -> None:
    """What it serves is told and compared; a token that it does not take is wrong.

    That it cannot see the bucket of releases, since no store is there, is wrong as well.
    """
    with embedding.running(service_token="right") as service:
        there = settings(embedding_target=service.target, service_token="right")
        facts = Facts()
        told = states(embedding_checks.embedding(there, facts))
        assert [state for state, _ in told] == ["wrong", "ok"]
        assert "does not follow the bucket of releases" in told[0][1]
        assert "serves colours on cpu" in told[1][1]
        assert facts.towers == {"embedding": embedding.TOWER}
        assert set(facts.releases.values()) == {"colours-1"}
        assert facts.dimension == service.towers.info.dimension
        stranger = settings(embedding_target=service.target, service_token="wrong")
        ((state, _),) = states(embedding_checks.embedding(stranger, Facts()))
        assert state == "wrong"
        service.towers.broken = RuntimeError("broken")
        told = states(embedding_checks.embedding(there, Facts()))
        assert [state for state, _ in told] == ["wrong", "ok", "wrong"]
        assert "it encodes no text" in told[2][1]


def test_a_replica_that_is_not_ready_is_wrong() -> None:
    """One that encodes no pictures is told of, though it answers and encodes texts."""
    with embedding.running() as service:
        there = settings(embedding_target=service.target)
        service.towers.broken_pictures = RuntimeError("broken")
        service.servicer._pictures.last_success = float("-inf")
        embedding.wait_until(lambda: service.health() == "NOT_SERVING")
        told = states(embedding_checks.embedding(there, Facts()))
        assert "it says that it is not ready" in told[0][1]
        assert "encodes no text" not in "".join(words for _, words in told)


def test_a_replica_without_health_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not say whether it is ready is told of, and so is what else is found."""

    def silent(_: RemoteEncoder) -> bool:
        raise DeadlineExceededError("no answer in time")

    monkeypatch.setattr(RemoteEncoder, "is_ready", silent)
    with embedding.running() as service:
        facts = Facts()
        told = states(embedding_checks.embedding(settings(embedding_target=service.target), facts))
    assert "does not say whether it is ready: no answer in time" in told[0][1]
    assert [state for state, _ in told] == ["wrong", "wrong", "ok"]
    assert facts.towers == {"embedding": embedding.TOWER}


def test_a_second_image_tower_is_asked_too() -> None:
    """What stands by is told as that and not compared; one that is down is wrong.

    Break: return False in `Towers.stands_by`.
    """
    new = embedding.ColourTowers(image_tower="0" * 16, release="new-00000000")
    with embedding.running() as first, embedding.running(new) as other:
        there = settings(embedding_target=first.target, other_embedding_target=other.target)
        facts = Facts()
        told = states(embedding_checks.embedding(there, facts))
        assert sum("stands by with the image tower 0000" in words for _, words in told) == 1
        assert facts.towers == {"embedding": embedding.TOWER}
        assert facts.stand_by == {"0" * 16}
        new.broken = RuntimeError("broken")
        told = states(embedding_checks.embedding(there, Facts()))
        assert "it encodes no text" in told[-1][1]
    (port,) = free_ports(1)
    with embedding.running() as first:
        there = settings(
            embedding_target=first.target, other_embedding_target=f"ipv4:127.0.0.1:{port}"
        )
        told = states(embedding_checks.embedding(there, Facts()))
        assert told[0][0] == "wrong"
        assert str(port) in told[0][1]
