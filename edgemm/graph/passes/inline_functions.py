"""Local functions replaced by their bodies."""

from __future__ import annotations

from onnx import inliner

from edgemm.errors import ModelError
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult

KEPT_DOMAINS = ("edgemm",)
"""edgemm's own operators: their function body is for other runtimes, TensorRT gets a plugin for the node."""


class InlineFunctions:
    """Replace calls of local functions by the functions' bodies, but for edgemm's own operators.

    Quantization and fp16 conversion work on nodes and would have to leave a call in float. The inliner is onnx's own.
    """

    name = "inline-functions"

    def requires(self, model: Model) -> None:
        """Any model will do."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model without functions outside `KEPT_DOMAINS`."""
        chosen = [item for item in model.proto.functions if item.domain not in KEPT_DOMAINS]
        if not chosen:
            return PassResult(model, False)
        # The inliner serialises: hand it the model without its large weights, and put those back.
        skeleton = model.skeleton()
        try:
            inlined = inliner.inline_selected_functions(
                skeleton, [(item.domain, item.name) for item in chosen], exclude=False
            )
        except RuntimeError as error:
            # Functions of another opset than the model's; converting them works for all functions only.
            if len(chosen) != len(model.proto.functions):
                raise _refused(error) from error
            try:
                inlined = inliner.inline_local_functions(skeleton, convert_version=True)
            except RuntimeError as again:
                raise _refused(again) from again
        whole = {tensor.name: tensor for tensor in model.proto.graph.initializer}
        for tensor in inlined.graph.initializer:
            tensor.CopyFrom(whole[tensor.name])
        return PassResult(model.with_proto(inlined), True, (f"inlined {len(chosen)} functions",))

    def ensures(self, before: Model, after: Model) -> None:
        """Only edgemm's own functions are left."""
        left = [item.name for item in after.proto.functions if item.domain not in KEPT_DOMAINS]
        if left:
            raise ModelError(f'The function "{left[0]}" was not inlined. Report the model.')


def _refused(error: RuntimeError) -> ModelError:
    return ModelError(
        f"onnx cannot inline the model's functions: {str(error).strip().splitlines()[0]} "
        "Export the model and its functions with one opset."
    )
