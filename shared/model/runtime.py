"""Where a tower runs, and in which arithmetic. Imports torch only where it may be needed."""

import ctypes
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

from cra.shared.errors import FailedPreconditionError

Engine = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""int8: matrix products with weights are, and the rest is as with `auto`."""

_HINTS: Final = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
"""What OpenVINO calls them."""


@dataclass(frozen=True)
class Runtime:
    """An engine on a device; no part of it is `auto`."""

    engine: Engine
    device: str
    """`cpu`, `cuda` or `cuda:N`."""
    precision: Precision

    @classmethod
    def choose(
        cls, device: str = "auto", precision: Precision = "auto", engine: Engine = "torch"
    ) -> "Runtime":
        """Resolve `auto`.

        The device is CUDA if there is one; the engine OpenVINO on CPU where it is installed, torch
        elsewhere; the precision fp32 for torch on CPU, which is the reference, and else the
        fastest that the device has: bf16, or fp16 on CUDA without bf16, or fp32 on CPU without.

        Raises:
            FailedPreconditionError: there is no such device, or it does not have this engine or
                precision.
        """
        if device == "auto":
            device = "cuda" if _may_have_cuda() and _cuda_devices() else "cpu"
        kind, _, number = device.partition(":")
        if kind not in {"cpu", "cuda"} or (number and not number.isdecimal()):
            raise FailedPreconditionError(f"there is no device {device!r}; cpu, cuda or cuda:N")
        if kind == "cuda" and int(number or 0) >= (count := _cuda_devices()):
            raise FailedPreconditionError(
                f"there is no device {device!r}: torch sees {count} of CUDA"
            )
        if engine == "auto":
            engine = "openvino" if device == "cpu" and find_spec("openvino") else "torch"
        if engine == "openvino":
            if kind == "cuda":
                raise FailedPreconditionError("the runtime openvino has no device cuda")
            return cls(engine, device, _openvino_precision(precision))
        if precision == "int8":
            raise FailedPreconditionError("int8 needs the runtime openvino, which has CPUs alone")
        if precision == "auto":
            precision = "fp32" if kind == "cpu" else _cuda_precision()
        return cls(engine, device, precision)


def _may_have_cuda() -> bool:
    """Tell whether there is a driver: without one, torch need not be asked, nor loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _cuda_devices() -> int:
    import torch  # noqa: PLC0415

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cuda_precision() -> Precision:
    import torch  # noqa: PLC0415

    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _openvino_precision(precision: Precision) -> Precision:
    if find_spec("openvino") is None:
        raise FailedPreconditionError("the runtime openvino is not installed: pip install openvino")
    from cra.shared.model.quiet_openvino import openvino  # noqa: PLC0415

    has = set(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    if precision == "auto":
        return "bf16" if "BF16" in has else "fp32"
    if _HINTS[precision] not in has:
        raise FailedPreconditionError(f"this processor has no {precision}")
    return precision
