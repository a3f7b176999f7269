"""How a source's clock runs against the machine's: a robust fit, made while frames come.

A microphone counts samples and a camera stamps pictures by crystals of their own, which differ from the machine's by
tens to hundreds of parts per million: at 200 ppm two clocks are 0.72 s apart after an hour. Each observation pairs a
time of the source's clock with the machine's time of the same moment. Observations are gathered in buckets of a
second, each bucket gives one value that outliers do not move, and a Theil-Sen line (the median of the slopes between
all pairs; Sen 1968) goes through the newest buckets.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BUCKET_NS = 1_000_000_000
BUCKETS = 64
"""A minute: a slope good to 1 ppm under a millisecond of jitter, and soon enough for a crystal that warms."""

MIN_BUCKETS = 8
"""Below this many no slope is trusted: jitter of a millisecond over two seconds looks like 500 ppm."""

MAX_DRIFT = 1e-3
"""Crystals are within 100 ppm, software sinks within 1000; a steeper line is made of outliers."""


@dataclass(frozen=True)
class ClockReport:
    """What became known of a live source's clock during a run."""

    drift_ppm: float | None
    """How much faster the source's clock runs than the machine's; None before enough was seen (8 s)."""
    jitter_ms: float
    """Typical (1 sigma) scatter of single timestamps around the fit."""
    reconnects: int = 0
    """How often the source went away and came back."""
    delay_ms: float = 0.0
    """A constant delay that was taken off its times: told by the sender's wall clock, or measured by
    `edgemm calibrate-sync`."""


class ClockFit:
    """Maps times of one clock to another, and learns how from pairs `observe`d.

    With `late_only` an observation may come late, but never early, as when a picture is stamped on arrival: each
    bucket is then represented by its earliest observation instead of its median.
    """

    def __init__(self, *, late_only: bool = False) -> None:
        self._late_only = late_only
        self.reset()

    def reset(self) -> None:
        """Forget everything: the source's clock jumped."""
        self._origin_ns = 0
        self._base_ns = 0
        self._slope = 0.0
        self._offset = 0.0
        self._current: list[tuple[float, float]] = []
        self._buckets: deque[tuple[float, float, float]] = deque(maxlen=BUCKETS)
        """Time, offset and scatter of each, in ns."""

    @property
    def is_ready(self) -> bool:
        """True once there was an observation."""
        return bool(self._current or self._buckets)

    @property
    def drift_ppm(self) -> float | None:
        """How much faster the source's clock runs than the machine's; None before a slope is known."""
        return -self._slope * 1e6 if len(self._buckets) >= MIN_BUCKETS else None

    @property
    def jitter_ns(self) -> float:
        """Typical (1 sigma) scatter of an observation."""
        if self._buckets:
            return float(np.median([scatter for _, _, scatter in self._buckets]))
        return _scatter(np.array([offset for _, offset in self._current])) if self._current else 0.0

    def observe(self, source_ns: int, host_ns: int) -> None:
        """The moment `source_ns` of the source's clock was `host_ns` by the machine's. Source times do not go back."""
        if not self.is_ready:
            self._origin_ns = source_ns
            self._base_ns = host_ns - source_ns
        time = float(source_ns - self._origin_ns)
        if self._current and time - self._current[0][0] >= BUCKET_NS:
            self._close()
        self._current.append((time, float(host_ns - source_ns - self._base_ns)))
        if not self._buckets:
            offsets = [offset for _, offset in self._current]
            self._offset = min(offsets) if self._late_only else float(np.median(offsets))

    def map(self, source_ns: int) -> int:
        """The machine's time at the moment `source_ns` of the source's clock."""
        time = source_ns - self._origin_ns
        return source_ns + self._base_ns + round(self._offset + self._slope * time)

    def _close(self) -> None:
        times, offsets = np.array(self._current).T
        self._current = []
        if self._late_only:
            # Against the slope within the bucket, else drift would make its last observation the earliest.
            at = int(np.argmin(offsets - self._slope * times))
            time, value = float(times[at]), float(offsets[at])
        else:
            time, value = float(np.median(times)), float(np.median(offsets))
        self._buckets.append((time, value, _scatter(offsets - self._slope * times)))
        table = np.array(self._buckets)
        at_s, values = table[:, 0], table[:, 1]
        if len(table) < MIN_BUCKETS:
            self._slope = 0.0
            self._offset = float(np.min(values[-3:]) if self._late_only else np.median(values[-3:]))
            return
        first, second = np.triu_indices(len(table), 1)
        slopes = (values[second] - values[first]) / (at_s[second] - at_s[first])
        self._slope = float(np.clip(np.median(slopes), -MAX_DRIFT, MAX_DRIFT))
        # What only comes late is least wrong where it comes early; a fifth may still be too early for its slope.
        self._offset = float(np.quantile(values - self._slope * at_s, 0.2 if self._late_only else 0.5))


def _scatter(values: npt.NDArray[Any]) -> float:
    """A standard deviation that outliers do not move: 1.4826 times the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
