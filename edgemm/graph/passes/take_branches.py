"""Branches that are always taken."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult
from edgemm.graph.tensors import is_external

_LARGEST_CONDITION = 64
"""Nodes that a condition may take to compute: those of real models compare a number or two."""


class TakeBranches:
    """Replace each If of the main graph whose condition is constant by the branch that it takes.

    Done before sizes are fixed and constants folded: the branch for the other sample rate need not fit the shapes that
    are then fixed, and onnxruntime, which folds, may crash over one that does not (1.31). Conditions that depend on the
    shapes of inputs are left to it.
    """

    name = "take-branches"

    def requires(self, model: Model) -> None:
        """Any model will do."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model with those branches in place."""
        proto = model.copy_proto()
        notes: list[str] = []
        # A branch may hold further such nodes: look again until none is left.
        while (note := _take_one(proto)) is not None:
            notes.append(note)
        return PassResult(model.with_proto(proto), bool(notes), tuple(notes))

    def ensures(self, before: Model, after: Model) -> None:
        """Nothing beyond names, which `run` holds: what is computed is the tests' to prove."""


def _take_one(proto: ModelProto) -> str | None:
    graph = proto.graph
    for index, node in enumerate(graph.node):
        if not walk.is_standard(node, "If"):
            continue
        condition = _constant(proto, node.input[0])
        if condition is None:
            continue
        taken = "then_branch" if condition else "else_branch"
        branch = next(inner for name, inner in walk.subgraphs(node) if name == taken)
        if not _clashes(graph, branch, node):
            _inline(graph, index, branch)
            return f"{walk.label(node)} always takes its {taken}"
    return None


def _constant(proto: ModelProto, name: str) -> bool | None:
    """The value of a condition, or None if it depends on an input, or on too much to compute here."""
    links = walk.link(proto.graph)
    needed: list[NodeProto] = []
    stored: dict[str, None] = {}
    waiting = [name]
    while waiting:
        read = waiting.pop()
        if read in links.initializers:
            if is_external(links.initializers[read]):
                return None
            stored[read] = None
        elif (node := links.producer.get(read)) is None or any(True for _ in walk.subgraphs(node)):
            return None
        elif node not in needed:
            needed.append(node)
            waiting += walk.reads(node)
        if len(needed) > _LARGEST_CONDITION:
            return None
    wanted = {id(node) for node in needed}
    small = helper.make_graph(
        [node for node in proto.graph.node if id(node) in wanted],
        "condition",
        [],
        [helper.make_empty_tensor_value_info(name)],
        [links.initializers[key] for key in stored],
    )
    if not needed:
        return bool(numpy_helper.to_array(links.initializers[name]).all())
    model = helper.make_model(small, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    (value,) = ReferenceEvaluator(model).run(None, {})
    return bool(np.all(value))


def _clashes(graph: GraphProto, branch: GraphProto, node: NodeProto) -> bool:
    """True if the branch makes a name that something beside it in the main graph makes, too."""
    outside = {name for other in graph.node for name in other.output} - set(node.output)
    outside |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    inside = {name for other in branch.node for name in other.output} | {t.name for t in branch.initializer}
    return bool(inside & (outside | set(node.output)))


def _inline(graph: GraphProto, index: int, branch: GraphProto) -> None:
    """Put the branch's nodes where the If stands, and its outputs under the If's names."""
    before, node, after = list(graph.node[:index]), graph.node[index], list(graph.node[index + 1 :])
    names = zip(branch.output, node.output, strict=True)
    joins = [helper.make_node("Identity", [made.name], [name]) for made, name in names if name]
    nodes = [*before, *branch.node, *joins, *after]
    copies = []
    for item in nodes:
        private = NodeProto()
        private.CopyFrom(item)
        copies.append(private)
    tensors, values = list(branch.initializer), list(branch.value_info)
    graph.initializer.extend(tensors)
    graph.value_info.extend(values)
    del graph.node[:]
    graph.node.extend(copies)
