"""Towers run by OpenVINO on CPU: the encoders' port without torch."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cra.shared.errors import FailedPreconditionError
from cra.shared.model import int8_weights
from cra.shared.model.converted import Converted
from cra.shared.model.encoders import PASSES_ON_CPU, encode_by_length, unit
from cra.shared.model.pixels import MEAN, STD, Preprocessing
from cra.shared.model.quiet_openvino import PrePostProcessor, openvino
from cra.shared.model.runtime import Runtime
from cra.shared.model.tokenizer import Tokenizer

_PRECISIONS: Final = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class _Forward:
    """A converted model; its callers share the streams.

    Args:
        file: the model.
        runtime: whose precision it computes in.
        threads: of this process.
        streams: parts of a batch that are worked on side by side, each on its share of the threads.
        prepare: adds steps to the model before it is compiled.
    """

    def __init__(
        self,
        file: Path,
        runtime: Runtime,
        threads: int,
        streams: int,
        prepare: Callable[[openvino.Model], openvino.Model] = lambda model: model,
    ) -> None:
        int8 = runtime.precision == "int8"
        others = Runtime.choose("cpu", "auto", "openvino").precision if int8 else runtime.precision
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[others],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # Two towers, each pinned to the same cores, would wait for each other.
            "ENABLE_CPU_PINNING": False,
            **(int8_weights.OPTIONS if int8 else {}),
        }
        try:
            core = openvino.Core()
            model = core.read_model(file)
            if int8:
                model = int8_weights.quantize(model)
            compiled = core.compile_model(prepare(model), "CPU", options)
        except RuntimeError as error:
            raise FailedPreconditionError(
                f"{file} cannot be loaded; remove its folder to have it made again: {error}"
            ) from error
        self._compiled, self._streams = compiled, streams
        self._of_thread = threading.local()

    def __call__(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what the model makes of a batch."""
        count = min(self._streams, len(batch))
        parts = [batch] if count == 1 else np.array_split(batch, count)
        requests = self._requests()[: len(parts)]
        for request, part in zip(requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        answers = []
        for request in requests:
            request.wait()
            answers.append(request.get_output_tensor().data.copy())
        return answers[0] if count == 1 else np.concatenate(answers)

    def _requests(self) -> list[Any]:
        """Return the caller's own requests; the engine has those of all callers take turns."""
        if not hasattr(self._of_thread, "requests"):
            self._of_thread.requests = [
                self._compiled.create_infer_request() for _ in range(self._streams)
            ]
        own: list[Any] = self._of_thread.requests
        return own


def _from_pixels(model: openvino.Model) -> openvino.Model:
    """Have an image tower take uint8 RGB [n, s, s, 3], and normalise it itself."""
    steps = PrePostProcessor(model)
    given = steps.input()
    given.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    given.model().set_layout(openvino.Layout("NCHW"))
    given.preprocess().convert_element_type(openvino.Type.f32).mean(
        [255 * value for value in MEAN]
    ).scale([255 * value for value in STD])
    return steps.build()


class OpenVinoTextTower:
    """A converted text tower; see `encoders.TextEncoder`.

    Args:
        converted: a model or a release.
        runtime: whose precision it computes in.
        threads: of this process.

    Raises:
        FailedPreconditionError: the files do not load.
    """

    def __init__(self, converted: Converted, runtime: Runtime, threads: int) -> None:
        info = converted.info
        self.runtime = runtime
        self.release = info.release
        self.image_tower = info.image_tower
        self.dimension = info.dimension
        self.tokenizer = Tokenizer(info.normalizer, info.added_tokens)
        # One stream: the fewest milliseconds for one query.
        self._forward = _Forward(converted.text, runtime, threads, streams=1)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
        """Encode n texts; see `encoders.TextEncoder.encode`."""
        ids_nt, truncated = self.tokenizer(texts)
        return encode_by_length(ids_nt, self._forward, PASSES_ON_CPU), truncated


class OpenVinoImageTower:
    """A converted image tower; see `encoders.ImageEncoder`.

    Args:
        converted: a model.
        runtime: whose precision it computes in.
        threads: of this process.
        streams: images that are encoded at once; each has its share of the threads, and they the
            priority of the thread that makes this. As many as threads, unless given: none waits
            for another that queries have put aside.

    Raises:
        FailedPreconditionError: the files do not load, or there is no image tower.
    """

    def __init__(
        self, converted: Converted, runtime: Runtime, threads: int, streams: int | None = None
    ) -> None:
        info = converted.info
        if info.input_size is None:
            raise FailedPreconditionError(f"{info.release} is a release: it has no image tower")
        self.runtime = runtime
        self.name = info.name
        self.image_tower = info.image_tower
        self.dimension = info.dimension
        self.preprocessing = Preprocessing(info.input_size)
        self._converted, self._threads = converted, threads
        self._forward = _Forward(
            converted.image, runtime, threads, streams or threads, prepare=_from_pixels
        )

    def encode(self, pixels_nssc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode n prepared images; see `encoders.ImageEncoder.encode`."""
        return unit(self._forward(pixels_nssc))

    def for_queries(self) -> "OpenVinoImageTower":
        """Return another one, all threads on one image; see `encoders.ImageEncoder`."""
        return OpenVinoImageTower(self._converted, self.runtime, self._threads, streams=1)
