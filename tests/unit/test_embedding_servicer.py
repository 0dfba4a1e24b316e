"""The embedding service over real gRPC, with a model of no weights but of structure."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import structlog
from google.protobuf import message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from pydantic import SecretStr

from cra.embedding.v1 import embedding_pb2 as pb
from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.services.embedding import servicer as servicer_module
from cra.services.embedding.servicer import MAX_IMAGE_BYTES, EmbeddingServicer
from cra.services.embedding.towers import TowerInfo
from cra.shared import errors, rpc
from cra.shared import server as server_module
from cra.shared.adapters.remote_encoder import SERVICE, RemoteEncoder
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.ports import ImageProblem, Priority
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.fakes import COLOURS, SIDE, picture, vector_of

SOON = 20.0
"""Seconds after which a test gives up."""

TOWER = "f00dfeed00000001"
PREPARED = Preprocessing(SIDE)
RED, GREEN, BLUE = (COLOURS[name] for name in "红绿蓝")


class ColourTowers:
    """Fulfils `Towers`: an image is its pixels, a text the colour it names; may be held or break.

    Attributes:
        batches: what was encoded, batch by batch.
        broken: what the next batches raise.
    """

    info = TowerInfo(
        name="colours",
        release="colours-1",
        normalizer="identity",
        image_tower=TOWER,
        dimension=SIDE * SIDE * 3,
        input_size=SIDE,
        preprocessing=PREPARED.fingerprint,
        device="cpu",
        precision="fp32",
    )

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.broken: Exception | None = None
        self._entered = threading.Semaphore(0)
        self._free = threading.Event()
        self._free.set()

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[npt.NDArray[np.float32], bool]]:
        """See `Towers`."""
        self._pass(list(texts))
        return [(_text_vector(text), len(text) > 50) for text in texts]

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        """See `Towers`."""
        self._pass([tuple(image[0, 0].tolist()) for image in pixels])
        return [vector_of(image) for image in pixels]

    def close(self) -> None:
        """See `Towers`."""

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold batches until the block ends; yields what waits until another one has begun."""
        while self._entered.acquire(blocking=False):
            pass
        self._free.clear()

        def wait_until_busy() -> None:
            assert self._entered.acquire(timeout=SOON)

        try:
            yield wait_until_busy
        finally:
            self._free.set()

    def _pass(self, batch: list[Any]) -> None:
        self.batches.append(batch)
        self._entered.release()
        assert self._free.wait(SOON)
        if self.broken is not None:
            raise self.broken


def _text_vector(text: str) -> npt.NDArray[np.float32]:
    colour = next((COLOURS[char] for char in text if char in COLOURS), (9, 9, 9))
    return vector_of(np.full((SIDE, SIDE, 3), colour, np.uint8))


def health_of(channel: grpc.Channel) -> str:
    """Return what the health service says of the embedding service."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=SOON)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


class Service:
    """A running embedding service, and what tests do with it."""

    def __init__(self, settings: Settings) -> None:
        self.towers = ColourTowers()
        self.servicer = EmbeddingServicer(self.towers, settings)
        self.server = Server(
            settings,
            SERVICE,
            0,
            add=lambda server: pb_grpc.add_EmbeddingServiceServicer_to_server(
                self.servicer, server
            ),
            ready=self.servicer.check,
            tokens={SERVICE: settings.service_token.get_secret_value()},
        )
        self.target = f"dns:///127.0.0.1:{self.server.port}"
        self.channel = rpc.open_channel(
            self.target, SERVICE, settings.service_token.get_secret_value()
        )
        self.stub = pb_grpc.EmbeddingServiceStub(self.channel)
        self.encoder = RemoteEncoder(self.target, settings.service_token.get_secret_value(), SOON)

    def health(self) -> str:
        """Return what the health service says."""
        return health_of(self.channel)

    def wait_in_line(self, texts: int = 0, images: int = 0) -> None:
        """Return when so many items wait in the lines."""
        servicer = self.servicer
        wait_until(lambda: len(servicer._texts._line) == texts)
        wait_until(lambda: len(servicer._images._line) == images)

    def close(self) -> None:
        """Stop everything."""
        self.encoder.close()
        self.channel.close()
        self.server.stop()
        self.servicer.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds."""
    end, pause = time.monotonic() + SOON, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        pause.wait(0.005)


@contextmanager
def running(**changes: Any) -> Iterator[Service]:
    """Run the service with settings of its own."""
    defaults = {"max_batch": 4, "max_queue": 70, "drain_seconds": SOON, "max_calls": 16}
    service = Service(Settings(**{**defaults, **changes}))
    service.server.start()
    try:
        # Both towers have proved themselves, and need not do it again for ten seconds.
        wait_until(lambda: service.health() == "SERVING")
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service that the tests share; nobody breaks it."""
    with running() as service:
        yield service


@pytest.fixture
def own() -> Iterator[Service]:
    """A service of the test's own."""
    with running() as service:
        yield service


def _details(error: grpc.RpcError) -> dict[str, message.Message]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    found: dict[str, message.Message] = {}
    for packed in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
        ):
            detail = kind()
            if packed.Unpack(detail):
                found[kind.__name__] = detail
    return found


def test_texts(service: Service) -> None:
    """Each text gets its own unit vector, in order, with release, tower and what was cut."""
    texts = ["红色的门", "蓝色的塔" * 20, "绿琉璃"]
    encoded = service.encoder.embed_texts(texts, "colours-1")
    np.testing.assert_array_equal(encoded.vectors, [_text_vector(text) for text in texts])
    assert encoded.truncated == [False, True, False]
    assert (encoded.text_release, encoded.image_tower) == ("colours-1", TOWER)
    assert encoded.timing.queue >= 0
    assert encoded.timing.encode >= 0


def test_images_and_prepared_pixels_are_one_path(service: Service) -> None:
    """A file, and the pixels that a worker prepared from it, get the same vector."""
    files = [picture(RED), picture(BLUE, kind="JPEG")]
    pixels = [prepare(file, PREPARED).pixels.tobytes() for file in files]
    encoded = service.encoder.embed_encoded_images(files, Priority.INTERACTIVE)
    prepared = service.encoder.embed_pixels(pixels, PREPARED.fingerprint, Priority.BULK)
    np.testing.assert_array_equal(encoded.results, prepared.results)
    assert encoded.image_tower == prepared.image_tower == TOWER
    assert encoded.text_release == "colours-1"


def test_a_text_finds_its_picture(service: Service) -> None:
    """Both towers speak of one space: the word for red is nearest to the red picture."""
    texts = service.encoder.embed_texts(["红", "绿", "蓝"]).vectors
    files = [picture(colour) for colour in (RED, GREEN, BLUE)]
    images = service.encoder.embed_encoded_images(files, Priority.INTERACTIVE).results
    assert (np.array(texts) @ np.array(images).T).argmax(axis=1).tolist() == [0, 1, 2]


def test_models(service: Service) -> None:
    """ListModels says all that a worker needs to prepare pixels, and which release is active."""
    models = service.encoder.models()
    assert models.image_tower.fingerprint == TOWER
    assert models.image_tower.preprocessing == PREPARED.fingerprint
    assert (models.image_tower.input_size, models.image_tower.dimension) == (SIDE, SIDE * SIDE * 3)
    assert models.active_release.name == "colours-1"
    assert models.active_release.image_tower == TOWER
    assert (models.device, models.precision, models.runtime) == ("cpu", "fp32", "torch")


def test_one_bad_image_never_fails_its_neighbours(service: Service) -> None:
    """Bad files are answered one by one with their reasons, the good ones with their vectors."""
    good = picture(GREEN)
    images = [good, b"", b"no image", picture(RED, (300, 300), "JPEG")[:-200], good]
    results = service.encoder.embed_encoded_images(images, Priority.BULK).results
    reasons = [one.reason for one in results if isinstance(one, ImageProblem)]
    assert reasons == ["empty", "not_an_image", "truncated"]
    expected = vector_of(prepare(good, PREPARED).pixels)
    np.testing.assert_array_equal([results[0], results[4]], [expected, expected])


def test_bad_images_alone_are_answered(service: Service) -> None:
    """A call in which no image is good is answered all the same, without the tower."""
    before = len(service.towers.batches)
    results = service.encoder.embed_encoded_images([b"", b"x"], Priority.BULK).results
    assert all(isinstance(one, ImageProblem) for one in results)
    assert len(service.towers.batches) == before


def _request(**fields: Any) -> pb.EmbedTextsRequest:
    return pb.EmbedTextsRequest(**fields)


_GOOD = pb.ImageItem(encoded=picture(RED))
_PIXELS = bytes(SIDE * SIDE * 3)


@pytest.mark.parametrize(
    ("request_message", "field", "limit"),
    [
        (pb.EmbedTextsRequest(), "texts", "1 to 256"),
        (pb.EmbedTextsRequest(texts=["门"] * 257), "texts", "1 to 256"),
        (pb.EmbedTextsRequest(texts=["门", " "]), "texts[1]", "at least one visible character"),
        (pb.EmbedTextsRequest(texts=["门" * 1001]), "texts[0]", "at most 1000"),
        (pb.EmbedImagesRequest(), "items", "1 to 64"),
        (pb.EmbedImagesRequest(items=[_GOOD] * 65), "items", "1 to 64"),
        (pb.EmbedImagesRequest(items=[_GOOD, pb.ImageItem()]), "items[1]", "neither encoded"),
        (
            pb.EmbedImagesRequest(items=[pb.ImageItem(encoded=bytes(MAX_IMAGE_BYTES + 1))]),
            "items[0].encoded",
            "at most 10485760",
        ),
        (
            pb.EmbedImagesRequest(
                items=[
                    pb.ImageItem(
                        pixels=pb.Pixels(data=_PIXELS[1:], preprocessing=PREPARED.fingerprint)
                    )
                ]
            ),
            "items[0].pixels.data",
            "4 x 4 x 3",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_field_out_of_its_limits(
    request_message: message.Message, field: str, limit: str, service: Service
) -> None:
    """INVALID_ARGUMENT names the field and its limit, in the message and in BadRequest."""
    texts = isinstance(request_message, pb.EmbedTextsRequest)
    method: Any = service.stub.EmbedTexts if texts else service.stub.EmbedImages
    with pytest.raises(grpc.RpcError) as caught:
        method(request_message, timeout=SOON)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = _details(caught.value)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == field
    assert limit in bad.field_violations[0].description
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "cra")
    raised = rpc.from_rpc_error(caught.value)
    assert isinstance(raised, errors.InvalidArgumentError)
    assert raised.field == field


def test_the_limits_themselves_are_allowed(service: Service) -> None:
    """256 texts and 64 images go through in one call each, in batches of the tower's size."""
    assert len(service.encoder.embed_texts(["门"] * 64).vectors) == 64
    with running(max_queue=256) as own:
        assert len(own.encoder.embed_texts(["门" * 1000] * 256).vectors) == 256
        images = own.encoder.embed_encoded_images([picture(RED)] * 64, Priority.BULK)
        assert len(images.results) == 64
        assert max(map(len, own.towers.batches)) == 4


def test_pixels_for_another_tower(service: Service) -> None:
    """Pixels of another preprocessing are FAILED_PRECONDITION, naming the item and the remedy."""
    with pytest.raises(errors.FailedPreconditionError, match=r"items\[0\].*ListModels"):
        service.encoder.embed_pixels([_PIXELS], Preprocessing(5).fingerprint, Priority.BULK)
    with pytest.raises(errors.FailedPreconditionError):
        service.encoder.embed_pixels([_PIXELS], "", Priority.BULK)


@pytest.mark.parametrize(
    "release",
    [
        pytest.param("colours-2", id="another"),
        pytest.param("别的", id="Chinese"),
        pytest.param("\n\0\r", id="control characters"),
        pytest.param("x" * 100_000, id="long"),
        pytest.param("门" * 100_000, id="long and Chinese"),
    ],
)
def test_an_unknown_release(release: str, service: Service) -> None:
    """A release that is not loaded is NOT_FOUND, whatever its name holds and however long."""
    with pytest.raises(errors.NotFoundError, match="there is no text release"):
        service.encoder.embed_texts(["红"], release)


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
    retry = _details(caught.value)["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToNanoseconds() > 0
    assert len(first.result(SOON).embeddings) == 1
    assert len(waiting.result(SOON).embeddings) == 70


def test_too_many_calls_are_refused_at_once() -> None:
    """Beyond `max_calls` at once, RESOURCE_EXHAUSTED; health still answers."""
    with running(max_calls=2) as own, own.towers.held() as wait_until_busy:
        text = own.stub.EmbedTexts.future(_request(texts=["红"]))
        wait_until_busy()
        image = own.stub.EmbedImages.future(pb.EmbedImagesRequest(items=[_GOOD]))
        wait_until_busy()
        with pytest.raises(errors.ResourceExhaustedError, match="too many calls"):
            own.encoder.models()
        assert own.health() == "SERVING"
        own.towers._free.set()
        assert text.result(SOON).text_release
        assert image.result(SOON).image_tower
        assert own.encoder.models()


def test_interactive_images_overtake_bulk(own: Service) -> None:
    """While the tower works, an interactive image that comes last goes first."""
    with own.towers.held() as wait_until_busy:
        calls = [_images(own, RED, pb.PRIORITY_BULK)]
        wait_until_busy()
        calls.append(_images(own, GREEN, pb.PRIORITY_BULK, 4))
        own.wait_in_line(images=4)
        calls.append(_images(own, BLUE, pb.PRIORITY_UNSPECIFIED))
        own.wait_in_line(images=5)
    for call in calls:
        assert call.result(SOON).results
    assert own.towers.batches[-3:] == [[RED], [BLUE, GREEN, GREEN, GREEN], [GREEN]]


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
    raised = rpc.from_rpc_error(caught.value)
    assert isinstance(raised, errors.UnavailableError)
    assert raised.retry_after == 2.5


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


def test_reflection_lists_the_service(service: Service) -> None:
    """Reflection names the service beside health, and describes its calls."""
    database = ProtoReflectionDescriptorDatabase(service.channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    described = database.FindFileContainingSymbol(SERVICE)
    assert {method.name for method in described.service[0].method} == {
        "EmbedTexts", "EmbedImages", "ListModels",
    }  # fmt: skip


class Health:
    """What a watcher of the health service sees, in order."""

    def __init__(self, channel: grpc.Channel, name: str = SERVICE) -> None:
        self.seen: list[str] = []
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self._stream = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for answer in self._stream:
                self.seen.append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
        except grpc.RpcError:
            pass

    def wait_for(self, status: str) -> None:
        """Return when the last that was seen is `status`."""
        wait_until(lambda: self.seen[-1:] == [status])

    def close(self) -> None:
        """Stop watching."""
        self._stream.cancel()
        self._thread.join(SOON)


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_follows_readiness(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVING only after both towers have encoded; NOT_SERVING while one fails; then again."""
    monkeypatch.setattr(server_module, "READINESS_PERIOD", 0.01)
    monkeypatch.setattr(servicer_module, "PROOF_LASTS", 0.0)
    service = Service(Settings(drain_seconds=SOON))
    try:
        with service.towers.held() as wait_until_busy:
            service.server.start()
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
                health.close()
    finally:
        service.close()


def test_stopping_drains(own: Service) -> None:
    """On SIGTERM health says NOT_SERVING, new calls are refused, and running ones are answered."""
    with grpc.insecure_channel(f"127.0.0.1:{own.server.port}") as channel:
        health = Health(channel)
        health.wait_for("SERVING")
        with own.towers.held() as wait_until_busy:
            text = own.stub.EmbedTexts.future(_request(texts=["红"]))
            wait_until_busy()
            more = own.stub.EmbedTexts.future(_request(texts=["绿"]))
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
