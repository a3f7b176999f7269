"""What TensorRT says, turned into what a user can act on: node, op, reason, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One reason why TensorRT refused a model."""

    stage: str
    """"parse" or "build"."""
    node: str
    """The ONNX node's name, or "" if TensorRT did not say."""
    op: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f'node "{self.node}"' if self.node else "the graph"
        if self.op:
            where += f" ({self.op})"
        return f"{where}: {self.reason}. {self.remedy}"


_RULES: Sequence[tuple[str, str, str]] = (
    # pattern in TensorRT's text, reason ("" keeps TensorRT's own), remedy
    (
        r"shiftIsAllZeros|[Nn]on-zero zero point",
        "its zero point is not 0, and TensorRT takes symmetric quantization only",
        "Quantize again with edgemm (it writes symmetric int8), or give this node's QuantizeLinear a zero point of 0.",
    ),
    (
        r"check_turing_op_compatibility|for Turing \(SM75\)",
        "its matrix product has no kernel for SM75 (Turing) in fp32",
        "Convert the model to fp16 (--precision fp16; beside int8: half = true under [tensorrt] in the recipe), or "
        "choose a target from SM80 on.",
    ),
    (
        r"HW-specific datatypes: ?(?P<types>[a-z0-9_, ]+)",
        "the target has no arithmetic for its type {types}",
        "FP8 needs SM89 or newer, BF16 and INT4 need SM80, FP4 needs SM120: choose another --precision or target.",
    ),
    (
        r"decompose_composite_ops|not supported by a dedicated kernel",
        "its attention has no kernel for this type or these options",
        "Cast the attention's inputs to fp16 or bf16 and leave softcap and the second output out.",
    ),
    (
        r"must have same input types|Types? mismatch|same types",
        "it mixes types, and a strongly typed network converts nothing by itself",
        "Insert a Cast so that all its inputs have one type.",
    ),
    (
        r"Must have inputs with equal ranks|IConditionalOutputLayer",
        "the branches of its If return tensors of different rank",
        "Make both branches return the same rank, or fold the If (edgemm check says which input decides it).",
    ),
    (
        r"plugin registry|[Pp]lugin not found|failed to load .* plugin|creator &&",
        "TensorRT has no operator of this name and no plugin for it is registered",
        "Replace the operator by ones that TensorRT knows, or keep this model on --engine onnxruntime.",
    ),
    (
        r"has no runners that implement it|layerImpls\.empty|Could not find any implementation",
        "TensorRT has no kernel that implements it here",
        "Give it more workspace (--workspace), another precision, or keep this model on --engine onnxruntime.",
    ),
    (
        r"convertDtype|convertOnnxWeights|importInitializers|ONNX da(?:ta|te) type",
        "TensorRT does not take the type of one of its tensors",
        "Use float32, float16, bfloat16, int8, int32, int64 or bool; strings, INT16 and FP8 E5M2 are not taken.",
    ),
    (
        r"transformationMode",
        "TensorRT does not take its coordinate transformation mode",
        "Use half_pixel, align_corners, asymmetric or pytorch_half_pixel.",
    ),
    (
        r"[Nn]o optimization profile|profile (?:has|is) (?:not|in)|network has dynamic",
        "an input has a dynamic dimension without a range",
        "Give it one in the recipe: dims = { NAME = [min, opt, max] }, or a fixed number.",
    ),
    (
        r"workspace limit",
        "no kernel fits the workspace limit",
        "Raise the WORKSPACE memory pool (--workspace), or leave it out.",
    ),
    (
        r"libnvinfer_lean",
        "version compatibility needs TensorRT's lean runtime, libnvinfer_lean, which is not installed here",
        "Build without version compatibility, or add EXCLUDE_LEAN_RUNTIME to the flags.",
    ),
    (
        r"graph_jit\.cpp.*CUDA_SUCCESS",
        "this option makes TensorRT compile on the GPU, and there is none here",
        "Leave refit and weight stripping out, or build on the device.",
    ),
    (
        r"insufficient (?:memory|workspace)|out of memory|OutOfMemory|MEM_ALLOC",
        "memory ran out",
        "Lower --workspace, close other programs, or build with a lower optimization level.",
    ),
    (
        r"no CUDA-capable|CUDA initialization failure|CUDA driver",
        "the CUDA driver cannot be used here",
        "Run this on the device, or with TensorRT for RTX name a target (--target rtx-sm86).",
    ),
    (
        r"MyelinCheckException: (?P<place>[\w.]+:\d+)",
        "TensorRT's compiler failed with an internal error ({place}), which is a fault of its own",
        "Ask edgemm check, which knows some of them; try another precision, or keep this model on "
        "--engine onnxruntime.",
    ),
    (
        r"UNSUPPORTED_NODE|checkFallbackPluginImporter|INVALID_NODE",
        "TensorRT does not support this operator, or not with these attributes",
        "edgemm check lists what is not supported; replace the operator or keep this model on --engine onnxruntime.",
    ),
)

_LAYER = re.compile(
    r"operation '(?P<a>[^']+)'"
    r"|\((?P<b>[\w./:$^-]+): (?!pass\.|tactic\.)"
    r"|Node(?: -)? (?P<c>[\w./:-]+)"
    r"|^(?P<d>\S+) has no"
)
_NOISE = re.compile(
    r"^[A-Z_]+: |^(?:In node -?\d+ with name: .*?: )|^I\w+::\w+: Error Code \d+: |\s*\(\s*In \w+ at [^)]*\)$"
)


def explain(stage: str, text: str, node: str = "", op: str = "") -> Problem:
    """Turn one message of TensorRT into a Problem; what no rule knows keeps TensorRT's own words."""
    node = node or _layer(text)
    for pattern, reason, remedy in _RULES:
        match = re.search(pattern, text)
        if match:
            said = {name: re.sub(r"\bb16\b", "bf16", value.strip(" ,")) for name, value in match.groupdict().items()}
            return Problem(stage, node, op, reason.format(**said), remedy)
    words = _NOISE.sub("", " ".join(text.split())).rstrip(". ")
    return Problem(
        stage,
        node,
        op,
        f'TensorRT says "{words}"',
        "Search for it in TensorRT's release notes, or report it with the model.",
    )


def parser_problems(parser: Any) -> tuple[Problem, ...]:
    """Read every error that an ONNX parser holds."""
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        text = f"{error.code().name}: {error.desc()} {error.func()}"
        problems.append(explain("parse", text, error.node_name(), error.node_operator()))
    return _unique(problems)


def builder_problems(messages: Iterable[str], ops: dict[str, str]) -> tuple[Problem, ...]:
    """Read the errors that a builder logged; `ops` gives each layer's ONNX operator by name, where known."""
    problems = []
    for text in messages:
        problem = explain("build", text)
        name = problem.node
        op = ops.get(name, "")
        problems.append(Problem(problem.stage, name, op, problem.reason, problem.remedy))
    return _unique(problems)


def _unique(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(dict.fromkeys(problems))


def _layer(text: str) -> str:
    match = _LAYER.search(text)
    if match is None:
        return ""
    name = next(group for group in match.groups() if group)
    return re.split(r"[\^]", name)[-1].strip()
