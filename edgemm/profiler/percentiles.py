"""Percentiles of measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """The distribution of one stage's times, in nanoseconds."""

    count: int
    mean_ns: float
    min_ns: int
    p50_ns: float
    p90_ns: float
    p99_ns: float
    p999_ns: float
    max_ns: int

    @classmethod
    def of(cls, times_ns: Sequence[int]) -> Percentiles:
        """Summarise `times_ns`, at least one; between two samples the percentile is interpolated linearly."""
        values = np.asarray(times_ns, np.int64)
        p50, p90, p99, p999 = np.percentile(values, (50, 90, 99, 99.9))
        return cls(
            count=len(values),
            mean_ns=float(values.mean()),
            min_ns=int(values.min()),
            p50_ns=float(p50),
            p90_ns=float(p90),
            p99_ns=float(p99),
            p999_ns=float(p999),
            max_ns=int(values.max()),
        )


def trusted(percentile: float, count: int) -> bool:
    """True if `count` samples say something of the percentile: at least one of them lies beyond it."""
    return count * (1000 - round(percentile * 10)) >= 1000
