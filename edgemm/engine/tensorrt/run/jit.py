"""Kernels that TensorRT for RTX compiles on the device, kept between runs.

A plan of TensorRT for RTX is finished on the GPU that runs it: its first context takes seconds, later ones take what
this file holds. Other versions have nothing of the kind, and nothing happens there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edgemm.bundle import atomic_file
from edgemm.engine.tensorrt.cache import refuse_foreign
from edgemm.errors import BundleError, EngineError

_HASH_BYTES = 32


class JitCache:
    """The compiled kernels of one plan on one GPU, in one file. They are machine code and checked like plans."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._held = b""

    def config_for(self, engine: Any) -> Any:
        """Return the runtime config with which a context takes these kernels, or None where there is no such thing.

        A file that is cut off, changed, or another user's is not taken: the kernels are compiled again.
        """
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._held = self._read()
            if self._held and not self._cache.deserialize(self._held):
                self._held = b""
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        """Write what has been compiled since. Raises EngineError if the disk refuses."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        self._cache = None
        if data == self._held:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_file(self.path) as file:
                file.write(hashlib.sha256(data).digest() + data)
        except (OSError, BundleError) as error:
            raise EngineError(f"Compiled kernels were not kept and will be compiled again: {error}") from error

    def _read(self) -> bytes:
        try:
            refuse_foreign(self.path.parent)
            refuse_foreign(self.path)
            content = self.path.read_bytes()
        except (OSError, EngineError):
            return b""
        data = content[_HASH_BYTES:]
        return data if hashlib.sha256(data).digest() == content[:_HASH_BYTES] else b""
