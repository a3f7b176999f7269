"""The books: every frame and every step is accounted for, and the numbers are checked before they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgemm.errors import EdgemmError


class AccountingError(EdgemmError):
    """Frames or steps do not add up: a defect in edgemm, not in what it was given."""


@dataclass(frozen=True)
class StreamAccount:
    """What became of the frames of one stream; a frame of sound is one chunk.

    captured = used + dropped + in flight. A frame is used if at least one step saw it.
    """

    captured: int
    used: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By cause, sorted."""
    in_flight: int = 0
    """Neither used nor dropped when the run was cut short."""
    discontinuities: int = 0

    def check(self, stream: str) -> None:
        """Raise AccountingError if the numbers do not add up."""
        known = self.used + sum(self.dropped.values()) + self.in_flight
        if self.captured != known:
            raise AccountingError(
                f'Stream "{stream}": captured {self.captured}, but used {self.used} + dropped '
                f"{sum(self.dropped.values())} + in flight {self.in_flight} = {known}. Please report this as a bug."
            )


@dataclass(frozen=True)
class ModelAccount:
    """What became of the steps of one model: due = made + skipped + pending."""

    due: int
    made: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By cause, sorted."""
    pending: int = 0
    """Due, but not yet made when the run was cut short."""
    resets: Mapping[str, int] = field(default_factory=dict)
    """How often the state was reset, by cause."""
    deadlines_missed: int = 0
    degraded: Mapping[str, int] = field(default_factory=dict)
    """Of the steps made, those in degraded modes, by mode."""

    def check(self, model: str) -> None:
        """Raise AccountingError if the numbers do not add up."""
        known = self.made + sum(self.skipped.values()) + self.pending
        if self.due != known:
            raise AccountingError(
                f'Model "{model}": {self.due} steps due, but made {self.made} + skipped '
                f"{sum(self.skipped.values())} + pending {self.pending} = {known}. Please report this as a bug."
            )


def by_name(counter: Counter[str]) -> dict[str, int]:
    """A counter as a plain dict in the order of its keys, so that it is written the same every time."""
    return {cause: counter[cause] for cause in sorted(counter) if counter[cause]}


@dataclass(frozen=True)
class SinkAccount:
    """What became of the results that one sink was given: taken = written + dropped + pending."""

    taken: int
    written: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By cause, sorted."""
    pending: int = 0
    """Waiting for the sink to write them; 0 once the run is over."""

    def check(self, sink: str) -> None:
        """Raise AccountingError if the numbers do not add up."""
        known = self.written + sum(self.dropped.values()) + self.pending
        if self.taken != known:
            raise AccountingError(
                f'Sink "{sink}": {self.taken} results taken, but written {self.written} + dropped '
                f"{sum(self.dropped.values())} + pending {self.pending} = {known}. Please report this as a bug."
            )
