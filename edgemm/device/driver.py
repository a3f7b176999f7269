"""What edgemm asks of the CUDA driver, whichever Python module calls it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from edgemm.types import Array

BackendName = Literal["cuda-bindings", "pycuda"]


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


def host_bytes(address: int, size: int) -> Array:
    """`size` bytes of host memory at `address`, as an array that does not own them."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
