"""Inputs that always carry the same value made constants."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import numpy_helper

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult
from edgemm.types import Array


class FixInputs:
    """Make the graph read constants instead of some of its inputs, `FixInputs({"sr": np.int64(16000)})`.

    Folding can then follow what depends on them: a model for two sample rates becomes a model for one. The inputs
    stay, unread: they are the model's interface. Raises ModelError for an input that does not exist or
    takes another tensor.
    """

    name = "fix-inputs"

    def __init__(self, values: Mapping[str, Array]) -> None:
        self.values = dict(values)

    def requires(self, model: Model) -> None:
        """Every name is an input, and its value fits."""
        specs = {spec.name: spec for spec in model.inputs}
        for name, value in self.values.items():
            if name not in specs:
                raise ModelError(f'The model has no input "{name}", expected one of: {", ".join(specs)}.')
            if not specs[name].accepts(value):
                raise ModelError(
                    f'The input "{name}" cannot be fixed to {value.dtype}{list(value.shape)}, expected {specs[name]}.'
                )

    def __call__(self, model: Model) -> PassResult:
        """Return the model that reads constants there."""
        proto = model.copy_proto()
        namer = walk.Namer.of(proto)
        notes = []
        for name, value in self.values.items():
            constant = namer.fresh(f"{name}_fixed")
            if walk.replace_reads(proto.graph, name, constant):
                proto.graph.initializer.append(numpy_helper.from_array(value, constant))
                notes.append(f"{name} is always {value.tolist() if value.size < 8 else 'the same'}")
        return PassResult(model.with_proto(proto), bool(notes), tuple(notes))

    def ensures(self, before: Model, after: Model) -> None:
        """Nobody reads those inputs any more."""
        read = {name for node in after.proto.graph.node for name in walk.reads(node)} & set(self.values)
        if read:
            raise ModelError(f"The inputs {sorted(read)} are still read. Report the model.")
