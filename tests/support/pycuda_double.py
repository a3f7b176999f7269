"""A double of `pycuda.driver` over libcuda.so.1: the names and signatures that edgemm uses, as PyCUDA 2026 has them.

PyCUDA has no wheels. Where it is installed the tests take it, and else this; both are run by the same tests.
"""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Error(Exception):
    """What PyCUDA's errors derive from."""


def _call(name: str, *arguments: Any) -> None:
    status = getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        ctypes.CDLL("libcuda.so.1").cuGetErrorName(status, ctypes.byref(text))
        raise Error(f"{name} failed: {(text.value or b'?').decode()}")


def _handle(stream: Stream | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(stream.handle if stream is not None else 0)


def init() -> None:
    _call("cuInit", 0)


class Device:
    def __init__(self, index: int) -> None:
        self._index = index

    @staticmethod
    def count() -> int:
        value = ctypes.c_int()
        _call("cuDeviceGetCount", ctypes.byref(value))
        return value.value

    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        _call("cuDeviceGetName", text, 256, self._index)
        return text.value.decode()

    def compute_capability(self) -> tuple[int, int]:
        return self.get_attribute(75), self.get_attribute(76)

    def get_attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        _call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._index)
        return value.value

    def total_memory(self) -> int:
        value = ctypes.c_size_t()
        _call("cuDeviceTotalMem_v2", ctypes.byref(value), self._index)
        return value.value

    def retain_primary_context(self) -> Context:
        return Context(self._index)


class Context:
    def __init__(self, index: int) -> None:
        self._context = ctypes.c_void_p()
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), index)

    def push(self) -> None:
        _call("cuCtxPushCurrent_v2", self._context)

    @staticmethod
    def pop() -> None:
        _call("cuCtxPopCurrent_v2", None)

    @staticmethod
    def synchronize() -> None:
        _call("cuCtxSynchronize")


class DeviceAllocation:
    def __init__(self, address: int) -> None:
        self._address = address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        _call("cuMemFree_v2", ctypes.c_ulonglong(self._address))
        self._address = 0

    def __del__(self) -> None:
        if self._address:
            self.free()


def mem_alloc(size: int) -> DeviceAllocation:
    address = ctypes.c_ulonglong()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
    return DeviceAllocation(address.value)


class PagelockedHostAllocation:
    def __init__(self, size: int, flags: int) -> None:
        self._address = ctypes.c_void_p()
        _call("cuMemHostAlloc", ctypes.byref(self._address), ctypes.c_size_t(size), flags)
        shape, data = (size,), (self._address.value, False)
        self.__array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 3}

    def get_device_pointer(self) -> int:
        address = ctypes.c_ulonglong()
        _call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), self._address, 0)
        return address.value

    def free(self) -> None:
        _call("cuMemFreeHost", self._address)


def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    return np.asarray(PagelockedHostAllocation(shape * np.dtype(dtype).itemsize, mem_flags))


def memcpy_htod_async(dest: int, src: Any, stream: Stream | None = None) -> None:
    _call(
        "cuMemcpyHtoDAsync_v2", ctypes.c_ulonglong(dest), ctypes.c_void_p(src.ctypes.data), src.nbytes, _handle(stream)
    )


def memcpy_dtoh_async(dest: Any, src: int, stream: Stream | None = None) -> None:
    _call(
        "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(dest.ctypes.data), ctypes.c_ulonglong(src), dest.nbytes, _handle(stream)
    )


def memset_d8_async(dest: int, data: int, size: int, stream: Stream | None = None) -> None:
    _call("cuMemsetD8Async", ctypes.c_ulonglong(dest), data, ctypes.c_size_t(size), _handle(stream))


class Stream:
    def __init__(self, flags: int = 0) -> None:
        handle = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(handle), flags)
        self.handle = handle.value or 0

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", _handle(self))

    def wait_for_event(self, event: Event) -> None:
        _call("cuStreamWaitEvent", _handle(self), event._event, 0)

    def __del__(self) -> None:
        _call("cuStreamDestroy_v2", _handle(self))


class Event:
    def __init__(self, flags: int = 0) -> None:
        self._event = ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(self._event), flags)

    def record(self, stream: Stream | None = None) -> Event:
        _call("cuEventRecord", self._event, _handle(stream))
        return self

    def synchronize(self) -> Event:
        _call("cuEventSynchronize", self._event)
        return self

    def time_since(self, event: Event) -> float:
        value = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(value), event._event, self._event)
        return value.value

    def __del__(self) -> None:
        _call("cuEventDestroy_v2", self._event)


class Module:
    def __init__(self, image: bytes) -> None:
        self._module = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._module), image)

    def get_function(self, name: str) -> Function:
        function = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        return Function(function)


class Function:
    def __init__(self, function: ctypes.c_void_p) -> None:
        self._function = function

    def set_attribute(self, attribute: int, value: int) -> None:
        _call("cuFuncSetAttribute", self._function, attribute, value)

    def __call__(
        self,
        *args: Any,
        block: tuple[int, int, int],
        grid: tuple[int, int, int],
        shared: int = 0,
        stream: Stream | None = None,
    ) -> None:
        (argument,) = args
        assert isinstance(argument, np.void)
        buffer = ctypes.create_string_buffer(argument.tobytes())
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
        _call("cuLaunchKernel", self._function, *grid, *block, shared, _handle(stream), pointers, None)


def module_from_buffer(image: bytes) -> Module:
    return Module(image)


device_attribute = SimpleNamespace(INTEGRATED=18, MULTIPROCESSOR_COUNT=16)
function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2)


def install() -> None:
    """Be `pycuda.driver` in this process."""
    package = ModuleType("pycuda")
    sys.modules["pycuda"], sys.modules["pycuda.driver"] = package, sys.modules[__name__]
