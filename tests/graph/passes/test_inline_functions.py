from __future__ import annotations

import graph_text
import numpy as np
import pytest

from edgemm.errors import ModelError
from edgemm.graph import check
from edgemm.graph.passes import InlineFunctions, run

DOMAINS = ', "mine" : 1, "edgemm" : 1'
TWICE = '<domain: "{}", opset_import: ["" : 17]> Twice (a) => (b) {{ b = Add(a, a) }}'


def test_functions_are_replaced_by_their_bodies() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { h = mine.Twice(x) y = mine.Twice(h) }",
        domains=DOMAINS,
        functions=TWICE.format("mine"),
    )
    result = run(model, [InlineFunctions()])
    assert graph_text.ops(result.model) == ["Add", "Add"]
    assert not result.model.proto.functions
    feeds = {"x": np.array([1, 2, 3], np.float32)}
    np.testing.assert_array_equal(graph_text.run(result.model, feeds)[0], [4, 8, 12])


def test_edgemm_s_own_operators_stay_nodes() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { y = edgemm.Twice(x) }", domains=DOMAINS, functions=TWICE.format("edgemm")
    )
    result = run(model, [InlineFunctions()])
    assert not result.changed
    assert graph_text.ops(result.model) == ["Twice"]


OLD = '<domain: "mine", opset_import: ["" : %d]> Old (a) => (b) { b = %s (a) }'


def test_functions_of_another_opset_are_converted() -> None:
    model = graph_text.model(
        "(float[2, 3] x) => (float[2, 3] y) { y = mine.Old(x) }", domains=DOMAINS, functions=OLD % (13, "Softmax")
    )
    after = run(model, [InlineFunctions()]).model
    assert graph_text.ops(after) == ["Softmax"]
    feeds = {"x": np.array([[1, 2, 3], [0, 0, 0]], np.float32)}
    np.testing.assert_allclose(graph_text.run(after, feeds)[0], graph_text.run(model, feeds)[0])


def test_functions_that_cannot_be_converted_are_an_error_with_words() -> None:
    mixed = graph_text.model(
        "(float[3] x) => (float[3] y) { h = mine.Old(x) y = edgemm.Twice(h) }",
        domains=DOMAINS,
        functions=OLD % (13, "Abs") + TWICE.format("edgemm"),
    )
    with pytest.raises(ModelError, match="cannot inline the model's functions"):
        run(mixed, [InlineFunctions()])
    report = check(mixed, "tensorrt")
    assert not report.ok
    assert "one opset" in report.findings[0].remedy


def test_weights_come_back_whole() -> None:
    proto = graph_text.proto(
        "(float[1, 200] x) => (float[1, 200] y) { h = MatMul(x, w) y = mine.Twice(h) }",
        domains=DOMAINS,
        functions=TWICE.format("mine"),
    )
    weight = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
    proto.graph.initializer.append(graph_text.weight("w", weight))
    from edgemm.graph import from_proto

    model = from_proto(proto)
    after = run(model, [InlineFunctions()]).model
    np.testing.assert_array_equal(after.array(after.proto.graph.initializer[0]), weight)


def test_a_broken_promise_is_noticed() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { y = mine.Twice(x) }", domains=DOMAINS, functions=TWICE.format("mine")
    )
    with pytest.raises(ModelError, match='"Twice" was not inlined'):
        InlineFunctions().ensures(model, model)
