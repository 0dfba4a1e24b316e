"""The embedding service's calls: check, put in line, wait, answer."""

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from cra.embedding.v1 import embedding_pb2 as pb
from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.services.embedding.batcher import Batcher, Encoded
from cra.services.embedding.metrics import PREPARE_SECONDS
from cra.services.embedding.releases import Releases
from cra.services.embedding.towers import IDLE_SHARE, LOADS_WITHIN, Towers
from cra.shared import budget, rpc, tracing
from cra.shared.adapters.remote_encoder import FLOAT, RELEASE_STATES
from cra.shared.domain import Vector, is_finite
from cra.shared.errors import (
    CraError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from cra.shared.limits import MAX_IMAGE_BYTES
from cra.shared.model.pixels import BadImageError, Preprocessing, check_together, prepare
from cra.shared.model.text import check_text
from cra.shared.settings import Settings

MAX_TEXTS: Final = 256
MAX_IMAGES: Final = 64
LONGEST_WAIT: Final = 600.0
"""Seconds; for callers without a deadline."""
PROOF_LASTS: Final = 10.0
"""Seconds for which an encoded batch shows that a tower works."""
PICTURES_PROOF: Final = 6
"""How many times as long it does for pictures of queries: to encode one costs all cores."""

Result = TypeVar("Result")
Pixels = npt.NDArray[np.uint8]

_STATES: Final = {ours: theirs for theirs, ours in RELEASE_STATES.items()}


@dataclass(frozen=True)
class _Text:
    text: str
    release: str


class EmbeddingServicer(pb_grpc.EmbeddingServiceServicer):
    """See proto/cra/embedding/v1."""

    def __init__(self, towers: Towers, releases: Releases, settings: Settings) -> None:
        self._towers = towers
        self._releases = releases
        self._preprocessing = Preprocessing(towers.info.input_size)
        # A process that hangs is replaced before; and the next one may have to be loaded.
        stuck = settings.batch_seconds + 2 * LOADS_WITHIN
        self._texts: Batcher[_Text, tuple[Vector, bool]] = Batcher(
            lambda batch: towers.encode_texts(batch[0].release, [one.text for one in batch]),
            towers.info.text_batch,
            settings.max_queue,
            "text",
            group=lambda one: one.release,
            lanes=towers.info.text_lanes,
            beside=towers.info.text_batch,
            sound=lambda result: is_finite(result[0]),
            longest=stuck,
        )
        self._images: Batcher[Pixels, Vector] = Batcher(
            towers.encode_images,
            towers.info.image_batch,
            settings.max_queue,
            "image",
            lanes=towers.info.image_lanes,
            # A worker whose images are done prepares more while those of another are encoded.
            in_turn=False,
            sound=is_finite,
            longest=IDLE_SHARE * settings.batch_seconds + 2 * LOADS_WITHIN,
        )
        self._pictures: Batcher[Pixels, Vector] = Batcher(
            towers.encode_pictures,
            towers.info.picture_batch,
            settings.max_queue,
            "picture",
            sound=is_finite,
            longest=stuck,
        )
        self._at_once = budget.picture_decoders()
        self._decoders = ThreadPoolExecutor(self._at_once, "decode")
        self._bulk_decoders = ThreadPoolExecutor(
            self._at_once, "decode-bulk", initializer=budget.give_way
        )

    def close(self) -> None:
        """Encode what is in line, then end."""
        self._decoders.shutdown()
        self._bulk_decoders.shutdown()
        for batcher in (self._texts, self._pictures, self._images):
            batcher.close()

    def check(self) -> None:
        """Return if the towers have just encoded something; otherwise make them do it.

        Raises:
            UnavailableError: one of them does not, not in time, or not to numbers.
        """
        self._releases.check()
        now = time.monotonic()
        side = self._preprocessing.input_size
        if self._texts.last_success < now - PROOF_LASTS:
            with self._releases.use("", rpc.time_left(LONGEST_WAIT)) as release:
                value, _ = _prove(self._texts, _Text("建筑", release), "text")
                _check_finite(value, "the text tower")
        blank = np.zeros((side, side, 3), np.uint8)
        for name, batcher, lasts in (
            ("image", self._images, PROOF_LASTS),
            ("picture", self._pictures, PICTURES_PROOF * PROOF_LASTS),
        ):
            if batcher.last_success < now - lasts:
                _check_finite(_prove(batcher, blank, name), f"the {name} tower")

    def problem(self) -> str:
        """Tell what is wrong with this process, so that it has to be started again; or nothing."""
        return self._texts.problem() or self._images.problem() or self._pictures.problem()

    def EmbedTexts(
        self, request: pb.EmbedTextsRequest, context: grpc.ServicerContext
    ) -> pb.EmbedTextsResponse:
        _check_count("texts", len(request.texts), MAX_TEXTS)
        for number, text in enumerate(request.texts):
            check_text(text, f"texts[{number}]")
        deadline = _deadline(context)
        # Held until it has encoded: a swap meanwhile concerns the requests that come later.
        with self._releases.use(request.text_release, deadline - time.monotonic()) as release:
            items = [_Text(text, release) for text in request.texts]
            encoded = _wait(self._texts.submit(items, deadline), deadline, context)
        for number, one in enumerate(encoded):
            _check_finite(one.value[0], f"texts[{number}]: the text tower")
        info = self._towers.info
        return pb.EmbedTextsResponse(
            embeddings=[
                pb.TextEmbedding(vector=_bytes(one.value[0]), truncated=one.value[1])
                for one in encoded
            ],
            text_release=release,
            image_tower=info.image_tower,
            dimension=info.dimension,
            timing=_timing(encoded),
        )

    def EmbedImages(
        self, request: pb.EmbedImagesRequest, context: grpc.ServicerContext
    ) -> pb.EmbedImagesResponse:
        _check_count("items", len(request.items), MAX_IMAGES)
        for number, item in enumerate(request.items):
            self._check_item(item, f"items[{number}]")
        if request.priority not in pb.Priority.values():
            known = ", ".join(map(str, pb.Priority.values()))
            raise InvalidArgumentError("priority", f"is {request.priority}; {known} are allowed")
        deadline = _deadline(context)
        with tracing.span("decode", items=len(request.items)):
            prepared = self._prepare(request, deadline, context)
        good = [one for one in prepared if not isinstance(one, BadImageError)]
        batcher = self._images if request.priority == pb.PRIORITY_BULK else self._pictures
        encoded = _wait(batcher.submit(good, deadline), deadline, context)
        vectors = iter(encoded)
        info = self._towers.info
        return pb.EmbedImagesResponse(
            results=[
                _image_result(one if isinstance(one, BadImageError) else next(vectors).value)
                for one in prepared
            ],
            image_tower=info.image_tower,
            dimension=info.dimension,
            text_release=self._releases.active,
            timing=_timing(encoded),
        )

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        info, served = self._towers.info, self._releases.served()
        choice = served.newest_choice
        return pb.ListModelsResponse(
            image_tower=pb.ImageTower(
                name=info.name,
                fingerprint=info.image_tower,
                dimension=info.dimension,
                input_size=info.input_size,
                preprocessing=info.preprocessing,
            ),
            releases=[
                pb.TextRelease(
                    name=one.name,
                    active=one.active,
                    normalizer=one.normalizer,
                    image_tower=one.image_tower,
                    state=_STATES[one.state],
                    problem=one.problem,
                )
                for one in served.releases
            ],
            runtime=info.engine,
            device=info.device,
            precision=info.precision,
            base_release=info.release,
            pointer_version=served.pointer_version,
            releases_problem=served.problem,
            newest_choice=None
            if choice is None
            else pb.ReleaseChoice(
                version=choice.version, release=choice.release, image_tower=choice.image_tower
            ),
        )

    def _check_item(self, item: pb.ImageItem, field: str) -> None:
        content = item.WhichOneof("content")
        if content is None:
            raise InvalidArgumentError(field, "holds neither encoded bytes nor pixels")
        if content == "encoded":
            if len(item.encoded) > MAX_IMAGE_BYTES:
                raise InvalidArgumentError(
                    f"{field}.encoded",
                    f"has {len(item.encoded)} bytes; at most {MAX_IMAGE_BYTES} are allowed",
                )
            return
        if item.pixels.preprocessing != self._preprocessing.fingerprint:
            raise FailedPreconditionError(
                f"{field}.pixels: prepared for another image tower; ask ListModels and prepare "
                "them again"
            )
        side = self._preprocessing.input_size
        if len(item.pixels.data) != side * side * 3:
            raise InvalidArgumentError(
                f"{field}.pixels.data",
                f"has {len(item.pixels.data)} bytes; {side} x {side} x 3 are needed",
            )

    def _prepare(
        self, request: pb.EmbedImagesRequest, deadline: float, context: grpc.ServicerContext
    ) -> list[Pixels | BadImageError]:
        """Return what each item is prepared to; encoded ones are decoded side by side.

        Raises:
            DeadlineExceededError: nobody waits any more; what was not begun then is not decoded.
        """
        side = self._preprocessing.input_size
        is_bulk = request.priority == pb.PRIORITY_BULK
        decoders = self._bulk_decoders if is_bulk else self._decoders
        decoded: list[int] = []

        def decode(encoded: bytes) -> Pixels | BadImageError:
            if not context.is_active() or time.monotonic() > deadline:
                raise DeadlineExceededError("nobody waits any more for images to be decoded")
            try:
                check_together(sum(decoded))
                with PREPARE_SECONDS.time():
                    image = prepare(encoded, self._preprocessing)
                decoded.append(image.decoded)
                return image.pixels
            except BadImageError as error:
                return error

        pending: list[Pixels | Future[Pixels | BadImageError]] = []
        begun: list[Future[Pixels | BadImageError]] = []
        for item in request.items:
            if item.HasField("pixels"):
                pending.append(np.frombuffer(item.pixels.data, np.uint8).reshape(side, side, 3))
                continue
            if len(begun) >= self._at_once:  # those of another call need not wait for all of them
                begun[-self._at_once].result()
            begun.append(decoders.submit(decode, item.encoded))
            pending.append(begun[-1])
        return [one.result() if isinstance(one, Future) else one for one in pending]


def _check_count(field: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise InvalidArgumentError(field, f"has {count} entries; 1 to {most} are allowed")


def _deadline(context: grpc.ServicerContext) -> float:
    remaining = context.time_remaining()  # 0 is a deadline too
    return time.monotonic() + min(LONGEST_WAIT, LONGEST_WAIT if remaining is None else remaining)


def _wait(
    pending: "Sequence[Future[Encoded[Result]]]", deadline: float, context: Any
) -> list[Encoded[Result]]:
    """Wait for all; when the caller hangs up, what is still in line leaves it."""

    def hang_up() -> None:
        for future in pending:
            future.cancel()

    if not context.add_callback(hang_up):
        hang_up()
        raise DeadlineExceededError("the call has ended already")
    try:
        return [future.result(max(0.0, deadline - time.monotonic())) for future in pending]
    except CancelledError as error:
        raise DeadlineExceededError("the caller has hung up") from error
    except FutureTimeoutError as error:
        raise DeadlineExceededError("the deadline passed before the answer was ready") from error


def _prove(batcher: Batcher[Any, Result], item: Any, name: str) -> Result:
    """Have one item encoded, for as long as a check of readiness may take."""
    seconds = rpc.time_left(LONGEST_WAIT)
    (pending,) = batcher.submit([item], time.monotonic() + seconds)
    try:
        return pending.result(seconds).value
    except FutureTimeoutError as error:
        raise UnavailableError(f"the {name} tower has not answered for {seconds:.0f} s") from error


def _check_finite(vector: Vector, what: str) -> None:
    if not is_finite(vector):
        raise CraError(f"{what} encodes it to what is no number")


def _image_result(found: Vector | BadImageError) -> pb.ImageResult:
    if isinstance(found, BadImageError):
        return pb.ImageResult(error=pb.ImageError(reason=found.reason, message=found.message))
    if not is_finite(found):
        message = "the image tower encodes it to what is no number"
        return pb.ImageResult(error=pb.ImageError(reason="no_number", message=message))
    return pb.ImageResult(embedding=pb.ImageEmbedding(vector=_bytes(found)))


def _bytes(vector: Vector) -> bytes:
    return vector.astype(FLOAT, copy=False).tobytes()


def _timing(encoded: Sequence[Encoded[Any]]) -> pb.Timing:
    return pb.Timing(
        queue=rpc.duration(max((one.queue for one in encoded), default=0.0)),
        encode=rpc.duration(max((one.encode for one in encoded), default=0.0)),
    )
