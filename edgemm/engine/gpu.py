"""The GPU at hand, as far as compiled plans depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.device import DeviceInfo, open_device
from edgemm.errors import DeviceError, MissingExtraError


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and kind."""

    name: str
    compute_capability: str
    """"8.7"."""
    integrated: bool = False
    """True where GPU and CPU share their memory (Jetson)."""
    memory_bytes: int = 0
    """0 where it is not known."""


def gpu_of(info: DeviceInfo) -> Gpu:
    """Return what plans need to know of a device."""
    return Gpu(info.name, f"{info.arch // 10}.{info.arch % 10}", info.integrated, info.memory_bytes)


def find_gpu(index: int = 0) -> Gpu | None:
    """Return the GPU in the machine, or None if there is none, or no driver or no CUDA module to reach it."""
    try:
        return gpu_of(open_device(index).info)
    except (DeviceError, MissingExtraError):
        return None
