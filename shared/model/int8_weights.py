"""Weights as int8: a matrix product reads half of what bf16 does, and its arithmetic is faster.

Each output channel has its own scale, symmetric about zero, so that nothing has to be calibrated on
data. The other side of a product is rounded as it comes, by groups of values: OpenVINO's dynamic
quantisation. NNCF's INT8_SYM makes the same of weights; it would bring scikit-learn with it.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import structlog

from cra.shared import terms
from cra.shared.model.encoders import ImageEncoder, TextEncoder, Vectors
from cra.shared.model.quiet_openvino import openvino
from cra.shared.model.runtime import Precision

OPTIONS: Final = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
"""Values of an activation that share a scale. A query of 22 tokens took 9.3 ms with 128, 8.3
with 768, 9.9 with 64, and 14.0 in bf16 (ViT-B/16's shape); OpenVINO's default is 32."""

KEPT: Final = 0.999
"""Cosine with the vector in fp32 that a faster runtime has to keep."""

NAMES_TRIED: Final = 64
SQUARES_TRIED: Final = (4, 16, 64, 256)
"""A side."""

_LARGEST: Final = 127

_log = structlog.get_logger()

Tower = TypeVar("Tower", bound=TextEncoder | ImageEncoder)


def quantize(model: openvino.Model) -> openvino.Model:
    """Have each matrix product of a model take its weights from int8; return the model."""
    ops = openvino.opset8
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        weights = _constant(product.input_value(1).get_node())
        if weights is None or weights.ndim != 2:
            continue
        inputs_axis = 1 if product.get_attributes()["transpose_b"] else 0
        largest = np.maximum(
            weights.max(axis=inputs_axis, keepdims=True),
            -weights.min(axis=inputs_axis, keepdims=True),
        )
        with np.errstate(invalid="ignore"):  # what is no number shows in the vectors in fp32
            scale = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
            rounded = openvino.op.Constant(np.rint(weights / scale).astype(np.int8))
        restored = ops.multiply(ops.convert(rounded, "f32"), openvino.op.Constant(scale))
        product.input(1).replace_source_output(restored.output(0))
    return model


def names() -> list[str]:
    """Return texts to try a tower on: names of building."""
    return [group[0] for group in terms.architecture().groups[:NAMES_TRIED]]


def pictures(side: int) -> npt.NDArray[np.uint8]:
    """Return prepared images to try a tower on, uint8 RGB of shape [n, side, side, 3].

    Each is of squares in colours at random, from four to 256 a side: some is smooth, some is not.
    """
    rng = np.random.default_rng(0)
    found = []
    for count in SQUARES_TRIED:
        colours = rng.integers(0, 256, (count, count, 3), np.uint8)
        place = np.arange(side) * min(count, side) // side
        found.append(colours[place][:, place])
    return np.stack(found)


def load_if_kept(
    load: Callable[[Precision], Tower],
    encode: Callable[[Tower], Vectors],
    name: str,
) -> Tower:
    """Load a tower in int8 if that keeps its vectors, as far as they are tried, else as `auto`.

    Args:
        load: loads it at a precision.
        encode: has it encode what it is tried on.
        name: what the log calls it.
    """
    exact = encode(load("fp32"))
    quick = load("int8")
    cosine = float((exact * encode(quick)).sum(axis=1).min())
    if cosine >= KEPT:
        return quick
    del quick
    _log.warning(
        "not in int8, which does not keep its vectors",
        tower=name,
        cosine_to_fp32=round(cosine, 5),
        needed=KEPT,
    )
    return load("auto")


def _constant(node: Any) -> npt.NDArray[np.float32] | None:
    """Return the values of a constant, kept as fp16 or not; None if the node is none."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return np.asarray(node.get_data(), np.float32)
