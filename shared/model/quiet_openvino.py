"""OpenVINO as everything here imports it: without the module that reports its use to its maker.

Its converter sends telemetry unless each user has opted out; where that module cannot be imported,
it takes a stub.
"""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402

__all__ = ["PrePostProcessor", "openvino"]
