"""What decides a session besides its frames: the times that it read from the clock, kept so that it can be replayed.

A session in wall time is a function of its events, of when each arrived, and of every reading of the clock on the way.
The frames go into a recording's tracks; the rest is a journal of short entries, in the order in which things happened:

    ["h", header]                                   once, at the beginning
    ["a", stream, arrived, capture, pts, num, den, samples, rate, discontinuity]      a chunk of sound
    ["v", stream, arrived, capture, pts, num, den, color, discontinuity]              a picture
    ["l", stream, arrived, cause, end, count]       frames lost
    ["e", stream, arrived, end]                     a stream ended
    ["t", now]                                      a tick, after which steps are made
    ["f"]                                           all sources have ended; the last steps are made
    ["c", now]                                      a reading of the clock
    ["d"]                                           no more steps; what was on its way goes to the books
    ["r", line]                                     a result, as JSON without latencies
    ["s", interrupted]                              the run is over
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from edgemm.stream.clock import Clock
from edgemm.stream.frames import Event
from edgemm.stream.results import Result

Entry = list[Any]


class Tape(Protocol):
    """Takes what happens in a session, in its order; never waits."""

    def event(self, event: Event, arrived_ns: int) -> None:
        """A frame was ingested."""

    def note(self, entry: Entry) -> None:
        """Something else happened."""

    def result(self, result: Result) -> None:
        """A result was made."""


class TapeClock:
    """A clock whose readings go to a tape."""

    def __init__(self, inner: Clock, tape: Tape) -> None:
        self.inner = inner
        self._tape = tape

    def now_ns(self) -> int:
        """The inner clock's time."""
        now_ns = self.inner.now_ns()
        self._tape.note(["c", now_ns])
        return now_ns

    def wait_until(self, time_ns: int) -> None:
        """Wait on the inner clock."""
        self.inner.wait_until(time_ns)


class EndOfTape(Exception):
    """A session asks for more than was recorded."""


class ScriptClock:
    """A clock that reads what was read before."""

    def __init__(self) -> None:
        self.readings: deque[int] = deque()
        self.has_ended = False
        """Set where there is nothing more to come: the last reading then stands."""
        self._last_ns = 0

    def now_ns(self) -> int:
        """The next reading. Raises EndOfTape if there is none."""
        if self.readings:
            self._last_ns = self.readings.popleft()
        elif not self.has_ended:
            raise EndOfTape
        return self._last_ns

    def wait_until(self, time_ns: int) -> None:
        """Return at once: whatever was waited for has happened."""
