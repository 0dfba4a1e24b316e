"""Forward passes by torch, on CPU or CUDA."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from cra.shared.model.runtime import Runtime

HIGH: Final = -1
LOW: Final = 0
"""Priorities of CUDA streams. They hold within a process, and between processes under MPS."""


class TorchForward:
    """A module in inference mode.

    On CUDA it has a stream of its own, and copies in and out by pinned memory, so that neither the
    default stream nor the other tower's is waited for.

    Args:
        module: takes a batch, and returns its vectors.
        runtime: where it runs.
        priority: of its CUDA stream.
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
        }
        self._stream = (
            torch.cuda.Stream(self._device, priority)  # type: ignore[no-untyped-call]
            if self._device.type == "cuda"
            else None
        )
        self.texts_at_once: int = 8 if self._stream is None else 256
        """A GPU is faster the more it has to do; a core gains nothing from long rows of padding."""

    def __call__(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what the module makes of a batch, as float32."""
        given = torch.from_numpy(batch)
        with torch.inference_mode(), torch.autocast(**self._autocast):
            if self._stream is None:
                return np.asarray(self._module(given).float().numpy())
            with torch.cuda.stream(self._stream):
                encoded = self._module(given.pin_memory().to(self._device, non_blocking=True))
                answer = torch.empty(encoded.shape, dtype=torch.float32, pin_memory=True)
                answer.copy_(encoded, non_blocking=True)
            self._stream.synchronize()
            return np.asarray(answer.numpy())
