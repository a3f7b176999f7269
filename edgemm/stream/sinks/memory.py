"""Results in a list, for Python users."""

from __future__ import annotations

from types import TracebackType
from typing import Literal

from edgemm.stream.results import Result


class MemorySink:
    """Keeps every result in `results`, which stays readable after the run."""

    never_waits: Literal[True] = True

    def __init__(self) -> None:
        self.results: list[Result] = []

    def __enter__(self) -> MemorySink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, result: Result) -> None:
        """Keep one result."""
        self.results.append(result)
