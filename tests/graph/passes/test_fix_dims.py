from __future__ import annotations

import graph_text
import pytest

from edgemm.errors import ModelError, UsageError
from edgemm.graph import walk
from edgemm.graph.passes import FixDims, InferShapes, run

BODY = (
    "(float[batch, n] x, float[batch, 3] z) => (float[batch, n] y, float[batch] q) { a = Abs(x) y = Neg(a) q = R(z) }"
)


def test_a_name_becomes_the_same_number_everywhere() -> None:
    model = run(graph_text.model(BODY), [InferShapes(), FixDims({"batch": 2, "n": 5}), InferShapes()]).model
    assert [spec.shape for spec in (*model.inputs, *model.outputs)] == [(2, 5), (2, 3), (2, 5), (2,)]
    assert walk.specs(model.proto.graph)["a"].shape == (2, 5)
    assert all(spec.is_static for spec in model.inputs)


def test_other_names_stay() -> None:
    model = run(graph_text.model(BODY), [FixDims({"batch": 2})]).model
    assert model.inputs[0].shape == (2, "n")


def test_an_unknown_name_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r'No input has a dimension "time"; .* batch, n'):
        run(graph_text.model(BODY), [FixDims({"time": 2})])
    with pytest.raises(ModelError, match="every input is static already"):
        run(graph_text.model("(float[3] x) => (float[3] y) { y = Abs(x) }"), [FixDims({"n": 2})])


def test_a_size_must_be_positive() -> None:
    with pytest.raises(UsageError, match='"n" cannot be 0'):
        FixDims({"n": 0})


def test_a_broken_promise_is_noticed() -> None:
    model = graph_text.model(BODY)
    with pytest.raises(ModelError, match="still dynamic"):
        FixDims({"n": 3}).ensures(model, model)
