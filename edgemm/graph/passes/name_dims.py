"""Names for dynamic dimensions that have none."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult


class NameDims:
    """Give each unnamed dynamic dimension of an input a name of its own, `<input>_dim<axis>`.

    TensorRT holds dimensions of the same name equal and takes "?" for a name like any other, so two "?" that differ at
    run time fail there. Outputs and inner values lose their "?" instead: inference names them from the inputs.
    """

    name = "name-dims"

    def requires(self, model: Model) -> None:
        """Any model will do."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model with every dimension of its inputs a number or a name."""
        proto = model.copy_proto()
        taken = {dim.dim_param for value in _values(proto) for dim in _dims(value)}
        notes = []
        changed = False
        for value in proto.graph.input:
            for axis, dim in enumerate(_dims(value)):
                if _is_unnamed(dim):
                    wish = name = f"{value.name}_dim{axis}"
                    count = 0
                    while name in taken:
                        count += 1
                        name = f"{wish}_{count}"
                    taken.add(name)
                    dim.dim_param = name
                    notes.append(f"{value.name}[{axis}] is now called {name}")
                    changed = True
        for value in _values(proto):
            for dim in _dims(value):
                if _is_unnamed(dim) and dim.WhichOneof("value") is not None:
                    dim.ClearField("value")
                    changed = True
        return PassResult(model.with_proto(proto), changed, tuple(notes))

    def ensures(self, before: Model, after: Model) -> None:
        """Every dimension of an input has a number or a name."""
        for value in after.proto.graph.input:
            if any(_is_unnamed(dim) for dim in _dims(value)):
                raise ModelError(f'A dimension of the input "{value.name}" is still without a name. Report the model.')


def _values(proto: ModelProto) -> Iterator[ValueInfoProto]:
    for graph in walk.graphs(proto.graph):
        yield from graph.input
        yield from graph.output
        yield from graph.value_info


def _dims(value: ValueInfoProto) -> list[TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim) if value.type.HasField("tensor_type") else []


def _is_unnamed(dim: TensorShapeProto.Dimension) -> bool:
    return (not dim.HasField("dim_value") or dim.dim_value < 0) and dim.dim_param in ("", "?")
