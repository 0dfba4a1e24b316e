"""Weights as int8 are off by half a step at most, and each matrix product has them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cra.shared.model import int8_weights
from cra.shared.model.quiet_openvino import openvino

Weights = npt.NDArray[np.float32]

ops = openvino.opset8
WEIGHTS = arrays(np.float32, (6, 4), elements=st.floats(-8, 8, width=16))


def products(weights: Weights, *, as_fp16: bool, transposed: bool) -> Any:
    """Return a model that multiplies by weights of shape [outputs, inputs], or is transposed."""
    given = ops.parameter([-1, weights.shape[1]], np.float32)
    kept = weights if transposed else weights.T
    constant = openvino.op.Constant(np.ascontiguousarray(kept, np.float16 if as_fp16 else None))
    values = ops.convert(constant, "f32") if as_fp16 else constant
    return openvino.Model([ops.matmul(given, values, False, transposed)], [given])


@pytest.mark.parametrize("as_fp16", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@settings(max_examples=20)
@given(weights=WEIGHTS)
def test_half_a_step(weights: Weights, as_fp16: bool, transposed: bool) -> None:
    """What a product is multiplied with differs by half a 127th of its channel's largest weight.

    *Break:* take the scales along the other axis.
    """
    model = int8_weights.quantize(products(weights, as_fp16=as_fp16, transposed=transposed))
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    (found,) = compiled([np.eye(weights.shape[1], dtype=np.float32)]).values()
    step = np.abs(weights).max(axis=1) / 127
    assert (np.abs(found - weights.T) <= step / 2 + 1e-5).all()


def test_kept_as_int8() -> None:
    """A product with weights reads int8; one of two activations stays as it is.

    *Break:* leave the product's input where it was.
    """
    weights = np.ones((3, 4), np.float32)
    model = int8_weights.quantize(products(weights, as_fp16=True, transposed=True))
    constants = [one for one in model.get_ordered_ops() if one.get_type_name() == "Constant"]
    assert {one.get_element_type().to_string() for one in constants} == {"i8", "f32"}
    one, other = ops.parameter([-1, 4], np.float32), ops.parameter([4, -1], np.float32)
    untouched = openvino.Model([ops.matmul(one, other, False, False)], [one, other])
    before = [node.get_type_name() for node in untouched.get_ordered_ops()]
    after = [node.get_type_name() for node in int8_weights.quantize(untouched).get_ordered_ops()]
    assert before == after
