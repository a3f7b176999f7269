"""What every sink of results offers."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from edgemm.stream.results import Result


class Sink(Protocol):
    """Takes results in the order in which they are made. Entering it opens what it writes to; leaving it closes it."""

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, result: Result) -> None:
        """Take one result. Raises SinkError if it cannot be written; what was written before stays good."""
