"""What TensorRT does not take, as a table: one rule is a predicate, a reason and a remedy.

Measured with TensorRT for RTX 1.7, whose parser and builder run without a GPU: `bench/check_accuracy.py` holds these
rules against it over ONNX's node tests. Rules that name only "tensorrt-rtx" are for what TensorRT proper brings a
plugin or a kernel for (NMS, NonZero, RoiAlign); they follow its published operator list, not a measurement.

To add a rule, append a `Rule`: operators it is about (none: all), a predicate of a `Site` that returns True, or
the text that goes into the reason's `{}`, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import NodeProto

from edgemm.graph import walk
from edgemm.graph.site import Site

BOTH = ("tensorrt", "tensorrt-rtx")
RTX = ("tensorrt-rtx",)


@dataclass(frozen=True)
class Rule:
    """One thing TensorRT does not take."""

    ops: tuple[str, ...]
    """Operators of ONNX's own domain; empty for all."""
    when: Callable[[Site], bool | str]
    """What is true of a node that fails; a text goes into the `{}` of the reason."""
    reason: str
    remedy: str
    severity: Literal["error", "warning", "note"] = "error"
    engines: tuple[str, ...] = BOTH


UNSUPPORTED = {
    # Operator: what to do instead.
    "AffineGrid": "Compute the grid outside the model, or write it as MatMul over a constant grid.",
    "Bernoulli": "Draw random numbers outside the model and feed them.",
    "BitCast": "Cast outside the model; TensorRT does not look at the bits of a number.",
    "BitShift": "Multiply or divide by a power of two.",
    "BitwiseAnd": "Work with Mod and integer division, or outside the model.",
    "BitwiseNot": "Work with integer arithmetic (-x - 1), or outside the model.",
    "BitwiseOr": "Work with Where and integer arithmetic, or outside the model.",
    "BitwiseXor": "Work with Where and integer arithmetic, or outside the model.",
    "CausalConvWithState": "Write it as Concat with the state, Conv and Slice.",
    "CenterCropPad": "Write it as Pad and Slice with constant sizes.",
    "Col2Im": "Write it as ConvTranspose with a constant kernel.",
    "Compress": "Use a mask and Where, so that shapes stay known.",
    "ConcatFromSequence": "Use Concat of tensors.",
    "ConvInteger": "Quantize with QuantizeLinear and DequantizeLinear around Conv: edgemm build --precision int8.",
    "CumProd": "Write it as CumSum of Log and Exp, or compute it outside the model.",
    "DFT": "Multiply by a constant matrix of cosines and sines, or use STFT with constant parameters.",
    "DeformConv": "Load a plugin for it, or replace it by Conv.",
    "Det": "Compute determinants outside the model.",
    "DynamicQuantizeLinear": "Calibrate instead: edgemm build --precision int8 on the float model.",
    "ImageDecoder": "Decode pictures outside the model; edgemm's sources do.",
    "LinearAttention": "Write it as MatMul and elementwise operators, in a Scan over time if it has a state.",
    "MatMulInteger": "Quantize with QuantizeLinear and DequantizeLinear around MatMul: edgemm build --precision int8.",
    "MaxUnpool": "Use Resize or ConvTranspose.",
    "MelWeightMatrix": "Fold constants first (the matrix is constant), or use edgemm's log-mel front end.",
    "Multinomial": "Draw random numbers outside the model and feed them.",
    "NegativeLogLikelihoodLoss": "A loss belongs to training: export the model without it.",
    "Optional": "Export the model with plain tensors.",
    "OptionalGetElement": "Export the model with plain tensors.",
    "OptionalHasElement": "Export the model with plain tensors.",
    "QLinearConv": "Start from the float model, or convert to QuantizeLinear and DequantizeLinear (QDQ format).",
    "QLinearMatMul": "Start from the float model, or convert to QuantizeLinear and DequantizeLinear (QDQ format).",
    "RegexFullMatch": "Work on text outside the model.",
    "SequenceAt": "Use Gather or Slice on a stacked tensor.",
    "SequenceConstruct": "Use Concat or a stacked tensor.",
    "SequenceEmpty": "Use a stacked tensor.",
    "SequenceErase": "Use Slice and Concat on a stacked tensor.",
    "SequenceInsert": "Use Concat on a stacked tensor.",
    "SequenceLength": "Use Shape of a stacked tensor.",
    "SequenceMap": "Use Loop or Scan over a stacked tensor.",
    "SoftmaxCrossEntropyLoss": "A loss belongs to training: export the model without it.",
    "SplitToSequence": "Use Split, which returns tensors.",
    "StringConcat": "Work on text outside the model.",
    "StringNormalizer": "Work on text outside the model.",
    "StringSplit": "Work on text outside the model.",
    "SwiGLU": "Write it as Split, Sigmoid and Mul.",
    "TfIdfVectorizer": "Work on text outside the model.",
    "Unique": "Use TopK or ArgMax, whose shapes are known, or do it outside the model.",
}

UNSUPPORTED_RTX = {
    "NonMaxSuppression": "Return boxes and scores, and suppress outside the model.",
    "NonZero": "Use a mask and Where, so that shapes stay known.",
    "RoiAlign": "Use GridSample, or align outside the model.",
}

FOREIGN_DTYPES = (
    "int16",
    "uint16",
    "uint32",
    "uint64",
    "object",
    "complex64",
    "complex128",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "uint4",
    "int2",
    "uint2",
)
"""dtypes that TensorRT has no counterpart for. "object" are strings."""

NARROW_DTYPES = ("float8_e4m3fn", "int4", "float4_e2m1fn")
"""dtypes that only QuantizeLinear and DequantizeLinear make and take."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Mod", "Greater", "Less", "PRelu")
REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
POOLS = ("AveragePool", "LpPool", "MaxPool")
RESIZE_MODES = (
    "align_corners",
    "asymmetric",
    "half_pixel",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
)


SHAPE_SLOTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Inputs whose values decide the shape of the result."""


# Predicates that more than one rule uses, or that take more than a line.


def _foreign_dtype(site: Site) -> str:
    names = [name for name in (*site.node.input, *site.node.output) if name]
    return next((f'"{name}" is {d}' for name in names if (d := site.dtype_of(name)) in FOREIGN_DTYPES), "")


def _narrow_dtype(site: Site) -> str:
    if walk.is_standard(site.node, "QuantizeLinear", "DequantizeLinear", "Constant", "Identity"):
        return ""
    names = [name for name in (*site.node.input, *site.node.output) if name]
    return next((f'"{name}" is {d}' for name in names if (d := site.dtype_of(name)) in NARROW_DTYPES), "")


def _no_tensor(site: Site) -> str:
    names = [name for name in (*site.node.input, *site.node.output) if name]
    return next((f'"{name}" is a {site.kinds[name]}' for name in names if name in site.kinds), "")


def _live_outputs(site: Site) -> int:
    return sum(1 for name in site.node.output if name)


def _given(site: Site, index: int) -> bool:
    return bool(site.input(index))


def _live_input(*indices: int) -> Callable[[Site], str]:
    """Return a predicate: one of these inputs is given and depends on what is fed."""

    def when(site: Site) -> str:
        return next(
            (f'"{site.input(i)}"' for i in indices if site.input(i) and not site.is_constant(i)),
            "",
        )

    return when


def _float_decides_shape(site: Site) -> str:
    for index in SHAPE_SLOTS[site.node.op_type]:
        for name in sorted(site.feeds(site.input(index))) if site.input(index) else ():
            if site.dtype_of(name) in ("float32", "float16", "bfloat16", "float64"):
                return f'"{name}"'
    return ""


def _dilated(site: Site) -> bool:
    dilations = site.attribute("dilations") or []
    return isinstance(dilations, list) and any(item != 1 for item in dilations)


def _zero_point(site: Site) -> bool:
    point = site.constant(2)
    return point is not None and bool(np.any(point.astype(np.float32) != 0))


def _head_sizes_differ(site: Site) -> bool:
    key, value = site.shape(1), site.shape(2)
    if key is None or value is None or len(key) != len(value):
        return False
    return isinstance(key[-1], int) and isinstance(value[-1], int) and key[-1] != value[-1]


def _attention_without_kernel(site: Site) -> str:
    """The combinations that have a kernel, as found by building 400 of them for SM86."""
    query, key = site.shape(0), site.shape(1)
    if query is None or key is None:
        return ""
    flat = len(query) == 3
    heads, key_heads = (site.attribute("q_num_heads"), site.attribute("kv_num_heads")) if flat else (query[1], key[1])
    masked, causal = _given(site, 3), bool(site.attribute("is_causal", 0))
    if masked and causal:
        return "with both a mask and is_causal"
    if query[-2] == 1:
        return "of one query with fewer than 4 heads" if isinstance(heads, int) and heads < 4 else ""
    if flat and heads == key_heads and not masked and not causal:
        # Falls apart into MatMul, Softmax and MatMul, which always build.
        return ""
    if site.dtype(0) == "float32":
        return "in float32"
    size = query[-1] // heads if flat and isinstance(query[-1], int) and isinstance(heads, int) else query[-1]
    if heads == 1:
        return "with a single head"
    return "with heads of 8 values or fewer" if isinstance(size, int) and size <= 8 else ""


def _batched_vector_product(site: Site) -> bool:
    left, right = site.shape(0), site.shape(1)
    if left is None or right is None or len(left) != 1 or len(right) < 3:
        return False
    return any(dim != 1 for dim in right[:-2])


def _captures_control_flow(site: Site) -> str:
    for _, body in walk.subgraphs(site.node):
        own = {value.name for value in body.input} | {name for node in body.node for name in node.output}
        for node in body.node:
            # What reads outer values only is moved out of the loop, and does no harm.
            if not own.intersection(node.input):
                continue
            for name in node.input:
                maker = None if name in own else site.maker(name)
                if maker is not None and walk.is_standard(maker, "If", "Loop", "Scan"):
                    return f'"{name}", the output of a {maker.op_type}'
    return ""


def _loop_reads_missing_condition(site: Site) -> bool:
    if site.input(1):
        return False
    bodies = [inner for _, inner in walk.subgraphs(site.node)]
    return any(body.input[1].name in walk.reads(node) for body in bodies for node in body.node)


def _strided_state(site: Site) -> str:
    """The initial state that is cut out along the last axis, of a recurrent node that is not the graph's first."""
    recurrent = [node for node in site.model.proto.graph.node if walk.is_standard(node, "LSTM", "GRU", "RNN")]
    if site.place or not recurrent or recurrent[0].output[:] == site.node.output[:]:
        return ""
    for index in (5, 6):
        name = site.input(index)
        maker = site.maker(name) if name else None
        while maker is not None and walk.is_standard(maker, "Squeeze", "Unsqueeze", "Identity", "Reshape"):
            name = maker.input[0]
            maker = site.maker(name)
        if maker is not None and walk.is_standard(maker, "Slice", "Split", "Gather") and _cuts_last_axis(site, maker):
            return f'"{site.input(index)}" is cut out of "{maker.input[0]}"'
    return ""


def _cuts_last_axis(site: Site, node: NodeProto) -> bool:
    data, cut = site.specs.get(node.input[0]), site.specs.get(node.output[0])
    if data is None or not data.shape or data.shape[-1] == 1:
        return False
    if node.op_type == "Gather":
        return walk.attribute(node, "axis", 0) in (-1, len(data.shape) - 1)
    return cut is not None and bool(cut.shape) and cut.shape[-1] != data.shape[-1]


def _rotary_cache(site: Site) -> str:
    size, cosines = site.attribute("rotary_embedding_dim", 0), site.shape(1)
    if not isinstance(size, int) or not size or not cosines or not isinstance(cosines[-1], int):
        return ""
    return (
        ""
        if cosines[-1] * 2 == size
        else f"{cosines[-1]}, and TensorRT wants half of rotary_embedding_dim, {size // 2}"
    )


def _branch_ranks(site: Site) -> str:
    if site.is_constant(0):
        return ""
    bodies = [inner for _, inner in walk.subgraphs(site.node)]
    for index, name in enumerate(site.node.output):
        ranks = []
        for body in bodies:
            known = {**site.specs, **walk.specs(body)}
            spec = known.get(body.output[index].name) if index < len(body.output) else None
            ranks.append(len(spec.shape) if spec else None)
        if None not in ranks and len(set(ranks)) > 1:
            return f'"{name}" has {ranks[0]} dimensions in one branch and {ranks[1]} in the other'
    return ""


RULES: tuple[Rule, ...] = (
    Rule(
        (),
        _no_tensor,
        "{}, and TensorRT knows tensors only.",
        "Export the model without sequences and optionals.",
    ),
    *(Rule((op,), lambda site: True, f"TensorRT has no {op}.", remedy) for op, remedy in UNSUPPORTED.items()),
    *(
        Rule((op,), lambda site: True, f"TensorRT for RTX has no {op}.", remedy, engines=RTX)
        for op, remedy in UNSUPPORTED_RTX.items()
    ),
    Rule(
        (),
        _foreign_dtype,
        "{}, a type that TensorRT does not have.",
        "Use float32, float16, bfloat16, int32, int64, int8 or bool there.",
    ),
    Rule(
        (),
        _narrow_dtype,
        "{}, a type that only QuantizeLinear and DequantizeLinear make and take.",
        "Put a DequantizeLinear in front of the node and a QuantizeLinear behind it.",
    ),
    Rule(
        (*ARITHMETIC, "GreaterOrEqual", "LessOrEqual", "MaxPool", "AveragePool"),
        lambda site: site.dtype(0) == "uint8",
        "TensorRT does not compute in uint8.",
        "Cast to float32 or int32 in front of the node.",
    ),
    Rule(
        ("Clip",),
        lambda site: site.dtype(0) in ("int8", "uint8"),
        "TensorRT's Clip takes no 8-bit integers.",
        "Cast to int32 in front of the node.",
    ),
    Rule(
        ("Mod",),
        lambda site: not site.attribute("fmod", 0) and site.dtype(0).startswith(("float", "bfloat")),
        "TensorRT's Mod of floats has the sign of the dividend only (fmod=1).",
        "Export with fmod=1, or write it as x - y * Floor(x / y).",
    ),
    Rule(
        ("Celu",),
        lambda site: str(site.dtype(0)) if site.dtype(0) in ("float16", "bfloat16") else "",
        "TensorRT's Celu takes float32 only, not {}.",
        "Keep the node in float32 (keep_float), or write it as Max(0, x) + Min(0, alpha * (Exp(x / alpha) - 1)).",
    ),
    Rule(
        ("TensorScatter",),
        lambda site: str(mode) if (mode := site.attribute("mode", "linear")) != "linear" else "",
        "TensorRT's TensorScatter has no mode {}.",
        "Write the ring with ScatterND over computed indices.",
    ),
    Rule(
        ("TensorScatter",),
        lambda site: str(len(shape)) if (shape := site.shape(0)) is not None and len(shape) != 4 else "",
        "TensorRT's TensorScatter takes caches of rank 4, not {}.",
        "Unsqueeze cache and update to [batch, heads, length, size].",
    ),
    Rule(
        ("Mod",),
        lambda site: site.dtype(0) == "int8",
        "TensorRT's Mod takes int32, int64 and floats.",
        "Cast to int32 in front of the node.",
    ),
    Rule(
        REDUCTIONS,
        _live_input(1),
        "The axes {} depend on an input; TensorRT wants to know them when it builds.",
        "Store the axes as an initializer, or fold constants first.",
    ),
    Rule(
        ("Squeeze", "Unsqueeze"),
        _live_input(1),
        "The axes {} depend on an input; TensorRT wants to know them when it builds.",
        "Store the axes as an initializer, or fold constants first.",
    ),
    Rule(
        ("STFT",),
        _live_input(1, 2, 3),
        "{} depends on an input; TensorRT wants STFT's frame step, window and length when it builds.",
        "Store them as initializers, or fold constants first.",
    ),
    Rule(
        ("Dropout",),
        _live_input(2),
        "The training mode {} depends on an input.",
        "Export the model for inference: model.eval(), do_constant_folding.",
    ),
    Rule(
        ("Resize",),
        lambda site: (
            str(mode)
            if (mode := site.attribute("coordinate_transformation_mode", "half_pixel")) not in RESIZE_MODES
            else ""
        ),
        'TensorRT does not know the coordinate transformation "{}".',
        f"Use one of {', '.join(RESIZE_MODES)}; a crop can be a Slice in front.",
    ),
    Rule(
        ("Resize",),
        lambda site: bool(site.attribute("antialias", 0)),
        "TensorRT's Resize does not antialias.",
        "Export without antialias, and put an AveragePool in front where you shrink.",
    ),
    Rule(
        ("Resize",),
        lambda site: site.attribute("keep_aspect_ratio_policy", "stretch") != "stretch" and _given(site, 3),
        "TensorRT's Resize only stretches.",
        "Compute the sizes that keep the aspect ratio outside the model.",
    ),
    Rule(
        ("Resize",),
        lambda site: site.attribute("axes") is not None and _given(site, 2) and not _given(site, 3),
        "TensorRT takes scales for all axes only.",
        "Drop the `axes` attribute and give a scale of 1 for the axes that stay.",
    ),
    Rule(
        POOLS,
        _dilated,
        "TensorRT does not dilate pooling windows.",
        "Pool without dilation, or write an average as a Conv with a constant kernel.",
    ),
    Rule(
        ("MaxPool", "LayerNormalization", "BatchNormalization", "Attention"),
        lambda site: _live_outputs(site) > 1,
        "TensorRT gives this operator's first output only.",
        "Export without the further outputs, or compute them with operators of their own.",
    ),
    Rule(
        ("BatchNormalization",),
        lambda site: bool(site.attribute("training_mode", 0)),
        "The node is in training mode.",
        "Export the model for inference: model.eval().",
    ),
    Rule(
        ("LpPool",),
        lambda site: str(p) if (p := site.attribute("p", 2)) not in (1, 2) else "",
        "TensorRT pools with p 1 or 2, not {}.",
        "Write it with Pow, AveragePool and Pow.",
    ),
    Rule(
        ("ScatterND", "ScatterElements"),
        lambda site: site.attribute("reduction", "none") != "none",
        "TensorRT scatters without a reduction.",
        "Write sums over indices as MatMul with a one-hot matrix.",
    ),
    Rule(
        ("Attention",),
        lambda site: bool(site.attribute("softcap", 0.0)),
        "TensorRT's Attention has no softcap.",
        "Write attention as MatMul, Softmax and MatMul.",
    ),
    Rule(
        ("Attention",),
        _head_sizes_differ,
        "TensorRT's Attention wants keys and values of the same size.",
        "Write attention as MatMul, Softmax and MatMul.",
    ),
    Rule(
        ("Attention",),
        _attention_without_kernel,
        "TensorRT has no kernel for Attention {}.",
        "Build in fp16 with heads of 16 values or more, and fold is_causal into the mask; or write attention as "
        "MatMul, Softmax and MatMul.",
    ),
    Rule(
        ("MatMul",),
        _batched_vector_product,
        "TensorRT does not multiply a vector with a batch of matrices.",
        "Unsqueeze the vector to a matrix with one row first.",
    ),
    Rule(
        ("Loop",),
        lambda site: (
            f'"{name}"' if (name := site.input(1)) and not site.is_constant(1) and name in site.feeds(name) else ""
        ),
        "The starting condition {} is an input; TensorRT's parser would add an input of its own for it.",
        "Make the starting condition a constant true, and let the body decide when to stop.",
    ),
    Rule(
        ("Loop", "Scan"),
        _captures_control_flow,
        'The body reads {} outside; TensorRT loses track of such nesting ("No nesting relationship").',
        "Put an Identity behind that output and let the body read the Identity's.",
    ),
    Rule(
        ("LSTM", "GRU", "RNN"),
        _strided_state,
        "{} along the last axis, and another recurrent node comes before; the compiler of TensorRT for RTX fails on "
        "such states with an internal error.",
        "Keep the states so that they are cut along the first axis, feed each as an input of its own, or multiply what "
        "is cut out by a tensor of ones.",
        engines=RTX,
    ),
    Rule(
        ("Loop",),
        _loop_reads_missing_condition,
        "The body reads a condition that the Loop is not given.",
        "Give the Loop a constant true as its second input.",
    ),
    Rule(
        ("QuantizeLinear", "DequantizeLinear"),
        _live_input(1, 2),
        "{} depends on an input; TensorRT wants scales and zero points when it builds.",
        "Quantize statically, with calibration: edgemm build --precision int8.",
    ),
    Rule(
        ("QuantizeLinear", "DequantizeLinear"),
        _zero_point,
        "The zero point is not 0; TensorRT quantizes symmetrically only.",
        "Quantize the float model again with edgemm, or with symmetric int8.",
    ),
    Rule(
        ("OneHot",),
        _live_input(1),
        "The depth {} depends on an input; TensorRT wants to know the output's shape when it builds.",
        "Store the depth as an initializer, or fold constants first.",
    ),
    Rule(
        tuple(SHAPE_SLOTS),
        _float_decides_shape,
        "The shape of the result depends on {}, a float; TensorRT computes shapes from integers only.",
        "Feed an integer instead, store the value as an initializer, or give Resize constant scales.",
    ),
    Rule(
        ("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike"),
        lambda site: site.dtype_of(site.output(0)) == "float64",
        "TensorRT draws random numbers in float32 and float16, not float64.",
        "Set the node's dtype to float32.",
    ),
    Rule(
        ("RotaryEmbedding",),
        _rotary_cache,
        "The cosine cache has rows of {}.",
        "Store cosines and sines for the rotated part of the head only.",
    ),
    Rule(
        ("If",),
        _branch_ranks,
        "{}; TensorRT wants equal ranks.",
        "Build from a recipe that gives the sizes (dims) and the constant inputs (value): that resolves most If nodes. "
        "Or export the branch you need.",
    ),
)
