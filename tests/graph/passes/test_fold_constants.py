from __future__ import annotations

from pathlib import Path

import graph_text
import numpy as np
import pytest

from edgemm.errors import ModelError
from edgemm.graph import from_proto, ort, walk
from edgemm.graph import model as model_module
from edgemm.graph.passes import FoldConstants, run

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_constants_and_static_shapes_are_computed_once() -> None:
    model = graph_text.model(
        """(float[2, 3] x) => (float[6] y) <float[6] w = {1, 2, 3, 4, 5, 6}, int64[1] rest = {-1}> {
            r = Sqrt(w) s = Shape(x) n = ReduceProd <keepdims = 1> (s) f = Reshape(x, n) y = Mul(f, r)
        }"""
    )
    result = run(model, [FoldConstants()])
    assert graph_text.ops(result.model) == ["Reshape", "Mul"]
    assert result.notes == ("fold-constants: 5 nodes became 2",)
    np.testing.assert_array_equal(graph_text.run(result.model, X)[0], graph_text.run(model, X)[0])


def test_a_constant_condition_chooses_its_branch() -> None:
    model = graph_text.model(
        """(float[2, 3] x) => (float[2, 3] y) <bool c = {1}> {
            y = If (c) <then_branch = t () => (float[2, 3] a) { a = Abs(x) },
                        else_branch = e () => (float[2, 3] b) { b = Neg(x) }>
        }"""
    )
    assert graph_text.ops(run(model, [FoldConstants()]).model) == ["Abs"]


def test_outputs_keep_their_names_even_if_they_are_constant() -> None:
    model = graph_text.model("(float[2, 3] x) => (float[2, 3] y, float z) <float w = {4}> { z = Sqrt(w) y = Relu(x) }")
    after = run(model, [FoldConstants()]).model
    assert [spec.name for spec in after.outputs] == ["y", "z"]
    assert graph_text.run(after, X)[1] == 2.0


def test_only_the_domains_in_use_are_left() -> None:
    model = graph_text.model("(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    after = run(model, [FoldConstants()]).model
    assert [item.domain for item in after.proto.opset_import] == [""]


def test_edgemm_s_operators_are_not_taken_apart() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { y = edgemm.Twice(x) }",
        domains=', "edgemm" : 1',
        functions='<domain: "edgemm", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, a) }',
    )
    result = run(model, [FoldConstants()])
    assert not result.changed
    assert "edgemm's own operators" in result.notes[0]


@pytest.mark.parametrize(
    "body",
    [
        "(float[3] x) => (float[3] y) { h = Cast <to = 10> (x) g = Relu(h) y = Cast <to = 1> (g) }",
        "(float[3] x) => (float[3] y) <float16 w = {2}> { v = Cast <to = 1> (w) y = Mul(x, v) }",
    ],
)
def test_a_model_in_float16_is_left_alone(body: str) -> None:
    result = run(graph_text.model(body), [FoldConstants()])
    assert not result.changed
    assert "in float16" in result.notes[0]


def test_a_model_that_onnxruntime_refuses_is_an_error() -> None:
    model = graph_text.model("(float[3] x) => (float[3] y) { y = Wrelu(x) }")
    with pytest.raises(ModelError, match=r"onnxruntime does not take the model: .*edgemm check"):
        run(model, [FoldConstants()])


def test_what_onnxruntime_runs_but_cannot_fold_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object) -> object:
        raise ModelError("onnxruntime does not take the model: a branch")

    monkeypatch.setattr(ort, "fold", fail)
    model = graph_text.model("(float[3] x) => (float[3] y) { y = Relu(x) }")
    result = run(model, [FoldConstants()])
    assert result.model is model
    assert result.notes == ("fold-constants: not folded: onnxruntime does not take the model: a branch",)


def test_a_model_over_the_limit_of_one_file_is_folded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_module, "PROTO_LIMIT", model_module._HEADROOM + 1000)
    monkeypatch.setattr(model_module, "_INLINE_LIMIT", 1000)
    monkeypatch.setattr(ort, "PROTO_LIMIT", 1000)
    proto = graph_text.proto("(float[1, 200] x) => (float[1, 200] y) { v = Neg(w) y = MatMul(x, v) }")
    weight = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
    proto.graph.initializer.append(graph_text.weight("w", weight))
    after = run(from_proto(proto), [FoldConstants()]).model
    assert graph_text.ops(after) == ["MatMul"]
    assert after.folder is None, "its folder is gone, so its weights are in memory"
    np.testing.assert_array_equal(after.array(after.proto.graph.initializer[0]), -weight)


def test_an_operator_from_outside_would_be_noticed() -> None:
    before = graph_text.model("(float[3] x) => (float[3] y) { y = Relu(x) }")
    after = graph_text.model(
        "(float[3] x) => (float[3] y) { y = com.microsoft.Gelu(x) }", domains=', "com.microsoft" : 1'
    )
    with pytest.raises(ModelError, match=r"brought in com\.microsoft\.Gelu"):
        FoldConstants().ensures(before, after)
    assert list(walk.all_nodes(after.proto))
