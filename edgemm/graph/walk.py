"""Moving about in an ONNX graph: producers, consumers, subgraphs, names.

All of it works on `onnx` protos in place and knows that a node inside an If, Loop or Scan body may read values
of the graphs around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from edgemm.errors import ModelError
from edgemm.graph.tensors import dtype_name, value_spec
from edgemm.types import TensorSpec

STANDARD_DOMAINS = ("", "ai.onnx")
"""Two spellings of ONNX's own operator set."""


def is_standard(node: NodeProto, *ops: str) -> bool:
    """True if the node is one of ONNX's own operators, and one of `ops` if any are given."""
    return node.domain in STANDARD_DOMAINS and (not ops or node.op_type in ops)


def label(node: NodeProto) -> str:
    """Return what a report calls the node: its name, else its first named output."""
    return node.name or next((f"-> {name}" for name in node.output if name), node.op_type)


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Return the value of an attribute as Python has it, or `default` if the node does not set it."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield the node's graph attributes with their names ("then_branch", "body" ...)."""
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.name, item.g
        elif item.type == AttributeProto.GRAPHS:
            for graph in item.graphs:
                yield item.name, graph


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the graph itself, then every graph nested in it, outer before inner."""
    yield graph
    for node in graph.node:
        for _, inner in subgraphs(node):
            yield from graphs(inner)


def nodes(owner: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Yield every node, those of nested graphs right after the node that owns them."""
    for node in owner.node:
        yield node
        for _, inner in subgraphs(node):
            yield from nodes(inner)


def all_nodes(model: ModelProto) -> Iterator[tuple[NodeProto, str]]:
    """Yield every node of the model with the place it stands in: "" for the main graph.

    Places read like `If_3.then_branch` or `function edgemm.LogMel`.
    """

    def inside(owner: GraphProto | FunctionProto, place: str) -> Iterator[tuple[NodeProto, str]]:
        for node in owner.node:
            yield node, place
            for name, inner in subgraphs(node):
                yield from inside(inner, f"{place}{'/' if place else ''}{label(node)}.{name}")

    yield from inside(model.graph, "")
    for function in model.functions:
        yield from inside(function, f"function {function.domain}.{function.name}")


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every dense tensor stored in the model: initializers and attributes, of every graph and function."""
    for graph in graphs(model.graph):
        yield from graph.initializer
    for node, _ in all_nodes(model):
        for item in node.attribute:
            if item.type == AttributeProto.TENSOR:
                yield item.t
            elif item.type == AttributeProto.TENSORS:
                yield from item.tensors
    for function in model.functions:
        for node in nodes(function):
            for _, inner in subgraphs(node):
                yield from inner.initializer


def captured(graph: GraphProto) -> list[str]:
    """Return the names that a nested graph reads from the graphs around it, in the order of first use."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {sparse.values.name for sparse in graph.sparse_initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        for name in reads(node):
            if name not in own:
                found[name] = None
        own.update(node.output)
    for value in graph.output:
        if value.name not in own:
            found[value.name] = None
    return list(found)


def reads(node: NodeProto) -> list[str]:
    """Return every value the node needs: its inputs that are given, and what its subgraphs capture."""
    names = dict.fromkeys(name for name in node.input if name)
    for _, inner in subgraphs(node):
        names.update(dict.fromkeys(captured(inner)))
    return list(names)


@dataclass(frozen=True)
class Links:
    """Who makes and who reads each value of one graph, as `link` found it.

    A node with subgraphs counts as a reader of what they capture. Links are a snapshot: after an edit, make
    new ones.
    """

    producer: dict[str, NodeProto]
    consumers: dict[str, list[NodeProto]]
    initializers: dict[str, TensorProto]
    outputs: frozenset[str]

    def sole_consumer(self, name: str) -> NodeProto | None:
        """Return the only reader of a value that is no graph output, else None."""
        readers = self.consumers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> TensorProto | None:
        """Return the tensor behind a name: an initializer, or the `value` of a Constant node; else None."""
        stored = self.initializers.get(name)
        if stored is not None:
            return stored
        node = self.producer.get(name)
        if node is not None and is_standard(node, "Constant"):
            for item in node.attribute:
                if item.name == "value":
                    value: TensorProto = item.t
                    return value
        return None


def link(graph: GraphProto) -> Links:
    """Return producers, consumers, initializers and outputs of one graph (not of the graphs nested in it)."""
    producer: dict[str, NodeProto] = {}
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        producer.update((name, node) for name in node.output if name)
        for name in reads(node):
            consumers.setdefault(name, []).append(node)
    return Links(
        producer,
        consumers,
        {tensor.name: tensor for tensor in graph.initializer},
        frozenset(value.name for value in graph.output),
    )


def specs(graph: GraphProto) -> dict[str, TensorSpec]:
    """Return what is known of the values of one graph: inputs, outputs, value_info and initializers.

    A value whose type or rank is not known is missing. Run shape inference first to have most of them.
    """
    known: dict[str, TensorSpec] = {}
    for value in (*graph.value_info, *graph.output, *graph.input):
        spec = value_spec(value)
        if spec is not None:
            known[value.name] = spec
    for tensor in graph.initializer:
        known[tensor.name] = TensorSpec(tensor.name, dtype_name(tensor.data_type), tuple(tensor.dims))
    return known


def elem_types(graph: GraphProto) -> dict[str, int]:
    """Return the ONNX element type of each value of one graph whose type is known, its rank known or not."""
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.HasField("tensor_type")
    }
    known.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return known


@dataclass
class Namer:
    """Hands out value and node names that are unused anywhere in the model."""

    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: ModelProto) -> Namer:
        """Return a namer that knows every name of the model, its subgraphs and functions."""
        taken: set[str] = set()
        for graph in graphs(model.graph):
            taken.update(value.name for value in (*graph.input, *graph.output, *graph.value_info))
            taken.update(tensor.name for tensor in graph.initializer)
        for node, _ in all_nodes(model):
            taken.update((node.name, *node.input, *node.output))
        return cls(taken)

    def fresh(self, wish: str) -> str:
        """Return `wish` if it is free, else `wish_1`, `wish_2` ...; the name is taken from then on."""
        name, count = wish, 0
        while name in self.taken or not name:
            count += 1
            name = f"{wish}_{count}"
        self.taken.add(name)
        return name


def replace_reads(graph: GraphProto, old: str, new: str, only: Sequence[NodeProto] | None = None) -> int:
    """Make the nodes that read `old` read `new`, in this graph and in graphs nested in it; return how many reads.

    `only` restricts it to some nodes of this graph (compared by identity). A nested graph that defines `old`
    itself is left alone. Graph outputs keep their names.
    """
    count = 0
    for node in graph.node:
        if only is not None and not any(node is chosen for chosen in only):
            continue
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
                count += 1
        for _, inner in subgraphs(node):
            if old in captured(inner):
                count += replace_reads(inner, old, new)
                for value in inner.output:
                    # A body may pass an outer value straight through.
                    if value.name == old:
                        value.name = new
                        count += 1
    return count


def sort_nodes(graph: GraphProto) -> bool:
    """Put the nodes of the graph and of its subgraphs into an order in which each value is made before it is read.

    Nodes that need no move keep their order. Returns True if anything moved. Raises ModelError on a cycle.
    """
    moved = False
    for node in graph.node:
        for _, inner in subgraphs(node):
            moved |= sort_nodes(inner)
    made_here = {name for node in graph.node for name in node.output if name}
    ready: set[str] = set()
    ordered: list[NodeProto] = []
    waiting = list(graph.node)
    if _is_sorted(waiting, made_here):
        return moved
    while waiting:
        later: list[NodeProto] = []
        for node in waiting:
            if all(name in ready or name not in made_here for name in reads(node)):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelError(
                f"The nodes {', '.join(label(node) for node in later[:3])} wait for each other's outputs: the graph "
                "has a cycle. Feed a state back outside the model, as an output and an input."
            )
        waiting = later
    copies = []
    for node in ordered:
        private = NodeProto()
        private.CopyFrom(node)
        copies.append(private)
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _is_sorted(items: Sequence[NodeProto], made_here: set[str]) -> bool:
    ready: set[str] = set()
    for node in items:
        if any(name in made_here and name not in ready for name in reads(node)):
            return False
        ready.update(node.output)
    return True
