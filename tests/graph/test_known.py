"""What constants and shapes decide in a graph, read off without running it."""

from __future__ import annotations

import graph_text
import numpy as np
import pytest

from edgemm.graph import from_proto, walk
from edgemm.graph.known import Known


def known(body: str, *, opset: int = 17) -> Known:
    model = graph_text.model(body, opset=opset)
    return Known(model, walk.link(model.proto.graph), walk.specs(model.proto.graph))


def number(nodes: str, inputs: str = "float[b, 2, 5, 32] x, float[?] free") -> np.ndarray | None:
    constants = "<int64[2] pair = {6, 4}, int64 two = {2}, float half = {0.5}>"
    return known(f"({inputs}) => (n) {constants} {{ {nodes} }}").numbers("n")


@pytest.mark.parametrize(
    ("nodes", "value"),
    [
        ("n = Shape(x)", [np.nan, 2, 5, 32]),
        ("n = Shape <start = 1, end = 3> (x)", [2, 5]),
        ("s = Shape(x) n = Gather <axis = 0> (s, two)", 5),
        ("n = Div(pair, two)", [3, 2]),
        ("s = Shape(x) t = Gather <axis = 0> (s, two) n = Div(t, two)", 2),
        ("f = Cast <to = 1> (two) n = Div(f, half)", 4),
        ("s = Shape(x) n = Div(s, half)", [np.nan, 4, 10, 64]),
        ("f = Cast <to = 1> (pair) g = Div(f, half) h = Mul(g, half) k = Sqrt(h) n = Cast <to = 7> (k)", [2, 2]),
        ("m = Neg(half) n = Cast <to = 7> (m)", 0),
        ("n = Concat <axis = 0> (pair, pair)", [6, 4, 6, 4]),
        ("n = Mod(pair, two)", [0, 0]),
        ("a = Constant <value_ints = [0]> () u = Unsqueeze(two, a) n = Concat <axis = 0> (u, pair)", [2, 6, 4]),
        ("a = Constant <value_ints = [0]> () u = Unsqueeze(two, a) n = Squeeze(u, a)", 2),
        ("a = Constant <value_int = 7> () n = CastLike(a, half)", 7),
    ],
)
def test_numbers(nodes: str, value: object) -> None:
    found = number(nodes)
    assert found is not None
    np.testing.assert_array_equal(found, np.array(value, np.float64))


@pytest.mark.parametrize(
    "nodes",
    [
        "n = Abs(free)",
        "n = Abs(half)",
        "a = Abs(pair) s = Shape(x) n = Concat <axis = 0> (s, a)",
        "a = Abs(pair) s = Shape(x) t = Slice(s, a, a) n = Neg(t)",
        "z = Sub(two, two) n = Mod(pair, z)",
        "n = mine.Odd(half)",
    ],
)
def test_what_is_not_known(nodes: str) -> None:
    model = graph_text.model(
        f"(float[b, 2] x, float[?] free) => (n) <int64[2] pair = {{6, 4}}, int64 two = {{2}}, float half = {{0.5}}> "
        f"{{ {nodes} }}",
        domains=', "mine" : 1',
    )
    assert Known(model, walk.link(model.proto.graph), walk.specs(model.proto.graph)).numbers("n") is None


def test_scalars_and_shapes() -> None:
    found = known(
        """(float[b, 10, 64] x) => (y) <int64[1] heads = {2}, int64[1] dim = {32}, int64[1] rest = {-1}> {
        zero = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()
        s = Shape(x) b = Slice(s, zero, one) t = Concat <axis = 0> (b, rest, heads, dim)
        r = Reshape(x, t) p = Transpose <perm = [0, 2, 1, 3]> (r) q = Transpose(r)
        y = Identity(x) }"""
    )
    assert found.shape("p") == (None, 2, None, 32)
    assert found.shape("q") is None
    assert found.shape("nothing") is None
    assert found.shape("s") is None
    assert found.scalar("heads") == 2
    assert found.scalar("s") is None
    assert found.scalar("b") is None
    assert found.numbers("b") is not None


def test_large_constants_are_not_looked_at() -> None:
    proto = graph_text.proto("(float[1] x) => (y) { y = Add(x, big) }")
    proto.graph.initializer.append(graph_text.weight("big", np.zeros((1 << 22) + 1, np.int8)))
    model = from_proto(proto)
    found = Known(model, walk.link(model.proto.graph), {})
    assert found.array("big") is None
    assert found.numbers("big") is None
