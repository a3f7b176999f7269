from __future__ import annotations

import graph_text
import pytest

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.passes import RemoveDead, run


def test_what_no_output_needs_goes_and_inputs_stay() -> None:
    model = graph_text.model(
        """(float[3] x, float[3] unread) => (float[3] y) <float w = {1}, float v = {2}> {
            a = Abs(x) b = Mul(a, v) c = Neg(b) y = Add(x, w)
        }"""
    )
    result = run(model, [RemoveDead()])
    assert graph_text.ops(result.model) == ["Add"]
    assert [tensor.name for tensor in result.model.proto.graph.initializer] == ["w"]
    assert [spec.name for spec in result.model.inputs] == ["x", "unread"]
    assert result.notes == ("remove-dead: removed 4 unused nodes, initializers and functions",)
    assert run(result.model, [RemoveDead()]).changed is False


def test_captured_values_live_and_dead_captures_do_not() -> None:
    model = graph_text.model(
        """(bool c, float[3] x) => (float[3] y) {
            used = Abs(x) wasted = Neg(x)
            y = If (c) <then_branch = t () => (float[3] a) { a = Relu(used) q = Exp(wasted) },
                        else_branch = e () => (float[3] b) { b = Relu(x) }>
        }"""
    )
    after = run(model, [RemoveDead()]).model
    assert [node.op_type for node in walk.nodes(after.proto.graph)] == ["Abs", "If", "Relu", "Relu"]


def test_a_node_lives_if_one_of_its_outputs_is_read() -> None:
    model = graph_text.model("(float[4] x) => (float[2] b) { a, b = Split <axis = 0> (x) }", opset=13)
    assert graph_text.ops(run(model, [RemoveDead()]).model) == ["Split"]


def test_functions_that_are_called_through_others_live() -> None:
    functions = "".join(
        f'<domain: "mine", opset_import: ["" : 17, "mine" : 1]> {name} (a) => (b) {{ b = {inner}(a) }}'
        for name, inner in (("Outer", "mine.Inner"), ("Inner", "Abs"), ("Unused", "Abs"))
    )
    model = graph_text.model(
        "(float[4] x) => (float[4] y) { y = mine.Outer(x) }", domains=', "mine" : 1', functions=functions
    )
    after = run(model, [RemoveDead()]).model
    assert [function.name for function in after.proto.functions] == ["Outer", "Inner"]


def test_a_broken_promise_is_noticed() -> None:
    model = graph_text.model("(float[3] x) => (float[3] y) { a = Abs(x) y = Relu(x) }")
    with pytest.raises(ModelError, match="was not removed"):
        RemoveDead().ensures(model, model)
