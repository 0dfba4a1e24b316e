"""The encoder port over gRPC: the embedding service."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cra.embedding.v1 import embedding_pb2 as pb
from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.shared import rpc
from cra.shared.domain import Vector
from cra.shared.metrics import DEPENDENCY_ERRORS
from cra.shared.ports import (
    EncodedImages,
    EncodedTexts,
    EncodeTiming,
    ImageProblem,
    ImageTowerInfo,
    Models,
    Priority,
    ReleaseState,
    TextReleaseInfo,
)
from cra.shared.releases import Choice
from cra.shared.settings import Settings
from cra.shared.tls import ClientTls

SERVICE = "cra.embedding.v1.EmbeddingService"

MODELS_WITHIN = rpc.KEEPALIVE + rpc.GONE + 2.0
"""Seconds for what is a look-up in the service's memory; every query waits for it now and then.
Enough to notice that a replica has fallen silent, and to ask another."""

_ERRORS: Final = DEPENDENCY_ERRORS.labels("embedding")
_OUTAGE: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}
"""Codes of a service that does not answer, or not as it should: not those of refusals, bad input
and callers that hang up."""

_PRIORITIES = {
    Priority.INTERACTIVE: pb.PRIORITY_INTERACTIVE,
    Priority.BULK: pb.PRIORITY_BULK,
}

RELEASE_STATES: Mapping["pb.ReleaseState.ValueType", ReleaseState] = {
    pb.RELEASE_STATE_LOADED: ReleaseState.LOADED,
    pb.RELEASE_STATE_LOADING: ReleaseState.LOADING,
    pb.RELEASE_STATE_UNLOADED: ReleaseState.UNLOADED,
    pb.RELEASE_STATE_REFUSED: ReleaseState.REFUSED,
}


FLOAT: Final = np.dtype("<f4")
"""Of vectors in messages."""

FEW: Final = 2
"""Calls at once that find no line at the service worth leaving when their callers hang up."""


class RemoteEncoder:
    """Speaks to the embedding service; see `ports.Encoder`.

    Args:
        target: where it is.
        token: of the service, or empty.
        timeout: seconds for a call that has no other.
        tls: to speak TLS; plaintext if None.
        authority: see `rpc.open_channel`.
    """

    def __init__(
        self,
        target: str,
        token: str = "",
        timeout: float = 30.0,
        tls: ClientTls | None = None,
        authority: str = "",
    ) -> None:
        self._server = f"the embedding service at {target}"
        self._channel = rpc.open_channel(target, SERVICE, token, tls, authority)
        self._stub = pb_grpc.EmbeddingServiceStub(self._channel)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._under_way = 0

    @classmethod
    def of(cls, settings: Settings, target: str = "", timeout: float | None = None) -> Self:
        """Return the encoder that settings name.

        Args:
            settings: target, credentials and patience.
            target: one replica of it, to be asked alone.
            timeout: seconds, instead of `CRA_ENCODE_TIMEOUT`.
        """
        return cls(
            target or settings.embedding_target,
            settings.service_token.get_secret_value(),
            settings.encode_timeout if timeout is None else timeout,
            settings.client_tls,
            rpc.authority_of(settings.embedding_target) if target else "",
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def embed_texts(
        self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        request = pb.EmbedTextsRequest(texts=texts, text_release=text_release)
        answer = self._call("EmbedTexts", request, timeout)
        return EncodedTexts(
            vectors=[_vector(embedding.vector) for embedding in answer.embeddings],
            truncated=[embedding.truncated for embedding in answer.embeddings],
            text_release=answer.text_release,
            image_tower=answer.image_tower,
            timing=_timing(answer.timing),
        )

    def embed_encoded_images(
        self, images: Sequence[bytes], priority: Priority, timeout: float | None = None
    ) -> EncodedImages:
        items = [pb.ImageItem(encoded=image) for image in images]
        return self._embed_images(items, priority, timeout)

    def embed_pixels(
        self,
        pixels: Sequence[bytes],
        preprocessing: str,
        priority: Priority,
        timeout: float | None = None,
    ) -> EncodedImages:
        items = [
            pb.ImageItem(pixels=pb.Pixels(data=data, preprocessing=preprocessing))
            for data in pixels
        ]
        return self._embed_images(items, priority, timeout)

    def models(self) -> Models:
        timeout = min(self._timeout, MODELS_WITHIN)
        answer = self._call("ListModels", pb.ListModelsRequest(), timeout)
        tower = answer.image_tower
        return Models(
            image_tower=ImageTowerInfo(
                tower.name,
                tower.fingerprint,
                tower.dimension,
                tower.input_size,
                tower.preprocessing,
            ),
            releases=[
                TextReleaseInfo(
                    r.name,
                    r.active,
                    r.normalizer,
                    r.image_tower,
                    RELEASE_STATES.get(r.state, ReleaseState.LOADED),
                    r.problem,
                )
                for r in answer.releases
            ],
            runtime=answer.runtime,
            device=answer.device,
            precision=answer.precision,
            base_release=answer.base_release,
            pointer_version=answer.pointer_version,
            releases_problem=answer.releases_problem,
            newest_choice=_choice(answer),
        )

    def is_ready(self) -> bool:
        """Tell whether standard health says that the service does its job.

        Raises:
            CraError: it does not say.
        """
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        try:
            answer = stub.Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=self._timeout
            )
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error, self._server) from error
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _embed_images(
        self, items: list[pb.ImageItem], priority: Priority, timeout: float | None
    ) -> EncodedImages:
        request = pb.EmbedImagesRequest(items=items, priority=_PRIORITIES[priority])
        answer = self._call("EmbedImages", request, timeout)
        return EncodedImages(
            results=[_image_result(result) for result in answer.results],
            image_tower=answer.image_tower,
            text_release=answer.text_release,
            timing=_timing(answer.timing),
        )

    def _call(self, method: str, request: Any, timeout: float | None) -> Any:
        with self._lock:
            self._under_way += 1
            many = self._under_way > FEW
        try:
            seconds = self._timeout if timeout is None else timeout
            with rpc.client_span(SERVICE, method):
                return rpc.call(getattr(self._stub, method), request, seconds, cancel=many)
        except grpc.RpcError as error:
            if error.code() in _OUTAGE:
                _ERRORS.inc()
            raise rpc.from_rpc_error(error, self._server) from error
        finally:
            with self._lock:
                self._under_way -= 1


def _image_result(result: pb.ImageResult) -> Vector | ImageProblem:
    if result.HasField("embedding"):
        return _vector(result.embedding.vector)
    return ImageProblem(result.error.reason, result.error.message)


def _choice(answer: pb.ListModelsResponse) -> Choice | None:
    if not answer.HasField("newest_choice"):
        return None
    said = answer.newest_choice
    return Choice(version=said.version, release=said.release, image_tower=said.image_tower)


def _vector(data: bytes) -> Vector:
    return np.frombuffer(data, FLOAT).astype(np.float32)


def _timing(timing: pb.Timing) -> EncodeTiming:
    return EncodeTiming(timing.queue.ToNanoseconds() / 1e9, timing.encode.ToNanoseconds() / 1e9)
