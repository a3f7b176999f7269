"""From output tensors to what they mean: labels, scores, vectors, as the recipe says."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from edgemm.errors import RecipeError
from edgemm.recipe import Argmax, Embedding, Output, Raw, Sigmoid, Softmax, Threshold
from edgemm.types import Array


class Label(msgspec.Struct, frozen=True, gc=False):
    """The best of several classes."""

    label: str
    """Its name; its index as text if the recipe gives no labels."""
    index: int
    score: float
    """Its probability (softmax), or its score as it is (argmax)."""


class Score(msgspec.Struct, frozen=True, gc=False):
    """One probability or score, and whether it reaches the recipe's threshold."""

    score: float
    above: bool


class Vector(msgspec.Struct, frozen=True):
    """An embedding of unit length, float32 `[n]`; zeros stay zeros."""

    vector: npt.NDArray[np.float32]


class Values(msgspec.Struct, frozen=True):
    """An output as it is; the array is a copy and belongs to the receiver."""

    values: Array


Decoded = Label | Score | Vector | Values
Decoder = Callable[[Array], Decoded]


def decoder(name: str, kind: Output) -> Decoder:
    """The function that decodes the output `name`. It raises RecipeError if the tensor has another shape than `kind`
    wants."""
    if isinstance(kind, Softmax | Argmax):
        return _best(name, kind)
    if isinstance(kind, Sigmoid):
        return _judge(name, "sigmoid", kind.threshold, _sigmoid)
    if isinstance(kind, Threshold):
        return _judge(name, "threshold", kind.threshold, float)
    if isinstance(kind, Embedding):
        return _unit
    if isinstance(kind, Raw):
        return lambda array: Values(array.copy())
    raise RecipeError(f'The output "{name}" has an unknown decoding {kind!r}.')


def score_of(decoded: Decoded) -> float | None:
    """The number that a gate compares: a score, or a raw output of a single number; None if there is none."""
    if isinstance(decoded, Label | Score):
        return decoded.score
    if isinstance(decoded, Values) and decoded.values.size == 1:
        return float(decoded.values.item())
    return None


def _best(name: str, kind: Softmax | Argmax) -> Decoder:
    labels = tuple(kind.labels)
    exp = math.exp
    softmax = isinstance(kind, Softmax)

    def decode(array: Array) -> Label:
        size = array.shape[-1] if array.ndim else 1
        if array.size != size or (labels and size != len(labels)):
            wanted = f"one row of {len(labels)} scores" if labels else "one row of scores"
            raise RecipeError(
                f'The output "{name}" has the shape {list(array.shape)}, its decoding expects {wanted}. '
                'Correct its labels in the recipe, or use decode = "raw".'
            )
        # Plain numbers: for tens of classes several times as fast as numpy's functions, which are cold by now.
        row = array.ravel().tolist()
        best = max(row)
        index = row.index(best)
        score = 1.0 / sum([exp(value - best) for value in row]) if softmax else float(best)
        return Label(labels[index] if labels else str(index), index, score)

    return decode


def _sigmoid(value: float) -> float:
    # The form that does not overflow, whichever the sign.
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def _judge(name: str, kind: str, threshold: float, score: Callable[[float], float]) -> Decoder:
    def decode(array: Array) -> Score:
        if array.size != 1:
            raise RecipeError(
                f'The output "{name}" has the shape {list(array.shape)}, decode = "{kind}" expects a single number. '
                'Use decode = "softmax" or "raw".'
            )
        value = score(array.item())
        return Score(value, value >= threshold)

    return decode


def _unit(array: Array) -> Vector:
    vector = array.reshape(-1).astype(np.float32)
    length = float(np.linalg.norm(vector))
    return Vector(vector / np.float32(length) if length > 0 else vector)
