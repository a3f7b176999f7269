"""The numpy arithmetic against onnxruntime's QuantizeLinear and DequantizeLinear, bit for bit."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from edgemm.quant.arithmetic import channel_amax, dequantize, quantize, scale_of

DTYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}

finite = st.floats(-(2.0**100), 2.0**100, width=32)
scales = st.floats(np.float32(1e-6).item(), np.float32(1e6).item(), width=32)


@functools.cache
def operator(kind, dtype, zero_point, axis, channels):
    """A session with one Q or DQ whose scale is an input."""
    float_type, integer_type = TensorProto.FLOAT, DTYPES[dtype]
    source, target = (float_type, integer_type) if kind == "QuantizeLinear" else (integer_type, float_type)
    zeros = np.full([] if axis is None else [channels], zero_point, dtype)
    attributes = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "s", "z"], ["y"], **attributes)],
        "g",
        [
            helper.make_tensor_value_info("x", source, None),
            helper.make_tensor_value_info("s", float_type, list(zeros.shape)),
        ],
        [helper.make_tensor_value_info("y", target, None)],
        [numpy_helper.from_array(zeros, "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnx_quantize(x, scale, zero_point, dtype, axis=None):
    channels = None if axis is None else len(scale)
    session = operator("QuantizeLinear", dtype, zero_point, axis, channels)
    return session.run(None, {"x": x, "s": np.asarray(scale, np.float32)})[0]


def onnx_dequantize(q, scale, zero_point, axis=None):
    channels = None if axis is None else len(scale)
    session = operator("DequantizeLinear", str(q.dtype), zero_point, axis, channels)
    return session.run(None, {"x": q, "s": np.asarray(scale, np.float32)})[0]


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=finite),
    scales,
    st.sampled_from([("int8", 0), ("uint8", 0), ("uint8", 128)]),
)
def test_quantize_is_onnxruntime_bit_for_bit(x, scale, kind):
    dtype, zero_point = kind
    ours = quantize(x, np.float32(scale), zero_point=zero_point, dtype=dtype)
    np.testing.assert_array_equal(ours, onnx_quantize(x, scale, zero_point, dtype))


@given(
    hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(-600, 600)),
    st.sampled_from([0.125, 0.5, 1.0, 4.0]),
)
def test_ties_round_to_even_and_the_ends_saturate(halves, scale):
    # x / scale is exactly a multiple of 1/2, so that every other value is a tie.
    x = (halves / 2 * scale).astype(np.float32)
    ours = quantize(x, np.float32(scale))
    expected = [max(-128, min(127, round(h / 2))) for h in halves.tolist()]
    assert ours.tolist() == expected
    np.testing.assert_array_equal(ours, onnx_quantize(x, scale, 0, "int8"))


@pytest.mark.parametrize("axis", [0, 1, 2])
@given(data=st.data())
@settings(max_examples=40)
def test_each_axis_is_onnxruntime_bit_for_bit(axis, data):
    x = data.draw(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)))
    scale = data.draw(hnp.arrays(np.float32, x.shape[axis], elements=scales))
    ours = quantize(x, scale, axis=axis)
    np.testing.assert_array_equal(ours, onnx_quantize(x, scale, 0, "int8", axis))
    np.testing.assert_array_equal(dequantize(ours, scale, axis=axis), onnx_dequantize(ours, scale, 0, axis))


@given(hnp.arrays(np.uint8, st.integers(1, 40)), scales, st.sampled_from([0, 128]))
def test_dequantize_is_onnxruntime_bit_for_bit(q, scale, zero_point):
    ours = dequantize(q, np.float32(scale), zero_point=zero_point)
    np.testing.assert_array_equal(ours, onnx_dequantize(q, scale, zero_point))


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=32)))
def test_within_the_range_no_value_moves_by_more_than_half_a_step(x):
    scale = scale_of(float(np.abs(x).max()))
    back = dequantize(quantize(x, scale), scale)
    assert np.all(np.abs(back - x) <= scale * 0.5001 + 1e-6)


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=32)))
def test_uint8_around_128_is_int8_around_0(x):
    scale = scale_of(100.0)
    signed = dequantize(quantize(x, scale), scale)
    unsigned = quantize(x, scale, zero_point=128, dtype="uint8")
    np.testing.assert_array_equal(dequantize(unsigned, scale, zero_point=128), signed)


def test_a_scale_is_never_zero_nor_subnormal():
    assert scale_of(0.0) == np.float32(1 / 127)
    assert scale_of(np.array([1e-44, 0, 127])).tolist() == [
        np.finfo(np.float32).tiny,
        np.float32(1 / 127),
        1.0,
    ]
    assert quantize(np.zeros(3, np.float32), scale_of(0.0)).tolist() == [0, 0, 0]


def test_channel_amax_is_by_axis():
    weights = np.array([[1.0, -5.0], [3.0, 2.0]])
    assert channel_amax(weights, None) == 5.0
    assert channel_amax(weights, 0).tolist() == [5.0, 3.0]
    assert channel_amax(weights, 1).tolist() == [3.0, 5.0]
    assert channel_amax(weights, -1).tolist() == [3.0, 5.0]
    assert channel_amax(np.zeros((0, 2)), None) == 0.0
