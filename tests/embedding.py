"""The embedding service over real gRPC, with a model of no weights but of structure."""

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from cra.embedding.v1 import embedding_pb2 as pb
from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.services.embedding.releases import Releases
from cra.services.embedding.servicer import EmbeddingServicer
from cra.services.embedding.towers import TowerInfo
from cra.shared import rpc
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import SERVICE, RemoteEncoder
from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.releases import Release
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.fakes import COLOURS, SIDE, picture, vector_of
from tests.servers import free_ports

SOON = 20.0
"""Seconds after which a test gives up."""

TOWER = "f00dfeed00000001"
PREPARED = Preprocessing(SIDE)
RED, GREEN, BLUE = (COLOURS[name] for name in "红绿蓝")
GOOD = pb.ImageItem(encoded=picture(RED))


NAN = "∅"
"""A text that holds it, and an image that is all ones, are encoded to what is no number."""


class ColourTowers:
    """Fulfils `Towers`: an image is its pixels, a text the colour it names; may be held or break.

    A release turns the vectors of texts by a number of places that its name decides.

    Attributes:
        batches: what was encoded, batch by batch.
        pictures: what of it came as pictures of queries.
        broken: what the next batches raise.
        broken_pictures: likewise, of pictures alone.
        releases: what is loaded.
        bad: what loading a release raises, by its label.
        loads: labels of what was ever loaded, in order.
        deadly: labels of what takes the process down that loads it.
    """

    info = TowerInfo(
        name="colours",
        release="colours-1",
        normalizer="identity",
        image_tower=TOWER,
        dimension=SIDE * SIDE * 3,
        input_size=SIDE,
        preprocessing=PREPARED.fingerprint,
        engine="fake",
        device="cpu",
        precision="fp32",
        text_batch=4,
        image_batch=4,
        text_lanes=1,
        image_lanes=1,
        picture_batch=4,
    )

    def __init__(self, **info: Any) -> None:
        self.info = replace(ColourTowers.info, **info)
        self.batches: list[list[Any]] = []
        self.pictures: list[list[Any]] = []
        self.broken: Exception | None = None
        self.broken_pictures: Exception | None = None
        self.releases: set[str] = {self.info.release}
        self.bad: dict[str, Exception] = {}
        self.deadly: set[str] = set()
        self.text_deaths = 0
        self.loads: list[str] = []
        self._entered = threading.Semaphore(0)
        self._free = threading.Event()
        self._free.set()

    def encode_texts(
        self, release: str, texts: Sequence[str]
    ) -> list[tuple[npt.NDArray[np.float32], bool]]:
        """See `Towers`."""
        self._pass(list(texts))
        if release not in self.releases:
            raise FailedPreconditionError(f"the text release {release} is not loaded")
        return [
            (np.full_like(vector, np.nan) if NAN in text else vector, len(text) > 50)
            for text, vector in ((text, text_vector(text, release)) for text in texts)
        ]

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        """See `Towers`."""
        self._pass(colours_of(pixels))
        return [
            np.full_like(vector_of(image), np.nan) if (image == 1).all() else vector_of(image)
            for image in pixels
        ]

    def encode_pictures(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        """See `Towers`."""
        self.pictures.append(colours_of(pixels))
        if self.broken_pictures is not None:
            raise self.broken_pictures
        return self.encode_images(pixels)

    def load_release(self, release: Release) -> None:
        """See `Towers`."""
        label = release.manifest.label
        self.loads.append(label)
        if label in self.deadly:
            self.text_deaths += 1
            raise UnavailableError("the tower's process died")
        if label in self.bad:
            raise self.bad[label]
        self.releases.add(release.name)

    def unload_release(self, name: str) -> None:
        """See `Towers`."""
        self.releases.discard(name)

    def loaded_releases(self) -> set[str]:
        """See `Towers`."""
        return set(self.releases)

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


def colours_of(pixels: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[int, ...]]:
    """Return the colour of each image's corner."""
    return [tuple(image[0, 0].tolist()) for image in pixels]


def prepare_red() -> npt.NDArray[np.uint8]:
    """Return the pixels of a red picture."""
    return prepare(picture(RED), PREPARED).pixels


def text_vector(text: str, release: str = ColourTowers.info.release) -> npt.NDArray[np.float32]:
    """Return the vector that a release gives a text."""
    colour = next((COLOURS[char] for char in text if char in COLOURS), (9, 9, 9))
    vector = vector_of(np.full((SIDE, SIDE, 3), colour, np.uint8))
    base = release == ColourTowers.info.release
    return vector if base else np.roll(vector, 1 + zlib.crc32(release.encode()) % 997)


def health_of(channel: grpc.Channel, service: str = SERVICE) -> str:
    """Return what the health service says of the embedding service, or of another name."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SOON)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


class Service:
    """A running embedding service, and what tests do with it."""

    def __init__(self, settings: Settings, towers: ColourTowers | None = None) -> None:
        self.towers = towers or ColourTowers()
        self.releases = Releases(self.towers, S3ReleaseStore(settings), settings)
        self.servicer = EmbeddingServicer(self.towers, self.releases, settings)
        self.server = Server(
            settings,
            SERVICE,
            0,
            add=lambda server: pb_grpc.add_EmbeddingServiceServicer_to_server(
                self.servicer, server
            ),
            ready=self.servicer.check,
            works=self.servicer.problem,
            tokens={SERVICE: settings.service_token.get_secret_value()},
        )
        self.target = f"dns:///127.0.0.1:{self.server.port}"
        self.channel = rpc.open_channel(
            self.target, SERVICE, settings.service_token.get_secret_value(), settings.client_tls
        )
        self.stub = pb_grpc.EmbeddingServiceStub(self.channel)
        self.encoder = RemoteEncoder.of(settings, self.target, SOON)

    def start(self) -> None:
        """Begin to serve."""
        self.releases.start()
        self.server.start()

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
        self.releases.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds."""
    end, pause = time.monotonic() + SOON, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        pause.wait(0.005)


@contextmanager
def running(towers: ColourTowers | None = None, /, **changes: Any) -> Iterator[Service]:
    """Run the service with settings of its own; without those of a store, it has none."""
    defaults = {
        "max_queue": 70,
        "drain_seconds": SOON,
        "max_calls": 16,
        "s3_endpoint": f"127.0.0.1:{free_ports(1)[0]}",
    }
    service = Service(Settings(**{**defaults, **changes}), towers)
    service.start()
    try:
        # The towers have proved themselves, and need not do it again for ten seconds.
        wait_until(lambda: service.health() == "SERVING")
        yield service
    finally:
        service.close()


def details_of(error: grpc.RpcError) -> dict[str, message.Message]:
    """Return the standard details of an error, by their kind."""
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
