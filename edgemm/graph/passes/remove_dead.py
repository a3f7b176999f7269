"""Removal of what no output needs."""

from __future__ import annotations

from onnx import FunctionProto, GraphProto

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult


class RemoveDead:
    """Remove nodes, initializers and functions that no output of their graph depends on.

    Inputs stay, read or not: they are the model's interface. Small enough to be ours; folding, which needs kernels
    to compute with, is onnxruntime's (`FoldConstants`).
    """

    name = "remove-dead"

    def requires(self, model: Model) -> None:
        """Any model will do."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model without its dead parts."""
        proto = model.copy_proto()
        removed = _sweep(proto.graph)
        called = _called(proto.graph, {(item.domain, item.name): item for item in proto.functions})
        for index in reversed(range(len(proto.functions))):
            function = proto.functions[index]
            if (function.domain, function.name) not in called:
                del proto.functions[index]
                removed += 1
        notes = (f"removed {removed} unused nodes, initializers and functions",) if removed else ()
        return PassResult(model.with_proto(proto), bool(removed), notes)

    def ensures(self, before: Model, after: Model) -> None:
        """Every node's outputs are read, or at least one of them is an output."""
        links = walk.link(after.proto.graph)
        for node in after.proto.graph.node:
            if not any(name in links.consumers or name in links.outputs for name in node.output):
                raise ModelError(f'The dead node "{walk.label(node)}" was not removed. Report the model.')


def _sweep(graph: GraphProto) -> int:
    """Remove the dead parts of a graph and of those nested in it; return how many went."""
    needed = {value.name for value in graph.output}
    removed = 0
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if not any(name in needed for name in node.output):
            del graph.node[index]
            removed += 1
            continue
        # Inner graphs first: what only their dead nodes captured is then dead out here too.
        removed += sum(_sweep(inner) for _, inner in walk.subgraphs(node))
        needed.update(walk.reads(node))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
            removed += 1
    made = {name for node in graph.node for name in node.output}
    for index in reversed(range(len(graph.value_info))):
        name = graph.value_info[index].name
        if name not in made and name not in needed:
            del graph.value_info[index]
    return removed


def _called(owner: GraphProto | FunctionProto, functions: dict[tuple[str, str], FunctionProto]) -> set[tuple[str, str]]:
    """Return the functions that a graph calls, directly or through others."""
    found: set[tuple[str, str]] = set()
    waiting: list[GraphProto | FunctionProto] = [owner]
    while waiting:
        for node in walk.nodes(waiting.pop()):
            key = (node.domain, node.op_type)
            if key in functions and key not in found:
                found.add(key)
                waiting.append(functions[key])
    return found
