"""Arrays in device memory, of whatever library: looked at through their protocols, never copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.device import dlpack
from edgemm.device.device import Device
from edgemm.errors import KernelError


@dataclass(frozen=True)
class ArrayView:
    """An array in device memory, of whatever library: address, shape, dtype, strides in bytes (None: contiguous).

    `owner` keeps the memory alive. `stream` is the stream in which it was written, if its owner says so.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    owner: Any
    writable: bool
    stream: int | None = None


def array_view(array: Any, what: str, device: Device | None = None) -> ArrayView:
    """Look at an array through `__cuda_array_interface__` (versions 0 to 3) or DLPack; copy nothing.

    `what` names it in errors. Raises KernelError if it is in host memory or has neither.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        pointer, readonly = interface["data"]
        strides = interface.get("strides")
        stream = interface.get("stream")
        return ArrayView(
            int(pointer or 0),
            tuple(interface["shape"]),
            np.dtype(interface["typestr"]),
            None if strides is None else tuple(strides),
            array,
            not readonly,
            None if stream is None else int(stream),
        )
    if hasattr(array, "__dlpack__"):
        return _dlpack_view(array, what)
    raise KernelError(
        f"{what} is a {type(array).__name__} in host memory; expected device memory, "
        "with __cuda_array_interface__ or DLPack. Upload it: device.upload(array)."
    )


_DLPACK_REACHABLE = {2: "CUDA", 3: "CUDA host", 13: "CUDA managed"}
_DLPACK_CODES = {0: "i", 1: "u", 2: "f"}


def _dlpack_view(array: Any, what: str) -> ArrayView:
    device_type, _ = array.__dlpack_device__()
    if int(device_type) not in _DLPACK_REACHABLE:
        raise KernelError(
            f"{what} is a {type(array).__name__} in host memory; expected device memory. "
            "Upload it: device.upload(array)."
        )
    capsule = array.__dlpack__()
    tensor = dlpack.tensor_in(capsule)
    if tensor.code not in _DLPACK_CODES or tensor.lanes != 1 or tensor.bits % 8:
        raise KernelError(f"{what} has a DLPack type (code {tensor.code}, {tensor.bits} bits) that no kernel takes.")
    dtype = np.dtype(f"{_DLPACK_CODES[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim)) if tensor.strides else None
    # The capsule stays unconsumed: it frees the tensor when it goes, so it is kept beside the array.
    return ArrayView((tensor.data or 0) + tensor.byte_offset, shape, dtype, strides, (array, capsule), True)
