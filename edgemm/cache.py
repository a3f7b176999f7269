"""Where edgemm keeps what it can make again: compiled plans, kernels, unpacked large graphs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "plans": "TensorRT's plans",
        "timings": "TensorRT's kernel timings, for faster builds",
        "jit": "kernels that TensorRT for RTX compiled on the GPU",
        "kernels": "edgemm's CUDA kernels",
        "emulator": "edgemm's CUDA kernels, compiled for the CPU",
        "models": "graphs over 2 GB, unpacked from bundles",
    }
)
"""Every kind of thing that is kept, and what it is."""


def folder(kind: str) -> Path:
    """The cache folder for one of `KINDS`, not yet created.

    `EDGEMM_CACHE` names the root; else it is `edgemm` under `XDG_CACHE_HOME` or `~/.cache`.
    """
    root = os.environ.get("EDGEMM_CACHE")
    if root:
        return Path(root) / kind
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgemm" / kind


def size(kind: str) -> tuple[int, int]:
    """How many files of one kind are kept, and their bytes; lock files are not counted."""
    sizes = [file.stat().st_size for file in _files(folder(kind)) if file.suffix != ".lock"]
    return len(sizes), sum(sizes)


def clear(kind: str) -> int:
    """Delete every file of one kind but lock files, which others may hold; return the bytes freed.

    Whoever has such a file open keeps it: a file is gone when its last reader closes it. Plans have a way of their own
    (`edgemm.engine.tensorrt.cache.PlanCache.clear`), which leaves alone what is being compiled.
    """
    freed = 0
    for file in _files(folder(kind)):
        if file.suffix != ".lock":
            freed += file.stat().st_size
            file.unlink(missing_ok=True)
    return freed


def _files(root: Path) -> Iterator[Path]:
    # A snapshot: what other processes delete or write meanwhile is theirs.
    return (file for file in sorted(root.rglob("*")) if file.is_file() and not file.is_symlink())
