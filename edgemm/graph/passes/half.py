"""Conversion of a float32 model to float16."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, defs, helper, numpy_helper

from edgemm.errors import ModelError, UsageError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infer_shapes import InferShapes, infer_leniently
from edgemm.graph.passes.infra import PassResult
from edgemm.types import Array

HALF_MAX = 65504.0
"""Largest finite float16."""

HALF_TINY = 2.0**-25
"""A magnitude up to this becomes 0 in float16."""

FLOAT_OPS = {
    # Sums over many elements, powers and products leave float16's range, or lose what is small beside the sum.
    "CumSum": "sums",
    "Pow": "squares",
    "ReduceL1": "sums",
    "ReduceL2": "sums of squares",
    "ReduceLogSum": "sums",
    "ReduceLogSumExp": "sums of exponentials",
    "ReduceMean": "sums",
    "ReduceProd": "products",
    "ReduceSum": "sums",
    "ReduceSumSquare": "sums of squares",
    # Positions: float16 tells 2048 from 2050, not from 2049.
    "GridSample": "positions",
    "NonMaxSuppression": "positions",
    "Range": "positions",
    "RoiAlign": "positions",
    # Power spectra span ten decades.
    "DFT": "spectra",
    "MelWeightMatrix": "spectra",
    "STFT": "spectra",
    # A scale rounded to float16 moves every quantized value.
    "DequantizeLinear": "scales",
    "DynamicQuantizeLinear": "scales",
    "QuantizeLinear": "scales",
}
"""Operators that stay in float32, and for the sake of what."""

_EPSILON_OPS = ("Add", "Clip", "Div", "Max", "Min", "Mul", "Sub", "Sum")
"""Where a tiny constant guards a division or a logarithm; among the weights of a Conv it may become 0."""

_SMALL = 64
_HALF_NAME = "tensor(float16)"


class ToHalf:
    """Convert a model to float16, but for inputs, outputs and what would suffer.

    Inputs and outputs stay float32, with casts at the boundary, so that recipes and callers need not know. Also in
    float32 stay: the operators of `FLOAT_OPS`, what computes shapes, operators outside ONNX and those without a
    float16 form, nodes with a constant that float16 would turn into 0 (an epsilon), and whatever `keep` names: nodes,
    operators ("Softmax") or values. Bodies of If, Loop and Scan are converted inside; what crosses their border
    stays float32. Weights beyond +-65504 are clamped, with a note.

    Raises UsageError if `keep` names what the model does not have. Quantize after, not before: QuantizeLinear and
    DequantizeLinear keep float32 scales and would get casts around them.
    """

    name = "to-half"

    def __init__(self, keep: Collection[str] = ()) -> None:
        self.keep = frozenset(keep)

    def requires(self, model: Model) -> None:
        """Everything in `keep` is in the model."""
        known: set[str] = set()
        for node, _ in walk.all_nodes(model.proto):
            known.update((node.name, node.op_type, *node.output))
        missing = sorted(self.keep - known)
        if missing:
            raise UsageError(
                f'"{missing[0]}" is to stay in float32, but the model has no node, operator or value of that name. '
                "`edgemm inspect MODEL` lists them."
            )

    def __call__(self, model: Model) -> PassResult:
        """Return the model in float16."""
        proto = model.copy_proto()
        typed = infer_leniently(model)
        work = _Work(model, self.keep, walk.Namer.of(proto), model.opset)
        work.convert(proto.graph, typed.graph, {}, frozenset(), frozenset())
        result = InferShapes()(model.with_proto(proto)).model
        notes = [f"{work.converted} nodes in float16, {work.kept} in float32"]
        if work.clamped:
            notes.append(f"clamped {len(work.clamped)} constants to +-{HALF_MAX:.0f}: {', '.join(work.clamped[:3])}")
        if work.epsilons:
            notes.append(
                f"{len(work.epsilons)} nodes stay in float32 for a constant below {HALF_TINY:.0e}: "
                + ", ".join(work.epsilons[:3])
            )
        return PassResult(result, bool(work.converted), tuple(notes))

    def ensures(self, before: Model, after: Model) -> None:
        """Inputs and outputs have the dtypes they had."""
        for kind in ("input", "output"):
            had = _types(getattr(before.proto.graph, kind))
            has = _types(getattr(after.proto.graph, kind))
            if had != has:
                raise ModelError(f"The {kind}s changed their types from {had} to {has}. Report the model.")


def _types(values: Iterable[ValueInfoProto]) -> list[int]:
    return [value.type.tensor_type.elem_type for value in values]


@dataclass
class _Work:
    """What the conversion of one model carries from graph to graph."""

    model: Model
    keep: frozenset[str]
    namer: walk.Namer
    opset: int
    converted: int = 0
    kept: int = 0
    clamped: list[str] = field(default_factory=list)
    epsilons: list[str] = field(default_factory=list)

    def convert(
        self,
        graph: GraphProto,
        typed: GraphProto,
        outer_types: dict[str, int],
        outer_half: frozenset[str],
        outer_shapes: frozenset[str],
    ) -> None:
        """Convert one graph in place, and those nested in it.

        `typed` is the same graph after inference. `outer_half` are the values around it that are float16 by now,
        `outer_shapes` those that only shapes decide.
        """
        types = {**outer_types, **walk.elem_types(typed)}
        links = walk.link(graph)
        shapes = _shape_values(graph, links, outer_shapes)
        chosen = {_key(node) for node in graph.node if self._wants_half(node, types, links, shapes)}
        half = set(outer_half) | self._convert_constants(graph, links, chosen, types)
        edit = _Edit(graph, self, half)
        for node, twin in zip(graph.node, typed.node, strict=True):
            if walk.is_standard(node, "Constant"):
                edit.nodes.append(node)
                continue
            for (_, inner), (_, inner_typed) in zip(walk.subgraphs(node), walk.subgraphs(twin), strict=True):
                self.convert(inner, inner_typed, types, frozenset(half), shapes)
            if _key(node) in chosen:
                edit.to_half(node, _slots(node, self.opset, types), links.outputs)
                self.converted += 1
            else:
                edit.to_float(node)
                self.kept += 1
        edit.finish()

    def _wants_half(self, node: NodeProto, types: dict[str, int], links: walk.Links, shapes: frozenset[str]) -> bool:
        if not walk.is_standard(node) or node.op_type in FLOAT_OPS or any(True for _ in walk.subgraphs(node)):
            return False
        if self.keep & {node.name, node.op_type, *node.output} or _slots(node, self.opset, types) is None:
            return False
        if any(name in shapes for name in node.output):
            return False
        readers = [reader for name in node.output for reader in links.consumers.get(name, ())]
        if readers and all(_casts_to_integer(reader) for reader in readers):
            # A number that is about to become an index or a length.
            return False
        for name in node.input if node.op_type in _EPSILON_OPS else ():
            tensor = links.constant(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and _is_tiny(self.model, tensor):
                self.epsilons.append(walk.label(node))
                return False
        return True

    def _convert_constants(
        self, graph: GraphProto, links: walk.Links, chosen: set[str], types: dict[str, int]
    ) -> set[str]:
        """Convert the float32 constants that only float16 nodes read, in place; return their names."""

        def all_half(name: str) -> bool:
            readers = links.consumers.get(name, [])
            return (
                bool(readers)
                and name not in links.outputs
                and all(
                    _key(reader) in chosen and _takes_half(reader, name, _slots(reader, self.opset, types))
                    for reader in readers
                )
            )

        found = set()
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and all_half(tensor.name):
                self.to_half_tensor(tensor, tensor.name)
                found.add(tensor.name)
        for node in graph.node:
            if walk.is_standard(node, "Constant") and all_half(node.output[0]):
                for item in node.attribute:
                    if item.name == "value" and item.t.data_type == TensorProto.FLOAT:
                        self.to_half_tensor(item.t, node.output[0])
                        found.add(node.output[0])
        for value in graph.value_info:
            if value.name in found:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return found

    def to_half_tensor(self, tensor: TensorProto, name: str) -> None:
        """Rewrite a float32 tensor as float16, in place."""
        array = self.model.array(tensor)
        half = _to_half(array)
        if bool(np.any(np.isfinite(array) & (np.abs(array) > HALF_MAX))):
            self.clamped.append(name)
        stored = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, stored))


@dataclass
class _Edit:
    """The new node list of one graph, with the casts made so far."""

    graph: GraphProto
    work: _Work
    half: set[str]
    """Values that are float16 under their own name."""
    nodes: list[NodeProto] = field(default_factory=list)
    halves: dict[str, str] = field(default_factory=dict)
    """Float32 value to its float16 copy."""
    floats: dict[str, str] = field(default_factory=dict)
    """Float16 value to its float32 copy."""

    def to_half(self, node: NodeProto, slots: _Slots | None, outputs: frozenset[str]) -> None:
        """Add a node that computes in float16."""
        inputs, results = slots if slots is not None else ((), ())
        for index, name in enumerate(node.input):
            if index in inputs:
                node.input[index] = self._as_half(name)
            elif name in self.half:
                node.input[index] = self._as_float(name)
        self.nodes.append(node)
        for index in results:
            name = node.output[index]
            if not name:
                continue
            if name in outputs:
                # The graph promises float32 under this name.
                copy = self.work.namer.fresh(f"{name}_half")
                node.output[index] = copy
                self._cast(copy, name, TensorProto.FLOAT)
                self.halves[name] = copy
            else:
                self.half.add(name)

    def to_float(self, node: NodeProto) -> None:
        """Add a node that computes as it did."""
        for index, name in enumerate(node.input):
            if name in self.half:
                node.input[index] = self._as_float(name)
        self.nodes.append(node)

    def finish(self) -> None:
        """Write the nodes into the graph, and the new types into its value_info."""
        made = {name for node in self.nodes for name in node.output}
        for value in self.graph.output:
            # A body may pass a value of the graph around it straight through.
            if value.name in self.half and value.name not in made:
                value.name = self._as_float(value.name)
        for value in self.graph.value_info:
            if value.name in self.half:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        nodes = []
        for node in self.nodes:
            private = NodeProto()
            private.CopyFrom(node)
            nodes.append(private)
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _as_half(self, name: str) -> str:
        if name in self.half:
            return name
        if name not in self.halves:
            stored = next((t for t in self.graph.initializer if t.name == name), None)
            copy = self.work.namer.fresh(f"{name}_half")
            if stored is not None:
                # Both precisions are read: keep both, rather than cast at every run.
                tensor = self.graph.initializer.add()
                tensor.CopyFrom(stored)
                tensor.name = copy
                self.work.to_half_tensor(tensor, name)
            else:
                self._cast(name, copy, TensorProto.FLOAT16)
            self.halves[name] = copy
        return self.halves[name]

    def _as_float(self, name: str) -> str:
        if name not in self.floats:
            copy = self.work.namer.fresh(f"{name}_float")
            self._cast(name, copy, TensorProto.FLOAT)
            self.floats[name] = copy
        return self.floats[name]

    def _cast(self, source: str, target: str, elem_type: int) -> None:
        name = self.work.namer.fresh(f"Cast_{target}")
        self.nodes.append(helper.make_node("Cast", [source], [target], name=name, to=elem_type))


def _key(node: NodeProto) -> str:
    """Return what tells a node from the others of its graph: ONNX wants names of values, not of nodes, unique."""
    return next((name for name in node.output if name), "")


_Slots = tuple[frozenset[int], frozenset[int]]


def _slots(node: NodeProto, opset: int, types: dict[str, int]) -> _Slots | None:
    """Return which inputs and outputs become float16 if the node does, or None if it cannot.

    Read off ONNX's own schema: a float32 input may change if its type variable admits float16; every float32
    output must then share a variable with such an input (else, as for Cast, something else decides its type).
    """
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return None
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    inputs, variables = set(), set()
    for index, name in enumerate(node.input):
        if not name:
            continue
        if name not in types:
            return None
        if types[name] != TensorProto.FLOAT:
            continue
        variable = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        if variable not in allowed:
            # A literal "tensor(float)", such as the scales of Resize: stays.
            continue
        if _HALF_NAME not in allowed[variable]:
            return None
        inputs.add(index)
        variables.add(variable)
    outputs = set()
    for index, name in enumerate(node.output):
        if not name:
            continue
        if name not in types:
            return None
        if types[name] != TensorProto.FLOAT:
            continue
        if schema.outputs[min(index, len(schema.outputs) - 1)].type_str not in variables:
            return None
        outputs.add(index)
    return (frozenset(inputs), frozenset(outputs)) if inputs else None


def _takes_half(node: NodeProto, name: str, slots: _Slots | None) -> bool:
    return slots is not None and all(index in slots[0] for index, read in enumerate(node.input) if read == name)


def _shape_values(graph: GraphProto, links: walk.Links, outer: frozenset[str]) -> frozenset[str]:
    """Return the values of a graph that nothing but shapes and constants decide."""
    found = set(outer)
    constants = set(links.initializers)
    for node in graph.node:
        reads = walk.reads(node)
        if walk.is_standard(node, "Shape", "Size"):
            found.update(node.output)
        elif all(name in constants for name in reads):
            constants.update(node.output)
        elif all(name in found or name in constants for name in reads):
            found.update(node.output)
    return frozenset(found)


def _casts_to_integer(node: NodeProto) -> bool:
    if not walk.is_standard(node, "Cast"):
        return False
    return walk.attribute(node, "to") not in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.BOOL,
    )


def _is_tiny(model: Model, tensor: TensorProto) -> bool:
    """True for a small constant, such as an epsilon, that is not 0 and would be in float16."""
    if int(np.prod(tensor.dims)) > _SMALL:
        return False
    array = np.abs(model.array(tensor))
    return bool(np.any((array > 0) & (array <= HALF_TINY)))


def _to_half(array: Array) -> Array:
    clipped = np.where(np.isfinite(array), np.clip(array, -HALF_MAX, HALF_MAX), array)
    return clipped.astype(np.float16)
