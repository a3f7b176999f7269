"""The arithmetic of Q/DQ in numpy: the reference that onnxruntime's operators are tested against, bit for bit."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgemm.types import Array

INT8_LEVELS: Final = 127
"""Symmetric int8 uses -127..127 of its range, so that a scale is amax / 127 and zero is exact."""

_TINY: Final = float(np.finfo(np.float32).tiny)


def scale_of(amax: Array | float, levels: int = INT8_LEVELS) -> Array:
    """Return the float32 scale `amax / levels`; a range of zero gets scale 1 / levels.

    Engines divide by the scale, so that it is never zero nor subnormal: a tensor that was always zero is still
    quantized to zeros.
    """
    scale = np.asarray(amax, np.float64) / levels
    scale = np.where(scale == 0, 1.0 / levels, scale)
    return np.maximum(scale, _TINY).astype(np.float32)


def quantize(x: Array, scale: Array, *, zero_point: int = 0, dtype: str = "int8", axis: int | None = None) -> Array:
    """Return `saturate(round(x / scale) + zero_point)`, as ONNX QuantizeLinear defines it.

    Rounding is half to even, saturation to the whole range of `dtype`. `scale` is a float32 scalar, or one
    value per slice of `axis`. `x` must be finite.
    """
    info = np.iinfo(dtype)
    with np.errstate(over="ignore"):
        # A quotient beyond float32 becomes infinite and then saturates, as it should.
        steps = np.rint(np.asarray(x, np.float32) / _along(scale, x.ndim, axis))
    return np.clip(steps.astype(np.float64) + zero_point, info.min, info.max).astype(dtype)


def dequantize(q: Array, scale: Array, *, zero_point: int = 0, axis: int | None = None) -> Array:
    """Return the float32 `(q - zero_point) * scale`, as ONNX DequantizeLinear defines it."""
    steps = q.astype(np.int64) - zero_point
    result: Array = steps.astype(np.float32) * _along(scale, q.ndim, axis)
    return result


def _along(scale: Array, rank: int, axis: int | None) -> Array:
    scale = np.asarray(scale, np.float32)
    if axis is None or scale.ndim == 0:
        return scale
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def channel_amax(weights: Array, axis: int | None) -> Array:
    """Return the largest magnitude of each slice along `axis`, or of the whole tensor: float64 [channels] or []."""
    magnitude = np.abs(weights.astype(np.float64))
    if axis is None:
        return np.asarray(magnitude.max(initial=0.0))
    others = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    return np.asarray(magnitude.max(axis=others, initial=0.0))
