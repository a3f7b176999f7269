"""TensorRT's timing cache on disk: kernel timings measured once for a version and a device, shared by all builds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edgemm.bundle import atomic_file
from edgemm.engine.file_lock import locked
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.errors import BundleError, EngineError


class TimingCacheFile:
    """The file that holds the timings for one TensorRT version and one device.

    Timings belong to the version and the GPU that made them, so both are in the file's name. A file that cannot
    be read is left out, not an error: timings are measured again.
    """

    def __init__(self, folder: Path, flavour: Flavour, compute_capability: str, gpu: str) -> None:
        device = hashlib.sha256(f"{compute_capability} {gpu}".encode()).hexdigest()[:12]
        self.path = folder / f"{flavour.name}-{flavour.version}-sm{compute_capability.replace('.', '')}-{device}.timing"

    def load(self, config: Any) -> None:
        """Give the builder config what the file holds, or an empty cache."""
        try:
            content = self.path.read_bytes()
        except OSError:
            content = b""
        timings = config.create_timing_cache(content)
        if timings is None or not config.set_timing_cache(timings, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Merge the config's timings into the file, under a lock: another build may have added its own meanwhile.

        Raises EngineError if the disk refuses.
        """
        mine = config.get_timing_cache()
        if mine is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"Cannot make the folder {self.path.parent}: {error.strerror}. "
                "Set EDGEMM_CACHE to one that you can write."
            ) from error
        with locked(self.path.with_suffix(".lock")):
            if self.path.is_file():
                theirs = config.create_timing_cache(self.path.read_bytes())
                if theirs is not None:
                    mine.combine(theirs, False)
            try:
                with atomic_file(self.path) as file:
                    file.write(bytes(mine.serialize()))
            except BundleError as error:
                raise EngineError(f"The timing cache was not kept: {error}") from error
