from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemm.errors import RecipeError
from edgemm.recipe import Argmax, Embedding, Raw, Sigmoid, Softmax, Threshold
from edgemm.stream.decode import Label, Score, Values, Vector, decoder, score_of

logits = hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-200, 200, width=32))


@given(logits)
def test_softmax_is_the_probability_of_the_best(row: np.ndarray) -> None:
    decoded = decoder("y", Softmax())(row[None])
    assert isinstance(decoded, Label)
    exact = np.exp(row.astype(np.float64) - row.max())
    assert decoded.index == int(row.argmax())
    assert decoded.label == str(decoded.index)
    assert decoded.score == pytest.approx(exact.max() / exact.sum(), rel=1e-9)
    assert score_of(decoded) == decoded.score


def test_labels_name_the_best() -> None:
    assert decoder("y", Softmax(labels=["a", "b"]))(np.array([[0, 0]], np.float32)) == Label("a", 0, 0.5)
    assert decoder("y", Argmax(labels=["a", "b"]))(np.array([0.25, 0.75], np.float16)) == Label("b", 1, 0.75)


@given(st.floats(-1000, 1000))
def test_sigmoid_never_overflows(value: float) -> None:
    decoded = decoder("y", Sigmoid(threshold=0.5))(np.array([[value]]))
    assert isinstance(decoded, Score)
    assert 0 <= decoded.score <= 1
    assert decoded.above == (decoded.score >= 0.5)
    assert decoded.score == pytest.approx(0.5 * (1 + np.tanh(value / 2)), abs=1e-12)


def test_threshold_takes_the_score_as_it_is() -> None:
    assert decoder("y", Threshold(threshold=0.3))(np.array(0.25)) == Score(0.25, False)
    assert decoder("y", Threshold(threshold=0.25))(np.array([0.25])) == Score(0.25, True)


def test_embeddings_have_unit_length_and_zeros_stay() -> None:
    decoded = decoder("y", Embedding())(np.array([[3, 4]], np.float16))
    assert isinstance(decoded, Vector)
    assert decoded.vector.tolist() == pytest.approx([0.6, 0.8])
    zeros = decoder("y", Embedding())(np.zeros((1, 3), np.float32))
    assert isinstance(zeros, Vector)
    assert zeros.vector.tolist() == [0, 0, 0]
    assert score_of(zeros) is None


def test_raw_outlives_the_engine() -> None:
    buffer = np.array([[1, 2]], np.int64)
    decoded = decoder("y", Raw())(buffer)
    buffer[:] = 0
    assert isinstance(decoded, Values)
    assert decoded.values.tolist() == [[1, 2]]
    assert score_of(decoded) is None
    assert score_of(Values(np.array([[0.5]]))) == 0.5


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (Softmax(labels=["a", "b"]), (1, 3), "one row of 2 scores"),
        (Softmax(), (2, 3), "one row of scores"),
        (Sigmoid(), (1, 2), "a single number"),
        (Threshold(), (0,), "a single number"),
    ],
)
def test_a_shape_that_does_not_fit_is_the_recipes_fault(kind: Softmax, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        decoder("y", kind)(np.zeros(shape, np.float32))


def test_an_unknown_decoding_is_refused() -> None:
    with pytest.raises(RecipeError, match="unknown decoding"):
        decoder("y", None)  # type: ignore[arg-type]
