"""A node where it stands: what a rule may ask about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, ValueInfoProto

from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.types import Array, TensorSpec


@dataclass(frozen=True)
class Site:
    """One node with the types, shapes and constants in sight of it.

    `inputs` and `outputs` are counted from 0; an index that the node leaves out answers None, "" or False.
    """

    node: NodeProto
    place: str
    """The graph it stands in: "" for the main graph, else like `If_3.then_branch`."""
    model: Model
    opset: int
    specs: Mapping[str, TensorSpec]
    kinds: Mapping[str, str]
    """What a value is if it is no tensor: "sequence", "optional", "map"."""
    scopes: tuple[walk.Links, ...]
    """Links of the graphs around the node, innermost first."""

    def input(self, index: int) -> str:
        """Name of an input, "" if it is left out."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def output(self, index: int) -> str:
        """Name of an output, "" if it is left out."""
        return str(self.node.output[index]) if index < len(self.node.output) else ""

    def attribute(self, name: str, default: object = None) -> object:
        """Value of an attribute; bytes come back as text."""
        value = walk.attribute(self.node, name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def dtype(self, index: int) -> str:
        """dtype of an input, "" if unknown."""
        return self.dtype_of(self.input(index))

    def dtype_of(self, name: str) -> str:
        """dtype of a value, "" if unknown."""
        spec = self.specs.get(name)
        return spec.dtype if spec else ""

    def shape(self, index: int) -> tuple[int | str | None, ...] | None:
        """Shape of an input, None if its rank is unknown."""
        spec = self.specs.get(self.input(index))
        return spec.shape if spec else None

    def constant(self, index: int) -> Array | None:
        """Value of an input that is an initializer or a Constant, else None."""
        name = self.input(index)
        for links in self.scopes:
            tensor = links.constant(name)
            if tensor is not None:
                return None if tensor.data_location == tensor.EXTERNAL else self.model.array(tensor)
            if name in links.producer:
                return None
        return None

    def is_constant(self, index: int) -> bool:
        """True if the input is known when an engine is built: an initializer, or computed from constants alone."""
        return self.is_fixed(self.input(index))

    def is_fixed(self, name: str) -> bool:
        """True if a value does not depend on any input but for its static shape."""
        waiting, seen = [name], {name}
        while waiting:
            current = waiting.pop()
            if any(current in links.initializers for links in self.scopes):
                continue
            node = self.maker(current)
            if node is None:
                return False
            if walk.is_standard(node, "Constant"):
                continue
            if walk.is_standard(node, "Shape", "Size"):
                spec = self.specs.get(node.input[0])
                if spec is None or not spec.is_static:
                    return False
                continue
            reads = walk.reads(node)
            if not reads or walk.is_standard(node, "Range"):
                # Random numbers; and TensorRT folds arithmetic on shapes, but not a Range of them.
                return False
            waiting += [read for read in reads if read not in seen]
            seen.update(reads)
        return True

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes a value in sight of this one, or None for inputs and initializers."""
        return next((links.producer[name] for links in self.scopes if name in links.producer), None)

    def feeds(self, name: str) -> set[str]:
        """Names of the graph inputs that decide a value; a static shape is decided by none."""
        found: set[str] = set()
        waiting, seen = [name], {name}
        while waiting:
            current = waiting.pop()
            node = self.maker(current)
            if node is None:
                if not any(current in links.initializers for links in self.scopes):
                    found.add(current)
                continue
            if walk.is_standard(node, "Shape", "Size"):
                continue
            fresh = set(walk.reads(node)) - seen
            seen |= fresh
            waiting += fresh
        return found


def sites(model: Model) -> Iterator[Site]:
    """Yield every node of the main graph and of the graphs nested in it, each with its surroundings.

    Types and shapes are those of value_info: run inference before.
    """
    opset = model.opset

    def inside(
        graph: GraphProto,
        place: str,
        outer: Mapping[str, TensorSpec],
        outer_kinds: Mapping[str, str],
        scopes: tuple[walk.Links, ...],
    ) -> Iterator[Site]:
        specs = {**outer, **walk.specs(graph)}
        kinds = {**outer_kinds, **_kinds(graph)}
        around = (walk.link(graph), *scopes)
        for node in graph.node:
            yield Site(node, place, model, opset, specs, kinds, around)
            for name, inner in walk.subgraphs(node):
                where = f"{place}{'/' if place else ''}{walk.label(node)}.{name}"
                yield from inside(inner, where, specs, kinds, around)

    yield from inside(model.proto.graph, "", {}, {}, ())


def _kinds(graph: GraphProto) -> dict[str, str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: kind for value in values if (kind := _kind(value))}


def _kind(value: ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value") or ""
    return "" if kind in ("", "tensor_type") else kind.removesuffix("_type")
