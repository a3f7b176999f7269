"""The memory behind one input or output of a plan: on the device, and for the host to read or write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from edgemm.device import Buffer, Device, Stream, dlpack
from edgemm.errors import EngineError
from edgemm.types import Array


class TensorMemory:
    """Room for one tensor, which grows when a larger shape comes and is reused otherwise.

    On an integrated GPU the room is page-locked host memory that the device reads and writes itself: nothing is
    copied. Elsewhere there is device memory, and page-locked memory as the other end of asynchronous copies.
    With `host_access=False` (state) it is device memory alone, which the host never sees.
    """

    def __init__(self, device: Device, dtype: str, *, host_access: bool = True) -> None:
        self.dtype = numpy_dtype(dtype)
        self._device = device
        self._host_access = host_access
        self._mapped = host_access and device.info.integrated
        self._capacity = -1
        self._buffers: list[Buffer] = []

    @property
    def address(self) -> int:
        """Where TensorRT finds the tensor."""
        return self._buffers[0].pointer

    def reserve(self, size: int) -> bool:
        """Make room for `size` bytes; return True if the address changed. What was in it is lost then."""
        if size <= self._capacity:
            return False
        self.close()
        if not self._mapped:
            self._buffers.append(self._device.empty((size,), np.uint8))
        if self._host_access:
            self._buffers.append(self._device.pinned((size,), np.uint8))
        self._capacity = size
        return True

    def host(self, shape: tuple[int, ...]) -> Array:
        """The tensor on the host's side, without a copy: valid until `reserve` moves it or the next step writes it."""
        size = math.prod(shape) * self.dtype.itemsize
        return self._buffers[-1].host[:size].view(self.dtype).reshape(shape)

    def send(self, size: int, stream: Stream) -> None:
        """Bring `size` bytes from the host's side to the device, in the order of `stream`."""
        if not self._mapped:
            self._device.write(self._buffers[0].pointer, self._buffers[1].host[:size], stream)

    def fetch(self, size: int, stream: Stream) -> None:
        """Bring `size` bytes from the device to the host's side, in the order of `stream`."""
        if not self._mapped:
            self._device.read(self._buffers[0].pointer, self._buffers[1].host[:size], stream)

    def clear(self, size: int, stream: Stream) -> None:
        """Fill the device's side with zeros, in the order of `stream`."""
        self._device.fill(self._buffers[0].pointer, 0, size, stream)

    def close(self) -> None:
        """Give the memory back."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
        self._capacity = -1


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the device, for what takes `__cuda_array_interface__` (CuPy, PyCUDA, Numba) or DLPack (torch, JAX).

    It owns nothing: it is valid until the engine's next step, and in the order of the stream that the step ran in.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int = 0
    """The device's index."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if math.prod(self.shape) else 0, False),
            "strides": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(self, *, stream: Any = None, **newer: Any) -> Any:
        """A capsule of this memory; `stream` and what newer versions of the protocol ask are the caller's to heed."""
        return dlpack.capsule(self.address, self.shape, self.dtype, self, self.__dlpack_device__())


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of that name. Raises EngineError for a type that only ml_dtypes has, if that is missing."""
    try:
        return np.dtype(name)
    except TypeError:
        try:
            import ml_dtypes

            return cast(np.dtype[Any], np.dtype(getattr(ml_dtypes, name)))
        except (ImportError, AttributeError) as error:
            raise EngineError(
                f"A tensor of the plan has the type {name}, which numpy cannot hold. "
                "Cast it to float32 or float16 in the model, or install ml_dtypes."
            ) from error
