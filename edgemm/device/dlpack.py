"""DLPack: device memory as a capsule that torch, CuPy, JAX and others take without a copy, and a look into theirs.

The structures are those of dlpack.h (github.com/dmlc/dlpack), in the unversioned form that every consumer knows.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU, CUDA = 1, 2
"""DLPack's numbers of devices."""

_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT16 = 4
_NAME = b"dltensor"


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_given: dict[int, tuple[_Managed, Any, Any]] = {}
"""What consumers hold, by the address of the structure: it, its sizes, and what keeps the memory alive."""


def _delete(address: int) -> None:
    """Called by the consumer when it is done."""
    _given.pop(address, None)


def _destroy(capsule: int) -> None:
    """Called when a capsule goes; a consumer that took it has renamed it and deletes the tensor itself."""
    if _is_valid(capsule, _NAME):
        _given.pop(_pointer(capsule, _NAME), None)


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DELETER, _DESTRUCTOR = _Callback(_delete), _Callback(_destroy)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def capsule(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any, device: tuple[int, int] = (CUDA, 0)
) -> Any:
    """Return a "dltensor" capsule of contiguous memory; `owner` lives until the consumer lets go.

    Raises BufferError for a type that DLPack has no number for, as the protocol asks.
    """
    code = _BFLOAT16 if dtype.name == "bfloat16" else _CODES.get(dtype.kind)
    if code is None:
        raise BufferError(f"DLPack has no number for the type {dtype.name}. Cast the output in the model.")
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    tensor = Tensor(
        data=address,
        device_type=device[0],
        device_id=device[1],
        ndim=len(shape),
        code=code,
        bits=dtype.itemsize * 8,
        lanes=1,
        shape=ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
        strides=None,
        byte_offset=0,
    )
    managed = _Managed(tensor, None, ctypes.cast(_DELETER, ctypes.c_void_p))
    place = ctypes.addressof(managed)
    _given[place] = (managed, sizes, owner)
    return _new(place, _NAME, ctypes.cast(_DESTRUCTOR, ctypes.c_void_p))


def tensor_in(capsule: Any) -> Tensor:
    """Look into a "dltensor" capsule without consuming it: it frees the tensor when it goes, so keep it."""
    return Tensor.from_address(_pointer(id(capsule), _NAME))
