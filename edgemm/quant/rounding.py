"""Rounding weights so that the products are nearest, not the weights.

A product's error is the error of the weights times the inputs, so it depends on how the inputs go together: calibration
keeps their mean and their second moments, and each weight is rounded to make up for what rounding those before it did.
That is the method of Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv:2210.17323), after Hassibi and Stork, "Optimal Brain Surgeon" (1993). The error that remains has a
mean, which is known and goes into the bias (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", arXiv:1906.04721, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from edgemm.graph import walk
from edgemm.quant.arithmetic import INT8_LEVELS
from edgemm.quant.operators import ComputeNode
from edgemm.types import Array

Float64 = npt.NDArray[np.float64]

MOST_INPUTS: Final = 1536
"""Weights with more inputs to an output (3 x 3 x 170) are rounded to nearest: moments take memory by the square."""

_ROWS_A_STEP: Final = 64
"""Places of an activation that one step looks at: neighbours say little more, and every one costs."""

_BLOCK: Final = 64
"""Columns that are rounded before the ones behind them are told."""

_DAMPING: Final = 0.01
"""Share of the mean second moment that is added to each: what the inputs never did in calibration is not free."""


@dataclass(frozen=True)
class Moments:
    """Mean and second moments of what the weights of one node are multiplied with."""

    rows: int
    """How many inputs were seen."""
    mean: Float64
    """[groups, inputs]"""
    second: Float64
    """[groups, inputs, inputs], about zero."""


class MomentsObserver:
    """Sums up the moments of one node's inputs; memory depends on the node alone."""

    def __init__(self, item: ComputeNode, weights: Array) -> None:
        self._node = item.node
        self._kernel = weights.shape[2:] if item.node.op_type == "Conv" else ()
        groups, _, inputs = as_rows(item, weights).shape
        self._rows = 0
        self._steps = 0
        self._sum = np.zeros((groups, inputs))
        self._products = np.zeros((groups, inputs, inputs))

    def observe(self, activation: Array) -> None:
        """Take in what the node read in one step, which is not kept."""
        rows = self._convolved(activation) if self._kernel else self._multiplied(activation)
        rows = rows.astype(np.float64)
        self._steps += 1
        self._rows += rows.shape[1]
        self._sum += rows.sum(axis=1)
        self._products += rows.transpose(0, 2, 1) @ rows

    def moments(self) -> Moments:
        """The moments until now."""
        count = max(1, self._rows)
        return Moments(self._rows, self._sum / count, self._products / count)

    def _multiplied(self, activation: Array) -> Array:
        """Some rows of what a matrix is multiplied with: [1, rows, inputs]."""
        rows = activation.reshape(-1, activation.shape[-1])
        spread = max(1, len(rows) // _ROWS_A_STEP)
        # Others each time, or the same columns of a picture would be all that is seen.
        return rows[None, self._steps % spread :: spread]

    def _convolved(self, activation: Array) -> Array:
        """What the kernel covers at some of its places: [groups, places, inputs]."""
        axes = len(self._kernel)
        strides, dilations = (_integers(self._node, name, axes) for name in ("strides", "dilations"))
        spans = [(size - 1) * step + 1 for size, step in zip(self._kernel, dilations, strict=True)]
        pads = _integers(self._node, "pads", 2 * axes, 0)
        if walk.attribute(self._node, "auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
            pads = [(span - 1) // 2 for span in spans] * 2
        padded = np.pad(activation, [(0, 0), (0, 0), *((pads[i], pads[i + axes]) for i in range(axes))])
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
        every = [slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations))]
        windows = np.moveaxis(windows[tuple(every)], 1, 1 + axes)
        shape = windows.shape[: 1 + axes]  # batch and places; channels and kernel behind
        count = math.prod(shape)
        spread = max(1, count // _ROWS_A_STEP)
        taken = windows[np.unravel_index(np.arange(self._steps % spread, count, spread), shape)]
        return np.moveaxis(taken.reshape(len(taken), len(self._sum), -1), 1, 0)


def _integers(node: NodeProto, name: str, count: int, default: int = 1) -> list[int]:
    found = walk.attribute(node, name)
    if isinstance(found, int):
        return [found]
    return [int(value) for value in found] if isinstance(found, Sequence) else [default] * count


def can_be_observed(item: ComputeNode, weights: Array) -> bool:
    """True for nodes whose weights `WeightRounding` can round by their inputs: Conv, Gemm, MatMul of a matrix."""
    node = item.node
    if item.weight != 1 or node.op_type == "ConvTranspose" or (node.op_type != "Conv" and weights.ndim != 2):
        return False
    if node.op_type == "Gemm" and walk.attribute(node, "transA", 0):
        return False
    return bool(as_rows(item, weights).shape[2] <= MOST_INPUTS)


def as_rows(item: ComputeNode, weights: Array) -> Array:
    """The weights by group, output and input: [groups, outputs, inputs]."""
    if item.node.op_type == "Conv":
        (groups,) = _integers(item.node, "group", 1)
        return weights.reshape(groups, weights.shape[0] // groups, -1)
    return (weights if item.axis == 0 else weights.T)[None]


@dataclass(frozen=True)
class Rounded:
    """Integer weights, and how far the mean of each output moves because of them."""

    integers: Array
    """int8, in the shape of the weights."""
    shift: Float64 | None
    """[outputs]; None if it was not to be corrected."""


@dataclass(frozen=True)
class WeightRounding:
    """Rounds the weights of the nodes whose inputs calibration has seen; asked again, it remembers."""

    moments: Mapping[str, Moments]
    """By node of the prepared graph."""
    _done: dict[tuple[str, bytes, bool], Rounded] = field(default_factory=dict)

    def round(self, item: ComputeNode, weights: Array, scale: Array, *, has_bias: bool) -> Rounded:
        """The weights of a node of `moments` at `scale`, one for each output or for all.

        With a bias the error's mean does not count: it is handed back as `shift`, to be taken off the bias.
        """
        known = self.moments[item.node.name]
        key = (item.node.name, scale.tobytes(), has_bias)
        if key not in self._done:
            self._done[key] = _round(item, weights, scale, known, has_bias)
        return self._done[key]


def _round(item: ComputeNode, weights: Array, scale: Array, known: Moments, has_bias: bool) -> Rounded:
    rows = as_rows(item, weights).astype(np.float64)
    groups, outputs, _ = rows.shape
    scales = np.broadcast_to(np.asarray(scale, np.float64).reshape(-1), (groups * outputs,)).reshape(groups, outputs)
    second = known.second
    if has_bias:
        second = second - known.mean[:, :, None] * known.mean[:, None, :]
    integers = np.stack(
        [_least_error(rows[g] / scales[g][:, None], _regular(second[g], known.rows)) for g in range(groups)]
    )
    shift = None
    if has_bias:
        error = integers * scales[..., None] - rows
        shift = np.einsum("goi,gi->go", error, known.mean).reshape(-1)
    shaped = integers.reshape(weights.shape) if item.node.op_type == "Conv" or item.axis == 0 else integers[0].T
    return Rounded(np.ascontiguousarray(shaped).astype(np.int8), shift)


def _regular(second: Float64, rows: int) -> Float64:
    """The moments, drawn to their diagonal by as much as few rows leave them unknown, and made invertible."""
    inputs = len(second)
    diagonal = np.diag(second).clip(min=0)
    trust = rows / (rows + inputs)
    level = float(diagonal.mean()) or 1.0
    result: Float64 = trust * second + np.diag((1 - trust) * diagonal + _DAMPING * level)
    return result


def _least_error(wanted: Float64, second: Float64) -> Float64:
    """Integers near `wanted` [outputs, inputs]: the difference d is to have the least d' second d."""
    inputs = wanted.shape[1]
    # What weighs most is rounded first, while there are others left to make up for it.
    order = np.argsort(-np.diag(second), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(second[np.ix_(order, order)])).T
    left = wanted[:, order]
    found = np.empty_like(left)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.empty((len(left), end - start))
        for at in range(start, end):
            found[:, at] = np.clip(np.rint(left[:, at]), -INT8_LEVELS, INT8_LEVELS)
            errors[:, at - start] = (left[:, at] - found[:, at]) / upper[at, at]
            left[:, at + 1 : end] -= errors[:, at - start, None] * upper[at, at + 1 : end]
        left[:, end:] -= errors @ upper[start:end, end:]
    result = np.empty_like(found)
    result[:, order] = found
    return result
