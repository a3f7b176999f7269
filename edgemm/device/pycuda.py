"""The driver through PyCUDA, which Jetson users have."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from edgemm.device.driver import BackendName, DeviceInfo, host_bytes
from edgemm.errors import DeviceError, UsageError


class PyCuda:
    """The driver through PyCUDA. Its API has no stream capture: graphs are refused with a sentence that says so."""

    name: BackendName = "pycuda"

    def __init__(self) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ModuleNotFoundError as error:
            raise DeviceError(
                'The backend "pycuda" needs the Python module "pycuda", which is not installed. '
                "Install it (pip install pycuda, with a CUDA toolkit), or take the backend cuda-bindings."
            ) from error
        except ImportError as error:  # the module is there, libcuda.so.1 is not
            raise DeviceError(f"PyCUDA cannot load the NVIDIA driver: {error}. Install the driver.") from error
        self._run(self._cuda.init)
        self._contexts: dict[int, Any] = {}
        # PyCUDA frees what is no longer referenced, so that its objects are kept by their address
        self._objects: dict[int, Any] = {}

    def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._cuda.Error as error:
            raise DeviceError(f"PyCUDA: {error}.") from error

    def _keep(self, thing: Any, address: int) -> int:
        self._objects[address] = thing
        return address

    def _stream(self, stream: int) -> Any:
        """PyCUDA's object for one of our streams; None for the default one."""
        if stream in (0, 1):
            return None
        if stream not in self._objects:
            raise UsageError(
                f"The stream 0x{stream:x} was not made by this device, and PyCUDA cannot wrap it. "
                "Hand over a pycuda.driver.Stream, or use the backend cuda-bindings."
            )
        return self._objects[stream]

    def adopt(self, stream: Any) -> int:
        """Take a `pycuda.driver.Stream` of the caller's."""
        return self._keep(stream, int(stream.handle))

    def count(self) -> int:
        return int(self._run(self._cuda.Device.count))

    def info(self, index: int) -> DeviceInfo:
        device = self._run(self._cuda.Device, index)
        kinds = self._cuda.device_attribute
        major, minor = device.compute_capability()
        return DeviceInfo(
            index=index,
            name=str(device.name()),
            arch=10 * int(major) + int(minor),
            integrated=bool(device.get_attribute(kinds.INTEGRATED)),
            multiprocessors=int(device.get_attribute(kinds.MULTIPROCESSOR_COUNT)),
            memory_bytes=int(device.total_memory()),
        )

    def enter(self, index: int) -> None:
        if index not in self._contexts:
            self._contexts[index] = self._run(self._run(self._cuda.Device, index).retain_primary_context)
        self._run(self._contexts[index].push)

    def leave(self, index: int) -> None:
        self._objects.clear()
        self._run(self._cuda.Context.pop)
        del self._contexts[index]

    def allocate(self, size: int) -> int:
        memory = self._run(self._cuda.mem_alloc, size)
        return self._keep(memory, int(memory))

    def free(self, address: int) -> None:
        self._run(self._objects.pop(address).free)

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        flags = self._cuda.host_alloc_flags
        memory = self._run(self._cuda.pagelocked_empty, size, np.uint8, "C", flags.PORTABLE | flags.DEVICEMAP)
        return self._keep(memory, int(memory.ctypes.data)), int(memory.base.get_device_pointer())

    def free_pinned(self, address: int) -> None:
        self._run(self._objects.pop(address).base.free)

    def copy(self, target: int, source: int, size: int, kind: Literal["to_device", "to_host"], stream: int) -> None:
        host = host_bytes(source if kind == "to_device" else target, size)
        if kind == "to_device":
            self._run(self._cuda.memcpy_htod_async, target, host, self._stream(stream))
        else:
            self._run(self._cuda.memcpy_dtoh_async, host, source, self._stream(stream))

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._run(self._cuda.memset_d8_async, address, value, size, self._stream(stream))

    def create_stream(self) -> int:
        return self.adopt(self._run(self._cuda.Stream, 1))  # CU_STREAM_NON_BLOCKING

    def destroy_stream(self, stream: int) -> None:
        del self._objects[stream]

    def synchronize(self, stream: int) -> None:
        known = self._stream(stream)
        self._run(known.synchronize if known is not None else self._cuda.Context.synchronize)

    def create_event(self) -> int:
        event = self._run(self._cuda.Event)
        return self._keep(event, id(event))  # PyCUDA shows no handle

    def destroy_event(self, event: int) -> None:
        del self._objects[event]

    def record(self, event: int, stream: int) -> None:
        self._run(self._objects[event].record, self._stream(stream))

    def wait(self, stream: int, event: int) -> None:
        known = self._stream(stream)
        if known is None:
            raise UsageError("PyCUDA cannot let the default stream wait for an event. Use a stream of `Device.stream`.")
        self._run(known.wait_for_event, self._objects[event])

    def elapsed_ms(self, first: int, second: int) -> float:
        self._run(self._objects[second].synchronize)
        return float(self._run(self._objects[second].time_since, self._objects[first]))

    def load(self, binary: bytes) -> Any:
        return self._run(self._cuda.module_from_buffer, binary)

    def unload(self, module: Any) -> None:
        """PyCUDA unloads a module when it is no longer referenced."""

    def function(self, module: Any, name: str) -> Any:
        return self._run(module.get_function, name)

    def allow_shared(self, function: Any, size: int) -> None:
        attribute = self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._run(function.set_attribute, attribute, size)

    def launch(
        self,
        function: Any,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        stream: int,
        params: ctypes.Structure,
    ) -> None:
        packed = np.frombuffer(bytes(params), dtype=np.dtype((np.void, ctypes.sizeof(params))))[0]

        def start() -> None:
            function(packed, grid=tuple(grid), block=tuple(block), shared=shared, stream=self._stream(stream))

        self._run(start)

    def begin_capture(self, stream: int) -> None:
        raise DeviceError(
            "PyCUDA has no stream capture, so it cannot make a CUDA graph. Use the backend cuda-bindings."
        )

    def end_capture(self, stream: int) -> int:
        raise DeviceError("PyCUDA has no stream capture. Use the backend cuda-bindings.")

    def launch_graph(self, graph: int, stream: int) -> None:
        raise DeviceError("PyCUDA has no CUDA graphs. Use the backend cuda-bindings.")

    def destroy_graph(self, graph: int) -> None:
        raise DeviceError("PyCUDA has no CUDA graphs. Use the backend cuda-bindings.")
