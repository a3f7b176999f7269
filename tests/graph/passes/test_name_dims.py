from __future__ import annotations

import graph_text
import pytest

from edgemm.errors import ModelError
from edgemm.graph import from_proto
from edgemm.graph.passes import NameDims, run


def test_unnamed_dimensions_get_names_of_their_own() -> None:
    proto = graph_text.proto("(float[?, 3, n] x, float[2, 2] z) => (float[?] y) { y = Op(x, z) }")
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "?"
    proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value = -1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "?"
    result = run(from_proto(proto), [NameDims()])
    assert [spec.shape for spec in result.model.inputs] == [("x_dim0", 3, "n"), ("z_dim0", "z_dim1")]
    assert result.model.proto.graph.output[0].type.tensor_type.shape.dim[0].WhichOneof("value") is None
    assert result.notes[0] == "name-dims: x[0] is now called x_dim0"


def test_names_that_exist_are_not_given_again() -> None:
    model = graph_text.model("(float[?] x, float[x_dim0] z) => (float[x_dim0_1] y) { y = Op(x, z) }")
    assert run(model, [NameDims()]).model.inputs[0].shape == ("x_dim0_2",)


def test_named_and_static_inputs_are_left_alone() -> None:
    model = graph_text.model("(float[n, 3] x, seq(float[?]) s) => (float[n] y) { y = Op(x, s) }")
    assert run(model, [NameDims()]).changed is False


def test_a_broken_promise_is_noticed() -> None:
    model = graph_text.model("(float[?] x) => (float[?] y) { y = Abs(x) }")
    with pytest.raises(ModelError, match="still without a name"):
        NameDims().ensures(model, model)
