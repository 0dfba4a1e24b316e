"""Forward passes by torch, on CPU or CUDA."""

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from cra.shared.model.encoders import PASSES_ON_CPU, Passes
from cra.shared.model.runtime import Runtime

HIGH: Final = -1
LOW: Final = 0
"""Priorities of CUDA streams. They hold within a process, and between processes under MPS."""


class TorchForward:
    """A module in inference mode.

    On CUDA each thread that calls has a stream of its own, and copies in and out go by pinned
    memory, so that no caller waits for another's copies or for the default stream.

    Args:
        module: takes a batch, and returns its vectors.
        runtime: where it runs.
        priority: of its CUDA streams.
    """

    def __init__(
        self, module: Callable[[torch.Tensor], torch.Tensor], runtime: Runtime, priority: int
    ) -> None:
        self._device = torch.device(runtime.device)
        if isinstance(module, torch.nn.Module):
            module.to(self._device)
        self._module = module
        dtype = torch.float16 if runtime.precision == "fp16" else torch.bfloat16
        self._autocast: dict[str, Any] = {
            "device_type": self._device.type,
            "dtype": dtype,
            "enabled": runtime.precision != "fp32",
            # Each weight is used once in a pass; and the cache is one for all threads, whose
            # streams do not wait for each other's casts.
            "cache_enabled": False,
        }
        self._priority = priority
        self._of_thread = threading.local()
        on_cpu = self._device.type == "cpu"
        self.text_passes = PASSES_ON_CPU if on_cpu else Passes(cost=2**14, most=2**14)
        """A GPU is faster the more it has to do; a core has to pay for padding."""

    def __call__(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what the module makes of a batch, as float32."""
        given = torch.from_numpy(batch)
        with torch.inference_mode(), torch.autocast(**self._autocast):
            if self._device.type == "cpu":
                return np.asarray(self._module(given).float().numpy())
            stream = self._stream()
            with torch.cuda.stream(stream):
                encoded = self._module(given.pin_memory().to(self._device, non_blocking=True))
                answer = torch.empty(encoded.shape, dtype=torch.float32, pin_memory=True)
                answer.copy_(encoded, non_blocking=True)
            stream.synchronize()
            return np.asarray(answer.numpy())

    def _stream(self) -> torch.cuda.Stream:
        """Return the caller's own stream: while one computes, another's batch is copied."""
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                self._device, self._priority
            )
        own: torch.cuda.Stream = self._of_thread.stream
        return own
