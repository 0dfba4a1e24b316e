"""TLS of the gRPC hops: who is let in, who is not and learns why, and how files are renewed."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.shared import rpc
from cra.shared.client import SearchClient
from cra.shared.errors import CraError, FailedPreconditionError, UnavailableError
from cra.shared.server import CANNOT_START, Server
from cra.shared.settings import Settings
from cra.shared.tls import ClientTls
from deploy.healthcheck import is_serving
from tests.certificates import Authority
from tests.servers import ROOT, free_ports, wait_until

SERVICE = "cra.search.v1.SearchService"


class Echo(pb_grpc.SearchServiceServicer):
    """Answers with the request's id."""

    def Search(  # noqa: N802
        self, request: pb.SearchRequest, context: grpc.ServicerContext
    ) -> pb.SearchResponse:
        """See proto/cra/search/v1."""
        return pb.SearchResponse(request_id=request.request_id)

    def SearchStream(  # noqa: N802
        self, request_iterator: Iterator[pb.SearchStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SearchStreamResponse]:
        """Not asked for here."""
        raise NotImplementedError


@contextlib.contextmanager
def serving(**tls: str) -> Iterator[Server]:
    """Run a server with these settings."""
    server = Server(
        Settings(drain_seconds=1, **tls),  # type: ignore[arg-type]
        SERVICE,
        0,
        lambda server: pb_grpc.add_SearchServiceServicer_to_server(Echo(), server),
        ready=lambda: None,
    )
    server.start()
    yield server
    server.stop()


def ask(server: Server, *, host: str = "127.0.0.1", **tls: str) -> None:
    """Call a server as a client with these settings."""
    settings = Settings(gateway_target=f"dns:///{host}:{server.port}", **tls)  # type: ignore[arg-type]
    with SearchClient.of(settings, timeout=10) as client:
        assert client.call(pb.SearchRequest(request_id="one")).request_id == "one"


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    """The authority that both sides trust."""
    return Authority(tmp_path, "ours")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path, "other")


def test_both_sides_know_each_other(ours: Authority) -> None:
    """Under mutual TLS a client with a certificate of the right authority is served.

    Break: leave the client's certificate out of `ClientTls.credentials`.
    """
    with serving(**ours.server()) as server:
        ask(server, **ours.client())


def test_without_mutual_tls_a_client_needs_no_certificate(ours: Authority) -> None:
    """A server without CRA_TLS_CLIENT_CA serves whoever trusts its authority.

    Break: `require_client_authentication=True` always.
    """
    with serving(**ours.server(mutual=False)) as server:
        ask(server, tls_ca=ours.ca)


def test_who_does_not_belong_is_not_served(ours: Authority, other: Authority) -> None:
    """No certificate, a stranger's, an expired one, or plaintext: no answer, UNAVAILABLE.

    Break: `require_client_authentication=False`, or `add_insecure_port` whatever the settings.
    """
    stranger = {**other.client(), "tls_ca": ours.ca}
    with serving(**ours.server()) as server:
        for tls in ({"tls_ca": ours.ca}, stranger, ours.client(expired=True), {}):
            with pytest.raises(UnavailableError, match="does not answer"):
                ask(server, **tls)
        ask(server, **ours.client())


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("another authority", "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"),
        ("expired", "CERTIFICATE_VERIFY_FAILED: certificate has expired"),
        ("another host", "Hostname Verification Check failed"),
        ("plaintext", "WRONG_VERSION_NUMBER"),
    ],
)
def test_a_server_that_cannot_be_trusted_gets_no_call(
    case: str, reason: str, ours: Authority, other: Authority
) -> None:
    """A client sends nothing to a server it cannot trust, and its error says what is wrong.

    Break: `insecure_channel` in `rpc.open_channel`, or no `_TLS_PROBLEM` in its errors.
    """
    cases: dict[str, Callable[[], dict[str, str]]] = {
        "another authority": lambda: other.server(mutual=False),
        "expired": lambda: ours.server(mutual=False, expired=True),
        "another host": lambda: ours.server("gateway.test", mutual=False),
        "plaintext": dict,
    }
    with serving(**cases[case]()) as server, pytest.raises(UnavailableError) as caught:
        ask(server, tls_ca=ours.ca)
    assert f"does not answer: TLS: {reason}" in caught.value.message


def test_a_renewed_certificate_needs_no_restart(
    ours: Authority, other: Authority, tmp_path: Path
) -> None:
    """Files that are replaced, as by renewal, hold from the next connection on.

    Break: let `renewed` in `ServerTls.credentials` return None always.
    """
    tls = ours.server(mutual=False)
    with serving(**tls) as server:
        ask(server, tls_ca=ours.ca)
        other.issue("server", into=Path(tls["tls_cert"]).stem)
        ask(server, tls_ca=other.ca)
        with pytest.raises(UnavailableError):
            ask(server, tls_ca=ours.ca)


def test_who_may_come_is_renewed_too(ours: Authority, other: Authority) -> None:
    """A changed CRA_TLS_CLIENT_CA shuts out the clients of the authority that is gone.

    Break: leave `client_ca` out of `ServerTls._stamp`.
    """
    tls = ours.server()
    with serving(**tls) as server:
        ask(server, **ours.client())
        shutil.copy(ours.ca, both := f"{ours.ca}.kept")
        shutil.copy(other.ca, tls["tls_client_ca"])
        with pytest.raises(UnavailableError):
            ask(server, **{**ours.client(), "tls_ca": both})
        ask(server, **{**other.client(), "tls_ca": both})


def test_bad_files_change_nothing(
    ours: Authority, other: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between a new certificate and its new key, or when a file is gone, the old pair serves on.

    Break: hand gRPC the files without `_read_pair`'s check, or raise out of `renewed`.
    """
    tls = ours.server(mutual=False)
    key = Path(tls["tls_key"])
    with serving(**tls) as server:
        content = key.read_bytes()
        for change in (
            lambda: shutil.copy(other.issue("half")[1], key),
            lambda: key.write_bytes(b"no key"),
            key.unlink,
        ):
            change()
            ask(server, tls_ca=ours.ca)
        assert "changed certificate files are not used" in "".join(capfd.readouterr())
        key.write_bytes(content)
        ask(server, tls_ca=ours.ca)


def test_health_is_asked_over_tls(ours: Authority) -> None:
    """The health check speaks mutual TLS, on loopback, to the name in the service's target.

    Break: open the channel in deploy/healthcheck.py without `tls` or without `authority`.
    """
    with serving(**ours.server("gateway.test")) as server:
        settings = Settings(
            gateway_port=server.port,
            gateway_target=f"dns:///gateway.test:{server.port}",
            **ours.client(),  # type: ignore[arg-type]
        )
        wait_until(lambda: is_serving(server.port, settings), "it is ready")


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        ("dns:///gateway:50051", "gateway:50051"),
        ("dns://10.0.0.2/gateway.svc:50051", "gateway.svc:50051"),
        ("dns:gateway:50051", "gateway:50051"),
        ("gateway:50051", "gateway:50051"),
        ("ipv4:10.0.0.1:50051,10.0.0.2:50051", ""),
        ("ipv6:[::1]:50051", ""),
        ("unix:/run/gateway.sock", ""),
    ],
)
def test_a_target_names_its_servers(target: str, authority: str) -> None:
    """What a certificate must name is the target's host, wherever that resolves to.

    Break: return the target itself.
    """
    assert rpc.authority_of(target) == authority


@pytest.mark.parametrize(
    ("half", "told"),
    [
        ({"tls_cert"}, "CRA_TLS_KEY: must be set if CRA_TLS_CERT is"),
        ({"tls_key"}, "CRA_TLS_KEY: must be set if CRA_TLS_CERT is, and only then"),
        ({"tls_ca", "tls_client_cert"}, "CRA_TLS_CLIENT_KEY: must be set if CRA_TLS_CLIENT_CERT"),
        ({"tls_ca", "tls_client_key"}, "CRA_TLS_CLIENT_KEY: must be set if CRA_TLS_CLIENT_CERT"),
        ({"tls_client_ca"}, "CRA_TLS_CLIENT_CA: has no effect without CRA_TLS_CERT"),
        ({"tls_client_cert", "tls_client_key"}, "CRA_TLS_CLIENT_CERT: has no effect without"),
    ],
)  # fmt: skip
def test_half_of_tls_is_none(
    half: set[str], told: str, ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody believes in TLS that is not there: what is set in part stops the start, by name.

    Break: `return value` first in `Settings._pair` or `Settings._extend`.
    """
    for name, file in {**ours.server(), **ours.client()}.items():
        if name in half:
            monkeypatch.setenv(f"CRA_{name.upper()}", file)
    with pytest.raises(FailedPreconditionError) as caught:
        Settings.load()
    assert told in caught.value.message
    assert caught.value.message.count("CRA_TLS_") == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that leads nowhere stops the start with the variable and the reason.

    Break: `str` instead of `File` for a setting of TLS.
    """
    for name in ("TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TLS_CA", "TLS_CLIENT_CERT"):
        with monkeypatch.context() as patch:
            patch.setenv(f"CRA_{name}", str(tmp_path / "none.pem"))
            with pytest.raises(FailedPreconditionError) as caught:
                Settings.load()
        assert f"CRA_{name}: '{tmp_path}/none.pem' cannot be read: No such file" in str(
            caught.value
        )


def test_files_that_hold_something_else_are_named(ours: Authority, other: Authority) -> None:
    """A key of another certificate, an encrypted key, or no PEM at all is found at the start.

    Break: leave `load_cert_chain` or `load_verify_locations` out of shared/tls.py.
    """
    cert, key = ours.issue("one")
    _, wrong = other.issue("two")
    empty = Path(cert).with_name("empty.pem")
    empty.write_text("nothing")
    encrypted = Path(cert).with_name("encrypted.key")
    encrypted.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    bad = [
        ClientTls(ours.ca, cert, wrong),
        ClientTls(ours.ca, cert, str(encrypted)),
        ClientTls(ours.ca, str(empty), key),
        ClientTls(str(empty)),
        ClientTls(str(empty) + "-gone"),
    ]
    for tls in bad:
        with pytest.raises(FailedPreconditionError) as caught:
            tls.credentials()
        named = [file for file in (tls.ca, tls.cert, tls.key) if file and file in str(caught.value)]
        assert named
        assert not isinstance(caught.value, OSError)
    ClientTls(ours.ca, cert, key).credentials()


def test_a_service_does_not_start_on_a_bad_pair(ours: Authority, other: Authority) -> None:
    """The process ends with the exit code of a bad configuration, and names the files.

    Break: `add_insecure_port` when `credentials` raises.
    """
    cert, _ = ours.issue("one")
    _, wrong = other.issue("two")
    port, metrics = free_ports(2)
    done = subprocess.run(
        [sys.executable, "-m", "cra.services.gateway"],
        cwd=ROOT,
        env={
            **os.environ,
            "CRA_TLS_CERT": cert,
            "CRA_TLS_KEY": wrong,
            "CRA_GATEWAY_PORT": str(port),
            "CRA_GATEWAY_METRICS_PORT": str(metrics),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == CANNOT_START
    assert f"{cert} and {wrong} are no PEM certificate and its unencrypted key" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_untrusted_server_is_a_domain_error_at_once(ours: Authority) -> None:
    """A client with a bad file raises when it is made, not at its first call.

    Break: read the files when the channel first connects.
    """
    with pytest.raises(CraError, match="holds no PEM certificate of an authority"):
        SearchClient("dns:///127.0.0.1:1", tls=ClientTls(ours.issue("x")[1]))
