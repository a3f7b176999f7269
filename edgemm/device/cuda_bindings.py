"""The driver through NVIDIA's cuda-bindings, the first choice."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any, Literal

from edgemm.device.driver import BackendName, DeviceInfo
from edgemm.errors import DeviceError, MissingExtraError


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
