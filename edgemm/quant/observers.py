"""Observers: from the values a tensor took, the magnitude that int8 should reach.

An observer sees every batch once and keeps a fixed amount of memory. The range is symmetric: values beyond +-amax
saturate, so a smaller amax gives finer steps and clips more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from edgemm.errors import UsageError
from edgemm.quant.arithmetic import INT8_LEVELS
from edgemm.quant.histogram import MagnitudeHistogram
from edgemm.types import Array

_LARGEST_TAIL = 0.001


class Observer(Protocol):
    """Watches one tensor during calibration."""

    def observe(self, values: Array) -> None:
        """Take in one batch: a finite float array of any shape, which is not kept."""

    def amax(self) -> float:
        """Return the magnitude that the largest int8 level should stand for; 0 if only zeros were seen."""


class MinMaxObserver:
    """The largest magnitude seen: nothing clips, one outlier coarsens every step."""

    def __init__(self) -> None:
        self._amax = 0.0

    def observe(self, values: Array) -> None:
        """Take in one batch."""
        if values.size:
            self._amax = max(self._amax, float(values.max()), -float(values.min()))

    def amax(self) -> float:
        """Return the largest magnitude."""
        return self._amax


class _HistogramObserver(ABC):
    """Counts magnitudes; what they come to is for those who derive from it."""

    def __init__(self) -> None:
        self._histogram = MagnitudeHistogram()

    def observe(self, values: Array) -> None:
        """Take in one batch."""
        self._histogram.add(values)

    def amax(self) -> float:
        """Return the magnitude that the largest level should stand for; 0 if only zeros were seen."""
        return 0.0 if self._histogram.largest == 0.0 else self._choose(self._histogram)

    @abstractmethod
    def _choose(self, histogram: MagnitudeHistogram) -> float:
        """Choose it from counts that are not all zero."""


class PercentileObserver(_HistogramObserver):
    """The magnitude that `percentile` percent of all values other than zero stay below.

    99.999 is what onnxruntime takes; 99.99 clips more and suits some convolutional networks better (Wu et al.,
    "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", arXiv:2004.09602, table 5).
    Exact zeros are left out: they cost nothing at any scale, and behind a ReLU that rarely fires the percentile of all
    values would be zero.
    """

    def __init__(self, percentile: float = 99.999) -> None:
        if not 0 < percentile <= 100:
            raise UsageError(f"A percentile is above 0 and at most 100, found {percentile}.")
        super().__init__()
        self._share = percentile / 100

    def _choose(self, histogram: MagnitudeHistogram) -> float:
        """The percentile, interpolated inside its bin."""
        below = np.cumsum(histogram.counts)
        wanted = self._share * float(below[-1])
        index = int(np.searchsorted(below, wanted))
        inside = (wanted - (below[index] - histogram.counts[index])) / histogram.counts[index]
        return float(min((index + inside) * histogram.width, histogram.largest))


class EntropyObserver(_HistogramObserver):
    """The range whose int8 image of the distribution loses the least information (Kullback-Leibler).

    The method of Migacz, "8-bit inference with TensorRT" (GTC 2017): for each candidate the histogram is cut there, its
    tail is added to the last bin, and the result is compared with what 128 levels can express of it. Exact zeros are
    left out: after a ReLU they would outweigh everything else, and they are exact at any scale. A candidate cuts at
    most 0.1 % of the values: the divergence cannot tell a cut below nearly everything from a perfect one.
    """

    def _choose(self, histogram: MagnitudeHistogram) -> float:
        """The candidate with the smallest divergence; candidates are 8 bins apart, from 128 bins on."""
        counts = histogram.counts.astype(np.float64)
        used = int(np.flatnonzero(counts)[-1]) + 1
        levels = INT8_LEVELS + 1
        tails = np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])
        first = max(levels, int(np.flatnonzero(tails <= _LARGEST_TAIL * tails[0])[0]))
        candidates = [*range(first, used, 8), max(used, first)]
        best = min(candidates, key=lambda bins: _divergence(counts[:bins], float(tails[bins]), levels))
        return float(min(best * histogram.width, histogram.largest))


def _divergence(counts: npt.NDArray[np.float64], tail: float, levels: int) -> float:
    """Return KL(P || Q) of the cut histogram P and its image Q on `levels` equal levels."""
    bins = len(counts)
    level = np.arange(bins) * levels // bins
    filled = counts > 0
    sums = np.bincount(level, counts, levels)
    members = np.bincount(level, filled, levels)
    image = np.where(filled, (sums / np.maximum(members, 1))[level], 0.0)
    reference = counts.copy()
    reference[-1] += tail
    if image[-1] == 0.0:
        # The tail fell into an empty bin, which Q cannot express: give Q the least count that is not zero.
        image[-1] = 1.0
    present = reference > 0
    p = reference[present] / reference.sum()
    q = image[present] / image[present].sum()
    return float(np.sum(p * np.log(p / q)))


class MseObserver(_HistogramObserver):
    """The range with the smallest mean squared error between the values and their int8 image."""

    def _choose(self, histogram: MagnitudeHistogram) -> float:
        """The best of 120 ranges between 1/16 of the largest magnitude and all of it."""
        filled = np.flatnonzero(histogram.counts)
        weight = histogram.counts[filled].astype(np.float64)
        value = histogram.centers[filled]  # [n]
        candidates = histogram.largest * np.arange(8, 128)[:, None] / 127  # [120, 1]
        step = candidates / INT8_LEVELS
        image = np.clip(np.rint(value / step), 0, INT8_LEVELS) * step
        error = ((value - image) ** 2 * weight).sum(axis=1)
        # Of equal errors the largest range: it clips less on data that calibration did not show.
        best = len(error) - 1 - int(np.argmin(error[::-1]))
        return float(candidates[best, 0])


OBSERVERS: Final[Mapping[str, Callable[[], Observer]]] = {
    "min-max": MinMaxObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
    "mse": MseObserver,
}
"""Every observer by the name that recipes and the command line use."""


def new_observer(name: str) -> Observer:
    """Return a fresh observer of that name. Raises UsageError for a name that is not in OBSERVERS."""
    try:
        return OBSERVERS[name]()
    except KeyError:
        raise UsageError(f'There is no calibrator "{name}". Choose one of: {", ".join(OBSERVERS)}.') from None
