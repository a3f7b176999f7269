"""The value that the stages of a build hand on: an ONNX model in memory, and where its large tensors are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from edgemm.errors import ModelError
from edgemm.graph import walk
from edgemm.graph.digest import digest
from edgemm.graph.tensors import (
    external_range,
    inline,
    is_external,
    raw_chunks,
    tensor_nbytes,
    to_array,
    value_spec,
)
from edgemm.types import Array, TensorSpec

OLDEST_OPSET: Final = 11
NEWEST_OPSET: Final = 23

PROTO_LIMIT: Final = 2**31 - 1
"""protobuf writes no message larger than this."""

_INLINE_LIMIT = 1 << 30
"""Up to this many bytes of external data are read into memory at load; beyond, large tensors stay in their file,
so that a model of several GB is not held twice."""

_LARGE_TENSOR = 1 << 16
"""What stays in a file, or goes to one. Smaller tensors are shapes, axes and scales, which passes must see."""

_HEADROOM = 1 << 26
"""Room for nodes, names and value_info when only the tensors have been counted."""

_ALIGNMENT = 4096
"""External tensors start on a page, so that onnxruntime can map them."""


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded ONNX model.

    `proto` is shared, not copied: treat it as read-only and start an edit from `copy_proto()`. Initializers are not
    listed among its inputs, and its nodes are in topological order. A tensor of a model over 1 GiB may have its
    bytes in a file of `folder`; read tensors with `array`, which knows.
    """

    proto: ModelProto
    folder: Path | None = None
    """Where external data lies; None if every tensor is in `proto`."""
    path: Path | None = None
    """The file it was loaded from, for messages; None if it was made in memory or changed since."""

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller feeds, in the graph's order. Raises ModelError for an input that is no tensor."""
        return _specs(self.proto.graph.input, "input")

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model returns, in the graph's order. Raises ModelError for an output that is no tensor."""
        return _specs(self.proto.graph.output, "output")

    @property
    def opset(self) -> int:
        """Version of ONNX's own operator set."""
        return _opset(self.proto) or 0

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of what the model computes; ranges and plans are keyed by it. See `edgemm.graph.digest`."""
        return digest(self.proto, self.folder)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, wherever they are stored."""
        return sum(tensor_nbytes(tensor) for tensor in walk.tensors(self.proto))

    def copy_proto(self) -> ModelProto:
        """Return a copy of the proto that the caller owns and may change."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return proto

    def skeleton(self) -> ModelProto:
        """Return a copy whose large initializers have name, type and shape, but no data.

        It is what an analysis needs that looks at types, shapes and small constants; it is always far below 2 GB.
        """
        light = ModelProto()
        # Copying the graph whole would double gigabytes: copy all but the main graph's initializers, then those.
        _copy_fields(self.proto, light, "graph")
        _copy_fields(self.proto.graph, light.graph, "initializer")
        for tensor in self.proto.graph.initializer:
            kept = light.graph.initializer.add()
            if tensor_nbytes(tensor) < _LARGE_TENSOR:
                kept.CopyFrom(tensor)
            else:
                kept.name, kept.data_type = tensor.name, tensor.data_type
                kept.dims.extend(tensor.dims)
                kept.data_location = TensorProto.EXTERNAL
        return light

    def with_proto(self, proto: ModelProto) -> Model:
        """Return a model with another graph and the same data folder."""
        return Model(proto, self.folder)

    def array(self, tensor: TensorProto) -> Array:
        """Return a tensor of this model as a numpy array that the caller owns."""
        return to_array(tensor, self.folder)

    def to_bytes(self) -> bytes:
        """Return the whole model as one ONNX file, the same bytes for the same proto.

        Raises ModelError if it would be over 2 GB: use `save`.
        """
        if self.nbytes > PROTO_LIMIT - _HEADROOM:
            raise ModelError(
                f"The model holds {self.nbytes / 1e9:.1f} GB of weights, and one ONNX file holds at most 2 GB. "
                "Save it to a folder instead: Model.save(path) writes the weights to a file beside it."
            )
        proto = self.proto
        if any(is_external(tensor) for tensor in walk.tensors(proto)):
            proto = self.copy_proto()
            for tensor in walk.tensors(proto):
                inline(tensor, self.folder)
        return bytes(proto.SerializeToString(deterministic=True))

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the model to `path` and return the files written.

        One file if it fits in 2 GB; else the large tensors go to one data file beside it, `<path>.data`. Raises
        ModelError if the disk refuses.
        """
        target = Path(path)
        try:
            if self.nbytes <= PROTO_LIMIT - _HEADROOM:
                target.write_bytes(self.to_bytes())
                return (target,)
            return _save_with_data(self, target)
        except OSError as error:
            raise ModelError(f"Cannot write {target}: {error}. Free some space or choose another place.") from error


def load(path: str | os.PathLike[str], *, any_opset: bool = False) -> Model:
    """Read an ONNX file, with its external data, and check that it is whole.

    Checked: it is ONNX, opset 11 to 23, every value is made before it is read and made once, external data is inside
    the model's folder and long enough. Whether an engine can run it is `edgemm.graph.check`'s question. `any_opset`
    takes other opsets, too: to be checked, not to be rewritten. Raises ModelError, with what to do.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"There is no file {file}. Give the path of an ONNX model.") from error
    except IsADirectoryError as error:
        raise ModelError(f"{file} is a folder. Give the path of the .onnx file in it.") from error
    except OSError as error:
        raise ModelError(f"Cannot read {file}: {error}.") from error
    proto = _parse(data, str(file))
    del data
    return _finish(proto, file.parent, file, any_opset)


def from_proto(proto: ModelProto, folder: str | os.PathLike[str] | None = None, *, any_opset: bool = False) -> Model:
    """Make a Model of a proto built in memory, with the same checks as `load`.

    The proto is copied. `folder` is where its external data lies, if it has any.
    """
    private = ModelProto()
    private.CopyFrom(proto)
    return _finish(private, None if folder is None else Path(folder), None, any_opset)


def from_bytes(data: bytes) -> Model:
    """Make a Model of the bytes of an ONNX file without external data, with the same checks as `load`."""
    return _finish(_parse(data, "These bytes"), None, None)


def _parse(data: bytes, name: str) -> ModelProto:
    if not data:
        raise ModelError(f"{name}: an empty file; expected an ONNX model. Copy or export it again.")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{name} is a Git LFS pointer, not the model itself. Fetch it: git lfs pull")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        # An ONNX file starts with field 1, the IR version, as a small number.
        if data[0] == 0x08 and (len(data) == 1 or 3 <= data[1] < 32):
            raise ModelError(
                f"{name} starts like an ONNX model, but is cut off or damaged after {len(data)} bytes. "
                "Copy or export it again."
            ) from error
        raise ModelError(
            f"{name} is not an ONNX model (it starts with {data[:8]!r}). Export the model to ONNX first, for "
            "example with torch.onnx.export."
        ) from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(
            f"{name} holds no ONNX graph: it is cut off, or another kind of file. Copy or export it again."
        )
    if not proto.opset_import:
        raise ModelError(
            f"{name} names no operator set. An ONNX file ends with it, so this one is cut off: copy or export it again."
        )
    return proto


def _finish(proto: ModelProto, folder: Path | None, path: Path | None, any_opset: bool = False) -> Model:
    _check_opset(proto, any_opset)
    if not proto.graph.output:
        raise ModelError("The graph has no output, so there is nothing to run. Export the model with its outputs.")
    for graph in walk.graphs(proto.graph):
        _drop_initializer_inputs(graph)
    _check_functions(proto)
    walk.sort_nodes(proto.graph)
    _check_names(proto.graph, frozenset())
    external = [tensor for tensor in walk.tensors(proto) if is_external(tensor)]
    if not external:
        return Model(proto, None, path)
    if folder is None:
        raise ModelError(
            f'Tensor "{external[0].name}" keeps its data in another file, but the model came without a folder. '
            "Load it with edgemm.graph.load(path)."
        )
    for tensor in external:
        external_range(tensor, folder)
    lazy = sum(map(tensor_nbytes, external)) > _INLINE_LIMIT
    for tensor in external:
        if not lazy or tensor_nbytes(tensor) < _LARGE_TENSOR:
            inline(tensor, folder)
    return Model(proto, folder if lazy else None, path)


def _opset(proto: ModelProto) -> int | None:
    versions = [item.version for item in proto.opset_import if item.domain in walk.STANDARD_DOMAINS]
    return max(versions, default=None)


def _check_opset(proto: ModelProto, any_opset: bool) -> None:
    version = _opset(proto)
    if version is None:
        # A graph of nothing but custom operators needs no version of ONNX's own.
        if any(walk.is_standard(node) for node, _ in walk.all_nodes(proto)):
            raise ModelError(
                "The model uses ONNX's own operators but names no version of them. Add an opset_import for "
                f'the domain "" with a version from {OLDEST_OPSET} to {NEWEST_OPSET}.'
            )
        return
    if any_opset:
        return
    if version < OLDEST_OPSET:
        raise ModelError(
            f"The model is written for opset {version}; edgemm reads {OLDEST_OPSET} to {NEWEST_OPSET}. Export it with "
            f"opset 17, or convert it: onnx.version_converter.convert_version(model, 17)."
        )
    if version > NEWEST_OPSET:
        raise ModelError(
            f"The model is written for opset {version}; edgemm reads {OLDEST_OPSET} to {NEWEST_OPSET}. Export it with "
            f"opset_version={NEWEST_OPSET} or lower."
        )


def _check_functions(proto: ModelProto) -> None:
    """Raise ModelError if a local function calls itself, directly or through others."""
    calls = {
        (function.domain, function.name): {(node.domain, node.op_type) for node in walk.nodes(function)}
        for function in proto.functions
    }
    reached = {key: called & calls.keys() for key, called in calls.items()}
    for _ in calls:
        # One more level of calls a round.
        reached = {key: found.union(*(reached[other] for other in found)) for key, found in reached.items()}
    for key, found in reached.items():
        if key in found:
            raise ModelError(
                f'The local function "{key[0]}.{key[1]}" calls itself, which ONNX does not allow. Export the model '
                "with a Loop instead."
            )


def _drop_initializer_inputs(graph: GraphProto) -> None:
    """Remove from the inputs what has a stored value; IR version 3 listed those too."""
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {sparse.values.name for sparse in graph.sparse_initializer}
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name in stored:
            del graph.input[index]


def _check_names(graph: GraphProto, outer: frozenset[str]) -> None:
    """Raise ModelError if a value is read that nothing makes, or is made twice."""
    made: set[str] = set()

    def make(name: str, by: str) -> None:
        if name in made:
            raise ModelError(
                f'The value "{name}" is made twice, the second time by {by}; ONNX wants each name once. '
                "Export the model again, or rename one of them."
            )
        made.add(name)

    for value in graph.input:
        make(value.name, "an input")
    for tensor in graph.initializer:
        make(tensor.name, "an initializer")
    for sparse in graph.sparse_initializer:
        make(sparse.values.name, "a sparse initializer")
    for node in graph.node:
        by = f'{node.op_type} "{walk.label(node)}"'
        for name in node.input:
            if name and name not in made and name not in outer:
                raise ModelError(
                    f'{by} reads "{name}", which no node, input or initializer makes. The graph is incomplete: export '
                    "it again, or extract it with onnx.utils.extract_model."
                )
        for _, inner in walk.subgraphs(node):
            _check_names(inner, outer | made)
        for name in node.output:
            if name:
                make(name, by)
    for value in graph.output:
        if value.name not in made and value.name not in outer:
            raise ModelError(
                f'The graph "{graph.name}" promises an output "{value.name}", which nothing makes. Export it again.'
            )


def _specs(values: Iterable[ValueInfoProto], kind: str) -> tuple[TensorSpec, ...]:
    found = []
    for value in values:
        spec = value_spec(value)
        if spec is None:
            what = value.type.WhichOneof("value")
            if what == "tensor_type" or what is None:
                raise ModelError(
                    f'The {kind} "{value.name}" has no known type or rank. Run the shape inference pass, or export the '
                    f"model with the shape of its {kind}s."
                )
            raise ModelError(
                f'The {kind} "{value.name}" is a {what.removesuffix("_type")}, and edgemm feeds and reads '
                "plain tensors only. Export the model with tensors."
            )
        found.append(spec)
    return tuple(found)


def _save_with_data(model: Model, target: Path) -> tuple[Path, ...]:
    """Write nodes and small tensors to `target`, large initializers to `<target>.data`, one at a time."""
    data_file = target.with_name(target.name + ".data")
    light = model.skeleton()
    with data_file.open("wb") as stream:
        for tensor, kept in zip(model.proto.graph.initializer, light.graph.initializer, strict=True):
            if tensor_nbytes(tensor) < _LARGE_TENSOR:
                inline(kept, model.folder)
                continue
            stream.write(bytes(-stream.tell() % _ALIGNMENT))
            offset = stream.tell()
            for chunk in raw_chunks(tensor, model.folder):
                stream.write(chunk)
            for key, text in (
                ("location", data_file.name),
                ("offset", str(offset)),
                ("length", str(stream.tell() - offset)),
            ):
                entry = kept.external_data.add()
                entry.key, entry.value = key, text
    rest = 0
    # The tensors of the main graph come first. What subgraphs and attributes keep outside is small in practice; it
    # becomes part of the file.
    for tensor in islice(walk.tensors(light), len(light.graph.initializer), None):
        inline(tensor, model.folder)
        rest += tensor_nbytes(tensor)
    if rest > PROTO_LIMIT - _HEADROOM:
        raise ModelError(
            f"{rest / 1e9:.1f} GB of the model's weights are inside subgraphs or Constant nodes, which must "
            "fit in 2 GB. Export the weights as initializers of the main graph."
        )
    target.write_bytes(light.SerializeToString(deterministic=True))
    return (target, data_file)


def _copy_fields(source: ModelProto | GraphProto, target: ModelProto | GraphProto, but: str) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == but:
            continue
        if hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)
