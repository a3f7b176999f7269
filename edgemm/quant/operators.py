"""What edgemm knows of operators: which can run in int8, with which inputs, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from onnx import NodeProto, TensorProto, numpy_helper

from edgemm.graph import walk

Form = Literal["tensorrt", "onnxruntime"]
"""Whose fusion rules the placement of Q/DQ follows."""

COMPUTE: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with int8 kernels: where nearly all multiplications of a network are."""

RECURRENT: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Recurrent operators and their number of gates. They stay in float: neither engine has them in int8."""

PASS_THROUGH: Final = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "DepthToSpace",
    "SpaceToDepth",
    "Slice",
    "Split",
    "Gather",
    "Expand",
    "Tile",
)
"""Operators that move or select values and compute none: int8 goes through them unchanged, at one scale."""

_NON_NEGATIVE: Final = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs")


@dataclass(frozen=True)
class ComputeNode:
    """How one node would run in int8."""

    node: NodeProto
    activations: tuple[int, ...]
    """Indices of the inputs that are activations."""
    weight: int | None
    """Index of the constant input, or None if all inputs are activations."""
    axis: int | None
    """Axis of the weight's output channels; None: one scale for the whole weight."""
    bias: str | None
    """Name of the bias, or None."""


def classify(node: NodeProto, links: walk.Links, dtypes: Mapping[str, str], form: Form) -> ComputeNode | str:
    """Return how a node of COMPUTE would run in int8, or in words why it cannot."""
    for name in node.input:
        if name and dtypes.get(name, "float32") != "float32":
            return f"works in {dtypes[name]}, and int8 is placed in float32 graphs only"
    if node.op_type == "MatMul":
        return _matmul(node, links, form)
    weight = links.constant(node.input[1])
    if weight is None:
        return "its weight is not a constant"
    if links.constant(node.input[0]) is not None:
        return "its input is a constant"
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if form == "onnxruntime":
        reason = _refused_by_onnxruntime(node, weight, bias, links)
        if reason:
            return reason
    axis: int | None = 0
    if node.op_type == "ConvTranspose":
        # Weights are [in, out / groups, ...]: with groups one slice of axis 1 belongs to several output channels, and
        # TensorRT then takes one scale for all.
        axis = 1 if walk.attribute(node, "group", 1) == 1 else None
    elif node.op_type == "Gemm":
        axis = 0 if walk.attribute(node, "transB", 0) else 1
    return ComputeNode(node, (0,), 1, axis, bias)


def _matmul(node: NodeProto, links: walk.Links, form: Form) -> ComputeNode | str:
    left, right = (links.constant(name) for name in node.input)
    if left is not None and right is not None:
        return "both inputs are constants"
    if left is not None:
        if form == "onnxruntime":
            return "onnxruntime has no int8 kernel for a constant left factor"
        return ComputeNode(node, (1,), 0, None, None)
    if right is not None:
        return ComputeNode(node, (0,), 1, 1 if len(right.dims) == 2 else None, None)
    return ComputeNode(node, (0, 1), None, None, None)


def _refused_by_onnxruntime(node: NodeProto, weight: TensorProto, bias: str | None, links: walk.Links) -> str | None:
    if node.op_type == "ConvTranspose":
        return "onnxruntime has no int8 kernel for ConvTranspose"
    stored = None if bias is None else links.constant(bias)
    if bias is not None and stored is None:
        return "its bias is not a constant"
    if node.op_type == "Gemm" and stored is not None:
        channels = weight.dims[0 if walk.attribute(node, "transB", 0) else 1]
        if walk.attribute(node, "beta", 1.0) != 1.0 or list(stored.dims) not in ([channels], [1, channels]):
            return "onnxruntime's int8 Gemm takes a bias of one value a column, with beta 1"
    return None


def bias_add(item: ComputeNode, links: walk.Links) -> tuple[NodeProto, int] | None:
    """Return the Add that puts a constant bias, one value a column, on a matrix product, and the bias's index there.

    onnxruntime fuses the two into one Gemm where it knows the shapes, and that Gemm is int8 only if its bias is.
    """
    if item.node.op_type != "MatMul" or item.weight != 1 or item.axis is None:
        return None
    add = links.sole_consumer(item.node.output[0])
    if add is None or not walk.is_standard(add, "Add"):
        return None
    index = 1 if add.input[0] == item.node.output[0] else 0
    bias, weight = links.constant(add.input[index]), links.constant(item.node.input[1])
    if bias is None or weight is None or not bias.dims or math.prod(bias.dims) != weight.dims[1]:
        return None
    return (add, index) if bias.dims[-1] == weight.dims[1] else None


def is_rectifier(node: NodeProto, links: walk.Links) -> bool:
    """True for Relu, and for a Clip from zero up: quantization to an unsigned type does their work."""
    if walk.is_standard(node, "Relu"):
        return True
    return walk.is_standard(node, "Clip") and _lower_bound(node, links) == 0.0


def makes_non_negative(node: NodeProto, links: walk.Links) -> bool:
    """True if no output of the node can be below zero, whatever it is fed."""
    if walk.is_standard(node, "Clip"):
        return _lower_bound(node, links) >= 0.0
    return walk.is_standard(node, *_NON_NEGATIVE)


def _lower_bound(node: NodeProto, links: walk.Links) -> float:
    stored = links.constant(node.input[1]) if len(node.input) > 1 else None
    if stored is None or stored.data_type != TensorProto.FLOAT:
        return -math.inf
    return float(numpy_helper.to_array(stored).reshape(-1)[0])


def macs(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the multiply-accumulates of one run of a node of COMPUTE or RECURRENT; None if a shape is unknown."""
    try:
        ins = [shapes[name] if name else () for name in node.input[:3]]
        if node.op_type == "MatMul":
            rows = math.prod(ins[0][:-1]) if len(ins[1]) <= 2 else math.prod(shapes[node.output[0]][:-1])
            return rows * ins[0][-1] * (ins[1][-1] if len(ins[1]) > 1 else 1)
        if node.op_type == "Gemm":
            depth = ins[0][0 if walk.attribute(node, "transA", 0) else 1]
            return math.prod(ins[0]) * math.prod(ins[1]) // depth
        if node.op_type in RECURRENT:
            steps = math.prod(ins[0][:2])
            return steps * (math.prod(ins[1]) + math.prod(ins[2]))
        # A convolution spends its kernel on each output, a transposed one on each input.
        places = shapes[node.output[0]] if node.op_type == "Conv" else ins[0]
        return places[0] * math.prod(places[2:]) * math.prod(ins[1])
    except (KeyError, IndexError):
        return None
