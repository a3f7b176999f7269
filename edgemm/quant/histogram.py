"""A histogram of magnitudes whose memory does not depend on how much it has seen."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgemm.types import Array

_SMALLEST_LIMIT = 1e-30
"""Below this the bin index would overflow float32; magnitudes that small share one bin."""


class MagnitudeHistogram:
    """Counts of |x| in equal bins over [0, limit]; `bins` must be a power of two.

    The first array that is not all zeros sets the limit to its largest magnitude. A larger one doubles the limit as
    often as needed, and each doubling merges neighbouring bins, which is exact: a count never moves
    across an edge that still exists. Exact zeros are not counted, because they cost nothing at any scale.
    """

    def __init__(self, bins: int = 4096) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(bins, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    @property
    def width(self) -> float:
        """Width of one bin, in the tensor's units; 0 before the first non-zero value."""
        return self.limit / len(self.counts)

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of each bin, in the tensor's units: [bins]."""
        return np.asarray((np.arange(len(self.counts)) + 0.5) * self.width, np.float64)

    def add(self, values: Array) -> None:
        """Count the magnitudes of a float array of any shape. The values must be finite."""
        magnitude = np.abs(values.reshape(-1).astype(np.float32, copy=False))
        largest = float(magnitude.max(initial=0.0))
        non_zero = magnitude[magnitude > 0]
        if largest == 0.0:
            return
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = max(largest, _SMALLEST_LIMIT)
        elif largest > self.limit:
            # Both are float32 values, so that in float64 no quotient above a power of two rounds down to it.
            self._grow(math.ceil(math.log2(largest / self.limit)))
        bins = len(self.counts)
        index = (non_zero * np.float32(bins / self.limit)).astype(np.int64)
        self.counts += np.bincount(np.minimum(index, bins - 1), minlength=bins)

    def _grow(self, doublings: int) -> None:
        bins = len(self.counts)
        self.limit *= 2.0**doublings
        factor = min(2**doublings, bins)
        merged = self.counts.reshape(bins // factor, factor).sum(axis=1)
        self.counts[:] = 0
        self.counts[: len(merged)] = merged
