"""Where Q/DQ pairs go, decided on the float graph before anything is rewritten.

Two engines, two sets of fusion rules (both were checked with the real engines, see docs/quantization.md):

`tensorrt`: a convolution or matrix product is int8 when its *inputs* come out of Q/DQ. Its output stays bare, so that
bias, batch norm, activation and a residual Add fuse into it; the Q of the next consumer ends the fusion. In a residual
Add, the branch that no convolution makes gets Q/DQ as well, with the scale its tensor has elsewhere.

`onnxruntime`: a convolution is int8 when inputs *and output* are in Q/DQ, with nothing but a ReLU before the output's
Q. An Add or a Concat is int8 under the same rule. Matrix products may keep a float output.

In both, operators that only move values share one scale between their inputs and outputs, and so does a Concat of what
int8 convolutions made. A tensor has one scale however many read it, so that a residual branch shares its Q.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from onnx import NodeProto

from edgemm.graph import Model, walk
from edgemm.graph.passes.infer_shapes import infer_leniently
from edgemm.quant.operators import (
    COMPUTE,
    PASS_THROUGH,
    RECURRENT,
    ComputeNode,
    Form,
    bias_add,
    classify,
    is_rectifier,
    makes_non_negative,
)


@dataclass
class Placement:
    """The plan for one graph: which nodes are int8, which tensors are quantized, and who reads them so."""

    form: Form
    compute: dict[str, ComputeNode] = field(default_factory=dict)
    """Nodes that become int8, by name."""
    left: dict[str, str] = field(default_factory=dict)
    """Nodes that could be int8 in principle but stay in float, with the reason."""
    reads: set[tuple[str, int]] = field(default_factory=set)
    """(node name, input index) that read a dequantized tensor."""
    replaced: set[str] = field(default_factory=set)
    """Tensors that every reader takes dequantized, graph outputs included: their producer is int8 to its end."""
    group: dict[str, str] = field(default_factory=dict)
    """Each quantized tensor and the representative of those that share its scale."""
    unsigned: set[str] = field(default_factory=set)
    """Representatives whose tensors cannot be negative (onnxruntime form only): zero is code 0 of uint8."""

    def members(self, representative: str) -> list[str]:
        """Return the tensors of one group."""
        return [tensor for tensor, other in self.group.items() if other == representative]


def place(model: Model, form: Form, exclude: Collection[str] = ()) -> Placement:
    """Decide the placement on a prepared model (see `prepare`); the nodes named in `exclude` stay in float."""
    return _Placer(model, form, exclude).run()


def tensors_to_observe(model: Model) -> list[str]:
    """Return the tensors whose range some placement of a prepared model needs, in the graph's order."""
    wanted: set[str] = set()
    for form in ("tensorrt", "onnxruntime"):
        wanted.update(place(model, form).group)
    graph = model.proto.graph
    order = [value.name for value in graph.input] + [name for node in graph.node for name in node.output]
    return [name for name in order if name in wanted]


class _Placer:
    def __init__(self, model: Model, form: Form, exclude: Collection[str]) -> None:
        self._graph = model.proto.graph
        self._links = walk.link(self._graph)
        known = {**walk.specs(infer_leniently(model).graph), **walk.specs(self._graph)}
        self._dtypes = {name: spec.dtype for name, spec in known.items()}
        self._ranks = {name: len(spec.shape) for name, spec in known.items()}
        self._exclude = exclude
        self._quantized: set[str] = set()
        self._made: set[str] = set()
        self._parent: dict[str, str] = {}
        self._plan = Placement(form)

    def run(self) -> Placement:
        """Choose nodes, then tensors, then scales, then readers."""
        self._choose_nodes()
        self._made = self._made_by_int8()
        for item in self._plan.compute.values():
            for index in item.activations:
                self._plan.reads.add((item.node.name, index))
                self._quantized.add(item.node.input[index])
        targets: dict[str, str] = {}
        if self._plan.form == "tensorrt":
            self._quantize_residuals()
        else:
            targets = self._output_targets()
            self._plan.replaced.update(targets.values())
            self._quantized.update(targets.values())
        self._share_scales()
        if self._plan.form == "onnxruntime":
            self._use_unsigned()
            self._split_signed_rectifiers(targets)
            self._quantize_adds()
            self._read_replaced()
        self._plan.group = {name: self._find(name) for name in sorted(self._quantized)}
        return self._plan

    def _choose_nodes(self) -> None:
        for node in self._graph.node:
            for _, inner in walk.subgraphs(node):
                for deep in walk.nodes(inner):
                    if walk.is_standard(deep, *COMPUTE, *RECURRENT):
                        self._plan.left[f"{node.name}/{walk.label(deep)}"] = f"inside a subgraph of {node.op_type}"
            if walk.is_standard(node, *RECURRENT):
                self._plan.left[node.name] = f"{node.op_type} runs in float on every engine"
            if not walk.is_standard(node, *COMPUTE):
                continue
            if node.name in self._exclude:
                self._plan.left[node.name] = "left in float on request"
                continue
            found = classify(node, self._links, self._dtypes, self._plan.form)
            if isinstance(found, str):
                self._plan.left[node.name] = found
            else:
                self._plan.compute[node.name] = found

    def _is_float(self, name: str) -> bool:
        return self._links.constant(name) is None and self._dtypes.get(name, "float32") == "float32"

    # TensorRT

    def _quantize_residuals(self) -> None:
        """Quantize the branch of each residual Add that its convolution does not make."""
        changed = True
        while changed:
            changed = False
            for node in self._graph.node:
                if not walk.is_standard(node, "Add") or not self._ends_quantized(node.output[0]):
                    continue
                if any((node.name, index) in self._plan.reads for index in (0, 1)):
                    continue
                made = [self._by_convolution(name, node) for name in node.input]
                if not any(made) or not all(map(self._is_float, node.input)):
                    continue
                # Where convolutions make both, the second keeps the fusion and the first is requantized.
                index = 0 if made[1] else 1
                self._plan.reads.add((node.name, index))
                self._quantized.add(node.input[index])
                changed = True

    def _by_convolution(self, name: str, reader: NodeProto) -> bool:
        producer = self._links.producer.get(name)
        return (
            producer is not None
            and producer.op_type == "Conv"
            and producer.name in self._plan.compute
            and self._links.sole_consumer(name) is reader
        )

    def _ends_quantized(self, name: str) -> bool:
        """True if the tensor, or what its only reader, a rectifier, makes of it, is quantized."""
        if name in self._quantized:
            return True
        reader = self._links.sole_consumer(name)
        return reader is not None and is_rectifier(reader, self._links) and reader.output[0] in self._quantized

    # onnxruntime

    def _output_targets(self) -> dict[str, str]:
        """Return, for each output that must be quantized, the tensor to do it at: behind a ReLU where one follows."""
        targets = {}
        for item in self._plan.compute.values():
            if item.node.op_type == "Conv":
                name = item.node.output[0]
                reader = self._links.sole_consumer(name)
                behind = reader is not None and is_rectifier(reader, self._links)
                targets[name] = reader.output[0] if reader is not None and behind else name
            elif self._would_become_a_float_gemm(item):
                targets[item.node.output[0]] = item.node.output[0]
        return targets

    def _would_become_a_float_gemm(self, item: ComputeNode) -> bool:
        """True for a product of matrices whose sum with another activation onnxruntime fuses into a Gemm.

        Its addend is float, so that the Gemm would be, too. Q/DQ in between keeps the product int8.
        """
        if item.node.op_type != "MatMul" or any(self._ranks.get(name) != 2 for name in item.node.input):
            return False
        reader = self._links.sole_consumer(item.node.output[0])
        return reader is not None and walk.is_standard(reader, "Add") and bias_add(item, self._links) is None

    def _use_unsigned(self) -> None:
        groups: dict[str, bool] = {}
        for name in self._quantized:
            root = self._find(name)
            groups[root] = groups.get(root, True) and self._is_non_negative(name)
        self._plan.unsigned = {root for root, all_of_them in groups.items() if all_of_them}

    def _is_non_negative(self, name: str) -> bool:
        producer = self._links.producer.get(name)
        if producer is None:
            return False
        if makes_non_negative(producer, self._links):
            return True
        return walk.is_standard(producer, *PASS_THROUGH) and self._is_non_negative(producer.input[0])

    def _split_signed_rectifiers(self, targets: dict[str, str]) -> None:
        """Where a ReLU's output has a signed scale, onnxruntime cannot drop the ReLU: quantize before it, too.

        With the same scale: what saturates below zero becomes zero in the ReLU anyway.
        """
        for before, target in targets.items():
            if before != target and self._find(target) not in self._plan.unsigned:
                self._quantized.add(before)
                self._plan.replaced.add(before)
                self._parent[before] = self._find(target)

    def _quantize_adds(self) -> None:
        for node in self._graph.node:
            if (
                walk.is_standard(node, "Add")
                and all(name in self._quantized for name in node.input)
                and self._ends_quantized(node.output[0])
            ):
                self._plan.reads.update({(node.name, 0), (node.name, 1)})

    def _read_replaced(self) -> None:
        for node in self._graph.node:
            for index, name in enumerate(node.input):
                if name in self._plan.replaced:
                    self._plan.reads.add((node.name, index))

    # Scales

    def _moves(self, node: NodeProto) -> Iterator[tuple[str, str]]:
        """Yield the (input, output) pairs between which a node only moves float values."""
        if walk.is_standard(node, "Concat"):
            # One scale for what differs in size costs accuracy: only where it lets int8 results stay int8.
            sources = list(node.input) if self._made.issuperset(node.input) else []
        elif walk.is_standard(node, *PASS_THROUGH):
            sources = [node.input[0]]
        else:
            return
        # The second output of MaxPool is indices.
        targets = list(node.output[:1] if node.op_type == "MaxPool" else node.output)
        for source in sources:
            for target in targets:
                if self._is_float(source) and self._is_float(target):
                    yield source, target

    def _share_scales(self) -> None:
        """Give one scale to what is connected by moves, and fill in the tensors between two quantized ones."""
        if self._plan.form == "onnxruntime":
            self._quantize_concat_inputs()
        moves = [pair for node in self._graph.node for pair in self._moves(node)]
        ahead, behind = set(self._quantized), set(self._quantized)
        for source, target in moves:
            if source in ahead:
                ahead.add(target)
        for source, target in reversed(moves):
            if target in behind:
                behind.add(source)
        between = ahead & behind
        for node in self._graph.node:
            for source, target in self._moves(node):
                if source not in between or target not in between:
                    continue
                self._parent[self._find(source)] = self._find(target)
                if self._plan.form == "onnxruntime":
                    # The move itself runs in int8. TensorRT carries Q across moves by itself.
                    self._quantized.update({source, target})
                    self._plan.replaced.add(target)
                    self._plan.reads.update((node.name, i) for i, name in enumerate(node.input) if name == source)

    def _quantize_concat_inputs(self) -> None:
        for node in reversed(self._graph.node):
            if (
                walk.is_standard(node, "Concat")
                and node.output[0] in self._quantized
                and self._made.issuperset(node.input)
            ):
                self._quantized.update(node.input)

    def _made_by_int8(self) -> set[str]:
        """Return what int8 convolutions make, also through ReLU, residual Add, moves, and Concat of nothing else."""
        made: set[str] = set()
        for node in self._graph.node:
            if node.name in self._plan.compute:
                reached = node.op_type in ("Conv", "ConvTranspose")
            elif walk.is_standard(node, "Add"):
                reached = any(name in made for name in node.input)
            elif walk.is_standard(node, "Concat"):
                reached = made.issuperset(node.input)
            else:
                moves = walk.is_standard(node, *PASS_THROUGH) or is_rectifier(node, self._links)
                reached = moves and node.input[0] in made
            if reached:
                made.update(node.output)
        return made

    def _find(self, name: str) -> str:
        while name in self._parent and self._parent[name] != name:
            name = self._parent[name]
        return name
