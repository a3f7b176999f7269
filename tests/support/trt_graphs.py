"""Small ONNX models for the TensorRT tests, as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.engine.tensorrt.plan import Profile

CONV_PROFILE: Profile = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str] | None]],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> bytes:
    """Make a model and serialise it."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return made.SerializeToString()


def conv(batch: int | str = "N", *, seed: int = 0) -> bytes:
    """x [N,3,8,8] -> Conv, Relu -> y [N,4,8,8], float32."""
    weight = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    shapes = [("x", TensorProto.FLOAT, [batch, 3, 8, 8])], [("y", TensorProto.FLOAT, [batch, 4, 8, 8])]
    return model(nodes, *shapes, {"w": weight})


def gemm() -> bytes:
    """x [2,8] -> MatMul -> y [2,4], float32."""
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")
    return model([node], [("x", TensorProto.FLOAT, [2, 8])], [("y", TensorProto.FLOAT, [2, 4])], {"w": weight})


def accumulator() -> bytes:
    """x [2] and a state s [2]: y = x + s, s_out = y + 0."""
    nodes = [
        helper.make_node("Add", ["x", "s"], ["y"], name="add"),
        helper.make_node("Mul", ["y", "one"], ["s_out"], name="keep"),
    ]
    inputs = [("x", TensorProto.FLOAT, [2]), ("s", TensorProto.FLOAT, [2])]
    outputs = [("y", TensorProto.FLOAT, [2]), ("s_out", TensorProto.FLOAT, [2])]
    return model(nodes, inputs, outputs, {"one": np.ones(1, np.float32)})


def growing() -> bytes:
    """x [1] and a state s [T]: s_out = s with x behind it, y = its sum. T grows by one a step, as a KV cache does."""
    nodes = [
        helper.make_node("Concat", ["s", "x"], ["s_out"], name="append", axis=0),
        helper.make_node("ReduceSum", ["s_out"], ["y"], name="sum", keepdims=1),
    ]
    inputs = [("x", TensorProto.FLOAT, [1]), ("s", TensorProto.FLOAT, ["T"])]
    outputs = [("y", TensorProto.FLOAT, [1]), ("s_out", TensorProto.FLOAT, ["U"])]
    return model(nodes, inputs, outputs)


def nonzero() -> bytes:
    """x [4] -> NonZero -> y [1, K]: the size of y depends on the values of x."""
    node = helper.make_node("NonZero", ["x"], ["y"], name="nonzero")
    return model([node], [("x", TensorProto.FLOAT, [4])], [("y", TensorProto.INT64, [1, "K"])])
