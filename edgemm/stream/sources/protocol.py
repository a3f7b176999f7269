"""What every source of frames offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

from edgemm.stream.clock import Clock
from edgemm.stream.drift import ClockReport
from edgemm.stream.frames import Color, Event, StreamInfo


@dataclass(frozen=True)
class AudioWant:
    """Sound that is asked of a source: one channel at `rate_hz`, as the stream `name`."""

    name: str
    rate_hz: int = 16000


@dataclass(frozen=True)
class VideoWant:
    """Pictures that are asked of a source, as the stream `name`, in "rgb" or "gray"."""

    name: str
    color: Color = "rgb"


Want = AudioWant | VideoWant


class Source(Protocol):
    """Frames of one device or file. Entering it opens what it reads; leaving it gives everything back.

    Iterating gives events in the order of their `end_ns`, on the session's timeline, and ends when the source has
    ended. `__next__` may block; it is called from one thread, and leaving from another makes it return soon.
    """

    @property
    def streams(self) -> Sequence[StreamInfo]:
        """What it delivers; known once it is entered."""

    @property
    def live(self) -> bool:
        """True if frames come at their own time, as from a device; False if they can be had at any speed."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Event]: ...


@runtime_checkable
class LiveSource(Source, Protocol):
    """A device, or a URL that is as good as one: its frames come at their own time, whether anyone reads or not.

    Where it disappears while it is read, it gives End for its stream, tries to come back, and goes on with a frame
    that is marked as a discontinuity.
    """

    def start(self, clock: Clock) -> None:
        """The session begins, and `clock` tells its time; what was captured before is no part of it."""

    def stop(self) -> None:
        """Let iterating end soon; called from another thread."""

    def report(self) -> ClockReport:
        """How its clock ran until now."""


@runtime_checkable
class RigSource(LiveSource, Protocol):
    """A live source that belongs to a rig whose constant offset can be measured, and taken off."""

    delays_ns: dict[str, int]
    """By stream: how much later than the rest of the rig its frames are stamped; taken off. Set it before `start`."""

    @property
    def identity(self) -> str:
        """What names the device for good, as far as can be known; known once it is entered."""
