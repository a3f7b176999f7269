"""Threads that read sources, and the bounded queue between them and the thread that infers.

Capture never waits for inference: where the queue is full, the oldest frame of that stream makes room, and is entered
as lost ("queue_full").
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol

from edgemm.stream.clock import Clock
from edgemm.stream.frames import End, Event, Lost
from edgemm.stream.sources.protocol import LiveSource, Source
from edgemm.stream.spans import Recorder
from edgemm.stream.turns import prompt_turns

QUEUE_SECONDS = 2
"""Sound that may wait: more than any deadline, less than what the windows hold."""

QUEUE_PICTURES = 16
"""Pictures that may wait: half a second of a camera, 100 MB at 1080p."""

QUEUE_FULL = "queue_full"

_MARKS = (Lost, End)
"""Events that are no frames: they take no room, and nothing makes room for another by their loss."""

JOIN_S = 2.0
"""How long leaving waits for a source that blocks, e.g. a URL that no longer answers; its thread is then left alone."""


class Arrivals(Protocol):
    """What has come from the sources and waits for the session."""

    def take(self, timeout_s: float | None, limit: int | None = None) -> list[tuple[Event, int]] | None:
        """All events that are there, or the first `limit`, each with its time of arrival; waits up to `timeout_s` for
        one. None: there will be none."""

    def drain(self) -> list[tuple[Event, int]]:
        """What is still waiting when the session is over."""


class FrameQueue:
    """Events in the order of their arrival, each with its time; at most `limits[stream]` frames of a stream.

    A frame that is dropped for want of room leaves a Lost; those of a stream that follow each other are one event, so
    that the queue stays bounded however long nobody takes from it.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._events: deque[tuple[Event, int]] = deque()
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._writers = 0
        self._error: BaseException | None = None

    def open(self) -> None:
        """One more thread is going to `put`."""
        with self._changed:
            self._writers += 1

    def close(self, error: BaseException | None = None) -> None:
        """One thread will `put` no more; `error` is raised by the next `take`."""
        with self._changed:
            self._writers -= 1
            self._error = self._error or error
            self._changed.notify()

    def put(self, event: Event, now_ns: int) -> None:
        """Add an event that arrived at `now_ns`; never waits."""
        with self._changed:
            stream = event.stream
            if stream not in self._limits:
                return
            if not isinstance(event, _MARKS):
                if self._waiting[stream] >= self._limits[stream]:
                    self._drop_oldest(stream)
                self._waiting[stream] += 1
            self._events.append((event, now_ns))
            self._changed.notify()

    def take(self, timeout_s: float | None, limit: int | None = None) -> list[tuple[Event, int]] | None:
        """All events that are there, or the first `limit`; waits up to `timeout_s` for one. None: there will be none.

        Raises what stopped a writer, once the events before are taken.
        """
        with self._changed:
            if not self._events and self._writers:
                self._changed.wait(timeout_s)
            if not self._events:
                if self._error is not None:
                    raise self._error
                return [] if self._writers else None
            count = len(self._events) if limit is None else min(limit, len(self._events))
            taken = [self._events.popleft() for _ in range(count)]
            for event, _ in taken:
                self._waiting[event.stream] -= not isinstance(event, _MARKS)
            return taken

    def drain(self) -> list[tuple[Event, int]]:
        """What is still waiting, when nobody writes any more; what comes later is refused."""
        with self._changed:
            taken = list(self._events)
            self._events.clear()
            self._limits = {}
            return taken

    def _drop_oldest(self, stream: str) -> None:
        before: int | None = None
        count = 1
        for at, (event, now_ns) in enumerate(self._events):
            if event.stream != stream:
                continue
            if isinstance(event, _MARKS):
                before, count = None, 1
                if isinstance(event, Lost) and event.cause == QUEUE_FULL:
                    before, count = at, 1 + event.count
                continue
            # In its place, so that the books stay in the order of arrival.
            self._events[at] = (Lost(stream, QUEUE_FULL, event.end_ns, count), now_ns)
            self._waiting[stream] -= 1
            if before is not None:
                del self._events[before]
            return


class Capture:
    """Runs one thread a source while it is entered; `queue` is where the events come out.

    Sources that are not live are paced: an event is put when the clock reaches its `end_ns`. Live ones are told the
    clock, so that they can say when a frame was captured.
    """

    def __init__(
        self, sources: Sequence[Source], clock: Clock, limits: Mapping[str, int], recorder: Recorder | None = None
    ) -> None:
        self.queue = FrameQueue(limits)
        self._clock = clock
        self._recorder = recorder
        self._stop = threading.Event()
        self._live = [source for source in sources if isinstance(source, LiveSource)]
        self._threads = [
            threading.Thread(target=self._read, args=(source,), name=f"capture-{number}", daemon=True)
            for number, source in enumerate(sources)
        ]

    def __enter__(self) -> Capture:
        for source in self._live:
            source.start(self._clock)
        for thread in self._threads:
            self.queue.open()
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for source in self._live:
            source.stop()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _read(self, source: Source) -> None:
        error: BaseException | None = None
        try:
            with prompt_turns():
                self._put_all(source)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the thread that takes raises it
            error = problem
        finally:
            self.queue.close(error)

    def _put_all(self, source: Source) -> None:
        begin_ns = time.perf_counter_ns()
        for event in source:
            if self._recorder is not None:
                self._recorder.span("source", event.stream, 0, begin_ns, time.perf_counter_ns())
            if not source.live:
                self._pace(event.end_ns)
            if self._stop.is_set():
                break
            self.queue.put(event, self._clock.now_ns())
            begin_ns = time.perf_counter_ns()

    def _pace(self, time_ns: int) -> None:
        while (left_ns := time_ns - self._clock.now_ns()) > 0:
            if self._stop.wait(left_ns / 1e9):
                return
