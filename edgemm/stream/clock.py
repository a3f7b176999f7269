"""The session's clock: nanoseconds on one monotonic timeline that starts at 0 when the session starts."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the session's time. Handed to whatever needs one; nothing in edgemm looks at the time by itself."""

    def now_ns(self) -> int:
        """The time since the session's start."""

    def wait_until(self, time_ns: int) -> None:
        """Return when `now_ns()` has reached `time_ns`; at once if it is past."""


class WallClock:
    """Real time, from the system's monotonic clock; 0 is the moment of construction."""

    def __init__(self) -> None:
        self._origin_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        """The time since construction."""
        return time.monotonic_ns() - self._origin_ns

    def wait_until(self, time_ns: int) -> None:
        """Sleep until `time_ns`."""
        while (left_ns := time_ns - self.now_ns()) > 0:
            time.sleep(left_ns / 1e9)


class VirtualClock:
    """Time that passes only when somebody waits: a recorded session runs as fast as the machine can, and the same
    every time."""

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        """The time last waited for."""
        return self._now_ns

    def wait_until(self, time_ns: int) -> None:
        """Be at `time_ns` at once; a time in the past changes nothing."""
        self._now_ns = max(self._now_ns, time_ns)
