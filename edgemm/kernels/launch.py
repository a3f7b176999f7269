"""Where kernels run: on a CUDA device, or on the CPU under the emulator, behind one small protocol.

    runner = CudaRunner(device.open_device())      # arrays: anything with __cuda_array_interface__ or DLPack
    runner = EmulatorRunner()                      # arrays: numpy's

A kernel's Python face (`LogMelKernel`, `FramePrepKernel`) checks its arguments, fills one `ctypes` structure and calls
`Runner.launch`; it does not know which of the two it has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from edgemm.device import Device, Module, array_view
from edgemm.errors import KernelError
from edgemm.kernels import emulate
from edgemm.kernels.compile import Compiler, compile_kernel, find_compiler
from edgemm.kernels.sources import source_dir
from edgemm.types import Array

Dims = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """An array as a kernel sees it: where it is, what it holds, how it is laid out.

    `strides` are in bytes. `owner` keeps the memory alive for as long as the view is.
    """

    what: str
    """How error messages call it."""
    pointer: int
    shape: Dims
    dtype: np.dtype[Any]
    strides: Dims
    owner: Any
    writable: bool = True

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_contiguous(self) -> bool:
        """True if the elements lie one after another, the last dimension fastest."""
        return self.strides == contiguous_strides(self.shape, self.dtype.itemsize) or self.size == 0


class Runner(Protocol):
    """Places arrays where kernels can read them, and launches kernels. `stream` is None for the default one."""

    @property
    def arch(self) -> int | None:
        """The compute capability that kernels run on, 87 for sm_87; None: whatever a kernel needs is there."""
        ...

    def view(self, array: Any, what: str) -> View:
        """Look at an array of the caller's, without a copy; `what` names it in errors."""
        ...

    def place(self, array: Array) -> View:
        """Copy a numpy array to where kernels can read it; it stays as long as the view."""
        ...

    def clear(self, view: View, stream: Any = None) -> None:
        """Fill with zero bytes, in the order of `stream`."""
        ...

    def launch(
        self,
        source: str,
        kernel: str,
        params: ctypes.Structure,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int = 0,
        stream: Any = None,
    ) -> None:
        """Start `kernel` of `kernels/csrc/<source>.cu` with `params` as its one argument; on a device, do not wait."""
        ...


def contiguous_strides(shape: Dims, itemsize: int) -> Dims:
    """The strides, in bytes, of an array whose last dimension is the fastest."""
    strides: list[int] = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def expect(
    view: View,
    *,
    dtypes: Sequence[str],
    shape: Sequence[int | None],
    contiguous: bool = True,
    alignment: int | None = None,
    written: bool = False,
) -> None:
    """Raise KernelError unless `view` is what a kernel takes; None in `shape` is any length.

    `alignment` is in bytes, of the pointer; the element size if not given. An empty array needs no memory.
    """
    if view.dtype.name not in dtypes:
        raise KernelError(f"{view.what} is {view.dtype.name}; expected {' or '.join(dtypes)}. Convert it first.")
    fits = len(view.shape) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, view.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise KernelError(f"{view.what} has shape {list(view.shape)}; expected [{wanted}].")
    if contiguous and not view.is_contiguous:
        raise KernelError(f"{view.what} has strides {list(view.strides)}; expected a contiguous array. Copy it first.")
    if written and not view.writable:
        raise KernelError(f"{view.what} is read-only, but the kernel writes to it. Hand over a writable array.")
    if view.size == 0:
        return
    if view.pointer == 0:
        raise KernelError(f"{view.what} is a null pointer; expected memory that the kernel can reach.")
    multiple = alignment or view.dtype.itemsize
    if view.pointer % multiple:
        raise KernelError(
            f"{view.what} lies at 0x{view.pointer:x}; expected an address that is a multiple of {multiple}."
        )


class EmulatorRunner:
    """Runs kernels on the CPU, block by block: for tests, and where there is no GPU. Never fast.

    `seed` and `block_order` change the order in which threads and blocks run; `sanitizer` runs each launch in a program
    of its own that is instrumented. `path_of` may give another file for a source: tests plant bugs with it.
    """

    def __init__(
        self,
        *,
        sanitizer: emulate.Sanitizer | None = None,
        seed: int = 0,
        block_order: emulate.BlockOrder = "forward",
        path_of: Callable[[str], Path] | None = None,
    ) -> None:
        self.sanitizer = sanitizer
        self.seed = seed
        self.block_order: emulate.BlockOrder = block_order
        self._path_of = path_of or (lambda source: source_dir() / f"{source}.cu")
        self._modules: dict[str, emulate.EmulatedModule] = {}
        self._memory: WeakValueDictionary[int, Array] = WeakValueDictionary()
        """What launches may touch, by address. A view holds its array, so an address is not reused while it matters."""

    @property
    def arch(self) -> None:
        """None: the emulator has what any kernel needs."""

    def view(self, array: Any, what: str) -> View:
        """Look at a numpy array."""
        if not isinstance(array, np.ndarray):
            raise KernelError(f"{what} is a {type(array).__name__}; the emulator takes numpy arrays.")
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if whole.size:
            self._memory[whole.ctypes.data] = whole
        return View(what, array.ctypes.data, array.shape, array.dtype, array.strides, array, array.flags.writeable)

    def place(self, array: Array) -> View:
        """Copy a numpy array."""
        return self.view(np.array(array, order="C"), "a table")

    def clear(self, view: View, stream: Any = None) -> None:
        """Fill with zero bytes."""
        view.owner.view(np.uint8)[...] = 0

    def launch(
        self,
        source: str,
        kernel: str,
        params: ctypes.Structure,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int = 0,
        stream: Any = None,
    ) -> None:
        """Run `kernel` to its end. Raises `emulate.LaunchError` where the emulator finds it at fault."""
        if source not in self._modules:
            self._modules[source] = emulate.build(self._path_of(source), sanitizer=self.sanitizer)
        wanted = [address for _, _, address in emulate.pointers(params) if address]
        buffers = [
            array
            for start, array in self._memory.items()
            if any(start <= address <= start + array.nbytes for address in wanted)
        ]
        emulate.launch(
            self._modules[source],
            kernel,
            params,
            grid=grid,
            block=block,
            shared_bytes=shared_bytes,
            buffers=buffers,
            seed=self.seed,
            block_order=self.block_order,
        )


class CudaRunner:
    """Runs kernels on a CUDA device; compiles each source on its first use, or takes it from `cubins` or the cache.

    Launches are asynchronous and can be captured in a graph, once every source has been used (or `prepare`d) before.
    An array that says in which stream it was written (`__cuda_array_interface__`, version 3) is waited for, on the
    device; not in a capture, where that stream's work is no part of the graph.
    """

    def __init__(
        self,
        device: Device,
        *,
        compiler: Compiler | None = None,
        cache_dir: Path | None = None,
        cubins: Mapping[str, bytes] | None = None,
    ) -> None:
        self.device = device
        self._cubins = cubins or {}
        self._compiler = compiler
        self._cache_dir = cache_dir
        self._modules: dict[str, Module] = {}
        self._producers: set[int] = set()

    @property
    def arch(self) -> int:
        """The device's compute capability."""
        return self.device.arch

    def prepare(self, source: str) -> Module:
        """Compile and load `source`, if that has not been done. Raises KernelError if it cannot be compiled."""
        if source not in self._modules and source in self._cubins:
            self._modules[source] = self.device.load_module(self._cubins[source])
        if source not in self._modules:
            self._compiler = self._compiler or find_compiler(self.device.arch)
            binary = compile_kernel(source, self.device.arch, compiler=self._compiler, cache_dir=self._cache_dir)
            self._modules[source] = self.device.load_module(binary.read_bytes())
        return self._modules[source]

    def view(self, array: Any, what: str) -> View:
        """Look at an array with `__cuda_array_interface__` or DLPack."""
        seen = array_view(array, what, device=self.device)
        if seen.stream is not None:
            self._producers.add(seen.stream)
        strides = seen.strides or contiguous_strides(seen.shape, seen.dtype.itemsize)
        return View(what, seen.pointer, seen.shape, seen.dtype, strides, seen.owner, seen.writable)

    def place(self, array: Array) -> View:
        """Copy a numpy array to the device, and wait for it."""
        packed = np.ascontiguousarray(array)
        buffer = self.device.upload(packed)
        strides = contiguous_strides(packed.shape, packed.itemsize)
        return View("a table", buffer.pointer, packed.shape, packed.dtype, strides, buffer)

    def clear(self, view: View, stream: Any = None) -> None:
        """Fill with zero bytes, in the order of `stream`."""
        self.device.fill(view.pointer, 0, view.size * view.dtype.itemsize, stream)

    def launch(
        self,
        source: str,
        kernel: str,
        params: ctypes.Structure,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int = 0,
        stream: Any = None,
    ) -> None:
        """Start `kernel`, without waiting. Raises DeviceError if the driver refuses the launch."""
        while self._producers:
            producer = self._producers.pop()
            if not self.device.capturing:
                self.device.order_after(producer, stream)
        self.prepare(source).launch(kernel, params, grid=grid, block=block, shared_bytes=shared_bytes, stream=stream)
