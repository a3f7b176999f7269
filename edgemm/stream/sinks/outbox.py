"""Between the thread that makes steps and a sink that may take its time: a bounded queue and a thread."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from types import TracebackType

from edgemm.stream.accounting import SinkAccount, by_name
from edgemm.stream.decode import Values, Vector
from edgemm.stream.results import Result
from edgemm.stream.sinks.protocol import Accounted, Named, Sink
from edgemm.stream.turns import prompt_turns

QUEUE_RESULTS = 4096
"""Results that may wait for a sink: ten seconds of four hundred a second."""

QUEUE_BYTES = 64 << 20
"""And their tensors: raw outputs may be large."""

PATIENCE_S = 5.0
"""How long the end of a run waits for a sink that gets nothing done."""

DRAIN_S = 30.0
"""And for one that gets something done, but never all."""

LAST_WORD_S = 0.5
"""And then for its last write to come back."""


def name_of(sink: Sink) -> str:
    """What a sink is called in the accounts."""
    return sink.name if isinstance(sink, Named) else type(sink).__name__


class Direct:
    """A sink that is written to at once, by the thread that makes the steps: nothing is dropped, and the steps wait."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._written = 0

    def __enter__(self) -> Direct:
        self.sink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sink.__exit__(kind, error, trace)

    def write(self, result: Result) -> None:
        """Write one result."""
        self.sink.write(result)
        self._written += 1

    def drain(self) -> None:
        """The run is over: let the sink bring out what it took."""
        if isinstance(self.sink, Accounted):
            self.sink.flush(PATIENCE_S)

    def account(self) -> SinkAccount:
        """What the sink says of itself, or that all was written."""
        return self.sink.account() if isinstance(self.sink, Accounted) else SinkAccount(self._written, self._written)


class Outbox:
    """A sink behind a bounded queue, written to by a thread of its own.

    `write` never waits: where the queue is full, the oldest result makes room ("queue_full"). What the sink raises
    is raised by the next `write`, or by `drain`. Entering and leaving the outbox enters and leaves the sink.
    """

    def __init__(self, sink: Sink, *, patience_s: float = PATIENCE_S) -> None:
        self.sink = sink
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Result, int]] = deque()
        self._bytes = 0
        self._busy = False
        self._taken = 0
        self._written = 0
        self._dropped: Counter[str] = Counter()
        self._error: Exception | None = None
        self._has_ended = False
        self._is_stuck = False
        # A daemon: a write that never returns must not keep the process.
        self._thread = threading.Thread(target=self._run, name=f"sink {name_of(sink)}", daemon=True)

    def __enter__(self) -> Outbox:
        self.sink.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.drain()
            else:
                self._finish()  # an error is on its way already, this sink's perhaps
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
            self._thread.join(None if not self._is_stuck else 0)
            if not self._thread.is_alive():
                self.sink.__exit__(kind, error, trace)

    def write(self, result: Result) -> None:
        """Queue one result. Raises what the sink raised for an earlier one."""
        size = _bytes(result)
        with self._changed:
            if self._error is not None:
                raise self._error
            self._taken += 1
            while self._waiting and (len(self._waiting) >= QUEUE_RESULTS or self._bytes + size > QUEUE_BYTES):
                self._bytes -= self._waiting.popleft()[1]
                self._dropped["queue_full"] += 1
            self._waiting.append((result, size))
            self._bytes += size
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all is written, as long as something gets done; what then still waits is dropped ("stuck").

        Raises what the sink raised.
        """
        self._finish()
        if self._error is not None:
            raise self._error

    def account(self) -> SinkAccount:
        """What became of the results until now."""
        with self._changed:
            own = self.sink.account() if isinstance(self.sink, Accounted) else None
            written = self._written if own is None else own.written
            dropped = self._dropped if own is None else self._dropped + Counter(own.dropped)
            pending = self._taken - written - sum(dropped.values())
            return SinkAccount(self._taken, written, by_name(dropped), pending)

    def _finish(self) -> None:
        with self._changed:
            before, until_s = -1, 0.0
            end_s = time.monotonic() + DRAIN_S
            while (self._waiting or self._busy) and self._error is None and not self._is_stuck:
                if self._written != before:
                    before, until_s = self._written, min(end_s, time.monotonic() + self._patience_s)
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    self._is_stuck = True
                else:
                    self._changed.wait(left_s)
        if isinstance(self.sink, Accounted):
            self.sink.flush(0 if self._is_stuck else self._patience_s)
        if self._is_stuck:
            self._thread.join(LAST_WORD_S)  # a write that `flush` released is soon back
        with self._changed:
            cause = "stuck" if self._error is None else "sink_failed"
            self._dropped[cause] += len(self._waiting) + self._busy
            self._busy = False
            self._waiting.clear()
            self._bytes = 0

    def _run(self) -> None:
        with prompt_turns():
            self._write_all()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._has_ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                result, size = self._waiting.popleft()
                self._bytes -= size
                self._busy = True
            try:
                self.sink.write(result)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread that makes steps raises it
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if not self._busy:
                    return  # given up, and in the books as dropped
                self._busy = False
                self._written += 1
                self._changed.notify_all()
                if self._is_stuck:
                    return


def _bytes(result: Result) -> int:
    return sum(
        [
            value.values.nbytes if isinstance(value, Values) else value.vector.nbytes
            for value in result.outputs.values()
            if isinstance(value, Values | Vector)
        ]
    )
