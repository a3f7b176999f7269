"""Tensors of an ONNX file: their type, their size and their bytes, wherever those are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, numpy_helper

from edgemm.errors import ModelError
from edgemm.types import Array, TensorSpec

_NAMES = {
    # ONNX's name: numpy's (or ml_dtypes') name, bits of an element. Our own table, because what onnx's helper
    # returns for the small types changed between its versions.
    "FLOAT": ("float32", 32),
    "UINT8": ("uint8", 8),
    "INT8": ("int8", 8),
    "UINT16": ("uint16", 16),
    "INT16": ("int16", 16),
    "INT32": ("int32", 32),
    "INT64": ("int64", 64),
    "STRING": ("object", 0),
    "BOOL": ("bool", 8),
    "FLOAT16": ("float16", 16),
    "DOUBLE": ("float64", 64),
    "UINT32": ("uint32", 32),
    "UINT64": ("uint64", 64),
    "COMPLEX64": ("complex64", 64),
    "COMPLEX128": ("complex128", 128),
    "BFLOAT16": ("bfloat16", 16),
    "FLOAT8E4M3FN": ("float8_e4m3fn", 8),
    "FLOAT8E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "FLOAT8E5M2": ("float8_e5m2", 8),
    "FLOAT8E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "FLOAT8E8M0": ("float8_e8m0fnu", 8),
    "UINT4": ("uint4", 4),
    "INT4": ("int4", 4),
    "FLOAT4E2M1": ("float4_e2m1fn", 4),
    "UINT2": ("uint2", 2),
    "INT2": ("int2", 2),
}
_TYPES: dict[int, tuple[str, int]] = {
    number: _NAMES[name] for name, number in TensorProto.DataType.items() if name in _NAMES
}
_CHUNK_BYTES = 1 << 22


def dtype_name(elem_type: int) -> str:
    """Return numpy's name of an ONNX element type ("float32", "bfloat16"; strings are "object").

    Raises ModelError for a number that ONNX does not define.
    """
    return _type(elem_type)[0]


def _type(elem_type: int) -> tuple[str, int]:
    if elem_type not in _TYPES:
        raise ModelError(
            f"Found element type {elem_type}, which this version of onnx does not know. "
            "Upgrade onnx, or export the model again with a common type such as float32."
        )
    return _TYPES[elem_type]


def value_spec(value: ValueInfoProto) -> TensorSpec | None:
    """Return name, dtype and shape of a graph value, or None if it is no tensor or has no type or rank."""
    if not value.type.HasField("tensor_type"):
        return None
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return None
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
        else:
            # "?" and "" are how exporters spell "no name"; a negative number is an old habit of the same kind.
            shape.append(dim.dim_param if dim.dim_param not in ("", "?") else None)
    return TensorSpec(value.name, dtype_name(tensor.elem_type), tuple(shape))


def tensor_nbytes(tensor: TensorProto) -> int:
    """Return the bytes of the tensor's elements as stored raw; 0 for strings."""
    return -(-int(math.prod(tensor.dims)) * _type(tensor.data_type)[1] // 8)


def is_external(tensor: TensorProto) -> bool:
    """True if the tensor's bytes are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def external_range(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """Return file, offset and length in bytes of an external tensor, after checking all three.

    The file must be a regular file inside `folder` once every symbolic link is resolved: a model may not
    make edgemm read what lies elsewhere. Raises ModelError if it is not, or is missing or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    pure = Path(location)
    if not location or pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location:
        raise ModelError(
            f'Tensor "{tensor.name}" keeps its data in "{location}"; expected a relative path inside the '
            "model's folder. Save the model again with its data file beside it."
        )
    file = folder / pure
    root = folder.resolve()
    if not file.resolve().is_relative_to(root):
        raise ModelError(
            f'Tensor "{tensor.name}" keeps its data in "{location}", a link that leads out of {root}. '
            "Copy the data file itself into the model's folder."
        )
    if not file.is_file():
        raise ModelError(
            f'Tensor "{tensor.name}" keeps its data in "{location}", which is not a file in {root}. '
            "Put the data file that came with the model beside it."
        )
    want = tensor_nbytes(tensor)
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or want)
    except ValueError as error:
        raise ModelError(
            f'Tensor "{tensor.name}" has an external data offset or length that is not a number '
            f"({entries.get('offset')!r}, {entries.get('length')!r}). Export the model again."
        ) from error
    have = file.stat().st_size
    if offset < 0 or length != want or offset + length > have:
        raise ModelError(
            f'Tensor "{tensor.name}" needs {want} bytes at offset {offset} of "{location}", but the model says '
            f"{length} bytes and the file has {have}. The data file is cut off or belongs to another model: "
            "copy it again."
        )
    return file, offset, want


def raw_chunks(tensor: TensorProto, folder: Path | None) -> Iterator[bytes]:
    """Yield the tensor's bytes, little-endian and row-major, as ONNX stores raw data.

    The same bytes come out whether the tensor is stored raw, in a typed field or in an external file; an
    external file is read in pieces of 4 MiB. Strings come out with their length in front.
    """
    if is_external(tensor):
        file, offset, left = external_range(tensor, _folder(tensor, folder))
        with file.open("rb") as stream:
            stream.seek(offset)
            while left:
                chunk = stream.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ModelError(f"{file} became shorter while it was read. Do not change it during the build.")
                left -= len(chunk)
                yield chunk
    elif tensor.data_type == TensorProto.STRING:
        for text in tensor.string_data:
            yield len(text).to_bytes(8, "little") + text
    elif tensor.HasField("raw_data"):
        yield tensor.raw_data
    else:
        yield numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def inline(tensor: TensorProto, folder: Path | None) -> None:
    """Replace an external tensor's reference by its bytes, in place."""
    if is_external(tensor):
        data = b"".join(raw_chunks(tensor, folder))
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = data


def to_array(tensor: TensorProto, folder: Path | None) -> Array:
    """Return the tensor as a numpy array of its own; external data is read from `folder`."""
    if is_external(tensor):
        private = TensorProto()
        private.CopyFrom(tensor)
        inline(private, folder)
        tensor = private
    try:
        return np.array(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f'Tensor "{tensor.name}" cannot be read: its data does not fill the shape {list(tensor.dims)} '
            f"({error}). The file is damaged: export the model again."
        ) from error


def _folder(tensor: TensorProto, folder: Path | None) -> Path:
    if folder is None:
        raise ModelError(
            f'Tensor "{tensor.name}" keeps its data in another file, but the model came without a folder. '
            "Load it with edgemm.graph.load(path)."
        )
    return folder
