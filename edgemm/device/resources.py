"""What a device gives: streams, events, memory, modules, graphs. Each gives itself back with `close`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemm.device.driver import Driver, host_bytes
from edgemm.device.pycuda import PyCuda
from edgemm.errors import UsageError
from edgemm.types import Array

_DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory beyond this must be asked for (CUDA C++ Programming Guide, 20.x "Compute Capabilities")."""


class Stream:
    """A queue of work on the device. `handle` is the driver's `CUstream` as a number."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = driver.create_stream()

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        self._driver.synchronize(self.handle)

    def wait(self, event: Event) -> None:
        """Let what comes next in the stream wait for `event`; the host does not wait."""
        self._driver.wait(self.handle, event.handle)

    def close(self) -> None:
        """Give the stream back; what is in it still runs."""
        if self.handle:
            self._driver.destroy_stream(self.handle)
            self.handle = 0


class Event:
    """A mark in a stream, with a time."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = driver.create_event()

    def record(self, stream: Any = None) -> Event:
        """Mark where `stream` is now, and return this event."""
        self._driver.record(self.handle, stream_handle(stream, self._driver))
        return self

    def milliseconds_since(self, earlier: Event) -> float:
        """Device time from `earlier` to this event. Waits for this event."""
        return self._driver.elapsed_ms(earlier.handle, self.handle)

    def close(self) -> None:
        """Give the event back."""
        if self.handle:
            self._driver.destroy_event(self.handle)
            self.handle = 0


class Buffer:
    """An array in device memory, or in pinned host memory that the device can reach.

    It has `__cuda_array_interface__`, so CuPy, Numba, torch and PyCUDA take it without a copy. It owns its memory:
    what looks at it must not outlive it.
    """

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: np.dtype[Any], *, pinned: bool) -> None:
        self._driver = driver
        self.shape = shape
        self.dtype = dtype
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._host = 0
        size = max(self.nbytes, 1)  # the driver refuses 0
        if pinned:
            self._host, self.pointer = driver.allocate_pinned(size)
        else:
            self.pointer = driver.allocate(size)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.nbytes else 0, False),
            "strides": None,
            "version": 3,
        }

    @property
    def host(self) -> Array:
        """Pinned memory as a numpy array, without a copy. Raises UsageError for device memory."""
        if not self._host:
            raise UsageError("This buffer is in device memory, which the host cannot read. Use `download`.")
        return host_bytes(self._host, self.nbytes).view(self.dtype).reshape(self.shape)

    def upload(self, array: Array, stream: Any = None) -> None:
        """Copy `array` (C-contiguous, this shape and dtype) here, asynchronously if it is pinned memory.

        Keep `array` until then.
        """
        if array.shape != self.shape or array.dtype != self.dtype or not array.flags.c_contiguous:
            raise UsageError(
                f"Found an array {array.dtype}{list(array.shape)}; "
                f"expected a contiguous {self.dtype}{list(self.shape)}."
            )
        if self.nbytes:
            handle = stream_handle(stream, self._driver)
            self._driver.copy(self.pointer, array.ctypes.data, self.nbytes, "to_device", handle)

    def download(self, stream: Any = None) -> Array:
        """A numpy copy. Waits for `stream`."""
        array = np.empty(self.shape, self.dtype)
        handle = stream_handle(stream, self._driver)
        if self.nbytes:
            self._driver.copy(array.ctypes.data, self.pointer, self.nbytes, "to_host", handle)
        self._driver.synchronize(handle)
        return array

    def close(self) -> None:
        """Give the memory back. Nothing in a stream may use it any more."""
        if self._host:
            self._driver.free_pinned(self._host)
        elif self.pointer:
            self._driver.free(self.pointer)
        self._host = self.pointer = 0


class Module:
    """Compiled kernels on the device."""

    def __init__(self, driver: Driver, binary: bytes) -> None:
        self._driver = driver
        self._module = driver.load(binary)
        self._functions: dict[str, Any] = {}
        self._shared: dict[str, int] = {}

    def launch(
        self,
        kernel: str,
        params: ctypes.Structure,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int = 0,
        stream: Any = None,
    ) -> None:
        """Start `kernel` with `params` as its one argument, and do not wait. `params` is copied."""
        if kernel not in self._functions:
            self._functions[kernel] = self._driver.function(self._module, kernel)
        function = self._functions[kernel]
        if shared_bytes > max(self._shared.get(kernel, 0), _DEFAULT_SHARED_BYTES):
            self._driver.allow_shared(function, shared_bytes)
            self._shared[kernel] = shared_bytes
        handle = stream_handle(stream, self._driver)
        self._driver.launch(function, _three(grid), _three(block), shared_bytes, handle, params)

    def close(self) -> None:
        """Give the module back."""
        if self._module is not None:
            self._driver.unload(self._module)
            self._functions.clear()
            self._module = None


class Graph:
    """Recorded work that starts as one."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = 0

    def launch(self, stream: Any = None) -> None:
        """Put all of it into `stream`, and do not wait."""
        if not self.handle:
            raise UsageError("The graph is not recorded yet. Leave `Device.capture` first.")
        self._driver.launch_graph(self.handle, stream_handle(stream, self._driver))

    def close(self) -> None:
        """Give the graph back."""
        if self.handle:
            self._driver.destroy_graph(self.handle)
            self.handle = 0


def stream_handle(stream: Any, driver: Driver | None = None) -> int:
    """The driver's handle of a stream: None or 0 (default), a number, ours, torch's, CuPy's or PyCUDA's object."""
    if stream is None:
        return 0
    if isinstance(stream, int):
        return stream
    if isinstance(stream, Stream):
        return stream.handle
    if isinstance(driver, PyCuda) and hasattr(stream, "handle"):
        return driver.adopt(stream)
    for name in ("handle", "cuda_stream", "ptr"):  # PyCUDA, torch, CuPy
        value = getattr(stream, name, None)
        if isinstance(value, int):
            return value
    protocol = getattr(stream, "__cuda_stream__", None)  # CUDA Python's: (version, handle)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    raise UsageError(f"Found a {type(stream).__name__} as a stream; expected a CUDA stream, its handle, or None.")


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, *[1] * (3 - len(sizes)))
