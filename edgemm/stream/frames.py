"""What sources deliver: blocks of sound and pictures, each with its capture time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

Color = Literal["rgb", "bgr", "gray"]


@dataclass(frozen=True, eq=False, slots=True)
class AudioChunk:
    """A block of sound, captured without a break inside it.

    `samples` is float32 `[n]` in [-1, 1], one channel, owned by the chunk: nobody writes to it. `pts` counts in
    `time_base` as the source did; `capture_ns` is the time of the first sample on the session's timeline.
    """

    stream: str
    pts: int
    time_base: Fraction
    capture_ns: int
    samples: npt.NDArray[np.float32]
    rate_hz: int
    discontinuity: bool = False
    """The source knows that sound is missing before this chunk."""

    @property
    def end_ns(self) -> int:
        """When the last sample was over: the earliest time at which the chunk can be handed on."""
        return self.capture_ns + len(self.samples) * 10**9 // self.rate_hz


@dataclass(frozen=True, eq=False, slots=True)
class VideoFrame:
    """A picture.

    `picture` is uint8 `[height, width, 3]`, or `[height, width]` if `color` is "gray", owned by the frame: nobody
    writes to it. `pts`, `time_base` and `capture_ns` are as in AudioChunk.
    """

    stream: str
    pts: int
    time_base: Fraction
    capture_ns: int
    picture: npt.NDArray[np.uint8]
    color: Color = "rgb"
    discontinuity: bool = False
    """The source knows that pictures are missing before this one."""

    @property
    def end_ns(self) -> int:
        """The earliest time at which the picture can be handed on: its capture time."""
        return self.capture_ns


Frame = AudioChunk | VideoFrame


@dataclass(frozen=True, slots=True)
class Lost:
    """Frames that were captured, but cannot be handed on; `cause` goes to the books, e.g. "corrupt"."""

    stream: str
    cause: str
    end_ns: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class End:
    """A stream has ended while others of its source go on."""

    stream: str
    end_ns: int


Event = AudioChunk | VideoFrame | Lost | End
"""What a source delivers. Every event has `stream`, and `end_ns`, by which events are ordered."""


@dataclass(frozen=True)
class StreamInfo:
    """What a source says of one of its streams before the first frame."""

    name: str
    kind: Literal["audio", "video"]
    rate_hz: int | None = None
    """Sound: samples per second."""
    interval_ns: int | None = None
    """Pictures: the usual time between two, None where the source does not say."""
    width: int | None = None
    height: int | None = None


def ns(pts: int, time_base: Fraction) -> int:
    """`pts` in nanoseconds, rounded to the nearest; a half to the even one."""
    # What `round` gives for the fraction, which takes seven times as long to make.
    whole, rest = divmod(pts * time_base.numerator * 10**9, time_base.denominator)
    twice = 2 * rest
    return whole + (twice > time_base.denominator or (twice == time_base.denominator and whole % 2 == 1))
