"""FP8 and INT4 of models with functions: raising the opset must lose none of them."""

from __future__ import annotations

import graph_text
import numpy as np
import pytest
from onnx import TensorProto, helper

from edgemm.engine.executor import OnnxRuntimeExecutor, open_graph
from edgemm.graph import Model, from_proto, ops
from edgemm.options import LogMelOptions
from edgemm.quant import calibrate
from edgemm.quant.narrow import to_fp8, to_int4


def sound_and_product(functions: str = "") -> Model:
    """x [1, 1600] -> LogMel -> [1, 8, 32] times a weight [32, 4], doubled by a function if one is given."""
    double = "y = mine.Double(z)" if functions else "y = Identity(z)"
    weights = ", ".join(["0.5"] * 128)
    proto = graph_text.proto(
        f"(float[1, 8, 32] features) => (float[1, 8, 4] y) <float[32, 4] w = {{{weights}}}> "
        f"{{ z = MatMul(features, w) {double} }}",
        domains=', "mine" : 1' if functions else "",
        functions=functions,
    )
    node = ops.log_mel_node("x", "features", LogMelOptions(n_mels=32), "mel")
    del proto.graph.input[:]
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1600]))
    nodes = [node, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    ops.add_bodies(proto)
    return from_proto(proto)


DOUBLE = '<domain: "mine", opset_import: ["" : 17]> Double (a) => (b) { b = Add(a, a) }'


@pytest.mark.parametrize("functions", ["", DOUBLE])
@pytest.mark.parametrize("precision", ["fp8", "int4"])
def test_functions_survive(functions: str, precision: str) -> None:
    model = sound_and_product(functions)
    x = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 1600)).astype(np.float32)
    if precision == "fp8":
        narrow = to_fp8(model, calibrate(model, [{"x": x}, {"x": x}], OnnxRuntimeExecutor(), "min-max"))
    else:
        narrow = to_int4(model)
    assert [item.name for item in narrow.proto.functions if item.domain == ops.DOMAIN] == ["LogMel"]
    with open_graph(model) as one, open_graph(narrow) as other:
        expected, got = np.array(one.run({"x": x})["y"]), np.array(other.run({"x": x})["y"])
    np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())
