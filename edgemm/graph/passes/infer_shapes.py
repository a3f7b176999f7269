"""Shape inference: types and shapes of all values, from those of the inputs."""

from __future__ import annotations

import re

from onnx import GraphProto, ModelProto, checker, shape_inference

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult

_FAULTY = ("MeanVarianceNormalization",)
"""Operators that onnx's strict inference rejects by mistake (1.18 to 1.23), right or wrong."""


class InferShapes:
    """Write the type and shape of every value that ONNX's own inference can find into `value_info`.

    Values are computed where shapes depend on them (`data_prop`), so that a Reshape by a computed shape is
    followed. Shapes that contradict each other are a ModelError that names the node. If only the shapes that the file
    gives for inner values contradict the graph (exporters leave stale ones), those are dropped with a note. A branch
    of an If may contradict the shapes as long as it is not taken (models for two sample rates do): a note, too.
    """

    name = "infer-shapes"

    def requires(self, model: Model) -> None:
        """Any model will do."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model with its value_info filled in; the graph itself is the same."""
        skeleton = model.skeleton()
        try:
            found, notes = _infer(skeleton)
        except shape_inference.InferenceError as error:
            for graph in walk.graphs(skeleton.graph):
                del graph.value_info[:]
            try:
                found, notes = _infer(skeleton)
            except shape_inference.InferenceError:
                raise ModelError(
                    f"The model's shapes contradict each other: {_reason(error)}. Correct the shape that is wrong "
                    "and export the model again."
                ) from error
            notes.append(f"dropped the file's shapes of inner values, which contradict the graph: {_reason(error)}")
        proto = model.copy_proto()
        for target, source in zip(walk.graphs(proto.graph), walk.graphs(found.graph), strict=True):
            _graft(target, source)
        unknown = values_without_shape(proto)
        if unknown:
            notes.append(f"no shape found for {len(unknown)} values, first {', '.join(unknown[:3])}")
        return PassResult(model.with_proto(proto), proto != model.proto, tuple(notes))

    def ensures(self, before: Model, after: Model) -> None:
        """What the graph computes is the same: nodes and initializers are untouched."""
        had, has = before.proto.graph, after.proto.graph
        if len(had.node) != len(has.node) or len(had.initializer) != len(has.initializer):
            raise ModelError("Shape inference changed the graph. Report the model.")


def infer_leniently(model: Model) -> ModelProto:
    """Return a skeleton of the model with the shapes that can be inferred, stopping at contradictions in silence.

    For analyses that want to know as much as possible of a model that may be wrong.
    """
    skeleton = model.skeleton()
    try:
        return shape_inference.infer_shapes(skeleton, data_prop=True)
    except (shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError):
        return skeleton


def values_without_shape(proto: ModelProto) -> list[str]:
    """Return the values of the main graph whose type or rank is not known, in the graph's order."""
    known = walk.specs(proto.graph)
    return [name for node in proto.graph.node for name in node.output if name and name not in known]


def _infer(skeleton: ModelProto) -> tuple[ModelProto, list[str]]:
    """Return the model with its shapes, and notes about what was let pass; raise InferenceError otherwise."""
    try:
        return shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True), []
    except shape_inference.InferenceError as error:
        # The first node blamed: what follows are mostly nodes that miss its outputs.
        blamed = re.search(r"\(op_type:(\w+)", str(error))
        if blamed is None or blamed.group(1) not in (*_FAULTY, "If"):
            raise
        notes = []
        if blamed.group(1) == "If":
            notes.append(f"a branch of an If cannot run with these shapes, so it must not be taken: {_reason(error)}")
        return shape_inference.infer_shapes(skeleton, data_prop=True), notes
    except (RuntimeError, ValueError, checker.ValidationError) as error:
        # onnx raises plain RuntimeError for what its own code does not expect.
        raise shape_inference.InferenceError(str(error)) from error


def _graft(target: GraphProto, source: GraphProto) -> None:
    for kind in ("value_info", "output", "input"):
        values = getattr(source, kind)
        del getattr(target, kind)[:]
        getattr(target, kind).extend(values)


def _reason(error: Exception) -> str:
    """Return the first complaint of onnx's message without its tags."""
    for line in str(error).splitlines():
        text = re.sub(r"\[\w+\]|Inference error\(s\):", "", line)
        if text.strip():
            return " ".join(text.split()).strip(" .:")
    return type(error).__name__
