from __future__ import annotations

import graph_text
import numpy as np
import pytest
from onnx import TensorProto

from edgemm.errors import ModelError, UsageError
from edgemm.graph import Model, from_proto, walk
from edgemm.graph.passes import ToHalf, run


def convert(body: str, keep: tuple[str, ...] = (), opset: int = 17) -> tuple[Model, tuple[str, ...]]:
    result = run(graph_text.model(body, opset=opset), [ToHalf(keep)])
    return result.model, result.notes


def dtypes(model: Model) -> dict[str, str]:
    return {name: spec.dtype for name, spec in walk.specs(model.proto.graph).items()}


def test_inputs_and_outputs_stay_float32_with_casts_at_the_boundary() -> None:
    model, notes = convert("(float[3] x) => (float[3] y) { a = Abs(x) y = Relu(a) }")
    assert graph_text.ops(model) == ["Cast", "Abs", "Relu", "Cast"]
    assert dtypes(model) == {
        "x": "float32",
        "x_half": "float16",
        "a": "float16",
        "y_half": "float16",
        "y": "float32",
    }
    assert notes == ("to-half: 2 nodes in float16, 0 in float32",)
    np.testing.assert_array_equal(graph_text.run(model, {"x": np.array([-1, 2, 3], np.float32)})[0], [1, 2, 3])


def test_weights_that_only_float16_reads_are_stored_in_it() -> None:
    model, _ = convert(
        "(float[3] x) => (float[3] y) <float w = {0.1}> { k = Constant <value = float {0.3}> () "
        "a = Mul(x, w) y = Add(a, k) }"
    )
    assert model.proto.graph.initializer[0].data_type == TensorProto.FLOAT16
    assert graph_text.ops(model).count("Cast") == 2


def test_weights_that_both_read_are_stored_in_both() -> None:
    model, _ = convert("(float[3] x) => (float[3] y) <float w = {0.1}> { a = Mul(x, w) b = Pow(a, w) y = Add(a, b) }")
    assert {tensor.name: tensor.data_type for tensor in model.proto.graph.initializer} == {
        "w": TensorProto.FLOAT,
        "w_half": TensorProto.FLOAT16,
    }


@pytest.mark.parametrize("keep", ["softmax", "Softmax", "p"])
def test_what_is_to_be_kept_stays_float32(keep: str) -> None:
    model, notes = convert(
        "(float[1, 3] x) => (float[1, 3] y) { a = Abs(x) [softmax] p = Softmax(a) y = Neg(p) }", (keep,)
    )
    assert dtypes(model)["p"] == "float32"
    assert dtypes(model)["a"] == "float16"
    assert notes == ("to-half: 2 nodes in float16, 1 in float32",)


def test_a_name_to_keep_that_is_nowhere_is_refused() -> None:
    with pytest.raises(UsageError, match='"sotfmax" is to stay in float32, but'):
        convert("(float[1, 3] x) => (float[1, 3] y) { y = Softmax(x) }", ("sotfmax",))


def test_sums_stay_float32_and_do_not_overflow() -> None:
    body = "(float[1, 70000] x) => (float[1, 1] y) { a = Abs(x) y = ReduceSumSquare <axes = [1]> (a) }"
    model, _ = convert(body)
    x = np.full((1, 70000), 3.0, np.float32)
    np.testing.assert_allclose(graph_text.run(model, {"x": x})[0], 630000.0)


def test_scales_of_resize_stay_float32() -> None:
    model, _ = convert(
        """(float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}> {
            y = Resize <mode = "nearest"> (x, , s)
        }"""
    )
    assert graph_text.ops(model) == ["Cast", "Resize", "Cast"]
    assert model.proto.graph.initializer[0].data_type == TensorProto.FLOAT


def test_what_computes_shapes_stays_float32() -> None:
    model, _ = convert(
        """(float[n] x) => (float[m] y) <float scale = {1.5}> {
            s = Shape(x) f = Cast <to = 1> (s) g = Mul(f, scale) h = Cast <to = 7> (g)
            a = Abs(x) y = Expand(a, h)
        }"""
    )
    assert dtypes(model)["g"] == "float32"


def test_a_number_that_becomes_an_index_stays_float32() -> None:
    model, _ = convert(
        """(float[4099] x, float[1] where) => (float[1] y) <float[1] one = {1}> {
            p = Add(where, one) i = Cast <to = 7> (p) a = Neg(x) y = Gather(a, i)
        }"""
    )
    x = np.arange(4099, dtype=np.float32)
    (picked,) = graph_text.run(model, {"x": x, "where": np.array([4096], np.float32)})
    assert picked[0] == np.float32(np.float16(-4097.0))
    assert dtypes(model)["p"] == "float32"


def test_an_epsilon_keeps_its_node_in_float32() -> None:
    model, notes = convert("(float[3] x) => (float[3] y) <float eps = {1e-12}> { [guard] a = Add(x, eps) y = Log(a) }")
    assert any("1 nodes stay in float32 for a constant below 3e-08: guard" in note for note in notes)
    assert dtypes(model)["a"] == "float32"


def test_weights_beyond_the_range_are_clamped_with_a_note() -> None:
    model, notes = convert("(float[3] x) => (float[3] y) <float[3] m = {-1e9, 0, -70000}> { y = Add(x, m) }")
    assert "to-half: clamped 1 constants to +-65504: m" in notes
    stored = model.array(model.proto.graph.initializer[0])
    np.testing.assert_array_equal(stored, np.array([-65504, 0, -65504], np.float16))


def test_infinities_stay_infinite() -> None:
    proto = graph_text.proto("(float[2] x) => (float[2] y) { y = Add(x, m) }")
    proto.graph.initializer.append(graph_text.weight("m", np.array([-np.inf, 0], np.float32)))
    result = run(from_proto(proto), [ToHalf()])
    assert np.isneginf(result.model.array(result.model.proto.graph.initializer[0])[0])
    assert len(result.notes) == 1


def test_bodies_are_converted_inside_and_float32_at_their_border() -> None:
    body = """(bool c, float[3] x) => (float[3] y) {
        h = Abs(x)
        r = If (c) <then_branch = t () => (float[3] a) { q = Neg(h) a = Relu(q) },
                    else_branch = e () => (float[3] b) { p = Pow(h, h) b = Identity(p) }>
        y = Neg(r)
    }"""
    model, notes = convert(body)
    assert notes[0] == "to-half: 5 nodes in float16, 2 in float32"
    branches = [graph for _, graph in walk.subgraphs(model.proto.graph.node[2])]
    assert [node.op_type for node in branches[0].node] == ["Neg", "Relu", "Cast"]
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.array([-0.5, 0.25, 1], np.float32)}
        expected = graph_text.run(graph_text.model(body), feeds)[0]
        np.testing.assert_allclose(graph_text.run(model, feeds)[0], expected, atol=2e-3)


def test_a_body_that_passes_an_outer_value_through_gives_float32() -> None:
    body = """(bool c, float[3] x) => (float[3] y) {
        h = Abs(x)
        y = If (c) <then_branch = t () => (float[3] h) { },
                    else_branch = e () => (float[3] b) { b = Neg(h) }>
    }"""
    proto = graph_text.proto(body)
    model = run(from_proto(proto), [ToHalf()]).model
    branch = next(graph for name, graph in walk.subgraphs(model.proto.graph.node[-1]) if name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Cast"]


def test_custom_and_unknown_operators_stay_float32() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { a = Abs(x) b = mine.Odd(a) y = Neg(b) }", domains=', "mine" : 1'
    )
    result = run(model, [ToHalf()])
    assert graph_text.ops(result.model) == ["Cast", "Abs", "Cast", "Odd", "Neg"]


def test_q_and_dq_stay_float32() -> None:
    model, _ = convert(
        """(float[3] x) => (float[3] y) <float s = {0.01}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d)
        }""",
        opset=21,
    )
    assert graph_text.ops(model) == ["QuantizeLinear", "DequantizeLinear", "Cast", "Relu", "Cast"]


def test_a_model_without_float32_is_unchanged() -> None:
    result = run(graph_text.model("(int64[3] x) => (int64[3] y) { y = Abs(x) }"), [ToHalf()])
    assert not result.changed


def test_a_broken_promise_is_noticed() -> None:
    before = graph_text.model("(float[3] x) => (float[3] y) { y = Abs(x) }")
    after = graph_text.model("(float16[3] x) => (float16[3] y) { y = Abs(x) }")
    with pytest.raises(ModelError, match="inputs changed their types"):
        ToHalf().ensures(before, after)
