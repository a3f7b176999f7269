"""Sound and pictures made by formula: for trying things out, and for tests that need to know the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType

import numpy as np

from edgemm.stream.frames import AudioChunk, Event, StreamInfo, VideoFrame, ns
from edgemm.stream.sources.protocol import AudioWant, VideoWant, Want

BLOCKS_PER_SECOND = 100
FLASH_AT_S = Fraction(1, 2)
FLASH_S = Fraction(1, 10)
BEEP_HZ = 1000


class SyntheticSource:
    """Once a second, half a second in, a white flash and a beep of 100 ms, the beep `offset_ms` after the flash.

    Between flashes a bright square moves over a dark gradient, and the sound is faint noise (seeded: the same every
    time). Pictures are `width` x `height` at `fps`.
    """

    live = False

    def __init__(
        self,
        wants: Sequence[Want],
        *,
        seconds: float = 10.0,
        offset_ms: float = 0.0,
        fps: float | Fraction = 25,
        width: int = 320,
        height: int = 240,
    ) -> None:
        self._wants = tuple(wants)
        self._seconds = Fraction(seconds)
        self._offset_s = Fraction(offset_ms) / 1000
        self._interval = 1 / Fraction(fps).limit_denominator(1001)
        self._width = width
        self._height = height
        self.streams: tuple[StreamInfo, ...] = tuple(self._info(want) for want in self._wants)

    def __enter__(self) -> SyntheticSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Event]:
        tracks = [self._sound(want) if isinstance(want, AudioWant) else self._pictures(want) for want in self._wants]
        heads = [(next(track, None), track) for track in tracks]
        while live := [(head, track) for head, track in heads if head is not None]:
            event, track = min(live, key=lambda pair: pair[0].end_ns)
            yield event
            heads = [(next(track, None) if other is track else head, other) for head, other in heads]

    def _info(self, want: Want) -> StreamInfo:
        if isinstance(want, AudioWant):
            return StreamInfo(want.name, "audio", rate_hz=want.rate_hz)
        return StreamInfo(want.name, "video", None, ns(1, self._interval), self._width, self._height)

    def _sound(self, want: AudioWant) -> Iterator[Event]:
        random = np.random.default_rng(0)
        rate_hz = want.rate_hz
        total = int(self._seconds * rate_hz)
        size = max(1, rate_hz // BLOCKS_PER_SECOND)
        for begin in range(0, total, size):
            count = min(size, total - begin)
            time_s = (begin + np.arange(count)) / rate_hz - float(self._offset_s)
            phase_s = np.mod(time_s, 1.0)
            on = (phase_s >= float(FLASH_AT_S) - 1e-9) & (phase_s < float(FLASH_AT_S + FLASH_S) - 1e-9) & (time_s >= 0)
            samples = 1e-3 * random.standard_normal(count) + np.where(on, 0.8 * np.sin(2 * np.pi * BEEP_HZ * time_s), 0)
            yield AudioChunk(
                want.name,
                begin,
                Fraction(1, rate_hz),
                ns(begin, Fraction(1, rate_hz)),
                samples.astype(np.float32),
                rate_hz,
            )

    def _pictures(self, want: VideoWant) -> Iterator[Event]:
        gradient = np.linspace(0, 60, self._width, dtype=np.uint8)[None, :]
        count = -(-self._seconds // self._interval)
        for number in range(int(count)):
            time_s = number * self._interval
            gray = np.broadcast_to(gradient, (self._height, self._width)).copy()
            side = max(1, self._height // 6)
            left = int(time_s * self._width / 4) % max(1, self._width - side)
            gray[self._height // 2 - side // 2 :, left : left + side][:side] = 180
            if FLASH_AT_S <= time_s % 1 < FLASH_AT_S + FLASH_S:
                gray[:] = 255
            picture = gray if want.color == "gray" else np.repeat(gray[:, :, None], 3, axis=2)
            yield VideoFrame(want.name, number, self._interval, ns(number, self._interval), picture, want.color)
