"""The few value types that every part of edgemm shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
"""Tensors by their ONNX name."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a model's input or output.

    `dtype` is numpy's name ("float32", "int64", "bfloat16"). A dimension is an int, a symbolic name, or
    None where the model leaves it unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def is_static(self) -> bool:
        """True if every dimension is a number."""
        return all(isinstance(d, int) for d in self.shape)

    def accepts(self, array: Array) -> bool:
        """True if `array` has this dtype and a shape that fits."""
        return (
            array.dtype == np.dtype(self.dtype)
            and array.ndim == len(self.shape)
            and all(
                not isinstance(want, int) or want == have for want, have in zip(self.shape, array.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        dims = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True)
class StatePair:
    """An output that is fed back as an input of the next step (LSTM state, convolution cache, KV cache)."""

    input: str
    output: str
