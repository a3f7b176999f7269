"""A device and all that was made on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from edgemm.device.cuda_bindings import CudaBindings
from edgemm.device.driver import BackendName, DeviceInfo, Driver
from edgemm.device.pycuda import PyCuda
from edgemm.device.resources import Buffer, Event, Graph, Module, Stream, stream_handle
from edgemm.errors import DeviceError, MissingExtraError, UsageError
from edgemm.types import Array

_Thing = TypeVar("_Thing", Buffer, Stream, Event, Module, Graph)


class Device:
    """A CUDA device whose primary context is current from `__enter__` to `__exit__`, in the thread that entered."""

    def __init__(self, driver: Driver, info: DeviceInfo) -> None:
        self._driver = driver
        self._open: list[Buffer | Stream | Event | Module | Graph] = []
        self._order: Event | None = None
        self.info = info
        self.capturing = False
        """True while a stream is being captured."""

    @property
    def arch(self) -> int:
        """Compute capability as one number: 87 is sm_87."""
        return self.info.arch

    @property
    def backend(self) -> BackendName:
        """Which Python module calls the driver."""
        return self._driver.name

    def __enter__(self) -> Device:
        self._driver.enter(self.info.index)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thing in reversed(self._open):
            thing.close()
        self._open.clear()
        self._driver.leave(self.info.index)

    def stream(self) -> Stream:
        """A new stream; it does not wait for the default one."""
        return self._keep(Stream(self._driver))

    def event(self) -> Event:
        """A new event."""
        return self._keep(Event(self._driver))

    def empty(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Device memory, not initialised."""
        return self._keep(Buffer(self._driver, tuple(shape), np.dtype(dtype), pinned=False))

    def pinned(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """Page-locked host memory that the device can read and write; on an integrated GPU that takes no copy."""
        return self._keep(Buffer(self._driver, tuple(shape), np.dtype(dtype), pinned=True))

    def upload(self, array: Array) -> Buffer:
        """Copy a numpy array into new device memory, and wait."""
        packed = np.ascontiguousarray(array)
        buffer = self.empty(packed.shape, packed.dtype)
        buffer.upload(packed)
        self._driver.synchronize(0)
        return buffer

    def fill(self, address: int, value: int, size: int, stream: Any = None) -> None:
        """Fill `size` bytes at a device address, in the order of `stream`."""
        if size:
            self._driver.fill(address, value, size, stream_handle(stream, self._driver))

    def write(self, address: int, array: Array, stream: Any = None) -> None:
        """Copy a contiguous host array to a device address, in the order of `stream`; asynchronous if it is pinned."""
        if array.nbytes:
            self._driver.copy(
                address, array.ctypes.data, array.nbytes, "to_device", stream_handle(stream, self._driver)
            )

    def read(self, address: int, array: Array, stream: Any = None) -> None:
        """Copy from a device address into a contiguous host array, in the order of `stream`; asynchronous if pinned."""
        if array.nbytes:
            self._driver.copy(array.ctypes.data, address, array.nbytes, "to_host", stream_handle(stream, self._driver))

    def load_module(self, binary: bytes) -> Module:
        """Load a cubin."""
        return self._keep(Module(self._driver, binary))

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Graph]:
        """Record into a graph what is put into `stream` within the `with` block; nothing runs."""
        graph = self._keep(Graph(self._driver))
        self._driver.begin_capture(stream.handle)
        self.capturing = True
        recorded = False
        try:
            yield graph
            recorded = True
        finally:
            # ended in any case, else the stream stays in capture mode
            self.capturing = False
            handle = self._driver.end_capture(stream.handle)
            if recorded:
                graph.handle = handle
            else:
                self._driver.destroy_graph(handle)

    def order_after(self, producer: int, consumer: Any) -> None:
        """Let the stream `consumer` wait, on the device, for all that is in the stream `producer` now.

        Handles 0 and 1 are both the default stream. One event serves all calls: a wait is for what was recorded then.
        """
        handle = stream_handle(consumer, self._driver)
        if producer == handle or {producer, handle} == {0, 1}:
            return
        if self._order is None:
            self._order = self.event()
        self._driver.wait(handle, self._order.record(producer).handle)

    def _keep(self, thing: _Thing) -> _Thing:
        self._open.append(thing)
        return thing


def open_device(index: int = 0, backend: BackendName | None = None) -> Device:
    """The device `index`, through `backend`, or through the first that is installed (cuda-bindings, then PyCUDA).

    Raises MissingExtraError if neither is installed, DeviceError if there is no driver or no such device.
    """
    if backend not in (None, "cuda-bindings", "pycuda"):
        raise UsageError(f'The CUDA backend is {backend!r}; expected "cuda-bindings" or "pycuda".')
    driver = _driver(backend)
    count = driver.count()
    if not 0 <= index < count:
        raise DeviceError(f"Found {count} CUDA devices; there is no device {index}. Give an index from 0.")
    return Device(driver, driver.info(index))


def _driver(backend: BackendName | None) -> Driver:
    if backend == "pycuda":
        return PyCuda()
    try:
        return CudaBindings()
    except MissingExtraError:
        if backend is None and importlib.util.find_spec("pycuda") is not None:
            return PyCuda()
        raise
