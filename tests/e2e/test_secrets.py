"""The running stack shows its secrets to nobody, whatever is asked and however it is logged."""

import contextlib
import json
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.shared import rpc
from cra.shared.adapters.remote_encoder import SERVICE as EMBEDDING
from cra.shared.api_keys import digest_of
from cra.shared.client import SERVICE as SEARCH
from cra.shared.client import SearchClient
from cra.shared.errors import UnauthenticatedError, UnavailableError
from tests.e2e.conftest import SECRETS
from tests.stack import INGEST, Stack


@pytest.fixture
def secrets(stack: Stack) -> dict[str, str]:
    """Everything that nobody may see, by what it is."""
    found = {name: stack.env[f"CRA_{name}"] for name in (*SECRETS, "API_KEY")}
    assert all(len(value) > 16 for value in found.values())
    found["digest of the API key"] = digest_of(found["API_KEY"])
    store = Path(stack.env["CRA_DATA_DIR"]) / "s3" / "s3.json"
    for identity in json.loads(store.read_text())["identities"]:
        found[f"S3 key of {identity['name']}"] = identity["credentials"][0]["secretKey"]
    found["a private key"] = Path(stack.env["CRA_TLS_KEY"]).read_text().splitlines()[1]
    return found


def assert_hushed(text: str, secrets: dict[str, str], where: str) -> None:
    """Fail if a text holds a secret, without printing it."""
    shown = [name for name, value in secrets.items() if value in text]
    assert not shown, f"{where} shows {shown}"


def test_the_look_can_find_one(secrets: dict[str, str]) -> None:
    """What looks for secrets finds one where it is: the checks below can fail.

    Break: `shown = []` in `assert_hushed`.
    """
    for value in secrets.values():
        with pytest.raises(AssertionError, match="here shows"):
            assert_hushed(f"token={value}!", secrets, "here")


def test_logs_hold_no_secret(stack: Stack, secrets: dict[str, str]) -> None:
    """After refused and served calls at DEBUG, no log of any part, nor a trace, holds a secret.

    Break: log `authorization` in `Server`'s boundary, or `settings.model_dump()` unmasked.
    """
    for key in ("", secrets["API_KEY"][:-1], secrets["SERVICE_TOKEN"]):
        client = SearchClient(
            stack.settings.gateway_target, key, timeout=20, tls=stack.settings.client_tls
        )
        with client, pytest.raises(UnauthenticatedError):
            client.search("红")
    stack.search.search("红")
    stack.cra("search", "红")
    with pytest.raises(grpc.RpcError):
        stack.ingest_stub(secrets["EVENT_TOKEN"]).SyncObjects(ingest.SyncObjectsRequest())
    logs = sorted((Path(stack.env["CRA_DATA_DIR"])).glob("**/logs/**/*"))
    traces = Path(stack.settings.trace_file)
    texts = {log: log.read_text(errors="replace") for log in logs if log.is_file()}
    assert {"gateway.log", "worker.log", "embedding.log", "ingest.log"} <= {p.name for p in texts}
    assert any("code=UNAUTHENTICATED" in text for text in texts.values())
    assert any("[debug" in text for text in texts.values())
    texts[traces] = traces.read_text()
    for log, text in texts.items():
        assert_hushed(text, secrets, log.name)


def test_process_lists_hold_no_secret(stack: Stack, secrets: dict[str, str]) -> None:
    """Whoever lists the processes of the machine sees no secret among their arguments.

    Break: a secret in deploy/Procfile.
    """
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    data = stack.env["CRA_DATA_DIR"]
    assert any(data in line for line in lines)
    assert_hushed("\n".join(lines), secrets, "ps")


def test_open_answers_hold_no_secret(stack: Stack, secrets: dict[str, str]) -> None:
    """Health, reflection, metrics, the event receiver and the page tell none, whoever asks.

    Break: a label of a metric with the header, or a message with the token that was expected.
    """
    told = []
    for service, target in (
        (SEARCH, stack.settings.gateway_target),
        (EMBEDDING, stack.settings.embedding_target),
        (INGEST, stack.settings.ingest_target),
    ):
        with rpc.open_channel(target, service, tls=stack.settings.client_tls) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            told.append(repr(health.Check(health_pb2.HealthCheckRequest(), timeout=20)))
            database = ProtoReflectionDescriptorDatabase(channel)
            for name in database.get_services():
                told.append(repr(database.FindFileContainingSymbol(name)))
    told += stack.metrics().values()
    assert "cra_query_cache" in "".join(told)
    events = f"http://127.0.0.1:{stack.settings.events_port}"
    told.append(httpx.get(f"{events}/healthz").text)
    told.append(httpx.post(f"{events}/events", headers={"authorization": "Bearer wrong"}).text)
    assert "the bearer token is missing or wrong" in told[-1]
    page = f"http://127.0.0.1:{stack.settings.web_port}"
    for path in ("/", "/readyz", "/api/about", "/api/status", "/api/releases", "/api/failures"):
        told.append(httpx.get(f"{page}{path}", timeout=20).text)
    told.append(httpx.post(f"{page}/api/search", json={"text": "红"}, timeout=20).text)
    assert "text_release" in told[-1]
    for text in told:
        assert_hushed(text, secrets, text[:60])


def test_no_service_is_reached_without_tls(stack: Stack) -> None:
    """Every gRPC server of the stack is deaf to plaintext and to a client without a certificate.

    Break: `add_insecure_port` in one of the services.
    """
    bare = stack.settings.model_copy(update={"tls_client_cert": "", "tls_client_key": ""})
    for tls in (None, bare.client_tls):
        client = SearchClient(stack.settings.gateway_target, timeout=10, tls=tls)
        with client, pytest.raises(UnavailableError):
            client.search("红")
        for service, target in (
            (EMBEDDING, stack.settings.embedding_target),
            (INGEST, stack.settings.ingest_target),
        ):
            with rpc.open_channel(target, service, tls=tls) as channel:
                stub = ingest_grpc.IngestServiceStub(channel)
                with pytest.raises(grpc.RpcError) as caught:
                    stub.GetStatus(ingest.GetStatusRequest(), timeout=10)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_each_service_has_its_own_credentials(stack: Stack, secrets: dict[str, str]) -> None:
    """A process knows the S3 key of its role and of no other; foreign servers know no secret.

    Break: start the parts without `Part.own`.
    """
    if not Path("/proc/self/environ").exists():
        pytest.skip("the system does not show the environment of processes")
    roles = {"gateway": "gateway", "embedding": "embedding", "ingest": "ingest", "worker": "ingest",
             "beat": "ingest", "web": "web", "redis": "", "s3": "", "milvus": ""}  # fmt: skip
    state = json.loads((Path(stack.env["CRA_DATA_DIR"]) / "run" / "stack.json").read_text())
    seen = {}
    for part in state["parts"]:
        env = Path(f"/proc/{part['pid']}/environ").read_bytes().decode(errors="replace")
        seen[part["name"]] = {name for name, value in secrets.items() if value in env}
    assert set(seen) == set(roles)
    for name, known in seen.items():
        stores = {one for one in known if one.startswith("S3")} - {"S3_SECRET_KEY"}
        if roles[name]:
            assert stores == {f"S3 key of {roles[name]}"}, name
        else:
            assert not known, name
