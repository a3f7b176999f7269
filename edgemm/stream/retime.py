"""Keeps sound in step with the session's clock by making one block in many a sample longer or shorter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BEGIN_NS = 1_500_000
"""How far sound may stray before it is corrected: well under a frame of a front end (10 ms), well above jitter."""

END_NS = 150_000
"""How close it must come before it is left alone again."""


class Retimer:
    """Counts samples, compares with the time at which they were captured, and stretches blocks where the two part.

    The time of a sample is where counting puts it: `begin_ns + index / rate_hz`. While that is within 1.5 ms of the
    truth, samples pass untouched, bit for bit. Beyond, each block is interpolated to one sample more or fewer until
    the two agree: in blocks of 10 ms at 16 kHz this follows clocks up to 6000 ppm apart.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._begin_ns = 0
        self._given = 0
        self._correcting = False
        self.corrected = 0
        """Samples put in or taken out until now."""

    @property
    def next_ns(self) -> int:
        """Where counting puts the next sample."""
        return self._begin_ns + self._given * 10**9 // self._rate_hz

    def begin(self, capture_ns: int) -> None:
        """The next sample was captured at `capture_ns` and has nothing to do with the last."""
        self._begin_ns = capture_ns
        self._given = 0
        self._correcting = False

    def push(self, samples: npt.NDArray[np.float32], capture_ns: int) -> npt.NDArray[np.float32]:
        """Take a block `[n]` whose first sample was captured at `capture_ns`; return it, or it made `[n +- 1]`."""
        ahead_ns = self.next_ns - capture_ns
        self._correcting = abs(ahead_ns) > (END_NS if self._correcting else BEGIN_NS)
        if self._correcting and len(samples) > 1:
            count = len(samples) + (-1 if ahead_ns > 0 else 1)
            at = np.linspace(0, len(samples) - 1, count)
            samples = np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
            self.corrected += 1
        self._given += len(samples)
        return samples
