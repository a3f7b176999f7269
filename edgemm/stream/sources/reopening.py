"""What live sources share that may go away and come back: the session's time, one thread that reads, reconnection."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from types import TracebackType

from edgemm.errors import SourceError
from edgemm.stream.clock import Clock
from edgemm.stream.frames import End, Event, StreamInfo
from edgemm.stream.turns import prompt_turns

RETRY_S = (0.25, 0.5)
"""Pauses before trying to open a source again; the last repeats. With the second that opening takes, pictures are back
within 2 s of a camera's return."""

_log = logging.getLogger(__name__)


class ReopeningSource(ABC):
    """A live Source that is opened, read by one thread, and opened again when it fails.

    A subclass says how, in `_connect`, `_frames` and `_disconnect`; the first raises SourceError.
    """

    live = True

    def __init__(self, name: str, streams: tuple[StreamInfo, ...]) -> None:
        self.name = name
        self.streams = streams
        self.delays_ns: dict[str, int] = {}
        self._offset_ns = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._reading = False
        self._is_open = False
        self._reconnects = 0

    @property
    def identity(self) -> str:
        """What names the device for good, as far as can be known."""
        return self.name

    def __enter__(self) -> ReopeningSource:
        self._stop.clear()
        with prompt_turns():  # for the threads that it starts
            self.streams = self._connect()
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        with self._lock:
            # Closing a camera under a thread that reads from it crashes the process: that thread closes it.
            if not self._reading:
                self._close()

    def start(self, clock: Clock) -> None:
        """Tell times by `clock` from now on."""
        self._offset_ns = time.monotonic_ns() - clock.now_ns()

    def stop(self) -> None:
        """Let iterating end with the next frame, or when reading gives up waiting for one."""
        self._stop.set()

    def __iter__(self) -> Iterator[Event]:
        if not self._is_open:
            raise SourceError(f"{self.name} is not open: use the source in a with statement.")
        with self._lock:
            self._reading = True
        try:
            returned = False
            while True:
                why = yield from self._frames(broken=returned)
                if self._stop.is_set():
                    return
                for info in self.streams:
                    yield End(info.name, time.monotonic_ns() - self._offset_ns)
                _log.warning("%s: trying to open it again.", why)
                if not self._reopen():
                    return
                _log.warning("%s is back.", self.name)
                returned = True
        finally:
            with self._lock:
                self._reading = False
                if self._stop.is_set():
                    self._close()

    @abstractmethod
    def _connect(self) -> tuple[StreamInfo, ...]:
        """Open it; raises SourceError."""
        ...

    @abstractmethod
    def _frames(self, *, broken: bool) -> Generator[Event, None, str]:
        """Frames until there are no more, or iterating is stopped; returns why. `broken` marks the first."""
        ...

    @abstractmethod
    def _disconnect(self) -> None:
        """Give back what `_connect` took."""
        ...

    def _reopen(self) -> bool:
        """Try until the source is back; False if iterating is stopped first."""
        self._close()
        attempt = 0
        while not self._stop.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
            attempt += 1
            try:
                self._connect()
            except SourceError:
                continue
            self._is_open = True
            self._reconnects += 1
            return True
        return False

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._disconnect()
