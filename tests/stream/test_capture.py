from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType

import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.stream.capture import Capture, FrameQueue
from edgemm.stream.clock import VirtualClock, WallClock
from edgemm.stream.frames import End, Event, Lost, StreamInfo, VideoFrame
from edgemm.stream.spans import Spans

pytestmark = pytest.mark.real_time


def frame(number: int, stream: str = "camera") -> VideoFrame:
    time_base = Fraction(1, 100)
    return VideoFrame(stream, number, time_base, number * 10_000_000, np.zeros((1, 1), np.uint8), "gray")


class Frames:
    """A source of `count` frames, 10 ms apart; then `error`."""

    streams = (StreamInfo("camera", "video"),)

    def __init__(self, count: int, *, live: bool = False, error: Exception | None = None) -> None:
        self.count = count
        self.live = live
        self.error = error
        self.given = 0

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Event]:
        for number in range(self.count):
            self.given += 1
            yield frame(number)
        if self.error is not None:
            raise self.error


def test_the_oldest_of_the_same_stream_makes_room() -> None:
    queue = FrameQueue({"camera": 2, "mic": 5})
    queue.open()
    queue.put(frame(0), 10)
    queue.put(frame(0, "mic"), 11)
    queue.put(frame(1), 12)
    queue.put(frame(2), 13)
    queue.put(frame(3), 14)
    taken = queue.take(0)
    assert taken is not None
    assert [(type(e).__name__, e.stream, now) for e, now in taken] == [
        ("VideoFrame", "mic", 11),
        ("Lost", "camera", 12),
        ("VideoFrame", "camera", 13),
        ("VideoFrame", "camera", 14),
    ]
    assert taken[1][0] == Lost("camera", "queue_full", 10_000_000, 2)
    assert queue.take(0) == []
    queue.put(frame(4), 20)
    queue.put(frame(5), 21)
    assert [now for _, now in queue.take(0, limit=1) or []] == [20]
    queue.close()
    assert [now for _, now in queue.take(None) or []] == [21]
    assert queue.take(None) is None


def test_the_end_of_a_stream_and_what_was_lost_before_take_no_room_and_stay() -> None:
    queue = FrameQueue({"camera": 1})
    queue.open()
    queue.put(frame(0), 1)
    queue.put(End("camera", 10_000_000), 2)
    queue.put(Lost("camera", "corrupt", 20_000_000, 3), 3)
    for number in range(2, 6):
        queue.put(frame(number), 4 + number)
    *marks, (last, _) = queue.take(0) or []
    assert [event for event, _ in marks] == [
        Lost("camera", "queue_full", 0),
        End("camera", 10_000_000),
        Lost("camera", "corrupt", 20_000_000, 3),
        Lost("camera", "queue_full", 40_000_000, 3),
    ]
    assert isinstance(last, VideoFrame)
    assert last.pts == 5
    queue.put(frame(6), 20)
    assert [now for _, now in queue.take(0) or []] == [20]


def test_a_queue_that_nobody_takes_from_stays_small() -> None:
    queue = FrameQueue({"camera": 2})
    queue.open()
    for number in range(1000):
        queue.put(frame(number), number)
    taken = queue.take(0) or []
    assert len(taken) == 3
    assert taken[0][0] == Lost("camera", "queue_full", 9_970_000_000, 998)


def test_what_stopped_a_writer_is_raised_after_its_frames() -> None:
    with Capture([Frames(3, live=True, error=SourceError("it broke"))], WallClock(), {"camera": 9}) as capture:
        seen = []
        with pytest.raises(SourceError, match="it broke"):
            seen.extend(events for events in iter(lambda: capture.queue.take(1.0), None))
    assert sum(len(events) for events in seen) == 3


def test_files_are_paced_and_devices_are_not() -> None:
    clock = WallClock()
    spans = Spans()
    with Capture([Frames(11)], clock, {"camera": 99}, spans) as capture:
        arrivals = []
        while (events := capture.queue.take(1.0)) is not None:
            arrivals += [(e.end_ns, now) for e, now in events]
    assert len(arrivals) == 11
    assert all(now >= end for end, now in arrivals)
    assert {s.stage for s in spans.spans} == {"source"}
    clock = WallClock()
    with Capture([Frames(500, live=True)], clock, {"camera": 999}) as capture:
        while capture.queue.take(1.0) is not None:
            pass
    assert clock.now_ns() < 5_000_000_000


def test_capture_never_waits_for_whoever_is_slow() -> None:
    source = Frames(200, live=True)
    with Capture([source], WallClock(), {"camera": 4}) as capture:
        for _ in range(500):
            if source.given == 200:
                break
            time.sleep(0.01)
        events = capture.queue.drain()
    assert source.given == 200
    (lost, _), *frames = events
    assert isinstance(lost, Lost)
    assert (lost.count, len(frames)) == (196, 4)
    # What comes after that is refused: it has no place in the books any more.
    capture.queue.put(frame(1), 5)
    assert capture.queue.drain() == []


def test_leaving_stops_a_source_that_is_being_paced() -> None:
    clock = WallClock()
    with Capture([Frames(100_000)], clock, {"camera": 4}):
        pass
    assert clock.now_ns() < 2_000_000_000
    assert not [t for t in threading.enumerate() if t.name.startswith("capture-")]


def test_wall_and_virtual_time() -> None:
    wall = WallClock()
    wall.wait_until(20_000_000)
    assert 20_000_000 <= wall.now_ns() < 5_000_000_000
    wall.wait_until(0)
    virtual = VirtualClock()
    virtual.wait_until(10**15)
    virtual.wait_until(5)
    assert virtual.now_ns() == 10**15
