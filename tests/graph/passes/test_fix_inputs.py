from __future__ import annotations

import graph_text
import numpy as np
import pytest

from edgemm.errors import ModelError
from edgemm.graph.passes import FixInputs, FoldConstants, RemoveDead, run

SCALED = """(float[3] x, float k) => (float[3] y) {
    c = Constant <value = bool {1}> ()
    y = If (c) <then_branch = t () => (float[3] a) { a = Mul(x, k) }, else_branch = e () => (float[3] b) { b = Neg(x) }>
}"""
X = np.array([1, 2, 3], np.float32)


def test_a_fixed_input_is_a_constant_in_subgraphs_too_and_stays_in_the_interface() -> None:
    model = graph_text.model(SCALED)
    result = run(model, [FixInputs({"k": np.array(4, np.float32)}), FoldConstants(), RemoveDead()])
    assert [spec.name for spec in result.model.inputs] == ["x", "k"]
    assert result.notes[0] == "fix-inputs: k is always 4.0"
    # Whatever is fed there now is ignored.
    for fed in (4, -1):
        (y,) = graph_text.run(result.model, {"x": X, "k": np.array(fed, np.float32)})
        np.testing.assert_array_equal(y, X * 4)


def test_nothing_to_fix_changes_nothing() -> None:
    model = graph_text.model(SCALED)
    assert run(model, [FixInputs({})]).changed is False


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"z": np.zeros(3, np.float32)}, 'no input "z", expected one of: x, k'),
        ({"x": np.zeros(2, np.float32)}, r"cannot be fixed to float32\[2\], expected x: float32\[3\]"),
        ({"k": np.array(1)}, r"cannot be fixed to int64\[\]"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(values: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        run(graph_text.model(SCALED), [FixInputs(values)])


def test_a_broken_promise_is_noticed() -> None:
    model = graph_text.model(SCALED)
    with pytest.raises(ModelError, match=r"\['k'\] are still read"):
        FixInputs({"k": np.array(1, np.float32)}).ensures(model, model)
