"""A ring between a sound driver's callback and the thread that reads: no lock, no allocation in the callback."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Block(NamedTuple):
    """What one callback delivered."""

    first: int
    """Number of its first frame since the start, those counted that found no room."""
    samples: npt.NDArray[np.int16]
    """`[frames, channels]`, owned by the reader."""
    host_ns: int
    """When the first frame was captured, by the machine's monotonic clock."""


class SampleRing:
    """int16 frames `[capacity, channels]` with one writer and one reader, each on a thread of its own.

    Each side owns one counter and only reads the other's; Python makes a store of an int atomic. Where there is no
    room the writer drops the new frames, and the gap shows in `Block.first`. The SimpleQueue, which is made for
    callbacks, carries one small tuple a block and wakes the reader.
    """

    def __init__(self, capacity: int, channels: int) -> None:
        self._rows: npt.NDArray[np.int16] = np.zeros((capacity, channels), np.int16)
        self._capacity = capacity
        self._channels = channels
        self._written = 0
        self._read = 0
        self._next = 0
        self._blocks: SimpleQueue[tuple[int, int, int]] = SimpleQueue()

    def write(self, data: Any, frames: int, host_ns: int) -> None:
        """Copy in `frames` frames of interleaved int16 from the buffer `data`."""
        first = self._next
        self._next = first + frames
        if self._written - self._read + frames > self._capacity:
            return
        rows = np.frombuffer(data, np.int16, frames * self._channels).reshape(frames, self._channels)
        at = self._written % self._capacity
        head = min(frames, self._capacity - at)
        self._rows[at : at + head] = rows[:head]
        self._rows[: frames - head] = rows[head:]
        self._written += frames
        self._blocks.put((first, frames, host_ns))

    def read(self, timeout_s: float) -> Block | None:
        """The next block; None if none came within `timeout_s`."""
        try:
            first, frames, host_ns = self._blocks.get(timeout=timeout_s)
        except Empty:
            return None
        at = self._read % self._capacity
        head = min(frames, self._capacity - at)
        samples = np.empty((frames, self._channels), np.int16)
        samples[:head] = self._rows[at : at + head]
        samples[head:] = self._rows[: frames - head]
        self._read += frames
        return Block(first, samples, host_ns)
