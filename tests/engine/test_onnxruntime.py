"""The onnxruntime engine: state, layer times, and errors in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemm.engine.executor import OnnxRuntimeExecutor, open_graph
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.errors import EngineError
from edgemm.graph import from_proto
from edgemm.types import StatePair


def counter() -> onnx.ModelProto:
    """sum_out = sum_in + x; y = 2 * sum_out."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["sum_in", "x"], ["sum_out"], name="add"),
            helper.make_node("Add", ["sum_out", "sum_out"], ["y"], name="double"),
        ],
        "counter",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, [1, 2]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, [1, 2]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


STATE = [StatePair("sum_in", "sum_out")]
ONE = {"x": np.ones((1, 2), np.float32)}


def test_state_is_carried_and_reset() -> None:
    with OnnxRuntimeEngine(counter().SerializeToString(), STATE) as engine:
        assert [spec.name for spec in engine.inputs] == ["x"]
        assert [spec.name for spec in engine.outputs] == ["y"]
        assert [float(engine.run(ONE)["y"][0, 0]) for _ in range(3)] == [2, 4, 6]
        engine.reset()
        assert engine.run(ONE)["y"][0, 0] == 2


def test_a_result_outlives_the_next_step() -> None:
    with OnnxRuntimeEngine(counter().SerializeToString(), STATE) as engine:
        first = engine.run(ONE)["y"]
        engine.run(ONE)
        assert first[0, 0] == 2


def test_layer_times_count_the_calls() -> None:
    with OnnxRuntimeEngine(counter().SerializeToString(), STATE, profile_layers=True) as engine:
        for _ in range(4):
            engine.run(ONE)
        layers = {layer.name: layer for layer in engine.layer_times()}
        assert layers["add"].op == "Add"
        assert layers["add"].calls == 4
        assert engine.layer_times() is engine.layer_times()


def test_layer_times_must_be_asked_for() -> None:
    model = counter().SerializeToString()
    with OnnxRuntimeEngine(model, STATE) as engine, pytest.raises(EngineError, match="profile_layers=True"):
        engine.layer_times()


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, '"x" was not fed, expected x: float32'),
        ({"x": np.ones((1, 3), np.float32)}, 'input "x" is float32[1, 3], expected x: float32[1, 2]'),
        ({"x": np.ones((1, 2), np.float64)}, 'input "x" is float64[1, 2]'),
        ({**ONE, "z": np.ones(1)}, "onnxruntime failed"),
    ],
)
def test_wrong_feeds_are_named(feeds: dict[str, np.ndarray], words: str) -> None:
    with OnnxRuntimeEngine(counter().SerializeToString(), STATE) as engine:
        with pytest.raises(EngineError) as error:
            engine.run(feeds)
        assert words in str(error.value)


def test_wrong_models_and_states() -> None:
    with pytest.raises(EngineError, match="onnxruntime refuses the model"), OnnxRuntimeEngine(b"nonsense"):
        pass
    wrong = OnnxRuntimeEngine(counter().SerializeToString(), [StatePair("sum_in", "nothing")])
    with pytest.raises(EngineError, match='no state pair "nothing" -> "sum_in"'), wrong:
        pass
    with pytest.raises(EngineError, match="is not open"):
        OnnxRuntimeEngine(counter().SerializeToString()).run(ONE)


def test_a_path_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(counter(), path)
    with OnnxRuntimeEngine(path, STATE) as from_path, OnnxRuntimeEngine(path.read_bytes(), STATE) as from_bytes:
        assert from_path.run(ONE)["y"].tobytes() == from_bytes.run(ONE)["y"].tobytes()


def test_graphs_without_a_bundle() -> None:
    model = from_proto(counter())
    with open_graph(model, ["sum_out"], optimize=False) as engine:
        out = engine.run({**ONE, "sum_in": np.ones((1, 2), np.float32)})
        assert {name: float(value[0, 0]) for name, value in out.items()} == {"sum_out": 2}
    with OnnxRuntimeExecutor().open(model) as engine:
        assert set(engine.run({**ONE, "sum_in": np.ones((1, 2), np.float32)})) == {"y", "sum_out"}


def negate(shape: list[int | str]) -> bytes:
    """y = -x."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "negate",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_what_is_written_to_a_tensor_between_two_runs_is_seen_whatever_its_layout() -> None:
    buffer = np.zeros((3, 2), np.float32)
    for x in (np.zeros((2, 3), np.float32), buffer.T, np.frombuffer(bytearray(25), np.uint8)[1:].view(np.float32)):
        x = x.reshape(2, 3)
        with OnnxRuntimeEngine(negate([2, 3])) as engine:
            for value in range(3):
                x[...] = value
                assert engine.run({"x": x})["y"].tolist() == [[-value] * 3] * 2
            other = np.full((2, 3), 7, np.float32)
            assert engine.run({"x": other})["y"][0, 0] == -7
            assert engine.run({"x": x})["y"][0, 0] == -2


def test_shapes_may_change_from_run_to_run() -> None:
    with OnnxRuntimeEngine(negate(["n"])) as engine:
        for n in (2, 3, 1):
            assert engine.run({"x": np.ones(n, np.float32)})["y"].tolist() == [-1] * n


def test_a_failed_run_leaves_the_engine_as_it_was() -> None:
    with OnnxRuntimeEngine(counter().SerializeToString(), STATE) as engine:
        engine.run(ONE)
        with pytest.raises(EngineError, match="expected x"):
            engine.run({"x": np.ones((1, 3), np.float32)})
        assert engine.run(ONE)["y"][0, 0] == 4
