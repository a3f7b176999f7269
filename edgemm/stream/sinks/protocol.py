"""What every sink of results offers, and what it may offer beside: to look on, to count, never to wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

from edgemm.recipe import Recipe
from edgemm.stream.accounting import ModelAccount, SinkAccount, StreamAccount
from edgemm.stream.drift import ClockReport
from edgemm.stream.frames import Event, StreamInfo
from edgemm.stream.results import Result


class Sink(Protocol):
    """Takes results in the order in which they are made. Entering it opens what it writes to; leaving it closes it.

    Under the wall clock a sink is written to from a thread of its own, through a bounded queue (`outbox.py`), so that
    it may take its time; under the virtual clock from the thread that makes the steps, which waits for it. Entering
    and leaving it is the calling thread's.
    """

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, result: Result) -> None:
        """Take one result. Raises SinkError if it cannot be written; what was written before stays good."""


@runtime_checkable
class Named(Protocol):
    """A sink that says what it is called in the accounts; others go by the name of their class."""

    @property
    def name(self) -> str:
        """A few words, e.g. "jsonl results.jsonl"."""


@runtime_checkable
class Prompt(Protocol):
    """A sink whose `write` never waits for anything: it needs no queue and no thread."""

    never_waits: Literal[True]


@runtime_checkable
class Accounted(Protocol):
    """A sink that keeps books of its own, because what it took may still be lost, or goes to several readers."""

    def flush(self, patience_s: float) -> None:
        """The run is over: wait until what it took is out, as long as that goes on, and count the rest as dropped.

        A `write` that waits in another thread then returns, too. Gives up after `patience_s` without progress.
        """

    def account(self) -> SinkAccount:
        """What became of what it was given, until now. Called from any thread."""


@dataclass(frozen=True)
class Run:
    """What a sink may know of a run before its first result."""

    recipe: Recipe
    streams: Sequence[StreamInfo]
    live: frozenset[str]
    """Streams of devices, which may disappear and come back; the others are files, which end."""
    clock: Literal["wall", "virtual"]


@runtime_checkable
class Briefed(Protocol):
    """A sink that is told of the run. Called once, after it and all sources were entered."""

    def begin(self, run: Run) -> None:
        """The run is about to start."""


@dataclass(frozen=True)
class Snapshot:
    """The books of a run in the middle of it; they balance."""

    streams: Mapping[str, StreamAccount]
    models: Mapping[str, ModelAccount]
    clocks: Mapping[str, ClockReport]
    """By stream, for live sources."""
    sinks: Mapping[str, SinkAccount]


@runtime_checkable
class Watcher(Briefed, Protocol):
    """A sink that looks on: at the frames as they come, and at the books. Neither call may wait."""

    def event(self, event: Event) -> None:
        """The session takes an event. Its arrays may be kept, and must not be written to."""

    def look(self, books: Snapshot) -> None:
        """The books some times a second, and once more when the run is over."""
