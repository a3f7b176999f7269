"""Types narrower than int8's usual form: FP8 (E4M3) for weights and activations, INT4 for weights alone.

Both are for TensorRT: FP8 needs SM89 or newer, INT4 needs SM80 or newer. onnxruntime's CPU runs the graphs too, slowly,
which is how their accuracy is measured.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from edgemm.errors import ModelError, UsageError
from edgemm.graph import Model, ops, walk
from edgemm.graph.passes import InlineFunctions
from edgemm.quant.arithmetic import scale_of
from edgemm.quant.prepare import prepare
from edgemm.quant.qdq import insert_qdq
from edgemm.quant.ranges import Ranges
from edgemm.types import Array

FP8_MAX = 448.0
"""Largest finite E4M3 (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1)."""
FP8_OPSET = 19
INT4_OPSET = 21
INT4_LEVELS = 7
"""Symmetric int4 uses -7..7 of its range."""
INT4_BLOCK = 32

_INT8_LEVELS = 127


def to_fp8(model: Model, ranges: Ranges, exclude: Collection[str] = ()) -> Model:
    """Return the model with FP8 Q/DQ where TensorRT's int8 would stand; the nodes in `exclude` stay in float.

    The ranges are those of int8: a scale is amax / 448, one a channel for weights. Raises UsageError if nothing can be
    FP8, ModelError if the opset cannot be raised, and what `insert_qdq` raises.
    """
    ranges.check(model)
    raised = _at_opset(model, FP8_OPSET)
    # Rounding for int8's steps says nothing of FP8's; the weights come from their float values below.
    renewed = replace(ranges, graph=raised.digest, rounding=None)
    result = insert_qdq(raised, renewed, "tensorrt", exclude)
    if not result.quantized:
        raise UsageError(
            "The graph has no convolution or matrix product that can run in FP8. Build with --precision fp16."
        )
    quantized = result.model
    floats = prepare(raised)
    original = {node.name: node for node in floats.proto.graph.node}
    stored = {tensor.name: tensor for tensor in floats.proto.graph.initializer}
    proto = quantized.copy_proto()
    graph = proto.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if walk.is_standard(node, "DequantizeLinear")}

    # Every weight again from its float values: from the int8 it would carry the error of both.
    weights: dict[str, Array] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is not None and maker.input[0] in tables and node.name in original:
                weights[maker.input[0]] = floats.array(stored[original[node.name].input[index]])
    scaled: set[str] = set()
    for node in graph.node:
        if not walk.is_standard(node, "QuantizeLinear", "DequantizeLinear"):
            continue
        values, scale, zero_point = node.input
        if tables[scale].data_type == TensorProto.FLOAT and scale not in scaled:
            scaled.add(scale)
            narrower = numpy_helper.to_array(tables[scale]) * np.float32(_INT8_LEVELS / FP8_MAX)
            tables[scale].CopyFrom(numpy_helper.from_array(narrower.astype(np.float32), scale))
        _make_fp8(tables[zero_point], np.zeros(tuple(tables[zero_point].dims), np.float32))
        if values in weights:
            steps = weights.pop(values) / _along(numpy_helper.to_array(tables[scale]), node, tables[values])
            _make_fp8(tables[values], np.clip(steps, -FP8_MAX, FP8_MAX))
    return model.with_proto(proto)


def has_fp8(model: Model) -> bool:
    """True if a tensor of the main graph is stored in FP8 (E4M3)."""
    return any(tensor.data_type == TensorProto.FLOAT8E4M3FN for tensor in model.proto.graph.initializer)


def to_int4(model: Model, exclude: Collection[str] = (), block: int = INT4_BLOCK) -> Model:
    """Return the model with the weights of its matrix products in INT4, in blocks of `block` along the summed axis.

    Activations stay as they are; no calibration is needed. A weight whose summed axis is no multiple of `block` stays
    too. Raises UsageError if no weight can be INT4, ModelError if the opset cannot be raised.
    """
    raised = _at_opset(model, INT4_OPSET)
    prepared = prepare(raised)
    proto = prepared.copy_proto()
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    namer = walk.Namer.of(proto)
    nodes: list[NodeProto] = []
    done: dict[tuple[str, int], str] = {}
    for node in graph.node:
        name = node.input[1] if walk.is_standard(node, "MatMul", "Gemm") and node.name not in exclude else ""
        if name in stored and len(stored[name].dims) == 2:
            axis = 1 if walk.attribute(node, "transB", 0) else 0
            kept = prepared.array(stored[name])
            if kept.shape[axis] % block == 0 and kept.dtype in (np.float32, np.float16):
                if (name, axis) not in done:
                    done[name, axis] = _dequantized(graph.initializer, nodes, kept, name, axis, block, namer)
                node.input[1] = done[name, axis]
        nodes.append(node)
    if not done:
        raise UsageError(
            f"No matrix product has a constant weight whose summed axis is a multiple of {block}, so nothing can be "
            "INT4. Build with --precision int8 or fp16."
        )
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in graph.node for name in walk.reads(node)} | {value.name for value in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
    return model.with_proto(proto)


def _dequantized(
    initializers: list[TensorProto],
    nodes: list[NodeProto],
    weights: Array,
    name: str,
    axis: int,
    block: int,
    namer: walk.Namer,
) -> str:
    """Store a weight as int4 blocks with their scales, append the DequantizeLinear, and return its output."""
    columns = np.moveaxis(weights.astype(np.float32), axis, 0)
    blocks = columns.reshape(-1, block, columns.shape[1])  # [blocks, block, channels]
    scale = scale_of(np.abs(blocks).max(axis=1).astype(np.float64), INT4_LEVELS).astype(weights.dtype)
    steps = np.rint(blocks / scale[:, None].astype(np.float32)).clip(-INT4_LEVELS, INT4_LEVELS)
    integers = np.moveaxis(steps.reshape(columns.shape), 0, axis)
    values, scales, out = (namer.fresh(f"{name}_{what}") for what in ("int4", "scale", "float"))
    initializers.append(helper.make_tensor(values, TensorProto.INT4, weights.shape, integers.astype(np.int8).ravel()))
    initializers.append(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(scale, 0, axis)), scales))
    nodes.append(
        helper.make_node(
            "DequantizeLinear", [values, scales], [out], namer.fresh(f"{name}_DQ"), axis=axis, block_size=block
        )
    )
    return out


def _at_opset(model: Model, opset: int) -> Model:
    if model.opset >= opset:
        return model
    # onnx's converter loses functions: those of others are inlined before, edgemm's bodies written again behind.
    source = InlineFunctions()(model).model
    try:
        proto: ModelProto = version_converter.convert_version(source.copy_proto(), opset)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"The model is written for opset {model.opset}; this precision needs {opset}, and onnx cannot convert it "
            f"({str(error).strip().splitlines()[0]}). Export it again with opset {opset}."
        ) from error
    proto.ir_version = max(proto.ir_version, 10 if opset >= INT4_OPSET else 9)
    ops.add_bodies(proto)
    return model.with_proto(proto)


def _make_fp8(tensor: TensorProto, values: Array) -> None:
    narrow = np.asarray(values, np.float32).astype(ml_dtypes.float8_e4m3fn)
    name, dims = tensor.name, list(values.shape)
    tensor.Clear()
    tensor.name = name
    tensor.dims.extend(dims)
    tensor.data_type = TensorProto.FLOAT8E4M3FN
    tensor.raw_data = narrow.tobytes()


def _along(scale: Array, node: NodeProto, values: TensorProto) -> Array:
    if scale.ndim == 0:
        return scale
    shape = [1] * len(values.dims)
    shape[int(str(walk.attribute(node, "axis", 1)))] = -1
    return scale.reshape(shape)
