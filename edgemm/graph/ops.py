"""edgemm's own operators as ONNX nodes: `LogMel`, `MFCC`, `FusedAttention`, `FusedAttentionBias`.

They are of the domain "edgemm". Each node has a function body of plain ONNX operators (opset 17, or the model's own if
that is newer: onnxruntime reads a body by the model's), so that a graph with them runs on any ONNX runtime. For
TensorRT the body is left out and a plugin runs our CUDA kernel. The two agree to float32 rounding: both are held to the
float64 references of `edgemm.kernels`.

    LogMel(samples [batch, samples]) -> [batch, frames, n_mels]           attribute options: LogMelOptions as JSON
    MFCC(samples [batch, samples]) -> [batch, frames, features]           attribute options: MfccOptions as JSON
    FusedAttention(q, k, v) -> out                                        attributes: `AttentionOptions`, one each
    FusedAttentionBias(q, k, v, bias) -> out

q and out are `[batch, heads, q_len, head_dim]`, k and v `[batch, kv_heads, kv_len, head_dim]`, bias broadcasts to
`[batch, heads, q_len, kv_len]`. Samples are float32 in [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.errors import ModelError, UsageError
from edgemm.graph import walk
from edgemm.kernels.attention import AttentionOptions
from edgemm.kernels.log_mel import (
    Float64,
    dct_matrix,
    delta_filter,
    lifter,
    log_gain,
    mel_filterbank,
    window,
    window_offset,
)
from edgemm.options import LogMelOptions, MfccOptions, check

DOMAIN = "edgemm"
VERSION = 1
OPERATORS = ("LogMel", "MFCC", "FusedAttention", "FusedAttentionBias")

_BODY_OPSET = 17
_REDUCE_MAX_AXES_INPUT = 18
"""From this opset on the axes of ReduceMax are an input."""
_UNLIMITED = 1 << 29
"""As the attention kernel has it: a window wider than any sequence."""


def log_mel_node(samples: str, out: str, options: LogMelOptions, name: str = "") -> NodeProto:
    """Return a LogMel node. Raises UsageError if the options cannot be worked with."""
    check(options)
    return helper.make_node("LogMel", [samples], [out], name=name, domain=DOMAIN, options=_to_json(options))


def mfcc_node(samples: str, out: str, options: MfccOptions, name: str = "") -> NodeProto:
    """Return an MFCC node. Raises UsageError if the options cannot be worked with."""
    check(options)
    return helper.make_node("MFCC", [samples], [out], name=name, domain=DOMAIN, options=_to_json(options))


def attention_node(
    q: str,
    k: str,
    v: str,
    out: str,
    options: AttentionOptions,
    *,
    bias: str | None = None,
    name: str = "",
    float32: bool = False,
) -> NodeProto:
    """Return a FusedAttention node, or with `bias` a FusedAttentionBias node.

    With `float32` its tensors are float32 and stay so, whatever `options.dtype` says: for runtimes that run the body.
    No kernel takes it.
    """
    before, after = options.window_limits
    narrow = TensorProto.FLOAT16 if options.dtype == "float16" else TensorProto.BFLOAT16
    return helper.make_node(
        "FusedAttention" if bias is None else "FusedAttentionBias",
        [q, k, v] if bias is None else [q, k, v, bias],
        [out],
        name=name,
        domain=DOMAIN,
        head_dim=options.head_dim,
        dtype=int(TensorProto.FLOAT if float32 else narrow),
        scale=options.softmax_scale,
        window_before=before,
        window_after=after,
        align_end=int(options.queries_at == "end"),
    )


def options_of(node: NodeProto) -> LogMelOptions | MfccOptions | AttentionOptions:
    """Return the options of an edgemm node. Raises ModelError if they are missing or malformed.

    Those of an attention node in float32 say float16: what a kernel would be given.
    """
    held = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    try:
        if node.op_type in ("LogMel", "MFCC"):
            return front_end_options(node.op_type, held["options"].decode())
        return AttentionOptions(
            head_dim=held["head_dim"],
            dtype="bfloat16" if held["dtype"] == TensorProto.BFLOAT16 else "float16",
            scale=held["scale"],
            window=(_limit(held["window_before"]), _limit(held["window_after"])),
            queries_at="end" if held["align_end"] else "start",
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise ModelError(
            f'Node "{node.name}" ({node.op_type}) has options that this edgemm does not know: {error}. '
            "Make the node again with edgemm.graph.ops."
        ) from error


def front_end_options(op: str, text: str) -> LogMelOptions | MfccOptions:
    """Return the options that a LogMel or MFCC node holds as JSON. Raises ValueError, TypeError or UsageError."""
    found = json.loads(text)
    options: LogMelOptions | MfccOptions
    if op == "LogMel":
        options = LogMelOptions(**found)
    else:
        options = MfccOptions(**{**found, "log_mel": LogMelOptions(**found["log_mel"])})
    check(options)
    return options


def add_bodies(proto: ModelProto) -> None:
    """Give every edgemm node of `proto` its function body and the model the domain, in place.

    Raises ModelError if two LogMel (or MFCC) nodes have different options: a model can hold one body an operator.
    """
    opset = max((item.version for item in proto.opset_import if item.domain in walk.STANDARD_DOMAINS), default=0)
    bodies: dict[str, tuple[NodeProto, FunctionProto]] = {}
    for node in _own_nodes(proto):
        known = bodies.get(node.op_type)
        if known is None:
            bodies[node.op_type] = (node, _body(node, max(opset, _BODY_OPSET)))
        elif node.op_type in ("LogMel", "MFCC") and options_of(known[0]) != options_of(node):
            raise ModelError(
                f'Nodes "{known[0].name}" and "{node.name}" are both {node.op_type} with different options, and an '
                "ONNX model holds one body for an operator. Keep one of the front ends outside the graph."
            )
    if not bodies:
        return
    kept = [item for item in proto.functions if item.domain != DOMAIN]
    del proto.functions[:]
    proto.functions.extend([*kept, *(body for _, body in bodies.values())])
    _import_domain(proto, DOMAIN, VERSION)
    for function_opset in {(item.domain, item.version) for _, body in bodies.values() for item in body.opset_import}:
        if function_opset[0] not in {item.domain for item in proto.opset_import}:
            _import_domain(proto, *function_opset)


def without_bodies(proto: ModelProto, operators: Collection[str] = OPERATORS) -> ModelProto:
    """Return a copy whose nodes of these operators have no body: what TensorRT is given where a plugin runs them.

    The nodes get the attributes by which TensorRT's parser finds the plugin. Raises ModelError for an attention in
    float32, which no kernel computes.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    for node in _own_nodes(copy):
        if node.op_type not in operators:
            continue
        if not _has_kernel(node):
            raise ModelError(
                f'Node "{node.name}" ({node.op_type}) computes in float32, and its kernel takes float16 and bfloat16. '
                "Convert the model to fp16 before attention is fused, or let the engine run the function body."
            )
        kept_attributes = [item for item in node.attribute if not item.name.startswith("plugin_")]
        del node.attribute[:]
        node.attribute.extend(kept_attributes)
        node.attribute.append(helper.make_attribute("plugin_namespace", DOMAIN))
        node.attribute.append(helper.make_attribute("plugin_version", str(VERSION)))
    kept = [item for item in copy.functions if item.domain != DOMAIN or item.name not in operators]
    del copy.functions[:]
    copy.functions.extend(kept)
    return copy


def strip_bodies(model: bytes, operators: Collection[str] = OPERATORS) -> bytes:
    """`without_bodies` of an ONNX file's bytes; external data stays where the file says that it is."""
    stripped: bytes = without_bodies(ModelProto.FromString(model), operators).SerializeToString()
    return stripped


def operators_of(proto: ModelProto) -> tuple[str, ...]:
    """The edgemm operators in a model that a kernel computes at every place where they stand, by name.

    An attention in float32 has its body only, and with it every other node of that operator.
    """
    nodes = _own_nodes(proto)
    bodies_only = {node.op_type for node in nodes if not _has_kernel(node)}
    return tuple(sorted({node.op_type for node in nodes} - bodies_only))


def kernel_options(proto: ModelProto) -> tuple[LogMelOptions | MfccOptions | AttentionOptions, ...]:
    """The options of every edgemm node that a kernel computes. Raises ModelError if some are malformed."""
    return tuple(options_of(node) for node in _own_nodes(proto) if _has_kernel(node))


def kernel_options_in(model: bytes) -> tuple[LogMelOptions | MfccOptions | AttentionOptions, ...]:
    """`kernel_options` of an ONNX file's bytes."""
    return kernel_options(ModelProto.FromString(model))


def _has_kernel(node: NodeProto) -> bool:
    return all(item.i != TensorProto.FLOAT for item in node.attribute if item.name == "dtype")


def _own_nodes(proto: ModelProto) -> list[NodeProto]:
    return [node for node in walk.nodes(proto.graph) if node.domain == DOMAIN]


def _import_domain(proto: ModelProto, domain: str, version: int) -> None:
    if domain not in {item.domain for item in proto.opset_import}:
        proto.opset_import.append(helper.make_opsetid(domain, version))


def _to_json(options: LogMelOptions | MfccOptions) -> str:
    return json.dumps(asdict(options), sort_keys=True)


def _limit(value: int) -> int | None:
    return None if value >= _UNLIMITED else value


class _Writer:
    """Collects the nodes of a body; every value gets a name of its own."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def table(self, values: Any, dtype: Any = np.float32) -> str:
        return self.add("Constant", value=numpy_helper.from_array(np.array(values, dtype, order="C")))

    def attribute(self, kind: Literal["value_float", "value_int"], name: str) -> str:
        """A constant that is an attribute of the node which calls the function."""
        out = self.add("Constant")
        item = self.nodes[-1].attribute.add()
        item.name, item.ref_attr_name = kind, name
        item.type = AttributeProto.FLOAT if kind == "value_float" else AttributeProto.INT
        return out

    def cast_to(self, value: str, name: str) -> str:
        """A cast to the type that an attribute of the calling node names."""
        out = self.add("Cast", value)
        item = self.nodes[-1].attribute.add()
        item.name, item.ref_attr_name, item.type = "to", name, AttributeProto.INT
        return out

    def function(self, op: str, inputs: list[str], result: str, attributes: list[str]) -> FunctionProto:
        self.nodes.append(helper.make_node("Identity", [result], ["out"]))
        return helper.make_function(
            DOMAIN, op, inputs, ["out"], self.nodes, [helper.make_opsetid("", self.opset)], attributes
        )


def _body(node: NodeProto, opset: int) -> FunctionProto:
    options = options_of(node)
    if isinstance(options, AttentionOptions):
        return _attention_body(opset, biased=node.op_type == "FusedAttentionBias")
    writer = _Writer(opset)
    log_mel = options if isinstance(options, LogMelOptions) else options.log_mel
    features = _log_mel(writer, log_mel)
    if isinstance(options, MfccOptions):
        features = _cepstra(writer, features, options)
    frames = writer.add("Transpose", features, perm=[0, 2, 1])
    return writer.function(node.op_type, ["samples"], frames, ["options"])


def frame_transform(options: LogMelOptions) -> Float64:
    """All that is linear in a frame as one matrix, `[2 * bins, span]`: real parts of the spectrum, then imaginary.

    Scale, removal of the mean, pre-emphasis, window and Fourier transform are matrices; this is their product. `span`
    is `window_samples` where only whole frames count, else `fft_size` with the window at its place in the middle.
    """
    count = options.window_samples
    frame = np.eye(count) * options.scale
    if options.remove_dc:
        frame = frame - frame.mean(axis=0, keepdims=True)
    before = np.concatenate((frame[:1], frame[:-1]))
    frame = (frame - options.preemphasis * before) * window(options)[:, None]
    spectrum = np.fft.rfft(frame, options.fft_size, axis=0)  # [bins, window_samples]
    whole = np.concatenate((spectrum.real, spectrum.imag))
    if options.edges == "snip":
        return whole
    placed = np.zeros((whole.shape[0], options.fft_size))
    start = window_offset(options)
    placed[:, start : start + count] = whole
    return placed


def _log_mel(writer: _Writer, options: LogMelOptions) -> str:
    """samples [batch, samples] -> [batch, n_mels, frames].

    A convolution whose kernel is `frame_transform` and whose stride is the hop makes all spectra at once; a second one
    with kernel length 1 is the filterbank. Convolutions, as TensorRT has them in fp32 on every GPU.
    """
    bins = options.fft_size // 2 + 1
    signal = writer.add("Unsqueeze", "samples", writer.table([1], np.int64))  # [batch, 1, samples]
    if options.edges != "snip":
        half = options.fft_size // 2
        mode = "reflect" if options.edges == "reflect" else "constant"
        signal = writer.add("Pad", signal, writer.table([0, 0, half, 0, 0, half], np.int64), mode=mode)
    kernel = writer.table(frame_transform(options)[:, None, :])
    spectra = writer.add("Conv", signal, kernel, strides=[options.hop_samples])  # [batch, 2 * bins, frames]
    squares = writer.add("Mul", spectra, spectra)
    real = writer.add("Slice", squares, *(writer.table([v], np.int64) for v in (0, bins, 1)))
    imaginary = writer.add("Slice", squares, *(writer.table([v], np.int64) for v in (bins, 2 * bins, 1)))
    power = writer.add("Add", real, imaginary)
    if options.power == 1:
        power = writer.add("Sqrt", power)
    features = writer.add("Conv", power, writer.table(mel_filterbank(options)[:, :, None]))
    if options.log != "none":
        features = writer.add("Log", writer.add("Max", features, writer.table(options.floor)))
        features = writer.add("Mul", features, writer.table(log_gain(options)))
    features = writer.add("Sub", features, writer.table(options.mean))
    return writer.add("Div", features, writer.table(options.std))


def _cepstra(writer: _Writer, features: str, options: MfccOptions) -> str:
    """[batch, n_mels, frames] -> [batch, features, frames]."""
    transform = dct_matrix(options) * lifter(options)[:, None]
    cepstra = writer.add("Conv", features, writer.table(transform[:, :, None]))
    columns = [cepstra]
    for order in range(1, options.deltas + 1):
        taps = delta_filter(order)
        reach = len(taps) // 2
        padded = writer.add("Pad", cepstra, writer.table([0, 0, reach, 0, 0, reach], np.int64), mode="edge")
        kernel = np.tile(taps, (options.n_coefficients, 1, 1))
        columns.append(writer.add("Conv", padded, writer.table(kernel), group=options.n_coefficients))
    return columns[0] if len(columns) == 1 else writer.add("Concat", *columns, axis=1)


def _attention_body(opset: int, *, biased: bool) -> FunctionProto:
    """Softmax attention in float32 as one function for all options: they come as attributes of the calling node."""
    w = _Writer(opset)
    floats = [w.add("Cast", name, to=TensorProto.FLOAT) for name in ("q", "k", "v")]
    q_shape, k_shape = w.add("Shape", floats[0]), w.add("Shape", floats[1])
    zero, one, minus_one = (w.table(value, np.int64) for value in (0, 1, -1))

    def axis(shape: str, index: int) -> str:
        return w.add("Gather", shape, w.table([index], np.int64), axis=0)

    batch, heads, q_len, head_dim = (axis(q_shape, index) for index in range(4))
    kv_heads, kv_len = axis(k_shape, 1), axis(k_shape, 2)
    rest = w.add("Unsqueeze", minus_one, w.table([0], np.int64))
    # Queries that share a key head lie side by side: [batch, kv_heads, queries of all its heads, head_dim].
    grouped = w.add("Reshape", floats[0], w.add("Concat", batch, kv_heads, rest, head_dim, axis=0))
    keys = w.add("Transpose", floats[1], perm=[0, 1, 3, 2])
    scaled = w.add("Mul", grouped, w.attribute("value_float", "scale"))
    scores_shape = w.add("Concat", batch, heads, q_len, kv_len, axis=0)
    scores = w.add("Reshape", w.add("MatMul", scaled, keys), scores_shape)
    if biased:
        scores = w.add("Add", scores, w.add("Cast", "bias", to=TensorProto.FLOAT))

    # distance[i, j] = key position - query position
    columns = w.add("Range", zero, w.add("Squeeze", kv_len), one)
    rows = w.add("Range", zero, w.add("Squeeze", q_len), one)
    shift = w.add("Mul", w.add("Sub", kv_len, q_len), w.attribute("value_int", "align_end"))
    rows = w.add("Unsqueeze", w.add("Add", rows, shift), w.table([1], np.int64))
    distance = w.add("Sub", columns, rows)
    before = w.add("Neg", w.attribute("value_int", "window_before"))
    early = w.add("Less", distance, before)
    late = w.add("Greater", distance, w.attribute("value_int", "window_after"))
    hidden = w.add("Or", early, late)
    nothing = w.table(-np.inf)
    scores = w.add("Where", hidden, nothing, scores)

    # A query that sees no key has the sum 0 and gives zeros, where Softmax would give NaN.
    if opset < _REDUCE_MAX_AXES_INPUT:
        largest = w.add("ReduceMax", scores, axes=[3], keepdims=1)
    else:
        largest = w.add("ReduceMax", scores, w.table([3], np.int64), keepdims=1)
    largest = w.add("Max", largest, w.table(np.finfo(np.float32).min))
    weights = w.add("Exp", w.add("Sub", scores, largest))
    total = w.add("ReduceSum", weights, w.table([3], np.int64), keepdims=1)
    total = w.add("Max", total, w.table(np.finfo(np.float32).tiny))
    weights = w.add("Div", weights, total)
    weights = w.add("Reshape", weights, w.add("Concat", batch, kv_heads, rest, kv_len, axis=0))
    out = w.add("Reshape", w.add("MatMul", weights, floats[2]), q_shape)
    names = ["q", "k", "v", "bias"] if biased else ["q", "k", "v"]
    result = w.cast_to(out, "dtype")
    return w.function(
        "FusedAttentionBias" if biased else "FusedAttention",
        names,
        result,
        ["head_dim", "dtype", "scale", "window_before", "window_after", "align_end"],
    )
