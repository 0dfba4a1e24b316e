"""The embedding service as a server: credentials, reflection, health, draining."""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
import numpy as np
import pytest
import structlog
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from pydantic import SecretStr

from cra.embedding.v1 import embedding_pb2 as pb
from cra.services.embedding import servicer as servicer_module
from cra.shared import errors, rpc
from cra.shared import server as server_module
from cra.shared.adapters.remote_encoder import SERVICE, RemoteEncoder
from cra.shared.ports import Priority
from cra.shared.settings import Settings
from tests.embedding import (
    RED,
    SOON,
    Health,
    Service,
    health_of,
    running,
    wait_until,
)
from tests.fakes import picture


def test_service_credentials_are_needed() -> None:
    """With a token set, calls without it are UNAUTHENTICATED; health and reflection need none."""
    with running(service_token=SecretStr("t0ken")) as own:
        for token in ("", "wrong", "t0ke"):
            encoder = RemoteEncoder(own.target, token)
            with pytest.raises(errors.UnauthenticatedError):
                encoder.models()
            encoder.close()
        with grpc.insecure_channel(f"127.0.0.1:{own.server.port}") as channel:
            assert health_of(channel) == "SERVING"
            assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_the_right_token_is_let_in() -> None:
    """A call with the service's bearer token is served."""
    with running(service_token=SecretStr("t0ken")) as own:
        assert own.encoder.models().device == "cpu"


def test_a_call_that_has_ended_leaves_nothing_behind(service: Service) -> None:
    """What gRPC holds of a call goes with it, answered or refused: nobody has to look for cycles.

    Broken on purpose: with the caller left where the call's context has it, each call stays.
    """

    def held() -> int:
        return sum(type(one).__name__ == "_RPCState" for one in gc.get_objects())

    gc.collect()
    before = held()
    gc.disable()
    try:
        for _ in range(20):
            service.stub.EmbedTexts(pb.EmbedTextsRequest(texts=["红"]))
            with pytest.raises(grpc.RpcError):
                service.stub.EmbedTexts(pb.EmbedTextsRequest())
        wait_until(lambda: held() <= before)
    finally:
        gc.enable()


def test_reflection_lists_the_service(service: Service) -> None:
    """Reflection names the service beside health, and describes its calls."""
    database = ProtoReflectionDescriptorDatabase(service.channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    described = database.FindFileContainingSymbol(SERVICE)
    assert {method.name for method in described.service[0].method} == {
        "EmbedTexts", "EmbedImages", "ListModels",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_follows_readiness(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVING only after the towers have encoded; NOT_SERVING while one fails; then again.

    Break: leave one of them out of `EmbeddingServicer.check`.
    """
    monkeypatch.setattr(server_module, "READINESS_PERIOD", 0.01)
    monkeypatch.setattr(servicer_module, "PROOF_LASTS", 0.0)
    service = Service(Settings(drain_seconds=SOON))
    try:
        with service.towers.held() as wait_until_busy:
            service.start()
            with grpc.insecure_channel(f"127.0.0.1:{service.server.port}") as channel:
                health = Health(channel, name)
                wait_until_busy()
                health.wait_for("NOT_SERVING")
                assert service.towers.batches == [["建筑"]]
                service.towers._free.set()
                health.wait_for("SERVING")
                assert [(0, 0, 0)] in service.towers.batches
                service.towers.broken = ValueError("out of memory")
                health.wait_for("NOT_SERVING")
                service.towers.broken = None
                health.wait_for("SERVING")
                service.towers.broken_pictures = ValueError("out of memory")
                health.wait_for("NOT_SERVING")
                service.towers.broken_pictures = None
                health.wait_for("SERVING")
                health.close()
    finally:
        service.close()


def test_stopping_drains(own: Service) -> None:
    """On SIGTERM health says NOT_SERVING, new calls are refused, and running ones are answered."""
    with grpc.insecure_channel(f"127.0.0.1:{own.server.port}") as channel:
        health = Health(channel)
        health.wait_for("SERVING")
        with own.towers.held() as wait_until_busy:
            text = own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["红"]))
            wait_until_busy()
            more = own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["绿"]))
            own.wait_in_line(texts=1)
            stopper = threading.Thread(target=own.server.stop)
            stopper.start()
            health.wait_for("NOT_SERVING")
            health.close()
            with pytest.raises(errors.UnavailableError):
                own.encoder.embed_texts(["蓝"], timeout=SOON)
            assert stopper.is_alive()
        assert text.result(SOON).embeddings
        assert more.result(SOON).embeddings
        stopper.join(SOON)
        assert not stopper.is_alive()


def test_a_health_watch_does_not_hold_up_the_end(own: Service) -> None:
    """A caller that watches the health is told, and the server ends long before its drain time."""
    with grpc.insecure_channel(f"127.0.0.1:{own.server.port}") as channel:
        health = Health(channel)
        health.wait_for("SERVING")
        began = time.monotonic()
        own.server.stop()
        assert time.monotonic() - began < Settings().drain_seconds / 2
        health.close()


def test_stopping_twice_is_no_error(own: Service) -> None:
    """A second SIGTERM, or a stop after a stop, returns."""
    own.server.stop()
    own.server.stop()


def _liveness(service: Service) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{service.server.port}") as channel:
        return health_of(channel, rpc.LIVENESS)


def test_a_service_that_is_not_ready_may_well_be_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it depends on is no reason to start it again: only readiness follows that.

    Broken on purpose: with liveness set by `_set_health` it follows as well.
    """
    monkeypatch.setattr(server_module, "READINESS_PERIOD", 0.01)
    monkeypatch.setattr(servicer_module, "PROOF_LASTS", 0.0)
    with running() as own:
        own.towers.broken = errors.UnavailableError("its weights are gone")
        wait_until(lambda: own.health() == "NOT_SERVING")
        assert _liveness(own) == "SERVING"


@pytest.mark.parametrize("tower", ["text", "image", "picture"])
def test_a_dead_batch_thread_is_a_reason_to_start_again(own: Service, tower: str) -> None:
    """Liveness ends with the thread, and the log says why; health goes on answering.

    Broken on purpose: without `works=servicer.problem` it says SERVING for ever.
    """
    assert _liveness(own) == "SERVING"

    def die(*_: object) -> NoReturn:
        raise SystemExit

    getattr(own.servicer, f"_{tower}s")._encode = die
    calls: dict[str, Callable[[], object]] = {
        "text": lambda: own.encoder.embed_texts(["红"], timeout=SOON),
        "image": lambda: own.encoder.embed_encoded_images([picture(RED)], Priority.BULK),
        "picture": lambda: own.encoder.embed_encoded_images([picture(RED)], Priority.INTERACTIVE),
    }
    with pytest.raises(errors.UnavailableError, match="died"):
        calls[tower]()
    with structlog.testing.capture_logs() as log:
        assert _liveness(own) == "NOT_SERVING"
    assert [line["problem"] for line in log if line["event"] == "wedged"] == [
        f"a batch thread of the {tower} tower has died"
    ]


def test_a_check_of_readiness_that_never_ends_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that hangs would leave the last state standing for ever: liveness ends it."""
    monkeypatch.setattr(server_module, "READINESS_PERIOD", 0.01)
    monkeypatch.setattr(server_module, "STUCK", 0.2)
    go = threading.Event()
    with running() as own:
        own.server._ready = lambda: go.wait(SOON) or None  # type: ignore[assignment]
        wait_until(lambda: _liveness(own) == "NOT_SERVING")
        go.set()
        wait_until(lambda: _liveness(own) == "SERVING")


def test_a_tower_of_nonsense_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness encodes, and looks at what comes out."""
    monkeypatch.setattr(server_module, "READINESS_PERIOD", 0.01)
    monkeypatch.setattr(servicer_module, "PROOF_LASTS", 0.0)
    with running() as own:
        whole = own.towers.encode_texts

        def encode(release: str, texts: Sequence[str]) -> list[tuple[Any, bool]]:
            return [(vector * np.nan, cut) for vector, cut in whole(release, texts)]

        own.towers.encode_texts = encode  # type: ignore[method-assign]
        wait_until(lambda: own.health() == "NOT_SERVING")


def test_health_answers_while_every_slot_is_taken() -> None:
    """A server that has more to do than it takes still says that it is alive, at once."""
    with running(max_calls=2) as own, own.towers.held() as wait_until_busy:
        calls = [own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["红"]))]
        wait_until_busy()
        calls.append(own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["绿"])))
        own.wait_in_line(texts=1)
        assert _liveness(own) == own.health() == "SERVING"
        own.towers._free.set()
        for call in calls:
            assert call.result(SOON).embeddings
