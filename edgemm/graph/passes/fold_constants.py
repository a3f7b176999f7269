"""Constant folding."""

from __future__ import annotations

from onnx import TensorProto

from edgemm.errors import ModelError
from edgemm.graph import ort, walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infer_shapes import infer_leniently
from edgemm.graph.passes.infra import PassResult
from edgemm.graph.passes.inline_functions import KEPT_DOMAINS

_HALF = ("float16", "bfloat16")


class FoldConstants:
    """Compute what depends on constants only, and shapes of static inputs, once and for all.

    The work is onnxruntime's, at its basic level: its kernels are the ones edgemm measures accuracy against, it is
    installed anyway, follows constant conditions of If, fuses batch normalisation into convolutions, and manages
    models over 2 GB. (onnxscript's folder computes with a slower reference and would be one more dependency.) It
    stays within ONNX's own operators; graph inputs and outputs keep their names, inner nodes and values may not.

    Left alone, with a note: models that call edgemm's own operators (onnxruntime would replace those by their
    bodies), and models already in float16 (it would add casts for operators that its CPU lacks in float16: fold
    first, convert after).
    """

    name = "fold-constants"

    def requires(self, model: Model) -> None:
        """Any model will do; one that onnxruntime refuses is a ModelError from the call."""

    def __call__(self, model: Model) -> PassResult:
        """Return the folded model."""
        if any(node.domain in KEPT_DOMAINS for node, _ in walk.all_nodes(model.proto)):
            return PassResult(model, False, ("not folded: the model uses edgemm's own operators",))
        if _has_half(model):
            return PassResult(model, False, ("not folded: the model is in float16; fold before converting",))
        try:
            folded = ort.fold(model)
        except ModelError as error:
            # It may run a model that it cannot optimise: a branch that is never taken need not fit the shapes.
            if ort.refusal(model) is not None:
                raise
            return PassResult(model, False, (f"not folded: {error}",))
        proto = folded.proto
        used = {node.domain for node, _ in walk.all_nodes(proto)}
        for index in reversed(range(len(proto.opset_import))):
            # onnxruntime lists every domain it knows.
            domain = proto.opset_import[index].domain
            if domain not in used and domain not in walk.STANDARD_DOMAINS:
                del proto.opset_import[index]
        had = sum(1 for _ in walk.all_nodes(model.proto))
        has = sum(1 for _ in walk.all_nodes(proto))
        notes = (f"{had} nodes became {has}",) if had != has else ()
        return PassResult(folded, had != has or folded.digest != model.digest, notes)

    def ensures(self, before: Model, after: Model) -> None:
        """No operator came in from outside ONNX that was not there before."""
        had = {node.domain for node, _ in walk.all_nodes(before.proto)}
        for node, _ in walk.all_nodes(after.proto):
            if node.domain not in had and node.domain not in walk.STANDARD_DOMAINS:
                raise ModelError(
                    f'onnxruntime brought in {node.domain}.{node.op_type} at "{walk.label(node)}", which TensorRT does '
                    "not know. Build without constant folding and report the model."
                )


def _has_half(model: Model) -> bool:
    if any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in walk.tensors(model.proto)):
        return True
    return any(spec.dtype in _HALF for spec in walk.specs(infer_leniently(model).graph).values())
