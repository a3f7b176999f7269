"""What a graph lets one know of a value without running it: shapes, and numbers that constants and shapes decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.types import Array, TensorSpec

Shape = tuple[int | str | None, ...]
_Float64 = npt.NDArray[np.float64]

_LARGEST = 1 << 22
"""Elements of a constant that are worth looking at: masks of 2048 by 2048."""
_DEEPEST = 64
"""Nodes between a scale and what decides it: exporters write about ten."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

_ARITHMETIC: dict[str, Callable[..., _Float64]] = {
    "Add": np.add,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pow": np.power,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
}


@dataclass
class Known:
    """Values and shapes of one graph, found on demand.

    `numbers` gives in float64 what constants and static dimensions decide, such as `1 / sqrt(head_dim)` computed from
    a Shape; a dimension that is not static is NaN and makes NaN of what depends on it.
    """

    model: Model
    links: walk.Links
    specs: dict[str, TensorSpec]
    _found: dict[str, _Float64 | None] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        """The dimensions of a value, or None if not even their number is known."""
        spec = self.specs.get(name)
        if spec is not None:
            return spec.shape
        node = self.links.producer.get(name)
        if node is None:
            return None
        if walk.is_standard(node, "Reshape"):
            target = self.numbers(node.input[1])
            if target is not None and target.ndim == 1:
                # 0 copies a dimension and -1 is what is left over: both are left open here.
                return tuple(int(size) if size > 0 else None for size in np.nan_to_num(target))
        if walk.is_standard(node, "Transpose"):
            inner, order = self.shape(node.input[0]), permutation(node)
            if inner is not None and order is not None and len(order) == len(inner):
                return tuple(inner[axis] for axis in order)
        return None

    def array(self, name: str) -> Array | None:
        """The constant behind a name, or None if it is none or too large to look at."""
        node = self.links.producer.get(name)
        if node is not None and walk.is_standard(node, "Identity"):
            return self.array(node.input[0])
        if node is not None and walk.is_standard(node, "Constant"):
            for item in node.attribute:
                if item.name == "value_float":
                    return np.array(item.f, np.float32)
                if item.name == "value_int":
                    return np.array(item.i, np.int64)
                if item.name == "value_ints":
                    return np.array(item.ints, np.int64)
        tensor = self.links.constant(name)
        if tensor is None or int(np.prod(tensor.dims)) > _LARGEST:
            return None
        try:
            return self.model.array(tensor)
        except ModelError:
            return None

    def scalar(self, name: str) -> float | None:
        """The one number that a value holds, or None if it is not one, or not known."""
        numbers = self.numbers(name)
        if numbers is None or numbers.size != 1 or np.isnan(numbers).any():
            return None
        return float(numbers.reshape(()))

    def numbers(self, name: str) -> _Float64 | None:
        """The numbers of a value as float64, NaN where they depend on a dimension that is not static; None: unknown."""
        return self._numbers(name, _DEEPEST)

    def _numbers(self, name: str, depth: int) -> _Float64 | None:
        if name in self._found:
            return self._found[name]
        found = self._compute(name, depth)
        self._found[name] = found
        return found

    def _compute(self, name: str, depth: int) -> _Float64 | None:
        stored = self.array(name)
        if stored is not None:
            return stored.astype(np.float64) if stored.dtype.kind in "iufb" or stored.dtype.itemsize <= 2 else None
        node = self.links.producer.get(name)
        if node is None or depth == 0 or not walk.is_standard(node):
            return None
        if node.op_type == "Shape":
            shape = self.shape(node.input[0])
            if shape is None:
                return None
            sizes = np.array([size if isinstance(size, int) else np.nan for size in shape], np.float64)
            end = walk.attribute(node, "end")
            return sizes[_int(walk.attribute(node, "start", 0)) : None if end is None else _int(end)]
        inputs = [self._numbers(item, depth - 1) for item in node.input if item]
        read = [item for item in inputs if item is not None]
        if len(read) != len(inputs) or not read:
            return None
        with np.errstate(all="ignore"):
            return self._apply(node, read)

    def _apply(self, node: NodeProto, read: Sequence[_Float64]) -> _Float64 | None:
        op = node.op_type
        if op in _ARITHMETIC:
            return np.asarray(_ARITHMETIC[op](*read), np.float64)
        if op == "Div":
            whole = not (self._is_float(node.input[0]) or self._is_float(node.input[1]))
            quotient = np.divide(read[0], read[1])
            return np.asarray(np.trunc(quotient) if whole else quotient, np.float64)
        if op == "Cast":
            return read[0] if walk.attribute(node, "to") in _FLOATS else np.trunc(read[0])
        if op in ("CastLike", "Identity"):
            return read[0]
        if op == "Concat" and all(item.ndim == 1 for item in read):
            return np.concatenate(read)
        if op in ("Squeeze", "Unsqueeze", "Reshape") and read[0].size == 1:
            # Whether a single number has dimensions does not matter here, but in a Concat it does.
            return read[0].reshape(1 if op != "Squeeze" else ())
        if op == "Gather" and read[0].ndim == 1 and not np.isnan(read[1]).any():
            return np.asarray(read[0][read[1].astype(np.int64)], np.float64)
        if op == "Slice" and read[0].ndim == 1 and not any(np.isnan(item).any() for item in read[1:]):
            start, stop = (int(np.clip(item.reshape(-1)[0], -_LARGEST, _LARGEST)) for item in read[1:3])
            step = int(read[4].reshape(-1)[0]) if len(read) > 4 else 1
            return read[0][start:stop:step]
        if op == "Mod" and read[1].all():
            return np.asarray(np.mod(*read), np.float64)
        return None

    def _is_float(self, name: str) -> bool:
        stored = self.array(name)
        if stored is not None:
            return stored.dtype.kind not in "iub"
        node = self.links.producer.get(name)
        if node is not None and walk.is_standard(node, "Shape", "Size"):
            return False
        spec = self.specs.get(name)
        if spec is not None:
            return "float" in spec.dtype
        if node is not None and walk.is_standard(node, "Cast"):
            return walk.attribute(node, "to") in _FLOATS
        return node is not None and bool(node.input) and self._is_float(node.input[0])


def permutation(node: NodeProto) -> tuple[int, ...] | None:
    """The order of axes that a Transpose gives, or None if it leaves it to the rank."""
    order = walk.attribute(node, "perm")
    return tuple(order) if isinstance(order, (list, tuple)) else None


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
