"""Recognition of softmax attention in a graph, however it is spelled.

What is looked for is `softmax(scale * q . k + biases) . v`, starting at the softmax and going up to the product of q
and k and down to the product with v. Exporters differ in where the scale stands (on q, on k, half on each, on the
scores, as a factor or a divisor, a constant or computed from a Shape), in how heads are laid out (Transpose, Einsum),
in how a mask is spelled (added, subtracted, chosen by Where), and in whether the softmax is one operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto, TensorProto

from edgemm.graph import walk
from edgemm.graph.known import Known, permutation

HIDING = -1e4
"""A score this low is weighed 0 in float16 and float32, whatever the other scores are in practice."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class NoMatchError(Exception):
    """Why something that looks like attention is not, in words for a note."""


@dataclass(frozen=True)
class Operand:
    """A value of the graph, and the order of axes that makes it `[..., length, head_dim]`."""

    name: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class Bias:
    """What is added to the scores before the softmax.

    Without `hidden_if` it is `factor * value`; with it, `value` is a mask, and where it equals `hidden_if` a key is
    hidden by the score `fill`.
    """

    value: str
    factor: float = 1.0
    hidden_if: bool | None = None
    fill: float = 0.0


@dataclass(frozen=True)
class Attention:
    """An attention that was found."""

    q: Operand
    k: Operand
    v: Operand
    scale: float | None
    """None: 1 / sqrt(head_dim)."""
    biases: tuple[Bias, ...]
    out: str
    out_order: tuple[int, ...]
    """The order of axes that makes `out` of `[..., length, head_dim]`."""
    last: NodeProto
    """The node that makes `out`."""
    causal: bool = False
    heads: tuple[int, int] | None = None
    """Heads of q and of k where they are not an axis yet: tensors are `[batch, length, heads * head_dim]`."""
    view: tuple[int, ...] | None = None
    """`[batch, heads]` where the graph reshapes its scores on the way and these are the shape that masks are for."""
    past: tuple[str, str] | None = None
    """Keys and values `[batch, kv_heads, past, head_dim]` that come before k and v."""
    present: tuple[str, str] = ("", "")
    """What the graph calls all keys and all values, past and new, where it asks for them."""

    @property
    def rank(self) -> int:
        """Dimensions of the scores that masks are added to."""
        return 4 if self.heads is not None or self.view is not None else len(self.q.order)


@dataclass(frozen=True)
class _Scores:
    q: Operand
    k: Operand
    rank: int
    factor: float
    biases: tuple[Bias, ...]
    shape: tuple[int, ...] | None = None
    """As the scores are now, if they were reshaped since the product."""
    view: tuple[int, ...] | None = None
    """Batch and heads of the four dimensions that masks are for, if the scores were reshaped."""

    def biased(self, bias: Bias) -> _Scores:
        """With one more bias, at the shape that the scores have now."""
        if self.view is not None and self.shape is not None and self.shape[:-2] != self.view:
            raise NoMatchError("masks are added to the scores in two shapes")
        return replace(self, biases=(*self.biases, bias))


def candidates(graph_nodes: Sequence[NodeProto], known: Known) -> list[tuple[NodeProto, str]]:
    """The softmaxes whose result goes into a matrix product, and ONNX Attention: node and value of the weights."""
    found = []
    for node in graph_nodes:
        if walk.is_standard(node, "Attention"):
            found.append((node, node.output[0]))
        elif walk.is_standard(node, "Softmax") or _is_spelled_softmax(node, known):
            weights = _after_softmax(node.output[0], known).name
            if any(walk.is_standard(reader, "MatMul", "Einsum") for reader in known.links.consumers.get(weights, ())):
                found.append((node, weights))
    return found


def match(node: NodeProto, weights: str, known: Known) -> Attention:
    """Return the attention around a candidate. Raises NoMatchError with the reason if it is none that we compute."""
    if walk.is_standard(node, "Attention"):
        return _operator(node, known)
    after = _after_softmax(node.output[0], known)
    _only_read_inside(node, after, known)
    readers = known.links.consumers.get(weights, [])
    scores_name = _softmax_input(node, known)
    scores = _scores(scores_name, known)
    if after.mask is not None:
        scores = scores.biased(Bias(after.mask, hidden_if=False, fill=float("-inf")))
    rank = scores.rank if scores.shape is None else len(scores.shape)
    if rank not in (2, 3, 4):
        raise NoMatchError(f"the scores have {rank} dimensions, and 2 to 4 are known")
    if walk.is_standard(node, "Softmax"):
        axis = walk.attribute(node, "axis", -1 if known.model.opset >= 13 else 1)
        if axis not in (-1, rank - 1):
            raise NoMatchError(f"the softmax runs along axis {axis}, not along the keys")
    v, out_order = _values(readers[0], weights, rank, known)
    out = readers[0].output[0]
    return Attention(
        scores.q, scores.k, v, scores.factor, scores.biases, out, out_order, readers[0], view=scores.view
    )  # fmt: skip


def _only_read_inside(node: NodeProto, after: _Weights, known: Known) -> None:
    inside = {id(item) for item in after.inside}
    for maker in (node, *after.inside):
        for name in maker.output:
            readers = known.links.consumers.get(name, [])
            last = name == after.name
            outside = [reader for reader in readers if id(reader) not in inside]
            if name in known.links.outputs or len(outside) != last:
                raise NoMatchError("the attention weights are read elsewhere, too, and the kernel does not give them")


# the softmax


def _is_spelled_softmax(node: NodeProto, known: Known) -> bool:
    """True for the Div that ends exp(x - max(x)) / sum(exp(x - max(x))), as JAX lowers its softmax."""
    return walk.is_standard(node, "Div") and _exp_of(node, known) is not None


def _exp_of(division: NodeProto, known: Known) -> NodeProto | None:
    producer = known.links.producer
    exp, total = (producer.get(name) for name in division.input)
    if exp is None or total is None or not walk.is_standard(exp, "Exp") or not walk.is_standard(total, "ReduceSum"):
        return None
    return exp if total.input[0] == exp.output[0] and _keeps_last(total, known) else None


def _keeps_last(node: NodeProto, known: Known) -> bool:
    """True if a reduction runs along the last axis and keeps it."""
    axes = walk.attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        numbers = known.numbers(node.input[1])
        axes = None if numbers is None else [int(item) for item in numbers.reshape(-1)]
    if not isinstance(axes, (list, tuple)) or len(axes) != 1 or walk.attribute(node, "keepdims", 1) != 1:
        return False
    shape = known.shape(node.input[0])
    return axes[0] == -1 or (shape is not None and axes[0] == len(shape) - 1)


def _softmax_input(node: NodeProto, known: Known) -> str:
    if node.op_type == "Softmax":
        return str(node.input[0])
    exp = _exp_of(node, known)
    shifted = known.links.producer.get(exp.input[0]) if exp is not None else None
    if shifted is None or not walk.is_standard(shifted, "Sub"):
        raise NoMatchError("the exponentials are not shifted by their largest")
    largest = known.links.producer.get(shifted.input[1])
    while largest is not None and walk.is_standard(largest, "Identity", "Max"):
        # JAX guards the largest against minus infinity: max(-inf, largest).
        tensors = [name for name in largest.input if known.scalar(name) is None]
        largest = known.links.producer.get(tensors[0]) if len(tensors) == 1 else None
    if (
        largest is None
        or not walk.is_standard(largest, "ReduceMax")
        or largest.input[0] != shifted.input[0]
        or not _keeps_last(largest, known)
    ):
        raise NoMatchError("the exponentials are not shifted by their largest")
    return str(shifted.input[0])


@dataclass(frozen=True)
class _Weights:
    """The attention weights as the values meet them."""

    name: str
    inside: tuple[NodeProto, ...] = ()
    """What stands between the softmax and them."""
    mask: str | None = None
    """Truth values that hide keys where they are false, if it was done here."""


def _after_softmax(name: str, known: Known) -> _Weights:
    """Follow what leaves the weights as they are: casts, dropout in inference, NaN of empty rows made 0 (torch); and a
    mask that is multiplied on them before they are made to sum up to 1 again (JAX by jax2onnx)."""
    inside: list[NodeProto] = []
    mask: str | None = None
    while True:
        readers = known.links.consumers.get(name, [])
        following = None
        for reader in readers:
            casts = walk.is_standard(reader, "Cast") and walk.attribute(reader, "to") in _FLOATS
            if casts or (walk.is_standard(reader, "Identity", "Dropout") and reader.input[0] == name):
                following = reader.output[0]
                inside.append(reader)
            elif walk.is_standard(reader, "Where") and reader.input[2] == name and known.scalar(reader.input[1]) == 0:
                test = known.links.producer.get(reader.input[0])
                if test is not None and walk.is_standard(test, "IsNaN") and test.input[0] == name:
                    following = reader.output[0]
                    inside += [test, reader]
            elif mask is None and (found := _masked_afterwards(reader, name, known)) is not None:
                following, mask = found.name, found.mask
                inside += found.inside
        if following is None:
            return _Weights(name, tuple(inside), mask)
        name = following


def _masked_afterwards(product: NodeProto, weights: str, known: Known) -> _Weights | None:
    """`w * mask / sum(w * mask)`, 0 where the sum is 0: the softmax of scores that the mask has hidden keys of."""
    if not walk.is_standard(product, "Mul"):
        return None
    cast = known.links.producer.get(next((item for item in product.input if item != weights), ""))
    if cast is None or not walk.is_standard(cast, "Cast"):
        return None
    spec = known.specs.get(cast.input[0])
    masked = product.output[0]
    readers = known.links.consumers.get(masked, [])
    total = next((node for node in readers if walk.is_standard(node, "ReduceSum") and _keeps_last(node, known)), None)
    division = next((node for node in readers if walk.is_standard(node, "Div") and node.input[0] == masked), None)
    if spec is None or spec.dtype != "bool" or total is None or division is None:
        return None
    inside = [product, total, division]
    if division.input[1] == total.output[0]:
        return _Weights(division.output[0], tuple(inside), cast.input[0])
    # Where(sum > 0, sum, 1) under it, and Where(sum > 0, quotient, 0) after it
    guard = known.links.producer.get(division.input[1])
    if guard is None or not walk.is_standard(guard, "Where") or guard.input[1] != total.output[0]:
        return None
    test = known.links.producer.get(guard.input[0])
    divisor = known.scalar(guard.input[2])
    if test is None or not walk.is_standard(test, "Greater") or test.input[0] != total.output[0]:
        return None
    if known.scalar(test.input[1]) != 0 or divisor is None or divisor <= 0:
        return None
    inside += [test, guard]
    final = known.links.sole_consumer(division.output[0])
    is_final = final is not None and walk.is_standard(final, "Where") and final.input[0] == test.output[0]
    if final is None or not is_final or final.input[1] != division.output[0] or known.scalar(final.input[2]) != 0:
        return _Weights(division.output[0], tuple(inside), cast.input[0])
    return _Weights(final.output[0], (*inside, final), cast.input[0])


# the scores


def _scores(name: str, known: Known) -> _Scores:
    """Go up from the softmax to the product of q and k; what stands between is scale and bias."""
    node = known.links.producer.get(name)
    if node is None:
        raise NoMatchError(f'no product of q and k leads to "{name}"')
    if walk.is_standard(node, "MatMul", "Einsum"):
        return _product(node, known)
    if walk.is_standard(node, "Identity") or (
        walk.is_standard(node, "Cast") and walk.attribute(node, "to") in _FLOATS
    ):  # fmt: skip
        return _scores(node.input[0], known)
    if walk.is_standard(node, "Mul", "Div"):
        tensor, factor = _scaled(node, known)
        if tensor is None:
            raise NoMatchError(f'"{walk.label(node)}" scales the scores by what is not one constant number')
        below = _scores(tensor, known)
        biases = tuple(replace(bias, factor=bias.factor * factor, fill=bias.fill * factor) for bias in below.biases)
        return replace(below, factor=below.factor * factor, biases=biases)
    if walk.is_standard(node, "Max"):
        floors = [item for item in node.input if (known.scalar(item) or 0.0) <= HIDING]
        others = [item for item in node.input if item not in floors]
        if len(floors) == 1 and len(others) == 1:
            # Keeps minus infinity out of the softmax, as in Hugging Face's OPT.
            return _scores(others[0], known)
    if walk.is_standard(node, "Add", "Sub"):
        return _added(node, known)
    if walk.is_standard(node, "Where"):
        return _chosen(node, known)
    if walk.is_standard(node, "Reshape"):
        return _reshaped(node, known)
    raise NoMatchError(f'{node.op_type} "{walk.label(node)}" stands between the product of q and k and the softmax')


def _scaled(node: NodeProto, known: Known) -> tuple[str | None, float]:
    """The tensor of a Mul or Div by one number, and the factor; no tensor if it is none."""
    left, right = known.scalar(node.input[0]), known.scalar(node.input[1])
    if right is not None and (node.op_type == "Mul" or right != 0):
        return node.input[0], right if node.op_type == "Mul" else 1.0 / right
    if left is not None and node.op_type == "Mul":
        return node.input[1], left
    return None, 1.0


def _added(node: NodeProto, known: Known) -> _Scores:
    sides = [(node.input[0], node.input[1], 1.0)]
    if node.op_type == "Add":
        sides.append((node.input[1], node.input[0], 1.0))
    else:
        sides = [(node.input[0], node.input[1], -1.0)]
    reasons = []
    for scores, other, sign in sides:
        try:
            below = _scores(scores, known)
        except NoMatchError as error:
            reasons.append(error)
            continue
        return below.biased(Bias(other, sign))
    # A mask is rarely a product, so the longer story is that of the scores.
    raise max(reasons, key=lambda error: "stands between" in str(error) or "is not one constant" in str(error))


def _reshaped(node: NodeProto, known: Known) -> _Scores:
    """Batch and heads made one axis or two of them again, as Hugging Face's older models do around their masks."""
    before, after = known.shape(node.input[0]), known.shape(node.output[0])
    if before is None or after is None or not all(isinstance(size, int) for size in (*before, *after)):
        raise NoMatchError(f'Reshape "{walk.label(node)}" changes the scores, and their sizes are not static')
    sizes = tuple(size for size in after if isinstance(size, int))
    if before[-2:] != after[-2:] or len(sizes) not in (3, 4):
        raise NoMatchError(f'Reshape "{walk.label(node)}" makes {list(after)} of the scores {list(before)}')
    below = _scores(node.input[0], known)
    view = below.view
    if not below.biases:
        view = sizes[:-2] if len(sizes) == 4 else (sizes[0], 1)
    elif view is None:
        if len(before) != 4:
            raise NoMatchError("masks are added to scores of three dimensions that become four")
        view = tuple(size for size in before[:2] if isinstance(size, int))
    return replace(below, shape=sizes, view=view)


def _chosen(node: NodeProto, known: Known) -> _Scores:
    mask, if_true, if_false = node.input
    for scores, fill_name, hidden_if in ((if_true, if_false, False), (if_false, if_true, True)):
        fill = known.scalar(fill_name)
        if fill is not None and fill <= HIDING:
            below = _scores(scores, known)
            return below.biased(Bias(mask, hidden_if=hidden_if, fill=fill))
    raise NoMatchError(f'Where "{walk.label(node)}" on the scores does not choose a number below {HIDING:g}')


def _product(node: NodeProto, known: Known) -> _Scores:
    if node.op_type == "MatMul":
        ranks = []
        for name in node.input:
            shape = known.shape(name)
            if shape is None:
                raise NoMatchError(f'the shape of "{name}" is not known: infer shapes first')
            ranks.append(len(shape))
        rank = ranks[0]
        if ranks[0] != ranks[1]:
            raise NoMatchError(f"q has {ranks[0]} dimensions and k has {ranks[1]}")
        straight = tuple(range(rank))
        q, k = Operand(node.input[0], straight), Operand(node.input[1], (*straight[:-2], rank - 1, rank - 2))
    else:
        q, k, rank = _einsum_scores(node)
    q, q_factor = _peel(q, known, through_transposes=False)
    k, k_factor = _peel(k, known, through_transposes=True)
    return _Scores(q, k, rank, q_factor * k_factor, ())


def _peel(operand: Operand, known: Known, *, through_transposes: bool) -> tuple[Operand, float]:
    """Go up through factors, and for k through transposes, which then become one."""
    factor = 1.0
    while True:
        node = known.links.producer.get(operand.name)
        if node is None:
            return operand, factor
        if walk.is_standard(node, "Identity"):
            operand = replace(operand, name=node.input[0])
        elif walk.is_standard(node, "Mul", "Div") and (scaled := _scaled(node, known))[0] is not None:
            shape = known.shape(scaled[0])
            if shape is None or len(shape) != len(operand.order):
                return operand, factor
            operand, factor = replace(operand, name=scaled[0]), factor * scaled[1]
        elif through_transposes and walk.is_standard(node, "Transpose") and (order := permutation(node)) is not None:
            operand = Operand(node.input[0], tuple(order[axis] for axis in operand.order))
        elif through_transposes and (direct := _flattened_transpose(operand, node, known)) is not None:
            operand = direct
        else:
            return operand, factor


def _flattened_transpose(operand: Operand, node: NodeProto, known: Known) -> Operand | None:
    """See Reshape(Transpose(Reshape(k))) as the transpose of the last two axes that it is (PyTorch's newer exporter).

    k [.., l, d] is made [n, l, d], transposed to [n, d, l], and made [.., d, l].
    """
    producer = known.links.producer
    swap = producer.get(node.input[0]) if walk.is_standard(node, "Reshape") else None
    if swap is None or not walk.is_standard(swap, "Transpose") or permutation(swap) != (0, 2, 1):
        return None
    flatten = producer.get(swap.input[0])
    if flatten is None or not walk.is_standard(flatten, "Reshape"):
        return None
    source, flat, result = (known.shape(name) for name in (flatten.input[0], flatten.output[0], node.output[0]))
    if source is None or flat is None or result is None or None in (*source, *flat[1:], *result):
        return None
    if flat[1:] != source[-2:] or result != (*source[:-2], source[-1], source[-2]):
        return None
    last = len(source) - 1
    swapped = (*range(last - 1), last, last - 1)
    return Operand(flatten.input[0], tuple(swapped[axis] for axis in operand.order))


def _einsum_terms(node: NodeProto) -> tuple[str, str, str]:
    equation = walk.attribute(node, "equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else "").replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2 or "." in text or any(len(set(t)) != len(t) for t in (*terms, result)):
        raise NoMatchError(f'Einsum "{walk.label(node)}" has the equation {text}, which is no product of two')
    return terms[0], terms[1], result


def _einsum_scores(node: NodeProto) -> tuple[Operand, Operand, int]:
    first, second, result = _einsum_terms(node)
    summed = (set(first) & set(second)) - set(result)
    batch, i, j = result[:-2], result[-2:-1], result[-1:]
    q_term, k_term, q_at = (first, second, 0) if i and i in first else (second, first, 1)
    if len(summed) != 1 or set(q_term) != {*batch, i, *summed} or set(k_term) != {*batch, j, *summed}:
        raise NoMatchError(f'Einsum "{walk.label(node)}" is no product of queries and keys: {first},{second}->{result}')
    (d,) = summed
    q = Operand(node.input[q_at], tuple(q_term.index(letter) for letter in batch + i + d))
    k = Operand(node.input[1 - q_at], tuple(k_term.index(letter) for letter in batch + j + d))
    return q, k, len(result)


def _values(node: NodeProto, weights: str, rank: int, known: Known) -> tuple[Operand, tuple[int, ...]]:
    """v and the order of the output's axes, from the product of the weights with v."""
    straight = tuple(range(rank))
    if node.op_type == "MatMul":
        if node.input[0] != weights or node.input[1] == weights:
            raise NoMatchError(f'in "{walk.label(node)}" the weights are not the left factor')
        shape = known.shape(node.input[1])
        if shape is None or len(shape) != rank:
            raise NoMatchError(f'the shape of "{node.input[1]}" is not known, or it has not {rank} dimensions')
        return Operand(node.input[1], straight), straight
    first, second, result = _einsum_terms(node)
    p_term, v_term, v_at = (first, second, 1) if node.input[0] == weights else (second, first, 0)
    batch, i, j = p_term[:-2], p_term[-2:-1], p_term[-1:]
    left = set(v_term) - set(p_term)
    if len(left) != 1 or set(v_term) != {*batch, j, *left} or set(result) != {*batch, i, *left}:
        raise NoMatchError(f'Einsum "{walk.label(node)}" is no product of weights and values')
    (d,) = left
    v = Operand(node.input[v_at], tuple(v_term.index(letter) for letter in batch + j + d))
    return v, tuple((batch + i + d).index(letter) for letter in result)


# ONNX Attention


def _operator(node: NodeProto, known: Known) -> Attention:
    inputs = [*node.input, *[""] * (7 - len(node.input))]
    outputs = [*node.output, *[""] * (4 - len(node.output))]
    if inputs[6]:
        raise NoMatchError("it has padded lengths as an input")
    if bool(inputs[4]) != bool(inputs[5]):
        raise NoMatchError("it has past keys without past values")
    if outputs[3]:
        raise NoMatchError("its scores are an output, and the kernel does not give them")
    if walk.attribute(node, "softcap", 0.0):
        raise NoMatchError("it caps its scores (softcap)")
    shapes = [known.shape(name) for name in inputs[:3]]
    ranks = {None if shape is None else len(shape) for shape in shapes}
    heads: tuple[int, int] | None = None
    if ranks == {3}:
        q_heads, kv_heads = walk.attribute(node, "q_num_heads"), walk.attribute(node, "kv_num_heads")
        if not isinstance(q_heads, int) or not isinstance(kv_heads, int):
            raise NoMatchError("its tensors have 3 dimensions, and it does not say how many heads are in them")
        heads = (q_heads, kv_heads)
    elif ranks != {4}:
        raise NoMatchError("the shapes of its inputs are not known: infer shapes first")
    straight = (0, 1, 2, 3)
    scale = walk.attribute(node, "scale")
    biases: tuple[Bias, ...] = ()
    if inputs[3]:
        spec = known.specs.get(inputs[3])
        if spec is None:
            raise NoMatchError("the type of its mask is not known: infer shapes first")
        masks = spec.dtype == "bool"
        biases = (Bias(inputs[3], hidden_if=False, fill=float("-inf")) if masks else Bias(inputs[3]),)
    q, k, v = (Operand(name, straight) for name in inputs[:3])
    causal = bool(walk.attribute(node, "is_causal", 0))
    if causal and inputs[4]:
        length = -2 if heads is None else 1
        new = [None if shape is None else shape[length] for shape in shapes[:2]]
        # Query i stands after the past and i new keys: with as many keys as queries the last query at the last key.
        if new[0] is None or new[0] != new[1]:
            raise NoMatchError("it is causal with a past, and its queries are not as many as its new keys")
    return Attention(
        q,
        k,
        v,
        scale if isinstance(scale, float) and scale != 0 else None,
        biases,
        node.output[0],
        straight,
        node,
        causal=causal,
        heads=heads,
        past=(inputs[4], inputs[5]) if inputs[4] else None,
        present=(outputs[1], outputs[2]),
    )
