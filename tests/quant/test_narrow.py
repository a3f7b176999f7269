"""FP8 and INT4: the graphs on onnxruntime against float, and their arithmetic against numpy."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.errors import CalibrationError, UsageError
from edgemm.graph import Model, from_proto, load
from edgemm.quant import Ranges, calibrate, from_folder, insert_qdq
from edgemm.quant.narrow import to_fp8, to_int4

DEMO = Path(__file__).parents[2] / "calibration" / "av_digits"


def product(rows: int, *, transposed: bool = False, op: str = "MatMul") -> Model:
    """x [2, rows] times a weight [rows, 8], as MatMul or Gemm."""
    weight = np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
    stored = weight.T.copy() if transposed else weight
    attributes = {"transB": 1} if transposed else {}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name="product", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        [numpy_helper.from_array(stored, "w")],
    )
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(model: Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model.proto)
    # As written: onnxruntime's own rewriting makes a QLinearConv of FP8, which it then does not have.
    with OnnxRuntimeEngine(model.to_bytes(), optimize=False) as engine:
        return {name: np.array(value) for name, value in engine.run(feeds).items()}


def ranges_of(model: Model, x: np.ndarray) -> Ranges:
    return calibrate(model, [{"x": x}, {"x": x}], OnnxRuntimeExecutor(), "min-max")


def test_fp8_is_what_numpy_makes_of_it() -> None:
    model = product(32)
    x = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    weight = model.array(model.proto.graph.initializer[0])
    got = run(to_fp8(model, ranges_of(model, x)), x=x)["y"]

    def narrow(values: np.ndarray, amax: np.ndarray) -> np.ndarray:
        scale = np.maximum(amax / 448, np.finfo(np.float32).tiny).astype(np.float32)
        return (values / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    expected = narrow(x, np.abs(x).max()) @ narrow(weight, np.abs(weight).max(axis=0))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_gemm_may_add_what_another_computes() -> None:
    weights = [numpy_helper.from_array(np.eye(8, dtype=np.float32), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Gemm", ["x", "w2", "a"], ["y"], name="second"),
    ]
    shape = [2, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    quantized = insert_qdq(model, ranges_of(model, x), "tensorrt")
    assert list(quantized.quantized) == ["first", "second"]
    np.testing.assert_allclose(run(quantized.model, x=x)["y"], 2 * x, atol=0.1)
    np.testing.assert_allclose(run(to_fp8(model, ranges_of(model, x)), x=x)["y"], 2 * x, rtol=0.1, atol=0.1)


def test_fp8_holds_its_types() -> None:
    model = product(32)
    made = to_fp8(model, ranges_of(model, np.ones((2, 32), np.float32)))
    kinds = {tensor.name: tensor.data_type for tensor in made.proto.graph.initializer}
    assert TensorProto.INT8 not in kinds.values()
    assert list(kinds.values()).count(TensorProto.FLOAT8E4M3FN) >= 2
    assert made.opset == 19


def test_fp8_refuses_ranges_of_another_graph() -> None:
    x = np.ones((2, 32), np.float32)
    with pytest.raises(CalibrationError, match="belong to the graph"):
        to_fp8(product(64), ranges_of(product(32), x))


@pytest.mark.parametrize(("op", "transposed"), [("MatMul", False), ("Gemm", False), ("Gemm", True)])
def test_int4_is_what_numpy_makes_of_it(op: str, transposed: bool) -> None:
    model = product(64, op=op, transposed=transposed)
    stored = model.array(model.proto.graph.initializer[0])
    weight = stored.T if transposed else stored
    x = np.random.default_rng(2).standard_normal((2, 64)).astype(np.float32)
    blocks = weight.reshape(2, 32, 8)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 7
    expected = x @ (np.rint(blocks / scale) * scale).reshape(64, 8)
    made = to_int4(model)
    np.testing.assert_allclose(run(made, x=x)["y"], expected, rtol=1e-4, atol=1e-4)
    assert {tensor.data_type for tensor in made.proto.graph.initializer} == {TensorProto.INT4, TensorProto.FLOAT}
    assert made.opset == 21


def test_int4_of_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="multiple of 32, so nothing can be INT4"):
        to_int4(product(33))
    with pytest.raises(UsageError):
        to_int4(product(64), exclude=["product"])


@pytest.mark.slow
def test_the_demo_keeps_its_decisions_in_fp8_and_int4() -> None:
    model = load(DEMO / "av_digits.onnx")
    samples = list(from_folder(DEMO / "calibration", model.inputs))
    ranges = calibrate(model, samples[:32], OnnxRuntimeExecutor())
    agreed = {"fp8": 0, "int4": 0}
    variants = {"fp8": to_fp8(model, ranges), "int4": to_int4(model)}
    for feeds in (sample.steps[0] for sample in samples[32:]):
        wanted = run(model, **feeds)["digit"].argmax()
        for name, variant in variants.items():
            agreed[name] += int(run(variant, **feeds)["digit"].argmax() == wanted)
    count = len(samples) - 32
    assert agreed["fp8"] >= 0.95 * count, agreed
    assert agreed["int4"] >= 0.95 * count, agreed
