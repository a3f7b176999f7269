"""How loud a microphone is, in dBFS: what it takes to choose one, and to see that it clips or is muted."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FLOOR_DBFS = -120.0
"""Exact zeros have no logarithm; 24-bit converters end above this."""

WINDOW_S = 0.3
"""A reading covers this much: what a VU meter integrates."""

FULL_SCALE = 32767 / 32768
"""The largest sample that a 16-bit converter gives."""

CLIPPED_WARN = 10
"""Samples at full scale within a reading from which on it is said; a single one may be chance."""

SILENT_WARN_S = 3.0
"""Exact zeros for this long: every microphone that is on gives noise."""

_log = logging.getLogger(__name__)


class Level(NamedTuple):
    """A reading of 0.3 s."""

    peak_dbfs: float = FLOOR_DBFS
    rms_dbfs: float = FLOOR_DBFS
    """A sine wave at full scale has -3 dBFS."""
    clipped: int = 0
    """Samples at full scale."""
    zeros_s: float = 0.0
    """For how long there was nothing but exact zeros until now."""


class LevelMeter:
    """Follows the level of one stream of sound; says once each that it clips, or gives nothing but zeros."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._peak = 0.0
        self._sum = 0.0
        self._count = 0
        self._clipped = 0
        self._zeros = 0
        self._said: set[str] = set()
        self.level: Level | None = None
        """The last reading, replaced as a whole: any thread may look. None before 0.3 s were heard."""

    def push(self, samples: npt.NDArray[np.float32], rate_hz: int) -> None:
        """Take the next samples `[n]`, in [-1, 1]; they are not kept."""
        if not len(samples):
            return
        peak = float(max(samples.max(), -samples.min()))
        self._peak = max(self._peak, peak)
        self._sum += float(np.dot(samples, samples))
        self._count += len(samples)
        self._zeros = 0 if peak else self._zeros + len(samples)
        if peak >= FULL_SCALE:
            self._clipped += int(np.count_nonzero(np.abs(samples) >= FULL_SCALE))
        if self._count < WINDOW_S * rate_hz:
            return
        zeros_s = self._zeros / rate_hz
        rms = math.sqrt(self._sum / self._count)
        self.level = Level(_dbfs(self._peak), _dbfs(rms), self._clipped, zeros_s)
        if self._clipped >= CLIPPED_WARN:
            self._warn("clips", "clips: turn its gain down, the sound is distorted.")
        if zeros_s >= SILENT_WARN_S:
            self._warn("zeros", f"gives exact zeros for {zeros_s:.0f} s: is it muted, or the wrong device?")
        self._peak = self._sum = 0.0
        self._count = self._clipped = 0

    def _warn(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning("%s %s", self._name, text)


def _dbfs(value: float) -> float:
    return max(FLOOR_DBFS, 20 * math.log10(value)) if value else FLOOR_DBFS
