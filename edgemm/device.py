"""A thin layer over the CUDA driver: device, stream, event, device and pinned memory, module, graph.

    with open_device() as device:
        stream = device.stream()
        x = device.upload(np.ones(4, np.float32))

Two backends do the same: cuda-bindings (the first choice) and PyCUDA, which Jetson users have. Importing this
module loads neither and needs no driver. Addresses, streams and events are the driver's own handles, so that memory
and streams of other libraries (CuPy, torch, PyCUDA, TensorRT) can be handed over as they are.

Nothing here waits for the device except what says so.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np

from edgemm.errors import DeviceError, KernelError, MissingExtraError, UsageError
from edgemm.types import Array

BackendName = Literal["cuda-bindings", "pycuda"]

_DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory beyond this must be asked for (CUDA C++ Programming Guide, 20.x "Compute Capabilities")."""


@dataclass(frozen=True)
class DeviceInfo:
    """What the driver says about a device."""

    index: int
    name: str
    arch: int
    """Compute capability as one number: 87 is sm_87."""
    integrated: bool
    """True if the GPU shares the host's memory (Jetson): pinned memory is then mapped, not copied."""
    multiprocessors: int
    memory_bytes: int


class Driver(Protocol):
    """The calls that a backend makes to the CUDA driver. Handles and addresses are plain numbers."""

    name: BackendName

    def count(self) -> int:
        """The number of devices."""
        ...

    def info(self, index: int) -> DeviceInfo:
        """What device `index` is."""
        ...

    def enter(self, index: int) -> None:
        """Make the primary context of device `index` current in this thread."""
        ...

    def leave(self, index: int) -> None:
        """Undo `enter`."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back."""
        ...

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        """Page-locked host memory, mapped: its address for the host and for the device."""
        ...

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""
        ...

    def copy(self, target: int, source: int, size: int, kind: Literal["to_device", "to_host"], stream: int) -> None:
        """Copy asynchronously, in the order of `stream`."""
        ...

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Fill bytes asynchronously, in the order of `stream`."""
        ...

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait for all that is in `stream`."""
        ...

    def create_event(self) -> int:
        """An event with a time."""
        ...

    def destroy_event(self, event: int) -> None:
        """Give an event back."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Mark where `stream` is now."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Let `stream` wait for `event`, on the device."""
        ...

    def elapsed_ms(self, first: int, second: int) -> float:
        """The time between two events, after the second has happened: this waits for it."""
        ...

    def load(self, binary: bytes) -> Any:
        """Load a cubin."""
        ...

    def unload(self, module: Any) -> None:
        """Give a module back."""
        ...

    def function(self, module: Any, name: str) -> Any:
        """A kernel of a module."""
        ...

    def allow_shared(self, function: Any, size: int) -> None:
        """Let a kernel have `size` bytes of dynamic shared memory, beyond the default limit."""
        ...

    def launch(
        self,
        function: Any,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        stream: int,
        params: ctypes.Structure,
    ) -> None:
        """Start a kernel whose one argument is `params`."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Record what is put into `stream` instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """What has been recorded, ready to launch."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None:
        """Put a recorded graph into `stream`."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        ...


class CudaBindings:
    """The driver through NVIDIA's cuda-bindings."""

    name: BackendName = "cuda-bindings"

    def __init__(self) -> None:
        self._cuda = self._import()
        try:
            self._call("cuInit", 0)
        except (RuntimeError, ImportError, OSError) as error:  # DynamicLibNotFoundError is a RuntimeError
            raise DeviceError(
                f"Found no NVIDIA driver ({str(error).splitlines()[0]}). "
                "Run on a machine with an NVIDIA GPU and its driver, or use the CPU engine."
            ) from error
        self._contexts: dict[int, Any] = {}

    @staticmethod
    def _import() -> Any:
        # cuda.cuda is the name before cuda-bindings 12.8
        for name in ("cuda.bindings.driver", "cuda.cuda"):
            try:
                return importlib.import_module(name)
            except ImportError:
                continue
        raise MissingExtraError("CUDA", "kernels", "cuda.bindings")

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            raise DeviceError(f"{name} failed: {self._explain(status)}.")
        return results[0] if len(results) == 1 else tuple(results)

    def _explain(self, status: Any) -> str:
        _, name = self._cuda.cuGetErrorName(status)
        _, text = self._cuda.cuGetErrorString(status)
        parts = [part.decode() for part in (name, text) if part]
        return ", ".join(parts) or f"status {int(status)}"

    def count(self) -> int:
        return int(self._call("cuDeviceGetCount"))

    def info(self, index: int) -> DeviceInfo:
        kinds = self._cuda.CUdevice_attribute
        device = self._call("cuDeviceGet", index)

        def attribute(name: str) -> int:
            return int(self._call("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}"), device))

        return DeviceInfo(
            index=index,
            name=bytes(self._call("cuDeviceGetName", 256, device)).split(b"\0")[0].decode(),
            arch=10 * attribute("COMPUTE_CAPABILITY_MAJOR") + attribute("COMPUTE_CAPABILITY_MINOR"),
            integrated=bool(attribute("INTEGRATED")),
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            memory_bytes=int(self._call("cuDeviceTotalMem", device)),
        )

    def enter(self, index: int) -> None:
        device = self._call("cuDeviceGet", index)
        if index not in self._contexts:
            self._contexts[index] = self._call("cuDevicePrimaryCtxRetain", device)
        self._call("cuCtxPushCurrent", self._contexts[index])

    def leave(self, index: int) -> None:
        self._call("cuCtxPopCurrent")
        del self._contexts[index]
        self._call("cuDevicePrimaryCtxRelease", self._call("cuDeviceGet", index))

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        # PORTABLE | DEVICEMAP: of every context, and reachable by kernels
        address = int(self._call("cuMemHostAlloc", size, 0x01 | 0x02))
        return address, int(self._call("cuMemHostGetDevicePointer", address, 0))

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def copy(self, target: int, source: int, size: int, kind: Literal["to_device", "to_host"], stream: int) -> None:
        name = "cuMemcpyHtoDAsync" if kind == "to_device" else "cuMemcpyDtoHAsync"
        self._call(name, target, source, size, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        self._call("cuMemsetD8Async", address, value, size, stream)

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", 1))  # CU_STREAM_NON_BLOCKING

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def create_event(self) -> int:
        return int(self._call("cuEventCreate", 0))

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def elapsed_ms(self, first: int, second: int) -> float:
        self._call("cuEventSynchronize", second)
        return float(self._call("cuEventElapsedTime", first, second))

    def load(self, binary: bytes) -> Any:
        return self._call("cuModuleLoadData", binary)

    def unload(self, module: Any) -> None:
        self._call("cuModuleUnload", module)

    def function(self, module: Any, name: str) -> Any:
        return self._call("cuModuleGetFunction", module, name.encode())

    def allow_shared(self, function: Any, size: int) -> None:
        attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", function, attribute, size)

    def launch(
        self,
        function: Any,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        stream: int,
        params: ctypes.Structure,
    ) -> None:
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        self._call("cuLaunchKernel", function, *grid, *block, shared, stream, ctypes.addressof(pointers), 0)

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        recorded = self._call("cuStreamEndCapture", stream)
        try:
            return int(self._call("cuGraphInstantiate", recorded, 0))
        finally:
            self._call("cuGraphDestroy", recorded)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)


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
        host = _bytes_at(source if kind == "to_device" else target, size)
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
        return _bytes_at(self._host, self.nbytes).view(self.dtype).reshape(self.shape)

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


# ---- DLPack (github.com/dmlc/dlpack: dlpack.h, the unversioned managed tensor, which every library still gives) ----


class _DlpackTensor(ctypes.Structure):
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
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    tensor = _DlpackTensor.from_address(cast(int, api.PyCapsule_GetPointer(capsule, b"dltensor")))
    if tensor.code not in _DLPACK_CODES or tensor.lanes != 1 or tensor.bits % 8:
        raise KernelError(f"{what} has a DLPack type (code {tensor.code}, {tensor.bits} bits) that no kernel takes.")
    dtype = np.dtype(f"{_DLPACK_CODES[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim)) if tensor.strides else None
    # The capsule stays unconsumed: it frees the tensor when it goes, so it is kept beside the array.
    return ArrayView((tensor.data or 0) + tensor.byte_offset, shape, dtype, strides, (array, capsule), True)


def _bytes_at(address: int, size: int) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, *[1] * (3 - len(sizes)))
