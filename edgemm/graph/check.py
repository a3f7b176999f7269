"""What of a model will not work on an engine, node by node, and what to do about it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import onnx
from onnx import defs

from edgemm.errors import ModelError, UsageError
from edgemm.graph import ort, walk
from edgemm.graph.model import NEWEST_OPSET, OLDEST_OPSET, Model
from edgemm.graph.passes.infer_shapes import InferShapes, infer_leniently
from edgemm.graph.passes.inline_functions import KEPT_DOMAINS, InlineFunctions
from edgemm.graph.rules_tensorrt import RULES
from edgemm.graph.site import Site, sites

EngineName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
Severity = Literal["error", "warning", "note"]

RUNTIME_DOMAINS = ("com.microsoft", "ai.onnx.ml", "ai.onnx.preview.training")
"""Domains beside ONNX's own that onnxruntime brings operators for."""


@dataclass(frozen=True)
class Finding:
    """One thing to know about a node, or about the whole model if `node` is empty."""

    severity: Severity
    node: str
    op: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What `check` found, the gravest first."""

    engine: str
    findings: tuple[Finding, ...]
    ops: dict[str, int]
    """How many nodes of each operator the model has, subgraphs and functions included."""

    @property
    def ok(self) -> bool:
        """True if nothing is in the way of running the model."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_text(self) -> str:
        """Return the report for a terminal: a verdict, then each finding with what to do."""
        count = Counter(finding.severity for finding in self.findings)
        verdict = "runs" if self.ok else "does not run"
        lines = [
            f"The model {verdict} on {self.engine}: {count['error']} errors, {count['warning']} warnings, "
            f"{count['note']} notes; {sum(self.ops.values())} nodes of {len(self.ops)} operators."
        ]
        for finding in self.findings:
            where = f"{finding.op} {finding.node}".strip() or "model"
            lines += [f"{finding.severity}: {where}: {finding.reason}", f"    {finding.remedy}"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the report as JSON, the same text for the same findings."""
        content: dict[str, Any] = {"ok": self.ok, **asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False)


def check(model: Model, engine: str = "onnxruntime") -> Report:
    """Return what of the model will not work on an engine.

    Common to all: operators nobody knows, shapes that contradict each other, inputs that are no tensors. onnxruntime is
    asked itself. For "tensorrt" and "tensorrt-rtx" each node is held against the rules of `rules_tensorrt`, which
    needs neither of them installed. Raises UsageError for another engine's name.
    """
    if engine not in get_args(EngineName):
        raise UsageError(f'There is no engine "{engine}". Choose one of {", ".join(get_args(EngineName))}.')
    findings = [*_interface(model), *_unknown_ops(model, engine)]
    # Shapes are only worth a word if every operator is known: inference stops at the others.
    contradiction = None if findings else _contradiction(model)
    if contradiction:
        findings.append(contradiction)
    if engine == "onnxruntime":
        if not findings:
            findings += _ask_onnxruntime(model)
    else:
        findings += _tensorrt(model, engine)
    order = get_args(Severity)
    findings += _outside_opset(model)
    findings.sort(key=lambda finding: order.index(finding.severity))
    ops = Counter(
        node.op_type if node.domain in walk.STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"
        for node, _ in walk.all_nodes(model.proto)
    )
    return Report(engine, tuple(dict.fromkeys(findings)), dict(sorted(ops.items())))


def _outside_opset(model: Model) -> list[Finding]:
    if not model.opset or OLDEST_OPSET <= model.opset <= NEWEST_OPSET:
        return []
    return [
        Finding(
            "warning",
            "",
            "",
            f"The model is written for opset {model.opset}; edgemm builds from {OLDEST_OPSET} to {NEWEST_OPSET}.",
            "Export it with opset 17, or convert it: onnx.version_converter.convert_version(model, 17).",
        )
    ]


def _interface(model: Model) -> list[Finding]:
    findings = []
    for kind in ("inputs", "outputs"):
        for value in model.proto.graph.input if kind == "inputs" else model.proto.graph.output:
            what = value.type.WhichOneof("value")
            if what not in (None, "tensor_type"):
                findings.append(
                    Finding(
                        "error",
                        "",
                        "",
                        f'"{value.name}", one of the {kind}, is a {what.removesuffix("_type")}; '
                        "edgemm feeds and reads plain tensors.",
                        "Export the model with tensors (for scikit-learn models: zipmap=False).",
                    )
                )
    return findings


def _unknown_ops(model: Model, engine: str) -> list[Finding]:
    functions = {(item.domain, item.name) for item in model.proto.functions}
    findings = []
    for node, place in walk.all_nodes(model.proto):
        if (node.domain, node.op_type) in functions or node.domain in KEPT_DOMAINS:
            continue
        if walk.is_standard(node):
            if not _has_schema(node.op_type, "", model.opset):
                findings.append(
                    Finding(
                        "error",
                        _where(place, node),
                        node.op_type,
                        f"ONNX has no operator {node.op_type} in opset {model.opset}.",
                        "Check the spelling and the domain; a custom operator needs a domain of its own and a local "
                        "function as its body, or replace it by ONNX operators before exporting.",
                    )
                )
        elif engine != "onnxruntime" or node.domain not in RUNTIME_DOMAINS:
            findings.append(
                Finding(
                    "error",
                    _where(place, node),
                    f"{node.domain}.{node.op_type}",
                    f"{node.op_type} of the domain {node.domain} is no ONNX operator and has no function body here.",
                    "Export the model without contrib or fused operators, or give the operator a local function.",
                )
            )
    return findings


def _has_schema(op: str, domain: str, opset: int) -> bool:
    try:
        return not defs.get_schema(op, max_inclusive_version=opset, domain=domain).deprecated
    except defs.SchemaError:
        return False


def _contradiction(model: Model) -> Finding | None:
    try:
        InferShapes()(model)
    except ModelError as error:
        reason, _, remedy = str(error).partition(". ")
        blamed = re.search(r"\(op_type:(\w+)(?:, node name: ([^)]+))?\)", reason)
        op, node = (blamed.group(1), blamed.group(2) or "") if blamed else ("", "")
        return Finding("error", node, op, f"{reason}.", remedy)
    return None


def _ask_onnxruntime(model: Model) -> list[Finding]:
    reason = ort.refusal(model)
    if reason is None:
        return []
    match = re.search(r"(?:Node|node) ?[:(]? ?\(?'?([^\s')]+)'?\)?", reason)
    named = match.group(1) if match else ""
    node = next((node for node, _ in walk.all_nodes(model.proto) if named and node.name == named), None)
    return [
        Finding(
            "error",
            named if node is not None else "",
            node.op_type if node is not None else "",
            f"onnxruntime does not take the model: {reason}",
            "Export the model with another opset or without the operator that onnxruntime names.",
        )
    ]


def _tensorrt(model: Model, engine: str) -> list[Finding]:
    try:
        inlined = InlineFunctions()(model).model
    except ModelError as error:
        return [Finding("error", "", "", str(error), "Export the model and its functions with one opset.")]
    typed = inlined.with_proto(infer_leniently(inlined))
    findings = []
    for site in sites(typed):
        findings += _judge(site, engine)
    return findings


def _judge(site: Site, engine: str) -> list[Finding]:
    """Return what the first rule of each severity says that fits the node."""
    findings: list[Finding] = []
    for rule in RULES:
        if engine not in rule.engines or (rule.ops and not walk.is_standard(site.node, *rule.ops)):
            continue
        if any(finding.severity == rule.severity for finding in findings):
            continue
        detail = rule.when(site)
        if detail:
            findings.append(
                Finding(
                    rule.severity,
                    _where(site.place, site.node),
                    site.node.op_type,
                    rule.reason.format(detail),
                    rule.remedy,
                )
            )
    return findings


def _where(place: str, node: onnx.NodeProto) -> str:
    return f"{place}/{walk.label(node)}" if place else walk.label(node)
