from __future__ import annotations

import graph_text
import pytest

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.types import TensorSpec

IF = """(bool c, float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> {
    h = Abs(x)
    [choose] y = If (c) <
        then_branch = t () => (float[3] a) { k = Constant <value = float[3] {1, 1, 1}> () a = Add(h, k) },
        else_branch = e () => (float[3] b) { b = Mul(h, w) }
    >
}"""


def test_nodes_of_bodies_come_with_their_place() -> None:
    proto = graph_text.proto(IF)
    found = [(node.op_type, place) for node, place in walk.all_nodes(proto)]
    assert found == [
        ("Abs", ""),
        ("If", ""),
        ("Constant", "choose.then_branch"),
        ("Add", "choose.then_branch"),
        ("Mul", "choose.else_branch"),
    ]


def test_nodes_of_functions_come_with_their_place() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { y = mine.Twice(x) }",
        domains=', "mine" : 1',
        functions='<domain: "mine", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, a) }',
    )
    assert [place for _, place in walk.all_nodes(model.proto)] == ["", "function mine.Twice"]


def test_a_body_s_captures_count_as_reads_of_its_node() -> None:
    graph = graph_text.proto(IF).graph
    chooser = graph.node[1]
    assert walk.reads(chooser) == ["c", "h", "w"]
    links = walk.link(graph)
    assert links.consumers["h"] == [chooser]
    assert links.sole_consumer("h") == chooser
    assert links.sole_consumer("y") is None
    assert links.producer["h"].op_type == "Abs"


def test_constants_are_found_as_initializers_and_as_nodes() -> None:
    graph = graph_text.proto(
        "(float[3] x) => (float[3] y) <float w = {2}> { k = Constant <value = float {3}> () "
        "m = Constant <value_float = 3.0> () z = Add(k, w) y = Add(x, z) }"
    ).graph
    links = walk.link(graph)
    assert links.constant("w") is not None
    assert links.constant("k") is not None
    assert links.constant("m") is None, "only tensors are returned"
    assert links.constant("x") is None
    assert links.constant("z") is None


def test_tensors_are_found_wherever_they_are() -> None:
    names = [tensor.name for tensor in walk.tensors(graph_text.proto(IF))]
    assert names == ["w", ""]


def test_specs_come_from_every_list_of_values() -> None:
    graph = graph_text.proto("(float[n, 3] x) => (int64[n] y) <float[3] w = {1, 2, 3}> { y = Op(x, w) }").graph
    assert walk.specs(graph) == {
        "x": TensorSpec("x", "float32", ("n", 3)),
        "y": TensorSpec("y", "int64", ("n",)),
        "w": TensorSpec("w", "float32", (3,)),
    }
    assert walk.elem_types(graph) == {"x": 1, "y": 7, "w": 1}


def test_a_namer_never_gives_a_name_twice() -> None:
    namer = walk.Namer.of(graph_text.proto(IF))
    assert namer.fresh("h") == "h_1"
    assert namer.fresh("h") == "h_2"
    assert namer.fresh("new") == "new"
    assert namer.fresh("b") == "b_1", "names of bodies are taken, too"
    assert namer.fresh("") == "_1"


def test_reads_are_replaced_in_bodies_too() -> None:
    graph = graph_text.proto(IF).graph
    assert walk.replace_reads(graph, "h", "other") == 2
    assert walk.reads(graph.node[1]) == ["c", "other", "w"]
    assert walk.replace_reads(graph, "x", "z", only=[graph.node[1]]) == 0
    assert walk.replace_reads(graph, "x", "z", only=[graph.node[0]]) == 1


def test_a_value_that_a_body_passes_through_is_replaced() -> None:
    graph = graph_text.proto(
        "(bool c, float[3] x) => (float[3] y) { y = If (c) <then_branch = t () => (float[3] x) { }, "
        "else_branch = e () => (float[3] b) { b = Neg(x) }> }"
    ).graph
    assert walk.replace_reads(graph, "x", "z") == 2
    assert walk.reads(graph.node[0]) == ["c", "z"]


def test_sorting_moves_only_what_must_move() -> None:
    graph = graph_text.proto("(float[3] x) => (float[3] y) { a = Abs(x) y = Add(a, b) b = Neg(x) }").graph
    assert walk.sort_nodes(graph) is True
    assert [node.op_type for node in graph.node] == ["Abs", "Neg", "Add"]
    assert walk.sort_nodes(graph) is False


def test_sorting_reaches_into_bodies() -> None:
    graph = graph_text.proto(
        "(bool c, float[3] x) => (float[3] y) { y = If (c) <"
        "then_branch = t () => (float[3] a) { a = Neg(q) q = Abs(x) }, "
        "else_branch = e () => (float[3] b) { b = Neg(x) }> }"
    ).graph
    assert walk.sort_nodes(graph) is True
    assert [node.op_type for node in walk.nodes(graph)] == ["If", "Abs", "Neg", "Neg"]


def test_a_cycle_is_an_error_that_names_its_nodes() -> None:
    graph = graph_text.proto("(float[3] x) => (float[3] y) { [p] a = Add(x, b) [q] b = Abs(a) y = Neg(a) }").graph
    with pytest.raises(ModelError, match=r"nodes p, q, .*cycle"):
        walk.sort_nodes(graph)


def test_attributes_have_defaults() -> None:
    node = graph_text.proto("(float[3] x) => (float[3] y) { y = Elu <alpha: float = 0.5> (x) }").graph.node[0]
    assert walk.attribute(node, "alpha") == 0.5
    assert walk.attribute(node, "beta", 3) == 3
    assert walk.label(node) == "-> y"
    assert walk.is_standard(node, "Elu", "Relu")
    assert not walk.is_standard(node, "Relu")
