"""From what a sound driver delivers to frames: their times, lost sound, the rate wanted."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemm.stream.drift import ClockFit
from edgemm.stream.frames import AudioChunk, Event, Lost
from edgemm.stream.retime import Retimer
from edgemm.stream.sources.level import LevelMeter
from edgemm.stream.sources.protocol import AudioWant
from edgemm.stream.sources.sample_ring import Block

BLOCKS_PER_SECOND = 100

JUMP_NS = 15_000_000
"""A jump of the ADC time that means lost sound; PulseAudio's timestamps scatter by 0.1 ms, bad ones by 8."""

JUMP_SIGMAS = 8
WARM_UP = 10
"""Blocks that are looked at before the first is given."""

CONFIRM = 3
"""Blocks in a row that must show the jump: single timestamps are wrong now and then."""


class ChunkMaker:
    """Chunks at the rate wanted, without gaps between them, of sound whose time of capture is known piece by piece.

    Where time and count of samples part, pieces are stretched; `cut` says that they have parted for good. `meter`
    hears everything.
    """

    def __init__(self, want: AudioWant, rate_hz: int, meter: LevelMeter, *, broken: bool) -> None:
        self._want = want
        self._rate_hz = rate_hz
        self._meter = meter
        self._retimer = Retimer(rate_hz)
        self._resampler: Any = None
        self._begin_ns = 0
        self._given = 0
        self._begun = False
        self._broken = broken

    def cut(self) -> None:
        """Sound is missing before the next piece."""
        self._broken, self._begun = True, False

    def make(self, samples: npt.NDArray[np.float32], capture_ns: int) -> AudioChunk | None:
        """A chunk of the mono samples `[n]`, the first captured at `capture_ns`; None while a resampler holds them."""
        if not self._begun:
            self._begun = True
            self._retimer.begin(capture_ns)
            self._begin_ns, self._given, self._resampler = capture_ns, 0, None
        self._meter.push(samples, self._rate_hz)
        samples = self._resample(self._retimer.push(samples, capture_ns))
        if not len(samples):
            return None
        rate_hz = self._want.rate_hz
        begin_ns = self._begin_ns + self._given * 10**9 // rate_hz
        self._given += len(samples)
        pts = round(Fraction(begin_ns * rate_hz, 10**9))
        broken, self._broken = self._broken, False
        return AudioChunk(self._want.name, pts, Fraction(1, rate_hz), begin_ns, samples, rate_hz, broken)

    def _resample(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._rate_hz == self._want.rate_hz:
            return samples
        from av import AudioFrame
        from av.audio.resampler import AudioResampler

        if self._resampler is None:
            self._resampler = AudioResampler(format="flt", layout="mono", rate=self._want.rate_hz)
        frame = AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = self._rate_hz
        parts: list[npt.NDArray[np.float32]] = [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


class SoundFrames:
    """Frames of what one opened device delivers, each with its time on the session's clock.

    `fit` learns how the device's count of samples runs against the machine's monotonic clock, which is `offset_ns`
    ahead of the session's. `broken` marks the first frame as a discontinuity.
    """

    def __init__(
        self, want: AudioWant, rate_hz: int, fit: ClockFit, offset_ns: int, meter: LevelMeter, *, broken: bool
    ) -> None:
        self._want = want
        self._rate_hz = rate_hz
        self._fit = fit
        self._offset_ns = offset_ns
        self._chunks = ChunkMaker(want, rate_hz, meter, broken=broken)
        self._skipped = 0
        """Frames that the driver lost: the device's clock went on, its count did not."""
        self._next = 0
        self._held: list[Block] = []
        self._warm = False

    def push(self, block: Block) -> Iterator[Event]:
        """Take the next block. It is held back while its time contradicts the count, until others confirm it."""
        if block.first != self._next:
            missing = block.first - self._next
            self._next = block.first
            yield from self._cut("overrun", missing, block)
        self._next += len(block.samples)
        self._held.append(block)
        if not self._warm:
            # The first timestamps of a stream are often wrong; the median of some is not.
            if len(self._held) < WARM_UP:
                return
            self._warm = True
            for early in self._held:
                self._fit.observe(self._source_ns(early), early.host_ns)
            warmed, self._held = self._held, []
            for early in warmed:
                yield from self._give(early)
            return
        if self._jumps(block):
            if len(self._held) < CONFIRM:
                return
            yield from self._jump()
        held, self._held = self._held, []
        for block in held:
            if not self._jumps(block):
                self._fit.observe(self._source_ns(block), block.host_ns)
            yield from self._give(block)

    def _jumps(self, block: Block) -> bool:
        """True if the block's time contradicts the count of samples by more than its usual scatter."""
        return abs(self._jump_ns(block)) > max(JUMP_NS, JUMP_SIGMAS * self._fit.jitter_ns)

    def _jump(self) -> Iterator[Event]:
        """The blocks held back agree that the device's clock and the count of samples have parted."""
        jump_ns = round(float(np.median([self._jump_ns(block) for block in self._held])))
        if jump_ns > 0:
            missing = round(jump_ns * self._rate_hz / 1e9)
            self._skipped += missing
            yield from self._cut("driver_lost", missing, self._held[0])
            return
        # The device's clock was set back, or never was what it seemed: begin anew.
        self._chunks.cut()
        self._fit.reset()
        for block in self._held:
            self._fit.observe(self._source_ns(block), block.host_ns)

    def flush(self) -> Iterator[Event]:
        """The device has gone: give what is held back."""
        for block in self._held:
            yield from self._give(block)
        self._held = []

    def _source_ns(self, block: Block) -> int:
        return (block.first + self._skipped) * 10**9 // self._rate_hz

    def _jump_ns(self, block: Block) -> int:
        return block.host_ns - self._fit.map(self._source_ns(block))

    def _cut(self, cause: str, missing: int, block: Block) -> Iterator[Event]:
        """`missing` frames are lost before `block`: enter them as chunks, and begin a new segment after them."""
        self._chunks.cut()
        count = max(1, round(missing * BLOCKS_PER_SECOND / self._rate_hz))
        end_ns = self._fit.map(self._source_ns(block)) - self._offset_ns
        if end_ns > 0:
            yield Lost(self._want.name, cause, end_ns, count)

    def _give(self, block: Block) -> Iterator[Event]:
        capture_ns = self._fit.map(self._source_ns(block)) - self._offset_ns
        if capture_ns < 0:
            return  # before the session
        chunk = self._chunks.make(_mono(block.samples), capture_ns)
        if chunk is not None:
            yield chunk


def _mono(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """int16 `[n, channels]` as float32 `[n]` in [-1, 1): exact for one channel, the mean of several."""
    mixed: npt.NDArray[np.float32] = (
        samples[:, 0].astype(np.float32) if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    )
    mixed *= np.float32(1 / 32768)
    return mixed
