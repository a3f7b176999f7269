"""What sound and which pictures belong to a step's time: pure functions of capture times.

A step at time T sees the sound up to T and, as its last picture, the newest one captured at or before T.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Missing = Literal["repeat", "zeros", "skip"]


@dataclass(frozen=True)
class AudioNeed:
    """The sound that one input wants: the newest `count` rows of a front end, or of the samples themselves.

    Row j is complete after `j * hop_samples + first_samples` samples and reaches `extent_samples` back from there.
    Samples themselves are rows with all three equal to 1.
    """

    stream: str
    count: int
    hop_samples: int = 1
    first_samples: int = 1
    extent_samples: int = 1
    warmup_samples: int = 0
    """There is no row before so many samples, even if some are complete by then."""
    zeros: bool = False
    """Rows from before the start of the sound are zeros; otherwise a step waits until the window is full."""

    def last_row(self, samples: int) -> int:
        """Index of the newest row that is complete after `samples` samples; -1 if there is none."""
        if samples < self.warmup_samples:
            return -1
        return max(-1, (samples - self.first_samples) // self.hop_samples)

    def end_sample(self, row: int) -> int:
        """How many samples row `row` needs: one past its newest sample."""
        return row * self.hop_samples + self.first_samples

    @cached_property
    def span_samples(self) -> int:
        """Samples from the oldest to the newest that one window rests on."""
        return (self.count - 1) * self.hop_samples + self.extent_samples


@dataclass(frozen=True)
class VideoNeed:
    """The pictures that one input wants: `count` of them, `spacing_ns` apart."""

    stream: str
    count: int = 1
    spacing_ns: int = 0
    missing: Missing = "repeat"


class PictureTimes:
    """When the pictures that are still held were captured, ascending: which of them a step sees."""

    __slots__ = ("_sums_ns", "captures_ns")

    def __init__(self, captures_ns: Iterable[int] = ()) -> None:
        self.captures_ns: list[int] = []
        self._sums_ns: list[int] = []
        """Of each picture and the next: a picture is nearest to t if 2t lies between the sums on its two sides."""
        for capture_ns in captures_ns:
            self.append(capture_ns)

    def append(self, capture_ns: int) -> None:
        """Enter a picture that is newer than all before."""
        if self.captures_ns:
            self._sums_ns.append(self.captures_ns[-1] + capture_ns)
        self.captures_ns.append(capture_ns)

    def drop(self, count: int) -> None:
        """Forget the oldest `count` pictures."""
        del self.captures_ns[:count]
        del self._sums_ns[:count]

    def select(self, time_ns: int, need: VideoNeed, stale_ns: int) -> list[int | None] | None:
        """Indices of the pictures for the step at `time_ns`, oldest first.

        The last is the newest captured at or before `time_ns`. The one i places before it is the picture nearest to
        `i * spacing_ns` earlier, the earlier of two equally near; if none is within half a spacing, it is missing:
        "repeat" takes the nearest earlier one (before the first picture: the first), "zeros" gives None, "skip" gives
        up the step. Under "zeros" and "skip" a newest picture older than `stale_ns` is missing too, and with it all.
        Returns None if the step cannot be made.
        """
        captures_ns = self.captures_ns
        newest = bisect_right(captures_ns, time_ns) - 1
        if newest < 0 or (need.missing != "repeat" and time_ns - captures_ns[newest] > stale_ns):
            return [None] * need.count if need.missing == "zeros" else None
        spacing_ns = need.spacing_ns
        anchor_ns = captures_ns[newest]
        chosen: list[int | None] = []
        for place in range(need.count - 1, 0, -1):
            twice_ns = 2 * (anchor_ns - place * spacing_ns)
            at = bisect_left(self._sums_ns, twice_ns, 0, newest)
            if -spacing_ns <= 2 * captures_ns[at] - twice_ns <= spacing_ns:
                chosen.append(at)
            elif need.missing == "repeat":
                chosen.append(max(bisect_right(captures_ns, twice_ns // 2, 0, newest + 1) - 1, 0))
            elif need.missing == "zeros":
                chosen.append(None)
            else:
                return None
        chosen.append(newest)
        return chosen

    def first_needed(self, time_ns: int, need: VideoNeed) -> int:
        """Index of the oldest picture that a step at `time_ns` or later may still ask for."""
        captures_ns = self.captures_ns
        newest = bisect_right(captures_ns, time_ns) - 1
        if newest < 0:
            return 0
        horizon_ns = captures_ns[newest] - (need.count - 1) * need.spacing_ns - need.spacing_ns // 2
        # The newest one at or before the horizon stays: "repeat" may ask for it.
        return max(0, bisect_right(captures_ns, horizon_ns) - 1)


def samples_until(time_num: int, time_den: int, start_ns: int, rate_hz: int) -> int:
    """How many whole samples of a sound that starts at `start_ns` are over at the time `time_num / time_den` ns.

    Negative before the start. Exact: a hop of 512 samples steps by 512 samples for ever.
    """
    return (time_num - start_ns * time_den) * rate_hz // (time_den * 10**9)
