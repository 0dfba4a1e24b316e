"""The embedding service with too much to do, callers that leave and towers that break."""

import io
import threading
from typing import Any, NoReturn

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from PIL import Image

from cra.embedding.v1 import embedding_pb2 as pb
from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.services.embedding import servicer as servicer_module
from cra.shared import budget, errors, rpc
from cra.shared.model import pixels as pixels_module
from cra.shared.model.pixels import PreparedImage, Preprocessing, prepare
from tests.embedding import (
    BLUE,
    GOOD,
    GREEN,
    RED,
    SOON,
    Service,
    details_of,
    running,
    wait_until,
)
from tests.fakes import picture


def _request(**fields: Any) -> pb.EmbedTextsRequest:
    return pb.EmbedTextsRequest(**fields)


def test_a_full_line_is_refused_at_once(own: Service) -> None:
    """Beyond `max_queue`, RESOURCE_EXHAUSTED with RetryInfo at once; what waits is answered."""
    with own.towers.held() as wait_until_busy:
        first = own.stub.EmbedTexts.future(_request(texts=["红"]))
        wait_until_busy()
        waiting = own.stub.EmbedTexts.future(_request(texts=["绿"] * 70))
        own.wait_in_line(texts=70)
        with pytest.raises(grpc.RpcError) as caught:
            own.stub.EmbedTexts(_request(texts=["蓝"]), timeout=SOON)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = details_of(caught.value)["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToNanoseconds() > 0
    assert len(first.result(SOON).embeddings) == 1
    assert len(waiting.result(SOON).embeddings) == 70


def test_too_many_calls_are_refused_at_once() -> None:
    """Beyond `max_calls` at once, RESOURCE_EXHAUSTED; health still answers."""
    with running(max_calls=2) as own, own.towers.held() as wait_until_busy:
        text = own.stub.EmbedTexts.future(_request(texts=["红"]))
        wait_until_busy()
        image = own.stub.EmbedImages.future(pb.EmbedImagesRequest(items=[GOOD]))
        wait_until_busy()
        with pytest.raises(errors.ResourceExhaustedError, match="too many calls"):
            own.encoder.models()
        assert own.health() == "SERVING"
        own.towers._free.set()
        assert text.result(SOON).text_release
        assert image.result(SOON).image_tower
        assert own.encoder.models()


def test_interactive_images_do_not_wait_for_bulk(own: Service) -> None:
    """Whatever is being encoded for ingest, and waits for it, a picture of a query is begun."""
    with own.towers.held() as wait_until_busy:
        calls = [_images(own, RED, pb.PRIORITY_BULK)]
        wait_until_busy()
        calls.append(_images(own, GREEN, pb.PRIORITY_BULK, 4))
        own.wait_in_line(images=4)
        calls.append(_images(own, BLUE, pb.PRIORITY_UNSPECIFIED))
        wait_until_busy()
        assert own.towers.batches[-2:] == [[RED], [BLUE]]
        assert own.towers.pictures[-1:] == [[BLUE]]
    for call in calls:
        assert call.result(SOON).results
    assert own.towers.batches[-1:] == [[GREEN] * 4]


def _held_decoding(monkeypatch: pytest.MonkeyPatch) -> tuple[list[bytes], threading.Event]:
    """Return what is begun to be decoded, in order, and what lets it go on."""
    decoded: list[bytes] = []
    go = threading.Event()

    def held(encoded: bytes, preprocessing: Preprocessing) -> PreparedImage:
        decoded.append(encoded)
        assert go.wait(SOON)
        return prepare(encoded, preprocessing)

    monkeypatch.setattr(servicer_module, "prepare", held)
    return decoded, go


def test_what_nobody_waits_for_is_not_decoded(
    own: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the deadline of a call has passed, only those of its images are decoded that were begun.

    Break: `decode` does not look at the deadline.
    """
    decoded, go = _held_decoding(monkeypatch)
    request = pb.EmbedImagesRequest(items=[GOOD] * 20)
    with pytest.raises(grpc.RpcError) as caught:
        own.stub.EmbedImages(request, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    go.set()
    assert own.stub.EmbedImages(pb.EmbedImagesRequest(items=[GOOD]), timeout=SOON).results
    assert len(decoded) <= budget.picture_decoders() + 1


def test_a_call_of_many_images_has_others_wait_for_few(
    own: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that comes is decoded after those which are in hand, not after all of a call.

    Break: `_prepare` gives the decoders all of a call at once.
    """
    decoded, go = _held_decoding(monkeypatch)
    at_once = budget.picture_decoders()
    many = _images(own, RED, pb.PRIORITY_INTERACTIVE, 20)
    wait_until(lambda: len(decoded) == at_once)
    one = _images(own, BLUE, pb.PRIORITY_INTERACTIVE)
    in_line = own.servicer._decoders._work_queue
    wait_until(lambda: in_line.qsize() > 0)
    go.set()
    assert len(many.result(SOON).results) == 20
    assert one.result(SOON).results
    # Its decoder may be put aside for as long as the other one takes the next.
    assert decoded.index(picture(BLUE)) <= at_once + 1


def test_pixels_of_a_call_are_bounded(own: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many decoded pixels the rest of a call's images are refused, with the limit.

    A JPEG counts as the smaller one that it is decoded to.

    Break: `decode` without `check_together`.
    """
    monkeypatch.setattr(pixels_module, "MAX_PIXELS_TOGETHER", 3 * 1000 * 1000)
    own.servicer._at_once = 1
    colour = Image.new("RGB", (1000, 1000), RED)
    large = {}
    for form in ("PNG", "JPEG"):
        colour.save(buffer := io.BytesIO(), form)
        large[form] = pb.ImageItem(encoded=buffer.getvalue())
    request = pb.EmbedImagesRequest(items=[large["PNG"]] * 5)
    results = own.stub.EmbedImages(request, timeout=SOON).results
    assert [one.error.reason for one in results] == ["", "", "", "", "too_many_pixels"]
    assert "images before it; at most 3000000 are allowed" in results[4].error.message
    request = pb.EmbedImagesRequest(items=[large["JPEG"]] * 20)
    results = own.stub.EmbedImages(request, timeout=SOON).results
    assert not any(one.HasField("error") for one in results)


def _images(
    service: Service,
    colour: tuple[int, int, int],
    priority: "pb.Priority.ValueType",
    count: int = 1,
) -> Any:
    items = [pb.ImageItem(encoded=picture(colour))] * count
    return service.stub.EmbedImages.future(pb.EmbedImagesRequest(items=items, priority=priority))


def test_a_deadline_is_kept_and_its_text_dropped(own: Service) -> None:
    """A caller is told when its deadline passes, and nobody encodes its text afterwards."""
    with own.towers.held() as wait_until_busy:
        first = own.stub.EmbedTexts.future(_request(texts=["红"]))
        wait_until_busy()
        with pytest.raises(errors.DeadlineExceededError):
            own.encoder.embed_texts(["绿"], timeout=0.05)
    assert first.result(SOON)
    own.encoder.embed_texts(["蓝"])
    assert own.towers.batches[-2:] == [["红"], ["蓝"]]


def test_a_caller_that_hangs_up_is_forgotten(own: Service) -> None:
    """What a caller left in line is never encoded, and its leaving is no error in the log."""
    with structlog.testing.capture_logs() as log:
        with own.towers.held() as wait_until_busy:
            first = own.stub.EmbedTexts.future(_request(texts=["红"]))
            wait_until_busy()
            second = own.stub.EmbedTexts.future(_request(texts=["绿"] * 3))
            own.wait_in_line(texts=3)
            second.cancel()
            wait_until(lambda: any(line.get("code") == "DEADLINE_EXCEEDED" for line in log))
        assert first.result(SOON)
        own.encoder.embed_texts(["蓝"])
    assert own.towers.batches[-2:] == [["红"], ["蓝"]]
    assert not [line for line in log if line["log_level"] in {"error", "critical"}]


def test_a_bug_in_the_tower_is_internal(own: Service) -> None:
    """What the tower raises unforeseen is INTERNAL, without its text, and logged with it."""
    own.towers.broken = ValueError("secret path")
    with structlog.testing.capture_logs() as log, pytest.raises(errors.CraError) as caught:
        own.encoder.embed_texts(["红"])
    assert "INTERNAL" in caught.value.message
    assert "secret" not in caught.value.message
    assert any(line["log_level"] == "error" for line in log)
    own.towers.broken = None
    assert own.encoder.embed_texts(["红"]).vectors


def test_a_dead_tower_is_unavailable(own: Service) -> None:
    """A domain error of the tower reaches the caller as what it is, with its retry delay."""
    own.towers.broken = errors.UnavailableError("the tower's process died", retry_after=2.5)
    # Not our channel, which would try again.
    with grpc.insecure_channel(f"127.0.0.1:{own.server.port}") as channel:
        stub = pb_grpc.EmbeddingServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.EmbedTexts(_request(texts=["红"]), timeout=SOON)
    raised = rpc.from_rpc_error(caught.value, "the server")
    assert isinstance(raised, errors.UnavailableError)
    assert raised.retry_after == 2.5


@pytest.mark.parametrize(("soon", "tries"), [(SOON, 5), (0.0, 1)])
def test_only_a_quick_outage_is_tried_again_by_the_channel(
    soon: float, tries: int, own: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was slow to fail would be so again, until the deadline hides which part is down."""
    tried = []

    def fail(release: str, texts: object) -> NoReturn:
        tried.append(release)
        raise errors.UnavailableError("Milvus does not answer")

    monkeypatch.setattr("cra.shared.calls.SOON", soon)
    monkeypatch.setattr(own.towers, "encode_texts", fail)
    with pytest.raises(errors.UnavailableError, match="Milvus does not answer"):
        own.encoder.embed_texts(["红"], timeout=SOON)
    assert len(tried) == tries
