"""A CUDA driver that is none: the calls of `edgemm.device.Driver` on the host's own memory, for tests without a GPU.

Copies happen at once, streams are numbers, and a graph replays the calls that were made while it was recorded. It
checks what a real driver would refuse: freed and foreign addresses, copies past the end, work in a destroyed stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from edgemm.device import BackendName, Device, DeviceInfo
from edgemm.errors import DeviceError


class HostDriver:
    """A driver with one device. `capture_fails` makes graphs impossible; `limit_bytes` is all the memory there is."""

    name: BackendName = "cuda-bindings"

    def __init__(
        self, *, device: str = "Orin", arch: int = 87, integrated: bool = False, capture_fails: bool = False
    ) -> None:
        self._info = DeviceInfo(0, device, arch, integrated, 8, 8 << 30)
        self._capture_fails = capture_fails
        self.limit_bytes = 1 << 30
        self.memory: dict[int, Any] = {}
        self.pinned: set[int] = set()
        self.streams: set[int] = set()
        self.copies: list[tuple[str, int]] = []
        self.graph_launches = 0
        self._recording: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 1000

    def open(self) -> Device:
        """What `edgemm.device.open_device` would return."""
        return Device(self, self._info)

    def count(self) -> int:
        return 1

    def info(self, index: int) -> DeviceInfo:
        return self._info

    def enter(self, index: int) -> None:
        pass

    def leave(self, index: int) -> None:
        assert not self.memory, f"{len(self.memory)} allocations were not given back"
        assert not self.streams, "a stream was not given back"

    def allocate(self, size: int) -> int:
        assert size > 0
        held = sum(len(block) for block in self.memory.values())
        if held + size > self.limit_bytes:
            raise DeviceError("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY, out of memory.")
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, 0xA5, size)  # so that what nobody wrote is seen
        address = ctypes.addressof(block)
        self.memory[address] = block
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        address = self.allocate(size)
        self.pinned.add(address)
        return address, address

    def free_pinned(self, address: int) -> None:
        self.pinned.remove(address)
        self.free(address)

    def copy(self, target: int, source: int, size: int, kind: Literal["to_device", "to_host"], stream: int) -> None:
        self._check(target if kind == "to_device" else source, size)
        self._do(stream, lambda: self._copy(target, source, size, kind))

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self.copies.append((kind, size))
        ctypes.memmove(target, source, size)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._check(address, size)
        self._do(stream, lambda: ctypes.memset(address, value, size))

    def _check(self, address: int, size: int) -> None:
        inside = any(start <= address and address + size <= start + len(block) for start, block in self.memory.items())
        assert inside, f"{size} bytes at 0x{address:x} are outside every allocation"

    def _do(self, stream: int, work: Callable[[], Any]) -> None:
        assert stream == 0 or stream in self.streams, f"stream {stream} does not exist"
        if self._recording is not None:
            self._recording.append(work)
        else:
            work()

    def enqueue(self, work: Callable[[], None]) -> None:
        """Let a double of TensorRT do its step in stream order: now, or whenever the graph being recorded runs."""
        if self._recording is not None:
            self._recording.append(work)
        else:
            work()

    def create_stream(self) -> int:
        self._next += 1
        self.streams.add(self._next)
        return self._next

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def synchronize(self, stream: int) -> None:
        assert self._recording is None, "a stream that is captured cannot be waited for"

    def create_event(self) -> int:
        self._next += 1
        return self._next

    def destroy_event(self, event: int) -> None:
        pass

    def record(self, event: int, stream: int) -> None:
        pass

    def wait(self, stream: int, event: int) -> None:
        pass

    def elapsed_ms(self, first: int, second: int) -> float:
        return 0.0

    def load(self, binary: bytes) -> Any:
        raise DeviceError("the host driver loads no cubins")

    def unload(self, module: Any) -> None:
        pass

    def function(self, module: Any, name: str) -> Any:
        raise DeviceError("the host driver has no kernels")

    def allow_shared(self, function: Any, size: int) -> None:
        pass

    def launch(
        self, function: Any, grid: Sequence[int], block: Sequence[int], shared: int, stream: int, params: Any
    ) -> None:
        raise DeviceError("the host driver launches nothing")

    def begin_capture(self, stream: int) -> None:
        if self._capture_fails:
            raise DeviceError("cuStreamBeginCapture failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED.")
        self._recording = []

    def end_capture(self, stream: int) -> int:
        assert self._recording is not None
        self._next += 1
        self._graphs[self._next] = self._recording
        self._recording = None
        return self._next

    def launch_graph(self, graph: int, stream: int) -> None:
        self.graph_launches += 1
        for work in self._graphs[graph]:
            work()

    def destroy_graph(self, graph: int) -> None:
        del self._graphs[graph]


class HostArray:
    """A numpy array that says it is on the device, as a GPUArray does."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": array.strides,
            "version": 3,
        }
