"""Attention fused into one node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.errors import KernelError, ModelError
from edgemm.graph import ops, ort, walk
from edgemm.graph.attention_pattern import HIDING, Attention, Bias, NoMatchError, Operand, candidates, match
from edgemm.graph.known import Known, Shape
from edgemm.graph.model import Model
from edgemm.graph.passes.infer_shapes import infer_leniently
from edgemm.graph.passes.infra import PassResult
from edgemm.graph.passes.remove_dead import RemoveDead
from edgemm.graph.tensors import dtype_name
from edgemm.kernels.attention import HEAD_DIMS, AttentionOptions
from edgemm.types import Array

OLDEST_OPSET = 13
"""The node's function body is read by the model's opset, and needs this one."""

TOLERANCES = {"float32": 1e-5, "float16": 2e-2}
"""How far a fused part may be from what it replaces, on random numbers of variance 1. float32: what another order of
summation makes. float16: the original rounds its scores and its weights, the fused node does not."""

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_CHECK_SIZES = (2, 2, 3, 5)
"""Batch, heads, queries and keys, where the graph leaves them open, for the comparison."""
_CHECK_PAST = 4
PADDED_AT_MOST = 1.5
"""Heads are filled up with zeros to the next dimension that a kernel has, if that makes them no longer than this many
times. The zeros add nothing to a score, and their columns of the output are cut off: the result is the same."""
_CHECK_LIMIT = 1 << 24
"""Scores of a comparison; beyond it would take seconds."""

_Roles = tuple[int, int, int, int]
_Step = tuple[str, dict[str, Any], list[list[int]]]
"""An operator, its attributes, and its inputs after the first."""


class FuseAttention:
    """Replace each softmax attention of the main graph by an `edgemm::FusedAttention` node.

    What `edgemm.graph.attention_pattern` recognises becomes one node, with Transposes and Unsqueezes where its layout
    asks for them; constant masks that are a causal or sliding window become attributes, other masks a bias. The model
    gets the node's function body, so that it runs as before everywhere.

    A node computes in the type that the graph has there. In float32 it is as exact as what it replaces, and only
    its body computes it: kernels take float16 and bfloat16. So run the pass after `ToHalf`, or give `narrow`, which
    casts q, k, v and the bias of float32 attentions to that type and the result back.

    **Each attention is compared with what replaces it**, on random numbers in onnxruntime, before it is replaced;
    if they differ it is left alone. What onnxruntime cannot run (bfloat16), or would take long, is replaced unchecked,
    with a note. Left alone with a note of the reason: weights that are read elsewhere, head dimensions that are not
    static or that no kernel has (they are filled up to the next, within `PADDED_AT_MOST`), scales that are no constant,
    opsets below 13, attention in bodies of If, Loop and Scan. An ONNX Attention with a past of keys and values becomes
    a Concat for each and the fused node.

    A row whose keys are all hidden gives zeros, where the original gives NaN (minus infinity in the mask) or some
    average of all values (a large negative number): both are no result that a model was trained on.
    """

    name = "fuse-attention"

    def __init__(self, narrow: Literal["float16", "bfloat16"] | None = None) -> None:
        self.narrow = narrow

    def requires(self, model: Model) -> None:
        """Any model will do; run `InferShapes` and `FoldConstants` before, to have more found."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model with fused attention."""
        proto = model.copy_proto()
        typed = infer_leniently(model).graph
        known = Known(model, walk.link(proto.graph), walk.specs(typed))
        work = _Work(model, proto, known, walk.Namer.of(proto), walk.elem_types(typed), self.narrow)
        found = candidates(list(proto.graph.node), known)
        for node, weights in found:
            try:
                if model.opset < OLDEST_OPSET:
                    raise NoMatchError(f"the model has opset {model.opset}, and {OLDEST_OPSET} is needed")
                work.fuse(match(node, weights, known))
            except NoMatchError as error:
                work.notes.append(f'{node.op_type} "{walk.label(node)}" left alone: {error}')
        inner = sum(len(candidates(list(graph.node), _inside(model, graph))) for graph in _bodies(proto.graph))
        if inner:
            work.notes.append(f"{inner} attentions in bodies of If, Loop or Scan left alone")
        if not work.fused:
            return PassResult(model, False, tuple(work.notes))
        work.write()
        work.notes.insert(0, f"{len(work.fused)} of {len(found)} attentions fused")
        return PassResult(RemoveDead()(model.with_proto(proto)).model, True, tuple(work.notes))

    def ensures(self, before: Model, after: Model) -> None:
        """Every attention node has its body, and options that edgemm knows."""
        have = {item.name for item in after.proto.functions if item.domain == ops.DOMAIN}
        for node in after.proto.graph.node:
            if node.domain == ops.DOMAIN and node.op_type.startswith("FusedAttention"):
                ops.options_of(node)
                if node.op_type not in have:
                    raise ModelError(f'"{walk.label(node)}" has no function body. Report the model.')


def _bodies(graph: GraphProto) -> list[GraphProto]:
    return [inner for node in graph.node for _, body in walk.subgraphs(node) for inner in walk.graphs(body)]


def _inside(model: Model, graph: GraphProto) -> Known:
    return Known(model, walk.link(graph), walk.specs(graph))


@dataclass
class _Layout:
    """An attention's dimensions, `[batch, heads, length, head_dim]`, and where they are in the graph's tensors."""

    rank: int
    sizes: dict[str, tuple[int | str | None, ...]]
    """Of q, k and v, four each."""


@dataclass
class _Work:
    """What the rewrite of one model carries from attention to attention."""

    model: Model
    proto: ModelProto
    known: Known
    namer: walk.Namer
    types: dict[str, int]
    narrow: Literal["float16", "bfloat16"] | None
    notes: list[str] = field(default_factory=list)
    fused: list[tuple[NodeProto, list[NodeProto]]] = field(default_factory=list)
    """What goes, and what comes in its place."""
    tensors: list[TensorProto] = field(default_factory=list)

    def fuse(self, found: Attention) -> None:
        """Note the replacement of one attention. Raises NoMatchError if it cannot be, or does not compute the same."""
        element = self._element(found)
        sizes = self.sizes_of(found)
        options, biases = self._options(found, sizes, element)
        for bias in biases:
            self._check_bias(bias, found, sizes)
        straight = _Emitter(self, None if element != "float32" else "float32")
        replacement = straight.nodes_of(found, options, biases, element)
        doubt = self._compare(found, sizes, straight, replacement, element)
        if doubt is not None:
            self.notes.append(f'"{walk.label(found.last)}" was not compared with what replaces it: {doubt}')
        emitter = straight
        if element == "float32" and self.narrow is not None:
            emitter = _Emitter(self, self.narrow)
            replacement = emitter.nodes_of(found, replace(options, dtype=self.narrow), biases, element)
        self.tensors += emitter.tensors
        self.fused.append((found.last, replacement))

    def write(self) -> None:
        """Put the new nodes where the old ones were."""
        graph = self.proto.graph
        nodes = []
        for node in graph.node:
            new = next((items for last, items in self.fused if last is node), None)
            for item in [node] if new is None else new:
                private = NodeProto()
                private.CopyFrom(item)
                nodes.append(private)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self.tensors)
        ops.add_bodies(self.proto)

    def _element(self, found: Attention) -> str:
        kinds = {self.types.get(operand.name, 0) for operand in (found.q, found.k, found.v)}
        names = {dtype_name(kind) if kind else "an unknown type" for kind in kinds}
        if len(names) != 1 or not names <= set(_TYPES):
            raise NoMatchError(f"q, k and v are {' and '.join(sorted(names))}, and one of {', '.join(_TYPES)} is known")
        return names.pop()

    def sizes_of(self, found: Attention) -> dict[str, Shape]:
        """The four dimensions of q, k and v. Raises NoMatchError if they do not fit each other or the kernel."""
        sizes: dict[str, Shape] = {}
        for what, operand in (("q", found.q), ("k", found.k), ("v", found.v)):
            shape = self.known.shape(operand.name)
            if shape is None:
                raise NoMatchError(f"the shape of {what} is not known: infer shapes first")
            if found.heads is not None:
                count = found.heads[0] if what == "q" else found.heads[1]
                width = shape[2]
                if not isinstance(width, int) or width % count:
                    raise NoMatchError(f"{what} is {list(shape)}, which is not {count} heads")
                sizes[what] = (shape[0], count, shape[1], width // count)
                continue
            ordered = tuple(shape[axis] for axis in operand.order)
            if found.view is not None:
                if not all(isinstance(size, int) for size in ordered) or math.prod(
                    size for size in ordered[:-2] if isinstance(size, int)
                ) != math.prod(found.view):
                    raise NoMatchError(f"{what} is {list(shape)}, and the scores are for {list(found.view)}")
                sizes[what] = (*found.view, *ordered[-2:])
                continue
            sizes[what] = (*ordered[:-2], *(1,) * (4 - len(ordered)), *ordered[-2:])
        if found.past is not None:
            for what, name in zip(("k", "v"), found.past, strict=True):
                shape = self.known.shape(name)
                if shape is None or len(shape) != 4:
                    raise NoMatchError(f"the shape of its past {what} is not known: infer shapes first")
                new, past = sizes[what][2], shape[2]
                both = new + past if isinstance(new, int) and isinstance(past, int) else None
                sizes[what] = (*sizes[what][:2], both, sizes[what][3])
        dims = {size[3] for size in sizes.values() if isinstance(size[3], int)}
        if not dims:
            raise NoMatchError("the head dimension is not static: infer shapes first")
        if len(dims) > 1:
            raise NoMatchError(f"q, k and v have the head dimensions {', '.join(map(str, sorted(dims)))}")
        q, k, v = sizes["q"], sizes["k"], sizes["v"]
        for what, first, second in (
            ("batch of q and k", q[0], k[0]),
            ("batch of k and v", k[0], v[0]),
            ("heads of k and v", k[1], v[1]),
            ("length of k and v", k[2], v[2]),
        ):
            # Two names may mean the same size; one number and a name, or two numbers, are taken at their word.
            if first != second and isinstance(first, int) and (isinstance(second, int) or first == 1):
                raise NoMatchError(f"the {what} is {first} and {second}: one would be broadcast")
            if first != second and second == 1:
                raise NoMatchError(f"the {what} is {first} and 1: one would be broadcast")
        if q[1] != k[1] and isinstance(k[1], int) and not (isinstance(q[1], int) and q[1] % k[1] == 0):
            raise NoMatchError(f"q has {q[1]} heads and k has {k[1]}")
        return sizes

    def _options(
        self, found: Attention, sizes: dict[str, Shape], element: str
    ) -> tuple[AttentionOptions, tuple[Bias, ...]]:
        """The node's options, and the biases that are left when constant masks have become a window."""
        dim = next(size[3] for size in sizes.values() if isinstance(size[3], int))
        try:
            options = AttentionOptions(
                next((have for have in HEAD_DIMS if dim <= have <= PADDED_AT_MOST * dim), dim),
                dtype="bfloat16" if element == "bfloat16" else "float16",
                scale=1.0 / math.sqrt(dim) if found.scale is None else found.scale,
                causal=found.causal,
                queries_at="start" if found.causal and found.past is None else "end",
            )
        except KernelError as error:
            raise NoMatchError(str(error)) from error
        if found.causal or not found.biases:
            return options, found.biases
        total = self._constant_bias(found.biases)
        if total is None or total.shape[-2:] != (sizes["q"][2], sizes["k"][2]):
            return options, found.biases
        window = band(total)
        if window is None:
            return options, found.biases
        before, after, at = window
        return replace(options, window=(before, after), queries_at=at), ()

    def _constant_bias(self, biases: Sequence[Bias]) -> Array | None:
        total: Array = np.zeros((1, 1))
        for bias in biases:
            stored = self.known.array(bias.value)
            if stored is None:
                return None
            if bias.hidden_if is None:
                part = stored.astype(np.float64) * bias.factor
            else:
                part = np.where(stored.astype(bool) == bias.hidden_if, bias.fill, 0.0)
            total = total + part
        return total

    def _check_bias(self, bias: Bias, found: Attention, sizes: dict[str, Shape]) -> None:
        shape = self.known.shape(bias.value)
        if shape is None:
            raise NoMatchError(f'the shape of the mask "{bias.value}" is not known: infer shapes first')
        rank = found.rank
        if len(shape) > rank:
            raise NoMatchError(f'the mask "{bias.value}" has {len(shape)} dimensions and the scores have {rank}')
        if not shape or (shape[-1] == 1 and sizes["k"][2] != 1):
            raise NoMatchError(f'the mask "{bias.value}" is the same for all keys')
        scores = (*sizes["q"][:2], sizes["q"][2], sizes["k"][2])
        axes = (0, 1, 2, 3) if rank == 4 else (0, 2, 3) if rank == 3 else (2, 3)
        for size, axis in zip(reversed(shape), reversed(axes), strict=False):
            want = scores[axis]
            if isinstance(size, int) and size != 1 and isinstance(want, int) and size != want:
                raise NoMatchError(f'the mask "{bias.value}" is {list(shape)}, the scores are {list(scores)}')

    # the comparison

    def _compare(
        self,
        found: Attention,
        sizes: dict[str, Shape],
        emitter: _Emitter,
        replacement: list[NodeProto],
        element: str,
    ) -> str | None:
        """Run both on random numbers. Returns why that cannot be done, or None. Raises NoMatchError if they differ."""
        if element not in TOLERANCES:
            return f"onnxruntime does not compute in {element}"
        roles = self._roles(found, sizes)
        if np.prod(roles) > _CHECK_LIMIT:
            return f"{'x'.join(map(str, roles))} scores take long"
        feeds = self._feeds(found, sizes, roles, element)
        part = _Part(self.known, set(feeds))
        part.collect(found.last)
        if part.missing:
            return f'it depends on "{part.missing[0]}" besides q, k, v and the mask'
        try:
            (want,) = ort.compute(self._small(part.nodes, part.tensors, feeds, found.out), feeds)
        except ModelError as error:
            return str(error)
        (got,) = ort.compute(self._small(replacement, emitter.tensors, feeds, found.out), feeds)
        worst = float(np.max(np.abs(got.astype(np.float64) - want.astype(np.float64)), initial=0.0))
        if got.shape != want.shape or not worst <= TOLERANCES[element]:
            raise NoMatchError(f"on random numbers the fused node differs by {worst:.1e}, shapes {want.shape}")
        return None

    def _roles(self, found: Attention, sizes: dict[str, Shape]) -> _Roles:
        """Numbers for batch, heads of q, queries and keys: the graph's, or small ones."""

        def first(options: list[int | str | None], role: int) -> int:
            return next((item for item in options if isinstance(item, int) and item > 0), _CHECK_SIZES[role])

        masks = [self.known.shape(bias.value) or () for bias in found.biases]
        rows = [mask[-2] for mask in masks if len(mask) > 1 and mask[-2] != 1]
        keys = [mask[-1] for mask in masks if mask]
        q, k, v = sizes["q"], sizes["k"], sizes["v"]
        heads = first([q[1], k[1]] if k[1] != 1 else [q[1]], 1)
        queries, total = first([q[2], *rows], 2), first([k[2], v[2], *keys], 3)
        if found.past is not None and not isinstance(k[2], int):
            new, past = self._key_lengths(found)
            # A causal mask wants as many new keys as queries; the graph may leave both open.
            total = (new or (queries if found.causal else _CHECK_SIZES[3])) + (past or _CHECK_PAST)
        return first([q[0], k[0], v[0]], 0), heads, queries, total

    def _key_lengths(self, found: Attention) -> tuple[int | None, int | None]:
        """New keys and past keys, as far as the graph says."""
        k = self.known.shape(found.k.name) or ()
        past = self.known.shape(found.past[0] if found.past else "") or (None,) * 4
        new = k[1] if found.heads is not None else k[found.k.order[-2]]
        return new if isinstance(new, int) else None, past[2] if isinstance(past[2], int) else None

    def _feeds(self, found: Attention, sizes: dict[str, Shape], roles: _Roles, element: str) -> dict[str, Array]:
        batch, heads, queries, keys = roles
        rng = np.random.default_rng(0)
        feeds: dict[str, Array] = {}
        kind = np.dtype(np.float16 if element == "float16" else np.float32)
        dim = next(size[3] for size in sizes.values() if isinstance(size[3], int))
        past = 0
        if found.past is not None:
            new = self._key_lengths(found)[0]
            past = self._key_lengths(found)[1] or (keys - new if new else _CHECK_PAST)
        for what, operand in (("q", found.q), ("k", found.k), ("v", found.v)):
            count = heads if what == "q" else sizes["k"][1] if isinstance(sizes["k"][1], int) else heads
            length = queries if what == "q" else keys - past
            if what == "k":
                for name in found.past or ():
                    before = rng.standard_normal((batch, int(count), past, dim))
                    feeds.setdefault(name, before.astype(kind))
            if found.heads is not None:
                shape: tuple[int, ...] = (batch, length, int(count) * dim)
            elif found.view is not None:
                shape = tuple(int(size or 0) for size in self.known.shape(operand.name) or ())
            else:
                whole = (batch, int(count), length, dim)
                ordered = whole if len(operand.order) == 4 else (batch, length, dim)[3 - len(operand.order) :]
                shape = tuple(ordered[operand.order.index(axis)] for axis in range(len(ordered)))
            feeds.setdefault(operand.name, rng.standard_normal(shape).astype(kind))
        scores = (batch, heads, queries, keys)
        rank = found.rank
        axes = (0, 1, 2, 3) if rank == 4 else (0, 2, 3) if rank == 3 else (2, 3)
        for bias in found.biases:
            stored = self.known.array(bias.value)
            if stored is not None:
                feeds[bias.value] = stored
                continue
            mask = self.known.shape(bias.value) or ()
            sized = [
                size if isinstance(size, int) else scores[axis]
                for size, axis in zip(mask, axes[len(axes) - len(mask) :], strict=True)
            ]
            if bias.hidden_if is None:
                feeds[bias.value] = rng.standard_normal(sized).astype(_numpy_type(self.types.get(bias.value, 1)))
            else:
                hidden = rng.random(sized) < 0.4
                # Every query sees some key.
                hidden[..., 0] = False
                feeds[bias.value] = hidden == bias.hidden_if
        return feeds

    def _small(
        self, nodes: Sequence[NodeProto], tensors: Sequence[TensorProto], feeds: dict[str, Array], out: str
    ) -> Model:
        graph = helper.make_graph(
            list(nodes),
            "part",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(out)],
            list(tensors),
        )
        small = helper.make_model(graph, ir_version=self.proto.ir_version, opset_imports=self.proto.opset_import)
        ops.add_bodies(small)
        return Model(small, self.model.folder)


class _Part:
    """The nodes that make a value of others."""

    def __init__(self, known: Known, given: set[str]) -> None:
        self._known = known
        self._seen = set(given)
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.missing: list[str] = []

    def collect(self, node: NodeProto) -> None:
        """Add a node and what it reads, producers first."""
        for name in walk.reads(node):
            if name in self._seen:
                continue
            self._seen.add(name)
            stored = self._known.links.initializers.get(name)
            maker = self._known.links.producer.get(name)
            number = self._known.scalar(name)
            if stored is not None:
                self.tensors.append(stored)
            elif maker is not None and walk.is_standard(maker, "Constant"):
                self.nodes.append(maker)
            elif number is not None and name in self._known.specs:
                # A scale that is computed from shapes outside of the part.
                spec = self._known.specs[name]
                value = np.full([1 if not isinstance(size, int) else size for size in spec.shape], number)
                self.tensors.append(numpy_helper.from_array(value.astype(spec.dtype), name))
            elif maker is None:
                self.missing.append(name)
            else:
                self.collect(maker)
        self.nodes.append(node)


class _Emitter:
    """Writes the nodes that replace an attention."""

    def __init__(self, work: _Work, compute: str | None) -> None:
        self._work = work
        self._compute = compute
        """The node's type; None: the graph's own."""
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def nodes_of(
        self, found: Attention, options: AttentionOptions, biases: Sequence[Bias], element: str
    ) -> list[NodeProto]:
        """The nodes, in order; the last one makes `found.out`."""
        compute = self._compute or element
        stem = found.last.name or found.out
        dim = self._head_dim(found)
        given = []
        for index, operand in enumerate((found.q, found.k, found.v)):
            name = self._operand(operand, found, index)
            if index > 0:
                name = self._present(name, found, index - 1)
            given.append(self._padded(self._cast(name, element, compute), options.head_dim - dim))
        rank = found.rank
        bias = self._bias(biases, rank, compute) if biases else None
        steps = self._layout_out(found, rank)
        if options.head_dim > dim:
            steps.insert(0, ("Slice", {}, [[0], [dim], [3]]))
        fused = self._work.namer.fresh(f"{stem}/fused")
        out = fused if steps or compute != element else found.out
        self.nodes.append(
            ops.attention_node(
                given[0], given[1], given[2], out, options, bias=bias, name=fused, float32=compute == "float32"
            )
        )
        out = self._cast(out, compute, element, "" if steps or compute == element else found.out)
        for index, (op, attributes, tables) in enumerate(steps):
            inputs = [out, *(self._table(table, np.int64) for table in tables)]
            out = self._add(op, inputs, found.out if index == len(steps) - 1 else "", **attributes)
        return self.nodes

    def _operand(self, operand: Operand, found: Attention, index: int) -> str:
        name = operand.name
        if found.heads is not None:
            count = found.heads[0] if index == 0 else found.heads[1]
            name = self._add("Reshape", [name, self._table([0, 0, count, -1], np.int64)])
            return self._add("Transpose", [name], perm=[0, 2, 1, 3])
        if operand.order != tuple(range(len(operand.order))):
            name = self._add("Transpose", [name], perm=list(operand.order))
        if found.view is not None:
            size = self._work.known.shape(operand.name) or ()
            length, dim = (int(size[operand.order[at]] or 0) for at in (-2, -1))
            return self._add("Reshape", [name, self._table([*found.view, length, dim], np.int64)])
        axes = _new_axes(len(operand.order))
        return self._add("Unsqueeze", [name, self._table(axes, np.int64)]) if axes else name

    def _head_dim(self, found: Attention) -> int:
        """As the graph has it."""
        return next(int(size[3]) for size in self._work.sizes_of(found).values() if isinstance(size[3], int))

    def _present(self, name: str, found: Attention, index: int) -> str:
        """All keys (or values): those of the past before these, under the name that the graph has for them."""
        present = found.present[index]
        if found.past is not None:
            return self._add("Concat", [found.past[index], name], present, axis=2)
        return self._add("Identity", [name], present) if present else name

    def _padded(self, name: str, missing: int) -> str:
        """Heads with zeros at their end."""
        if missing == 0:
            return name
        return self._add("Pad", [name, self._table([0, 0, 0, 0, 0, 0, 0, missing], np.int64)])

    def _layout_out(self, found: Attention, rank: int) -> list[_Step]:
        """What brings `[batch, heads, length, head_dim]` to the graph's form."""
        if found.heads is not None:
            return [("Transpose", {"perm": [0, 2, 1, 3]}, []), ("Reshape", {}, [[0, 0, -1]])]
        steps: list[_Step] = []
        if found.view is not None:
            value, weights = (self._work.known.shape(operand.name) or () for operand in (found.v, found.q))
            ahead = [int(value[axis] or 0) for axis in found.v.order[:-2]]
            rank = len(found.v.order)
            ends = int(weights[found.q.order[-2]] or 0), int(value[found.v.order[-1]] or 0)
            steps.append(("Reshape", {}, [[*ahead, *ends]]))
        elif rank < 4:
            steps.append(("Squeeze", {}, [_new_axes(rank)]))
        if found.out_order != tuple(range(rank)):
            steps.append(("Transpose", {"perm": list(found.out_order)}, []))
        return steps

    def _bias(self, biases: Sequence[Bias], rank: int, compute: str) -> str:
        """All biases as one value of four dimensions, in the node's type; several are added up in float32."""
        first = dtype_name(self._work.types.get(biases[0].value, TensorProto.UNDEFINED))
        if len(biases) == 1 and biases[0].hidden_if is None and biases[0].factor == 1.0 and first == compute:
            return self._four_dimensions(biases[0], biases[0].value, rank)
        parts = [self._one_bias(bias, rank) for bias in biases]
        total = parts[0]
        for part in parts[1:]:
            total = self._add("Add", [total, part])
        return self._cast(total, "float32", compute)

    def _one_bias(self, bias: Bias, rank: int) -> str:
        name = bias.value
        if bias.hidden_if is not None:
            hidden, seen = self._table(bias.fill, np.float32), self._table(0.0, np.float32)
            name = self._add("Where", [name, *((hidden, seen) if bias.hidden_if else (seen, hidden))])
        else:
            name = self._cast(name, dtype_name(self._work.types.get(name, TensorProto.UNDEFINED)), "float32")
            if bias.factor != 1.0:
                name = self._add("Mul", [name, self._table(bias.factor, np.float32)])
        return self._four_dimensions(bias, name, rank)

    def _four_dimensions(self, bias: Bias, name: str, rank: int) -> str:
        have = len(self._work.known.shape(bias.value) or ())
        missing = list(range(rank - have))
        if missing:
            name = self._add("Unsqueeze", [name, self._table(missing, np.int64)])
        axes = _new_axes(rank)
        return self._add("Unsqueeze", [name, self._table(axes, np.int64)]) if axes else name

    def _cast(self, name: str, have: str, want: str, out: str = "") -> str:
        return name if have == want else self._add("Cast", [name], out, to=int(_TYPES[want]))

    def _add(self, op: str, inputs: list[str], out: str = "", **attributes: Any) -> str:
        out = out or self._work.namer.fresh(f"{inputs[0]}/{op.lower()}")
        self.nodes.append(helper.make_node(op, inputs, [out], name=self._work.namer.fresh(f"{out}/node"), **attributes))
        return out

    def _table(self, values: Any, dtype: Any) -> str:
        name = self._work.namer.fresh("fused_attention_constant")
        self.tensors.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name


def _new_axes(rank: int) -> list[int]:
    """Where a tensor of queries or scores gets axes of size 1 to have four: heads, and before them the batch."""
    return {4: [], 3: [1], 2: [0, 1]}[rank]


def _numpy_type(kind: int) -> str:
    name = dtype_name(kind)
    return name if name in ("float16", "float64") else "float32"


def band(mask: Array) -> tuple[int | None, int | None, Literal["start", "end"]] | None:
    """Return the window that an additive mask `[.., queries, keys]` is: keys before and after, and where queries are.

    None if it is no band of zeros beside large negative numbers, or leaves some query without a key.
    """
    tables = mask.reshape(-1, *mask.shape[-2:])
    if len(tables) == 0 or (tables != tables[0]).any():
        return None
    table = tables[0]
    queries, keys = mask.shape[-2], mask.shape[-1]
    seen = table > HIDING
    if (table[seen] != 0).any() or not seen.any(axis=1).all():
        return None
    place: Literal["start", "end"]
    for place in ("end", "start"):
        shift = keys - queries if place == "end" else 0
        distance = np.arange(keys)[None, :] - (np.arange(queries)[:, None] + shift)
        before, after = max(0, -int(distance[seen].min())), max(0, int(distance[seen].max()))
        if not np.array_equal(seen, (distance >= -before) & (distance <= after)):
            continue
        return (
            before if (distance < -before).any() else None,
            after if (distance > after).any() else None,
            place,
        )
    return None
