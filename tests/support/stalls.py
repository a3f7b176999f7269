"""When this machine stood still: how a test that keeps to the clock knows that it was disturbed.

A process of its own sleeps on every processor and notes when it wakes late. What runs beside it at the usual niceness
delays it by a few milliseconds; a hypervisor that takes the processors away, by as long as it takes them.

    python stalls.py

prints `DUE_NS WOKEN_NS` (the machine's monotonic clock) for every sleep that ended over LIMIT_MS late.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

LIMIT_MS = 60
"""Little more than half a step of the demo's model, which is 100 ms."""

SLEEP_S = 0.02


class Disturbed(Exception):
    """The test failed, and the machine stood still meanwhile."""


class StallWatch:
    """Notes stalls from its making on, until it is closed."""

    def __init__(self) -> None:
        self._stalls: list[tuple[int, int]] = []
        self._process = subprocess.Popen([sys.executable, "-S", __file__], stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def worst_ms(self, begin_ns: int) -> float:
        """How long the longest stall since `begin_ns` was; 0 if none was longer than the limit."""
        # A stall that has just ended is told within a sleep.
        time.sleep(2 * SLEEP_S)
        return max(((woken - due) / 1e6 for due, woken in list(self._stalls) if woken > begin_ns), default=0.0)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                due, woken = line.split()
                self._stalls.append((int(due), int(woken)))


def _watch(processor: int) -> None:
    os.sched_setaffinity(0, {processor})
    while True:
        due_ns = time.monotonic_ns() + round(SLEEP_S * 1e9)
        time.sleep(SLEEP_S)
        woken_ns = time.monotonic_ns()
        if woken_ns - due_ns > LIMIT_MS * 1e6:
            sys.stdout.write(f"{due_ns} {woken_ns}\n")
            sys.stdout.flush()


def main() -> None:
    """See the module's description."""
    for processor in os.sched_getaffinity(0):
        threading.Thread(target=_watch, args=(processor,)).start()


if __name__ == "__main__":
    main()
