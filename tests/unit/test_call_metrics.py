"""What a real server counts of its calls; only the model is a fake."""

from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from cra.embedding.v1 import embedding_pb2 as pb
from cra.shared import rpc
from cra.shared.adapters.remote_encoder import SERVICE
from tests.embedding import GOOD, SOON, Service, running, wait_until


def value(name: str, **labels: str) -> float:
    """Return a sample of this process; 0 if there is none yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def calls(method: str, code: str) -> float:
    """Return how many calls of the embedding service have ended so."""
    return value("cra_grpc_server_calls_total", service=SERVICE, method=method, code=code)


def running_now(method: str) -> float:
    """Return how many calls have begun and not ended."""
    return value("cra_grpc_server_calls_in_flight", service=SERVICE, method=method)


def test_calls_are_counted_by_code_and_timed(service: Service) -> None:
    """A call that is answered and one that is not each count once, and none stays in flight.

    Break: leave out `_end` in `_Call.abort`.
    """
    seconds = {"service": SERVICE, "method": "EmbedTexts"}
    wait_until(lambda: running_now("EmbedTexts") == 0)
    before = (calls("EmbedTexts", "OK"), calls("EmbedTexts", "INVALID_ARGUMENT"),
              value("cra_grpc_server_call_seconds_count", **seconds))  # fmt: skip
    service.stub.EmbedTexts(pb.EmbedTextsRequest(texts=["红"]))
    with pytest.raises(grpc.RpcError):
        service.stub.EmbedTexts(pb.EmbedTextsRequest(texts=[]))
    wait_until(lambda: running_now("EmbedTexts") == 0)
    after = (calls("EmbedTexts", "OK"), calls("EmbedTexts", "INVALID_ARGUMENT"),
             value("cra_grpc_server_call_seconds_count", **seconds))  # fmt: skip
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 2]


def test_a_call_in_flight_shows_and_so_does_its_line(own: Service) -> None:
    """While a tower is busy, calls are in flight and texts in line; then neither is.

    Break: `set_function` of the line's gauge.
    """
    with own.towers.held() as wait_until_busy:
        first = own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["红"]))
        wait_until_busy()
        second = own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["绿", "蓝"]))
        own.wait_in_line(texts=2)
        assert running_now("EmbedTexts") == 2
        assert value("cra_tower_queue_items", tower="text") == 2
    first.result(SOON)
    second.result(SOON)
    wait_until(lambda: running_now("EmbedTexts") == 0)
    assert value("cra_tower_queue_items", tower="text") == 0


def test_methods_that_do_not_exist_make_no_labels() -> None:
    """However many names a caller makes up, without credentials too, they count as one.

    Break: label with the method as it came.
    """
    with running(service_token="hush-hush-hush") as service:
        before = calls("other", "UNAUTHENTICATED")
        channel = grpc.insecure_channel(service.target.removeprefix("dns:///"))
        with channel:
            for number in range(5):
                call: Any = channel.unary_unary(f"/{SERVICE}/MadeUp{number}")
                with pytest.raises(grpc.RpcError):
                    call(b"", timeout=SOON)
        assert calls("other", "UNAUTHENTICATED") == before + 5
    names = {
        sample.labels.get("method", "")
        for family in REGISTRY.collect()
        for sample in family.samples
    }
    assert not {name for name in names if "MadeUp" in name}


def test_batches_and_waits_are_counted_by_tower(service: Service) -> None:
    """Texts, images and pictures of queries show as items, batches and waits of their tower."""
    names = ("batch_items_sum", "encode_seconds_count", "queue_seconds_count")

    def of(tower: str) -> list[float]:
        return [value(f"cra_tower_{name}", tower=tower) for name in names]

    texts, images, pictures = of("text"), of("image"), of("picture")
    service.stub.EmbedTexts(pb.EmbedTextsRequest(texts=["红", "绿", "蓝"]))
    service.stub.EmbedImages(pb.EmbedImagesRequest(items=[GOOD]))
    service.stub.EmbedImages(pb.EmbedImagesRequest(items=[GOOD] * 2, priority=pb.PRIORITY_BULK))
    items, batches, waits = (a - b for a, b in zip(of("text"), texts, strict=True))
    assert (items, waits) == (3, 3)
    assert 1 <= batches <= 3
    assert [a - b for a, b in zip(of("image"), images, strict=True)] == [2, 1, 2]
    assert [a - b for a, b in zip(of("picture"), pictures, strict=True)] == [1, 1, 1]


def test_what_is_refused_is_counted(own: Service) -> None:
    """A full line shows as items refused, by reason."""
    before = value("cra_tower_refused_items_total", tower="text", reason="full")
    with own.towers.held() as wait_until_busy:
        first = own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["红"]))
        wait_until_busy()
        waiting = own.stub.EmbedTexts.future(pb.EmbedTextsRequest(texts=["绿"] * 70))
        own.wait_in_line(texts=70)
        with pytest.raises(grpc.RpcError):
            own.stub.EmbedTexts(pb.EmbedTextsRequest(texts=["蓝"] * 3), timeout=SOON)
    first.result(SOON)
    waiting.result(SOON)
    assert value("cra_tower_refused_items_total", tower="text", reason="full") == before + 3


def test_readiness_and_the_active_release_show(service: Service) -> None:
    """A service that is ready says so, and with which release it answers."""
    assert value("cra_ready", service=SERVICE) == 1
    info = service.towers.info
    labels = {"release": info.release, "image_tower": info.image_tower}
    wait_until(lambda: value("cra_active_release_info", **labels) == 1)
    wait_until(lambda: value("cra_releases", state="loaded") == 1)


def test_an_outage_counts_against_the_part_that_is_out() -> None:
    """A call to a server that is not there is an error of that dependency."""
    from cra.shared.adapters.remote_encoder import RemoteEncoder
    from cra.shared.errors import CraError
    from tests.servers import free_ports

    before = value("cra_dependency_errors_total", dependency="embedding")
    encoder = RemoteEncoder(f"dns:///127.0.0.1:{free_ports(1)[0]}", timeout=0.5)
    with pytest.raises(CraError):
        encoder.models()
    encoder.close()
    assert value("cra_dependency_errors_total", dependency="embedding") == before + 1
    assert rpc.caller.get() is None
