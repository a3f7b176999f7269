from __future__ import annotations

import graph_text
import numpy as np
import onnx
import pytest

from edgemm.graph import from_proto
from edgemm.graph.passes import FixInputs, TakeBranches, run

TWO_RATES = """(float[n] x, int64 sr) => (float[m] y) <int64 wide = {16000}> {
    w = Identity(wide)
    c = Equal(sr, w)
    y = If (c) <then_branch = t () => (float[m] a) <float two = {2}> { h = Mul(x, two) a = Abs(h) },
                else_branch = e () => (float[k] b) <int64[2] s = {8, -1}> { f = Reshape(x, s) b = Neg(f) }>
}"""
X = {"x": np.array([1, -2, 3], np.float32)}


@pytest.mark.parametrize(("rate", "ops"), [(16000, ["Mul", "Abs"]), (8000, ["Reshape", "Neg"])])
def test_the_branch_of_a_constant_condition_takes_the_place_of_the_if(rate: int, ops: list[str]) -> None:
    model = graph_text.model(TWO_RATES)
    result = run(model, [FixInputs({"sr": np.array(rate)}), TakeBranches()])
    assert [op for op in graph_text.ops(result.model) if op not in ("Identity", "Equal")] == ops
    assert "always takes its" in result.notes[-1]
    onnx.checker.check_model(result.model.proto)
    feeds = {"x": np.arange(8, dtype=np.float32), "sr": np.array(rate)}
    np.testing.assert_array_equal(graph_text.run(result.model, feeds)[0], graph_text.run(model, feeds)[0])


def test_a_condition_that_depends_on_an_input_is_left_alone() -> None:
    model = graph_text.model(TWO_RATES)
    assert run(model, [TakeBranches()]).changed is False


def test_branches_within_the_branch_taken_are_taken_too() -> None:
    model = graph_text.model(
        """(float[3] x) => (float[3] y) <bool yes = {1}, bool no = {0}> {
            y = If (yes) <then_branch = t () => (float[3] a) {
                a = If (no) <then_branch = p () => (float[3] q) { q = Neg(x) },
                             else_branch = r () => (float[3] u) { u = Abs(x) }>
            }, else_branch = e () => (float[3] b) { b = Sqrt(x) }>
        }"""
    )
    result = run(model, [TakeBranches()])
    assert [op for op in graph_text.ops(result.model) if op != "Identity"] == ["Abs"]
    np.testing.assert_array_equal(graph_text.run(result.model, X)[0], np.abs(X["x"]))


def test_a_condition_that_a_branch_computes_is_followed() -> None:
    model = graph_text.model(
        """(float[3] x) => (float[3] y) <bool yes = {1}> {
            c = If (yes) <then_branch = t () => (bool a) <bool one = {1}> { a = Identity(one) },
                          else_branch = e () => (bool b) <bool nil = {0}> { b = Identity(nil) }>
            y = If (c) <then_branch = p () => (float[3] q) { q = Neg(x) },
                        else_branch = r () => (float[3] u) { u = Abs(x) }>
        }"""
    )
    # The first is taken; then the second's condition is a constant, too.
    result = run(model, [TakeBranches()])
    assert "If" not in graph_text.ops(result.model)
    np.testing.assert_array_equal(graph_text.run(result.model, X)[0], -X["x"])


def test_a_branch_whose_names_are_taken_is_left_alone() -> None:
    proto = graph_text.proto(
        """(float[3] x) => (float[3] y, float[3] z) <bool yes = {1}> {
            y = If (yes) <then_branch = t () => (float[3] a) { a = Neg(x) },
                          else_branch = e () => (float[3] b) { b = Abs(x) }>
            a = Sqrt(x)
            z = Identity(a)
        }"""
    )
    # ONNX forbids it; from_proto does as well, so the names meet only in a proto that was edited.
    model = from_proto(graph_text.proto("(float[3] x) => (float[3] y) { y = Abs(x) }")).with_proto(proto)
    assert run(model, [TakeBranches()]).changed is False


def test_an_endless_condition_is_left_alone() -> None:
    chain = " ".join(f"c{k + 1} = Not(c{k})" for k in range(80))
    model = graph_text.model(
        f"""(float[3] x) => (float[3] y) <bool c0 = {{1}}> {{ {chain}
            y = If (c80) <then_branch = t () => (float[3] a) {{ a = Neg(x) }},
                          else_branch = e () => (float[3] b) {{ b = Abs(x) }}>
        }}"""
    )
    assert run(model, [TakeBranches()]).changed is False
