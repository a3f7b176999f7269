"""The form of a float graph that calibration measures and quantization rewrites.

Both start from the same model and do the same preparation, so that tensor names and ranges agree.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, version_converter

from edgemm.errors import ModelError
from edgemm.graph import Model, walk
from edgemm.types import Array

PER_AXIS_OPSET: Final = 13
"""Since this opset DequantizeLinear has an axis."""

TARGET_OPSET: Final = 17
"""What an older model is raised to; TensorRT 10.3 and onnxruntime 1.18 know all of it."""


def prepare(model: Model) -> Model:
    """Return the model with an opset that knows per-channel Q/DQ, named nodes, and batch norms folded away.

    The outputs are those of the original up to rounding of the folded weights. Raises ModelError if the opset cannot
    be raised.
    """
    proto = _raise_opset(model)
    proto.ir_version = max(proto.ir_version, 8)
    _constants_to_initializers(proto)
    _name_nodes(proto)
    _fold_batch_norms(model.with_proto(proto))
    return model.with_proto(proto)


def _raise_opset(model: Model) -> ModelProto:
    if model.opset >= PER_AXIS_OPSET:
        return model.copy_proto()
    try:
        raised: ModelProto = version_converter.convert_version(model.copy_proto(), TARGET_OPSET)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"The model is written for opset {model.opset}; int8 needs {PER_AXIS_OPSET} or later, and onnx cannot "
            f"convert it ({str(error).strip().splitlines()[0]}). Export it again with opset {TARGET_OPSET}."
        ) from error
    return raised


def _constants_to_initializers(proto: ModelProto) -> None:
    kept = []
    for node in proto.graph.node:
        value = next((item.t for item in node.attribute if item.name == "value"), None)
        if walk.is_standard(node, "Constant") and value is not None:
            stored = proto.graph.initializer.add()
            stored.CopyFrom(value)
            stored.name = node.output[0]
        else:
            kept.append(node)
    _replace_nodes(proto, kept)


def _name_nodes(proto: ModelProto) -> None:
    """Give every node of the main graph a name of its own: reports, exclusions and the search go by name."""
    namer = walk.Namer.of(proto)
    seen: set[str] = set()
    for node in proto.graph.node:
        if not node.name or node.name in seen:
            node.name = namer.fresh(f"{node.op_type}_{next(filter(None, node.output), '')}")
        seen.add(node.name)


def _fold_batch_norms(model: Model) -> None:
    """Multiply each BatchNormalization that follows a convolution into its weights, in place."""
    proto = model.proto
    links = walk.link(proto.graph)
    namer = walk.Namer.of(proto)
    gone: set[str] = set()
    for norm in proto.graph.node:
        if not walk.is_standard(norm, "BatchNormalization") or walk.attribute(norm, "training_mode", 0):
            continue
        conv = links.producer.get(norm.input[0])
        if conv is None or not walk.is_standard(conv, "Conv", "ConvTranspose"):
            continue
        if len(links.consumers[norm.input[0]]) != 1 or norm.input[0] in links.outputs:
            continue
        if conv.op_type == "ConvTranspose" and walk.attribute(conv, "group", 1) != 1:
            continue
        stored = [links.constant(name) for name in (*norm.input[1:5], *conv.input[1:])]
        if any(tensor is None or tensor.data_type != TensorProto.FLOAT for tensor in stored):
            continue
        gamma, beta, mean, variance, weight, *bias = [
            model.array(tensor).astype(np.float64) for tensor in stored if tensor is not None
        ]
        epsilon = walk.attribute(norm, "epsilon", 1e-5)
        factor = gamma / np.sqrt(variance + (epsilon if isinstance(epsilon, float) else 1e-5))
        shape = [1] * weight.ndim
        shape[0 if conv.op_type == "Conv" else 1] = -1
        offset = ((bias[0] if bias else 0.0) - mean) * factor + beta
        del conv.input[1:]
        for wish, value in (("weight", weight * factor.reshape(shape)), ("bias", offset)):
            name = namer.fresh(f"{conv.name}_folded_{wish}")
            conv.input.append(name)
            _store(proto, name, value.astype(np.float32))
        conv.output[0] = norm.output[0]
        gone.add(norm.name)
    _replace_nodes(proto, [node for node in proto.graph.node if node.name not in gone])


def _store(proto: ModelProto, name: str, value: Array) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(value, name))


def _replace_nodes(proto: ModelProto, kept: list[NodeProto]) -> None:
    if len(kept) == len(proto.graph.node):
        return
    copies = []
    for node in kept:
        private = NodeProto()
        private.CopyFrom(node)
        copies.append(private)
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
