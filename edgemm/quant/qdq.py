"""Writing Q/DQ into a float graph: int8 weights, and a Q and DQ for each activation that the placement names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgemm.errors import CalibrationError, ModelError, UsageError
from edgemm.graph import Model, from_proto, walk
from edgemm.graph.passes.infer_shapes import infer_leniently
from edgemm.quant.arithmetic import channel_amax, quantize, scale_of
from edgemm.quant.operators import COMPUTE, RECURRENT, ComputeNode, Form, bias_add, macs
from edgemm.quant.placement import Placement, place
from edgemm.quant.prepare import prepare
from edgemm.quant.ranges import Ranges
from edgemm.quant.rounding import Rounded, as_rows
from edgemm.types import Array

_UINT8_LEVELS = 255
_INT32_LIMIT = 2.0**31 - 128
"""The largest magnitude of a quantized bias, rounded down to what float32 can hold."""


@dataclass(frozen=True)
class QuantizedModel:
    """A model with Q/DQ in it, and what became int8."""

    model: Model
    form: Form
    quantized: Sequence[str]
    """Names of the nodes that run in int8, in the graph's order."""
    left_in_float: Mapping[str, str]
    """Nodes that multiply and stay in float, with the reason."""
    int8_macs: int
    """Multiply-accumulates of one run that are in int8."""
    total_macs: int
    """Multiply-accumulates of one run, of nodes whose shapes are known."""

    @property
    def int8_share(self) -> float:
        """Share of the multiply-accumulates that run in int8, 0 to 1."""
        return self.int8_macs / self.total_macs if self.total_macs else 0.0


def quantizable_nodes(model: Model, form: Form) -> dict[str, str]:
    """Return name and operator of the nodes that can be int8, in the graph's order; `exclude` takes these names."""
    return {name: item.node.op_type for name, item in place(prepare(model), form).compute.items()}


def insert_qdq(model: Model, ranges: Ranges, form: Form, exclude: Collection[str] = ()) -> QuantizedModel:
    """Return `model` with Q/DQ placed for one engine's fusion rules, and the nodes in `exclude` left in float.

    Activations are symmetric: `tensorrt` has int8 with zero point 0. `onnxruntime` has uint8 with zero point 128, which
    is the same set of values, or uint8 with zero point 0 and twice as fine steps for what cannot be negative.
    Weights are symmetric int8, per output channel where the engine takes it. The bias stays float for TensorRT; for
    onnxruntime it becomes the int32 that its int8 kernels add.

    Raises CalibrationError if the ranges belong to another graph or lack a tensor, UsageError if `exclude` names no
    node of the graph, ModelError if a weight is not finite.
    """
    ranges.check(model)
    prepared = prepare(model)
    names = {node.name for node in prepared.proto.graph.node}
    unknown = [name for name in exclude if name not in names]
    if unknown:
        raise UsageError(
            f'There is no node "{unknown[0]}" to leave in float. Nodes that can be int8: '
            f"{', '.join(place(prepared, form).compute) or '(none)'}."
        )
    plan = place(prepared, form, exclude)
    done = from_proto(_Writer(prepared, plan, ranges).write(), prepared.folder)
    costs = layer_macs(prepared, ranges)
    int8_macs = sum(cost for name, cost in costs.items() if name in plan.compute)
    return QuantizedModel(done, form, tuple(plan.compute), dict(plan.left), int8_macs, sum(costs.values()))


def layer_macs(prepared: Model, ranges: Ranges) -> dict[str, int]:
    """Return the multiply-accumulates of one run of each node that multiplies, of a prepared model; 0 if unknown."""
    graph = prepared.proto.graph
    shapes = {name: entry.shape for name, entry in ranges.tensors.items()} | dict(ranges.shapes)
    known = {**walk.specs(infer_leniently(prepared).graph), **walk.specs(graph)}
    for name, spec in known.items():
        if spec.is_static and name not in shapes:
            shapes[name] = tuple(int(d or 0) for d in spec.shape)
    return {node.name: macs(node, shapes) or 0 for node in graph.node if walk.is_standard(node, *COMPUTE, *RECURRENT)}


@dataclass(frozen=True)
class _Scale:
    """Names of the initializers that a Q and its DQs share."""

    value: float
    scale: str
    zero_point: str


class _Writer:
    def __init__(self, prepared: Model, plan: Placement, ranges: Ranges) -> None:
        self._prepared = prepared
        self._plan = plan
        self._ranges = ranges
        self._proto: ModelProto = prepared.copy_proto()
        self._links = walk.link(prepared.proto.graph)
        self._namer = walk.Namer.of(prepared.proto)
        self._scales: dict[str, _Scale] = {}
        self._zero_points: dict[str, str] = {}
        self._quantized: dict[str, str] = {}
        self._weights: dict[tuple[str, int | None, bytes], tuple[str, str, str]] = {}
        self._nodes: list[NodeProto] = []
        self._biases = {
            found[0].name: (item, found[1])
            for item in plan.compute.values()
            if (found := bias_add(item, self._links)) is not None
        }
        """Adds that put a constant bias on an int8 product: the product, and the bias's index there."""

    def write(self) -> ModelProto:
        graph = self._proto.graph
        for value in graph.input:
            self._quantize_after(value.name)
        added_biases = self._biases_in_adds()
        for original in graph.node:
            node = NodeProto()
            node.CopyFrom(original)
            self._dequantize_inputs(node)
            if node.name in self._plan.compute:
                self._dequantize_weight(node)
            if node.name in self._biases:
                owner, index = self._biases[node.name]
                make = self._dequantize_bias if node.name in added_biases else self._shifted_bias
                node.input[index] = make(owner, node.input[index], node.name)
            renamed = self._rename_outputs(node)
            self._nodes.append(node)
            for name in original.output:
                self._quantize_after(name, renamed.get(name, name))
            for public in renamed:
                self._dequantize(public, f"{public}_public", output=public)
        del graph.node[:]
        graph.node.extend(self._nodes)
        self._drop_unused_initializers()
        return self._proto

    # Activations

    def _scale(self, tensor: str) -> _Scale:
        root = self._plan.group[tensor]
        if root not in self._scales:
            members = [name for name in self._plan.members(root) if name in self._ranges.tensors]
            if not members:
                raise CalibrationError(
                    f'The ranges say nothing of "{tensor}", which is to be quantized. Calibrate again, or add its amax.'
                )
            amax = max(self._ranges.tensors[name].amax for name in members)
            if self._plan.form == "tensorrt":
                scale, zero_point = scale_of(amax), self._zero_point("int8", 0)
            elif root in self._plan.unsigned:
                scale, zero_point = scale_of(amax, _UINT8_LEVELS), self._zero_point("uint8", 0)
            else:
                scale, zero_point = scale_of(amax), self._zero_point("uint8", 128)
            name = self._store(f"{root}_scale", scale)
            self._scales[root] = _Scale(float(scale), name, zero_point)
        return self._scales[root]

    def _zero_point(self, dtype: str, value: int) -> str:
        wish = f"zero_point_{dtype}_{value}"
        if wish not in self._zero_points:
            self._zero_points[wish] = self._store(wish, np.array(value, dtype))
        return self._zero_points[wish]

    def _quantize_after(self, tensor: str, source: str | None = None) -> None:
        """Append the Q of a tensor; `source` is its name where the producer's output was renamed."""
        if tensor not in self._plan.group:
            return
        scale = self._scale(tensor)
        output = self._namer.fresh(f"{tensor}_quantized")
        self._nodes.append(
            helper.make_node(
                "QuantizeLinear",
                [source or tensor, scale.scale, scale.zero_point],
                [output],
                self._namer.fresh(f"{tensor}_Q"),
            )
        )
        self._quantized[tensor] = output

    def _dequantize(self, tensor: str, reader: str, output: str | None = None) -> str:
        scale = self._scale(tensor)
        output = output or self._namer.fresh(f"{tensor}_for_{reader}")
        self._nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [self._quantized[tensor], scale.scale, scale.zero_point],
                [output],
                self._namer.fresh(f"{tensor}_DQ_{reader}"),
            )
        )
        return output

    def _dequantize_inputs(self, node: NodeProto) -> None:
        # One DQ a reader: onnxruntime folds a DQ into the node only if nothing else reads it.
        made: dict[str, str] = {}
        for index, name in enumerate(node.input):
            if (node.name, index) in self._plan.reads:
                if name not in made:
                    made[name] = self._dequantize(name, node.name)
                node.input[index] = made[name]

    def _rename_outputs(self, node: NodeProto) -> dict[str, str]:
        """Give a replaced tensor that is a graph output another name: its own goes to the dequantized one."""
        renamed = {}
        for index, name in enumerate(node.output):
            if name in self._plan.replaced and name in self._links.outputs:
                renamed[name] = node.output[index] = self._namer.fresh(f"{name}_float")
        return renamed

    # Weights

    def _dequantize_weight(self, node: NodeProto) -> None:
        item = self._plan.compute[node.name]
        if item.weight is None:
            return
        name = node.input[item.weight]
        values, scale, zero_point = self._weight(item)
        output = self._namer.fresh(f"{name}_for_{node.name}")
        self._nodes.append(_dq(values, scale, zero_point, output, self._namer.fresh(f"{name}_DQ"), item.axis))
        node.input[item.weight] = output
        if item.bias is not None:
            make = self._dequantize_bias if self._plan.form == "onnxruntime" else self._shifted_bias
            node.input[2] = make(item, item.bias, node.name)

    def _weight(self, item: ComputeNode) -> tuple[str, str, str]:
        name = item.node.input[item.weight or 0]
        weights = self._array(name)
        scale = self._weight_scale(item, weights)
        key = (name, item.axis, scale.tobytes())
        if key not in self._weights:
            rounded = self._rounded(item)
            integers = quantize(weights, scale, axis=item.axis) if rounded is None else rounded.integers
            self._weights[key] = (
                self._store(f"{name}_int8", integers),
                self._store(f"{name}_scale", scale),
                self._store(f"{name}_zero_point", np.zeros(scale.shape, np.int8)),
            )
        return self._weights[key]

    def _weight_scale(self, item: ComputeNode, weights: Array) -> Array:
        if not np.isfinite(weights).all():
            raise ModelError(
                f'The weight "{item.node.input[item.weight or 0]}" of {item.node.name} holds NaN or infinity; expected '
                "finite numbers. Export the model again."
            )
        scale = scale_of(channel_amax(weights, item.axis))
        # TensorRT adds the bias in float, and takes one that is computed.
        bias = self._bias_of(item) if self._plan.form == "onnxruntime" else None
        if bias is not None:
            # A bias far above its channel's weights would not fit int32 at their scale: coarsen that channel.
            least = np.abs(bias.reshape(-1).astype(np.float64)) / (self._input_scale(item) * _INT32_LIMIT)
            scale = np.maximum(scale, least if item.axis is not None else least.max()).astype(np.float32)
        return scale

    def _rounded(self, item: ComputeNode) -> Rounded | None:
        """The weights rounded by what calibration saw of their inputs; None where that says nothing of them."""
        name = item.node.input[item.weight or 0]
        rounding = self._ranges.rounding
        # A weight that several nodes read is one tensor, and their inputs want it rounded differently.
        if rounding is None or item.node.name not in rounding.moments or len(self._links.consumers[name]) != 1:
            return None
        weights = self._array(name)
        scale = self._weight_scale(item, weights)
        return rounding.round(item, weights, scale, has_bias=self._takes_shift(item))

    def _takes_shift(self, item: ComputeNode) -> bool:
        """True if the node has a bias that may be moved: a constant one, one value an output, as it is."""
        if item.bias is not None and self._links.constant(item.bias) is None:
            return False
        bias = self._bias_of(item)
        weights = self._array(item.node.input[item.weight or 0])
        plain = all(walk.attribute(item.node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        groups, outputs, _ = as_rows(item, weights).shape
        return plain and bias is not None and bias.size == groups * outputs

    def _shift(self, item: ComputeNode) -> Array | None:
        rounded = self._rounded(item)
        return None if rounded is None else rounded.shift

    def _shifted_bias(self, item: ComputeNode, name: str, reader: str) -> str:
        """The name of a float bias less what rounding the weights added to the mean."""
        shift = self._shift(item)
        if shift is None:
            return name
        bias = self._array(name)
        return self._store(f"{name}_for_{reader}", (bias - shift.reshape(bias.shape)).astype(np.float32))

    def _input_scale(self, item: ComputeNode) -> float:
        return self._scale(item.node.input[item.activations[0]]).value

    def _bias_of(self, item: ComputeNode) -> Array | None:
        if item.bias is not None:
            return self._array(item.bias)
        found = bias_add(item, self._links)
        return None if found is None else self._array(found[0].input[found[1]])

    def _biases_in_adds(self) -> set[str]:
        """The Adds of `_biases` that onnxruntime makes part of an int8 product."""
        found: set[str] = set()
        if self._plan.form != "onnxruntime":
            return found
        known = walk.specs(infer_leniently(self._prepared).graph)
        for name, (item, _) in self._biases.items():
            spec = known.get(item.node.input[0])
            # Beyond matrices onnxruntime fuses MatMul and Add only where shapes are static; apart, the Add is
            # cheaper in float.
            if spec is not None and (spec.is_static or len(spec.shape) == 2):
                found.add(name)
        return found

    def _dequantize_bias(self, item: ComputeNode, name: str, reader: str) -> str:
        bias = self._array(name).reshape(-1)
        shift = self._shift(item)
        if shift is not None:
            bias = (bias - shift).astype(np.float32)
        scale = np.float32(self._input_scale(item)) * self._weight_scale(item, self._array(item.node.input[1]))
        scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
        integers = quantize(bias, scale, dtype="int32", axis=0)
        output = self._namer.fresh(f"{name}_for_{reader}")
        self._nodes.append(
            _dq(
                self._store(f"{name}_int32", integers),
                self._store(f"{name}_scale", scale),
                self._store(f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
                output,
                self._namer.fresh(f"{name}_DQ"),
                0 if scale.ndim else None,
            )
        )
        return output

    # Initializers

    def _array(self, name: str) -> Array:
        stored = self._links.constant(name)
        if stored is None:
            raise ModelError(f'"{name}" is not a constant.')
        return self._prepared.array(stored)

    def _store(self, wish: str, value: Array) -> str:
        name = self._namer.fresh(wish)
        self._proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _drop_unused_initializers(self) -> None:
        graph = self._proto.graph
        read = {name for node in graph.node for name in walk.reads(node)} | set(self._links.outputs)
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in read:
                del graph.initializer[index]


def _dq(values: str, scale: str, zero_point: str, output: str, name: str, axis: int | None) -> NodeProto:
    node = helper.make_node("DequantizeLinear", [values, scale, zero_point], [output], name)
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node
