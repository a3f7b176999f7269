"""Small random ONNX graphs, the same for the same seed.

`random_graph(seed)` returns a model and inputs for it. The graphs are made of what audio and vision models are made of:
convolutions with and without batch normalisation, gemms, residual adds, concats, reshapes by computed shapes,
resizes, reductions, LSTM and GRU cells with carried state, If and Loop bodies that capture outer values, constants that
can be folded and nodes that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

Array = np.ndarray


@dataclass(frozen=True)
class RandomGraph:
    """A model, inputs that fit it, and the names of the steps it was made of."""

    model: ModelProto
    feeds: dict[str, Array]
    steps: tuple[str, ...]


@dataclass
class _Maker:
    """A graph in the making. Values are [batch, ...] float32; `values` maps name to static shape."""

    rng: np.random.Generator
    opset: int
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    extra_outputs: list[ValueInfoProto] = field(default_factory=list)
    feeds: dict[str, Array] = field(default_factory=dict)
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)
    count: int = 0

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}_{self.count}"

    def weight(self, array: Array, what: str = "w") -> str:
        name = self.name(what)
        self.weights[name] = array
        return name

    def normal(self, *shape: int) -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.weight((self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def ints(self, *items: int) -> str:
        return self.weight(np.array(items, np.int64), "shape")

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: object) -> list[str]:
        names = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.name(f"node_{op}"), **attributes))
        return names

    def put(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        (name,) = self.node(op, inputs, **attributes)
        self.values[name] = shape
        return name

    def pick(self, rank: int | None = None) -> tuple[str, tuple[int, ...]] | None:
        fitting = [item for item in self.values.items() if rank is None or len(item[1]) == rank]
        return fitting[int(self.rng.integers(len(fitting)))] if fitting else None


def _conv(make: _Maker) -> bool:
    chosen = make.pick(4)
    if chosen is None:
        return False
    name, (batch, channels, height, width) = chosen
    kernel = int(make.rng.choice([1, 3]))
    stride = int(make.rng.choice([1, 2]))
    depthwise = bool(make.rng.integers(2)) and channels > 1
    out = channels if depthwise else int(make.rng.integers(1, 9))
    weight = make.normal(out, 1 if depthwise else channels, kernel, kernel)
    inputs = [name, weight] + ([make.normal(out)] if make.rng.integers(2) else [])
    shape = (batch, out, -(-height // stride), -(-width // stride))
    attributes = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": channels if depthwise else 1}
    made = make.put("Conv", inputs, shape, kernel_shape=[kernel] * 2, **attributes)
    if make.rng.integers(2):
        scale = make.weight(make.rng.uniform(0.5, 1.5, out).astype(np.float32))
        variance = make.weight(make.rng.uniform(0.5, 1.5, out).astype(np.float32))
        made = make.put("BatchNormalization", [made, scale, make.normal(out), make.normal(out), variance], shape)
    if make.rng.integers(2):
        make.put("Relu", [made], shape)
    return True


def _gemm(make: _Maker) -> bool:
    chosen = make.pick(2)
    if chosen is None:
        return False
    name, (batch, width) = chosen
    out = int(make.rng.integers(1, 17))
    if make.rng.integers(2):
        transposed = int(make.rng.integers(2))
        weight = make.normal(out, width) if transposed else make.normal(width, out)
        make.put("Gemm", [name, weight, make.normal(out)], (batch, out), transB=transposed)
    else:
        made = make.put("MatMul", [name, make.normal(width, out)], (batch, out))
        make.put("Add", [made, make.normal(out)], (batch, out))
    return True


def _elementwise(make: _Maker) -> bool:
    name, shape = make.pick() or ("", ())
    op = str(make.rng.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "Softplus", "Mul", "HardSigmoid"]))
    if op == "Clip":
        low, high = make.weight(np.float32(-1.0).reshape(())), make.weight(np.float32(1.0).reshape(()))
        make.put(op, [name, low, high], shape)
    elif op == "Mul":
        make.put(op, [name, make.weight(np.float32(make.rng.uniform(0.5, 2)).reshape(()))], shape)
    else:
        make.put(op, [name], shape)
    return True


def _residual(make: _Maker) -> bool:
    name, shape = make.pick() or ("", ())
    same = [other for other, its in make.values.items() if its == shape]
    other = same[int(make.rng.integers(len(same)))]
    make.put(str(make.rng.choice(["Add", "Sub", "Mul"])), [name, other], shape)
    return True


def _concat(make: _Maker) -> bool:
    name, shape = make.pick() or ("", ())
    if len(shape) < 2:
        return False
    fitting = [
        (other, its)
        for other, its in make.values.items()
        if len(its) == len(shape) and its[0] == shape[0] and its[2:] == shape[2:]
    ]
    other, its = fitting[int(make.rng.integers(len(fitting)))]
    make.put("Concat", [name, other], (shape[0], shape[1] + its[1], *shape[2:]), axis=1)
    return True


def _flatten_by_shape(make: _Maker) -> bool:
    """[batch, ...] -> [batch, -1] with a shape that is computed in the graph."""
    name, shape = make.pick() or ("", ())
    if len(shape) < 3:
        return False
    (whole,) = make.node("Shape", [name])
    (batch,) = make.node("Gather", [whole, make.ints(0)])
    (target,) = make.node("Concat", [batch, make.ints(-1)], axis=0)
    make.put("Reshape", [name, target], (shape[0], int(np.prod(shape[1:]))))
    return True


def _transpose(make: _Maker) -> bool:
    chosen = make.pick(3)
    if chosen is None:
        return False
    name, (batch, first, second) = chosen
    make.put("Transpose", [name], (batch, second, first), perm=[0, 2, 1])
    return True


def _merge_plane(make: _Maker) -> bool:
    """[batch, channels, height, width] -> [batch, channels, height * width]."""
    chosen = make.pick(4)
    if chosen is None:
        return False
    name, (batch, channels, height, width) = chosen
    make.put("Reshape", [name, make.ints(0, channels, -1)], (batch, channels, height * width))
    return True


def _resize(make: _Maker) -> bool:
    chosen = make.pick(4)
    if chosen is None or max(chosen[1][2:]) > 16:
        return False
    name, (batch, channels, height, width) = chosen
    scales = make.weight(np.array([1, 1, 2, 2], np.float32), "scales")
    mode = str(make.rng.choice(["nearest", "linear"]))
    roi = make.weight(np.zeros(0, np.float32), "roi")
    make.put(
        "Resize",
        [name, roi, scales],
        (batch, channels, 2 * height, 2 * width),
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return True


def _pool(make: _Maker) -> bool:
    chosen = make.pick(4)
    if chosen is None or min(chosen[1][2:]) < 2:
        return False
    name, (batch, channels, height, width) = chosen
    if make.rng.integers(3) == 0:
        make.put("GlobalAveragePool", [name], (batch, channels, 1, 1))
    else:
        op = str(make.rng.choice(["MaxPool", "AveragePool"]))
        shape = (batch, channels, height // 2, width // 2)
        make.put(op, [name], shape, kernel_shape=[2, 2], strides=[2, 2])
    return True


def _reduce(make: _Maker) -> bool:
    name, shape = make.pick() or ("", ())
    if len(shape) < 3:
        return False
    axis = len(shape) - 1
    op = str(make.rng.choice(["ReduceMean", "ReduceMax"]))
    # Axes became an input of ReduceMax and ReduceMean in opset 18.
    if make.opset >= 18:
        make.put(op, [name, make.ints(axis)], shape[:-1], keepdims=0)
    else:
        make.put(op, [name], shape[:-1], axes=[axis], keepdims=0)
    return True


def _softmax(make: _Maker) -> bool:
    name, shape = make.pick() or ("", ())
    make.put("Softmax", [name], shape, axis=len(shape) - 1)
    return True


def _recurrent(make: _Maker) -> bool:
    """One step of an LSTM or GRU whose state is an input and an output of the model."""
    chosen = make.pick(2)
    if chosen is None:
        return False
    name, (batch, width) = chosen
    hidden = int(make.rng.integers(2, 9))
    op = str(make.rng.choice(["LSTM", "GRU"]))
    gates = 4 if op == "LSTM" else 3
    (step,) = (
        make.node("Unsqueeze", [name, make.ints(0)]) if make.opset >= 13 else make.node("Unsqueeze", [name], axes=[0])
    )
    states = []
    for _ in range(gates - 2):
        state = make.name("state")
        make.inputs.append(helper.make_tensor_value_info(state, TensorProto.FLOAT, [1, batch, hidden]))
        make.feeds[state] = make.rng.standard_normal((1, batch, hidden)).astype(np.float32)
        states.append(state)
    outputs = make.node(
        op,
        [step, make.normal(1, gates * hidden, width), make.normal(1, gates * hidden, hidden), "", "", *states],
        1 + len(states),
        hidden_size=hidden,
    )
    for output in outputs[1:]:
        make.extra_outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, batch, hidden]))
    make.put("Reshape", [outputs[0], make.ints(batch, hidden)], (batch, hidden))
    return True


def _if(make: _Maker) -> bool:
    """Two branches that both capture an outer value, chosen by the data."""
    name, shape = make.pick() or ("", ())
    if make.opset >= 18:
        (mean,) = make.node("ReduceMean", [name], keepdims=0)
    else:
        (mean,) = make.node("ReduceMean", [name], axes=list(range(len(shape))), keepdims=0)
    (condition,) = make.node("Greater", [mean, make.weight(np.float32(0.0).reshape(()))])
    bodies = []
    for op in ("Relu", "Sigmoid"):
        inner, out, factor = make.name("inner"), make.name("branch"), make.name("factor")
        body = helper.make_graph(
            [
                helper.make_node(op, [name], [inner], name=make.name("node_inner")),
                helper.make_node("Mul", [inner, factor], [out], name=make.name("node_scale")),
            ],
            make.name("body"),
            [],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, list(shape))],
            [numpy_helper.from_array(np.float32(0.5).reshape(()), factor)],
        )
        bodies.append(body)
    make.put("If", [condition], shape, then_branch=bodies[0], else_branch=bodies[1])
    return True


def _loop(make: _Maker) -> bool:
    """A fixed number of steps that decay a carried value towards a captured one."""
    name, shape = make.pick() or ("", ())
    step, go_in, carried = make.name("step"), make.name("go"), make.name("carried")
    go_out, mean, out, half = make.name("go"), make.name("sum"), make.name("carried"), make.name("half")
    body = helper.make_graph(
        [
            helper.make_node("Identity", [go_in], [go_out], name=make.name("node_go")),
            helper.make_node("Add", [carried, name], [mean], name=make.name("node_sum")),
            helper.make_node("Mul", [mean, half], [out], name=make.name("node_half")),
        ],
        make.name("body"),
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(go_in, TensorProto.BOOL, []),
            helper.make_tensor_value_info(carried, TensorProto.FLOAT, list(shape)),
        ],
        [
            helper.make_tensor_value_info(go_out, TensorProto.BOOL, []),
            helper.make_tensor_value_info(out, TensorProto.FLOAT, list(shape)),
        ],
        [numpy_helper.from_array(np.float32(0.5).reshape(()), half)],
    )
    trips = make.weight(np.array(int(make.rng.integers(1, 4)), np.int64), "trips")
    start = make.put("Tanh", [name], shape)
    make.put("Loop", [trips, make.weight(np.array(True), "go"), start], shape, body=body)
    return True


def _foldable(make: _Maker) -> bool:
    """A bias that is computed from constants alone."""
    name, shape = make.pick() or ("", ())
    (root,) = make.node("Sqrt", [make.weight(np.full(shape[-1:], 4.0, np.float32))])
    (bias,) = make.node("Mul", [root, make.weight(make.rng.standard_normal(shape[-1:]).astype(np.float32))])
    make.put("Add", [name, bias], shape)
    return True


def _dead(make: _Maker) -> bool:
    name, _ = make.pick() or ("", ())
    make.node("Exp", [name])
    return True


STEPS: dict[str, Callable[[_Maker], bool]] = {
    "conv": _conv,
    "gemm": _gemm,
    "elementwise": _elementwise,
    "residual": _residual,
    "concat": _concat,
    "flatten": _flatten_by_shape,
    "transpose": _transpose,
    "merge": _merge_plane,
    "resize": _resize,
    "pool": _pool,
    "reduce": _reduce,
    "softmax": _softmax,
    "recurrent": _recurrent,
    "if": _if,
    "loop": _loop,
    "foldable": _foldable,
    "dead": _dead,
}


def random_graph(
    seed: int, *, n_steps: int = 8, opset: int | None = None, steps: tuple[str, ...] | None = None
) -> RandomGraph:
    """Return a valid random model with one picture-like and one vector-like input, and feeds for it.

    `steps` restricts what it is made of (keys of `STEPS`). Outputs: the last value made, any others that nothing
    reads, and the states of recurrent cells.
    """
    rng = np.random.default_rng(seed)
    make = _Maker(rng, opset if opset is not None else int(rng.choice([11, 13, 17, 18, 21])))
    batch = int(rng.integers(1, 3))
    for name, shape in (
        ("image", (batch, int(rng.integers(1, 5)), 8, 8)),
        ("vector", (batch, int(rng.integers(3, 13)))),
    ):
        make.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        make.feeds[name] = rng.standard_normal(shape).astype(np.float32)
        make.values[name] = shape
    allowed = list(steps or STEPS)
    done: list[str] = []
    while len(done) < n_steps:
        step = allowed[int(rng.integers(len(allowed)))]
        if STEPS[step](make):
            done.append(step)
    if not any(name not in make.feeds for name in make.values):
        # Nothing but dead nodes: a model needs an output.
        make.put("Relu", ["vector"], make.values["vector"])
    read = {name for node in make.nodes for name in node.input}
    read |= {
        name
        for node in make.nodes
        for item in node.attribute
        if item.HasField("g")
        for inner in item.g.node
        for name in inner.input
    }
    made = {name for node in make.nodes for name in node.output}
    open_ends = [name for name in make.values if name not in read and name in made]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(make.values[name])) for name in open_ends]
    graph = helper.make_graph(
        make.nodes,
        f"random_{seed}",
        make.inputs,
        outputs + make.extra_outputs,
        [numpy_helper.from_array(array, name) for name, array in make.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", make.opset)], ir_version=8)
    checker.check_model(model)
    return RandomGraph(model, make.feeds, tuple(done))
