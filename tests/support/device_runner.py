"""Runs the kernel tests on a GPU: with `EDGEMM_TEST_RUNNER=device`, `EmulatorRunner()` in a test is this.

The tests hand over numpy arrays; each is copied to the device when a kernel looks at it, and back after the launch.
What is about the emulator itself (thread orders, sanitizers) is skipped.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.device import Buffer, Device, open_device
from edgemm.errors import KernelError
from edgemm.kernels.launch import CudaRunner, View
from edgemm.types import Array

_device: Device | None = None


def device() -> Device:
    """The GPU of this process, opened once."""
    global _device
    if _device is None:
        _device = open_device().__enter__()
    return _device


class DeviceTestRunner:
    """A `Runner` of numpy arrays on a GPU, with the arguments of `EmulatorRunner`."""

    def __init__(
        self,
        *,
        sanitizer: str | None = None,
        seed: int = 0,
        block_order: str = "forward",
        path_of: Callable[[str], Path] | None = None,
    ) -> None:
        if sanitizer or seed or block_order != "forward" or path_of:
            pytest.skip("is about the emulator, which runs it without EDGEMM_TEST_RUNNER=device")
        self._runner: CudaRunner | None = None
        self._copies: dict[int, tuple[weakref.ref[Array], Buffer]] = {}

    @property
    def cuda(self) -> CudaRunner:
        """The runner that does the work."""
        self._runner = self._runner or CudaRunner(device())
        return self._runner

    @property
    def arch(self) -> int:
        """The GPU's."""
        return self.cuda.arch

    def view(self, array: Any, what: str) -> View:
        """Copy a numpy array, and the whole that it is a part of, to the device; keep the place for the next time."""
        if not isinstance(array, np.ndarray):
            raise KernelError(f"{what} is a {type(array).__name__}; the emulator takes numpy arrays.")
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        address = whole.ctypes.data
        known = self._copies.get(address)
        if known is None or known[0]() is not whole:
            if known is not None:
                known[1].close()
            self._copies[address] = (weakref.ref(whole), device().empty((max(whole.nbytes, 1),), np.uint8))
        buffer = self._copies[address][1]
        if whole.nbytes:
            device()._driver.copy(buffer.pointer, address, whole.nbytes, "to_device", 0)
        pointer = buffer.pointer + array.ctypes.data - address
        return View(what, pointer, array.shape, array.dtype, array.strides, array, array.flags.writeable)

    def place(self, array: Array) -> View:
        """Copy to the device, and leave it there."""
        return self.cuda.place(array)

    def clear(self, view: View, stream: Any = None) -> None:
        """Fill with zero bytes, there and here."""
        self.cuda.clear(view, stream)
        if isinstance(view.owner, np.ndarray):
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
        """Run `kernel` to its end, and copy back what it may have written."""
        self.cuda.launch(source, kernel, params, grid=grid, block=block, shared_bytes=shared_bytes, stream=stream)
        device()._driver.synchronize(0)
        for address, (reference, buffer) in list(self._copies.items()):
            whole = reference()
            if whole is None:
                buffer.close()
                del self._copies[address]
            elif whole.flags.writeable and whole.nbytes:
                device()._driver.copy(address, buffer.pointer, whole.nbytes, "to_host", 0)
        device()._driver.synchronize(0)
