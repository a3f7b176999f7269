"""All sinks of one run: opened and closed together, written to so that none holds up the run, and accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

from edgemm.stream.accounting import SinkAccount
from edgemm.stream.frames import Event
from edgemm.stream.results import Result
from edgemm.stream.sinks.outbox import Direct, Outbox, name_of
from edgemm.stream.sinks.protocol import Briefed, Prompt, Run, Sink, Snapshot, Watcher

LOOK_S = 0.2
"""Watchers see the books this often: closing them takes a tenth of a millisecond."""

Books = Callable[[Mapping[str, SinkAccount]], Snapshot]
"""Gives the books of the run, with those of the sinks."""


class Outlets:
    """The sinks of a run, which it enters and leaves in their order.

    Under the wall clock each has a queue and a thread of its own, but for those that never wait; with `direct`, under
    the virtual clock, all are written to at once and nothing is dropped.
    """

    def __init__(self, sinks: Sequence[Sink], *, direct: bool) -> None:
        self._outlets: dict[str, Direct | Outbox] = {}
        for sink in sinks:
            name = base = name_of(sink)
            number = 1
            while name in self._outlets:
                number += 1
                name = f"{base} ({number})"
            self._outlets[name] = Direct(sink) if direct or isinstance(sink, Prompt) else Outbox(sink)
        self._sinks = sinks
        self._watchers = [sink for sink in sinks if isinstance(sink, Watcher)]
        self._writes = [outlet.write for outlet in self._outlets.values()]
        self._books: Books | None = None
        self._next_s = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> Outlets:
        with ExitStack() as stack:
            for outlet in self._outlets.values():
                stack.enter_context(outlet)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self, run: Run, books: Books) -> None:
        """Tell the sinks of the run; `books` gives its books whenever it is asked."""
        self._books = books
        for sink in self._sinks:
            if isinstance(sink, Briefed):
                sink.begin(run)

    def write(self, result: Result) -> None:
        """Give every sink a result. Raises SinkError where one has failed, now or before."""
        for write in self._writes:
            write(result)
        self._look()

    @property
    def on_event(self) -> Callable[[Event], None] | None:
        """To be called with every event that the session is about to take; None if no sink looks on."""
        return self._event if self._watchers else None

    def _event(self, event: Event) -> None:
        for watcher in self._watchers:
            watcher.event(event)
        self._look()

    def drain(self) -> dict[str, SinkAccount]:
        """The run is over: bring out what waits, show the watchers the last books, and return those of the sinks.

        Raises SinkError where a sink has failed.
        """
        for outlet in self._outlets.values():
            outlet.drain()
        self._next_s = 0.0
        self._look()
        accounts = self._accounts()
        for name, account in accounts.items():
            account.check(name)
        return accounts

    def _accounts(self) -> dict[str, SinkAccount]:
        return {name: outlet.account() for name, outlet in self._outlets.items()}

    def _look(self) -> None:
        if not self._watchers or self._books is None or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LOOK_S
        books = self._books(self._accounts())
        for watcher in self._watchers:
            watcher.look(books)
