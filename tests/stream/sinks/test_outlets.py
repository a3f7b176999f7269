from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from sample_results import result

from edgemm import recipe as recipes
from edgemm.errors import SinkError
from edgemm.stream.accounting import ModelAccount, SinkAccount, StreamAccount
from edgemm.stream.frames import AudioChunk, Event
from edgemm.stream.results import Result
from edgemm.stream.sinks import outlets
from edgemm.stream.sinks.memory import MemorySink
from edgemm.stream.sinks.outlets import Outlets
from edgemm.stream.sinks.protocol import Run, Snapshot

RUN: Any = Run(recipe=recipes.Recipe, streams=(), live=frozenset(), clock="wall")  # type: ignore[arg-type]


class Watching(MemorySink):
    """A sink that looks on."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self.events: list[Event] = []
        self.books: list[Snapshot] = []

    def begin(self, run: Run) -> None:
        self.runs.append(run)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def look(self, books: Snapshot) -> None:
        self.books.append(books)


class Threads(MemorySink):
    """Notes which thread writes."""

    never_waits: Literal[True]

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[threading.Thread] = set()

    def write(self, result: Result) -> None:
        self.threads.add(threading.current_thread())


class Waits:
    """As `Threads`, without the promise."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()

    def __enter__(self) -> Waits:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, result: Result) -> None:
        self.threads.add(threading.current_thread())


def books(sinks: Any) -> Snapshot:
    return Snapshot({"mic": StreamAccount(2, 2)}, {"av": ModelAccount(1, 1)}, {}, dict(sinks))


@pytest.mark.parametrize("direct", [True, False])
def test_who_writes(direct: bool) -> None:
    prompt, waits = Threads(), Waits()
    with Outlets([prompt, waits], direct=direct) as out:
        out.begin(RUN, books)
        out.write(result())
        accounts = out.drain()
    assert prompt.threads == {threading.current_thread()}
    assert (waits.threads == {threading.current_thread()}) == direct
    assert accounts == {"Threads": SinkAccount(1, 1), "Waits": SinkAccount(1, 1)}


def test_sinks_of_one_name_are_told_apart() -> None:
    with Outlets([Waits(), Waits(), Waits()], direct=True) as out:
        assert list(out.drain()) == ["Waits", "Waits (2)", "Waits (3)"]


def test_watchers_see_the_run_its_events_and_its_books(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "LOOK_S", 1000)
    watcher = Watching()
    chunk = AudioChunk("mic", 0, Fraction(1, 16000), 0, np.zeros(160, np.float32), 16000)
    with Outlets([watcher, MemorySink()], direct=False) as out:
        assert out.on_event is not None
        out.begin(RUN, books)
        assert watcher.runs == [RUN]
        out.on_event(chunk)
        out.on_event(chunk)
        out.write(result())
        assert len(watcher.books) == 1  # not at every event
        out.drain()
    assert watcher.events == [chunk, chunk]
    assert len(watcher.books) == 2
    assert watcher.books[-1].sinks == {"Watching": SinkAccount(1, 1), "MemorySink": SinkAccount(1, 1)}


def test_without_watchers_no_event_is_asked_for() -> None:
    with Outlets([MemorySink()], direct=False) as out:
        assert out.on_event is None


def test_a_sink_that_cannot_be_opened_closes_those_before_it() -> None:
    closed = []

    class First(Waits):
        def __exit__(self, *_: object) -> None:
            closed.append("first")

    class Second(Waits):
        def __enter__(self) -> Waits:
            raise SinkError("The port is in use.")

    with pytest.raises(SinkError, match="in use"), Outlets([First(), Second()], direct=False):
        pass
    assert closed == ["first"]
