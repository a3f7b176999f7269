"""Dynamic dimensions made static."""

from __future__ import annotations

from collections.abc import Mapping

from edgemm.errors import ModelError, UsageError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult
from edgemm.graph.tensors import value_spec


class FixDims:
    """Replace named dimensions by numbers, `FixDims({"batch": 1})`.

    A name stands for the same number wherever it occurs. Shapes of inner values that are still dynamic are dropped, so
    that inference works them out again. Raises ModelError if the inputs have no such dimension (unnamed ones get a
    name from `NameDims` first), UsageError if a size is not positive.
    """

    name = "fix-dims"

    def __init__(self, sizes: Mapping[str, int]) -> None:
        for dim, size in sizes.items():
            if size < 1:
                raise UsageError(f'The dimension "{dim}" cannot be {size}. Give a size of 1 or more.')
        self.sizes = dict(sizes)

    def requires(self, model: Model) -> None:
        """Every name given is a dimension of an input."""
        known = dict.fromkeys(dim for spec in model.inputs for dim in spec.shape if isinstance(dim, str))
        missing = [name for name in self.sizes if name not in known]
        if missing:
            raise ModelError(
                f'No input has a dimension "{missing[0]}"; the dynamic dimensions are '
                f"{', '.join(known) or 'none: every input is static already'}. Name one of these."
            )

    def __call__(self, model: Model) -> PassResult:
        """Return the model with those dimensions static."""
        proto = model.copy_proto()
        for graph in walk.graphs(proto.graph):
            for value in (*graph.input, *graph.output):
                for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
                    size = self.sizes.get(dim.dim_param)
                    if size is not None:
                        dim.dim_value = size
            for index in reversed(range(len(graph.value_info))):
                spec = value_spec(graph.value_info[index])
                if spec is None or not spec.is_static:
                    del graph.value_info[index]
        return PassResult(model.with_proto(proto), bool(self.sizes))

    def ensures(self, before: Model, after: Model) -> None:
        """None of the names is left on an input."""
        left = {dim for spec in after.inputs for dim in spec.shape} & set(self.sizes)
        if left:
            raise ModelError(f"The dimensions {sorted(map(str, left))} are still dynamic. Report the model.")
