from __future__ import annotations

from pathlib import Path

import graph_text
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemm.errors import ModelError
from edgemm.graph import from_proto, load, walk
from edgemm.graph import model as model_module
from edgemm.graph.passes import InferShapes, run
from edgemm.graph.passes.infer_shapes import infer_leniently, values_without_shape


def test_shapes_are_followed_through_a_computed_reshape() -> None:
    model = graph_text.model(
        """(float[2, 4, 8] x) => (float[?, ?] y) <int64[1] zero = {0}, int64[1] rest = {-1}> {
            s = Shape(x) b = Gather(s, zero) t = Concat <axis = 0> (b, rest) y = Reshape(x, t)
        }"""
    )
    result = run(model, [InferShapes()])
    assert result.changed
    assert result.notes == ()
    assert result.model.outputs[0].shape == (2, 32)
    assert run(result.model, [InferShapes()]).changed is False


@pytest.mark.parametrize(
    "body",
    [
        "(float[3] x, float[4] z) => (float[3] y) { [sum] y = Add(x, z) }",
        "(float[2, 3] x, float[4, 5] z) => (float[2, 5] y) { [sum] y = MatMul(x, z) }",
        "(float[2, 3] x) => (float[2, 4] y) { [sum] y = Relu(x) }",
    ],
)
def test_contradicting_shapes_are_an_error_that_names_the_node(body: str) -> None:
    with pytest.raises(ModelError, match=r"shapes contradict each other: .*node name: sum"):
        run(graph_text.model(body), [InferShapes()])


def test_stale_shapes_of_inner_values_are_dropped_with_a_note() -> None:
    proto = graph_text.proto("(float[3] x) => (float[3] y) { a = Abs(x) y = Relu(a) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [7]))
    result = run(from_proto(proto), [InferShapes()])
    assert "dropped the file's shapes of inner values" in result.notes[0]
    assert walk.specs(result.model.proto.graph)["a"].shape == (3,)


def test_a_branch_that_cannot_run_is_a_note() -> None:
    model = graph_text.model(
        """(bool c, float[3] x) => (float[?] y) {
            y = If (c) <then_branch = t () => (float[?] a) { a = Abs(x) },
                        else_branch = e () => (float[?] b) <float[4] w = {1, 2, 3, 4}> { b = Add(x, w) }>
        }"""
    )
    assert any("a branch of an If cannot run" in note for note in run(model, [InferShapes()]).notes)


def test_an_operator_that_onnx_infers_wrongly_is_let_pass() -> None:
    model = graph_text.model("(float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y) { y = MeanVarianceNormalization(x) }")
    run(model, [InferShapes()])


def test_values_behind_an_unknown_operator_are_counted() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { a = mine.Odd(x) b = Abs(a) y = Relu(b) }", domains=', "mine" : 1'
    )
    result = run(model, [InferShapes()])
    assert result.notes == ("infer-shapes: no shape found for 2 values, first a, b",)
    assert values_without_shape(result.model.proto) == ["a", "b"]


def test_bodies_get_their_shapes() -> None:
    model = graph_text.model(
        """(bool c, float[3] x) => (float[3] y) {
            y = If (c) <then_branch = t () => (float[?] a) { k = Abs(x) a = Neg(k) },
                        else_branch = e () => (float[?] b) { b = Neg(x) }>
        }"""
    )
    found = run(model, [InferShapes()]).model.proto
    (_, body), _ = walk.subgraphs(found.graph.node[0])
    assert walk.specs(body)["k"].shape == (3,)


def test_a_model_whose_weights_stay_in_a_file_is_inferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = graph_text.proto("(float[batch, 200] x) => (float[?, ?] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(graph_text.weight("w", np.ones((200, 200), np.float32)))
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    monkeypatch.setattr(model_module, "_INLINE_LIMIT", 1000)
    lazy = load(tmp_path / "m.onnx")
    after = run(lazy, [InferShapes()]).model
    assert after.outputs[0].shape == ("batch", 200)
    assert after.folder == tmp_path
    assert after.array(after.proto.graph.initializer[0]).sum() == 40000


def test_lenient_inference_never_raises() -> None:
    model = graph_text.model("(float[3] x, float[4] z) => (float[3] y) { a = Abs(x) q = Add(x, z) y = Relu(q) }")
    assert walk.specs(infer_leniently(model).graph)["a"].shape == (3,)


def test_a_broken_promise_is_noticed() -> None:
    model = graph_text.model("(float[3] x) => (float[3] y) { a = Abs(x) y = Relu(a) }")
    other = graph_text.model("(float[3] x) => (float[3] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="changed the graph"):
        InferShapes().ensures(model, other)
