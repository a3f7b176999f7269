"""Cepstral mean and variance normalisation: options, and the float64 reference.

Source: Viikki and Laurila 1998 (segmental feature vector normalisation), and Kaldi's `apply-cmvn` and
`apply-cmvn-sliding`. Unlike Kaldi's sliding window, ours never looks ahead, so that a stream needs no delay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemm.errors import UsageError

VARIANCE_FLOOR = 1e-10


@dataclass(frozen=True)
class GlobalCmvn:
    """`(x - mean) / sqrt(variance)` with statistics of a training set, one value a feature."""

    mean: tuple[float, ...]
    variance: tuple[float, ...] | None = None
    """None: only the mean is taken away."""


@dataclass(frozen=True)
class SlidingCmvn:
    """Normalise by the statistics of the last `frames` frames, this one included; fewer at the start of a signal."""

    frames: int = 300
    variance: bool = False
    """False: only the mean is taken away."""


Cmvn = GlobalCmvn | SlidingCmvn


def check_cmvn(options: Cmvn | None, feature_count: int) -> None:
    """Raise UsageError if `options` do not fit features of `feature_count` columns."""
    if isinstance(options, SlidingCmvn):
        if not 1 <= options.frames <= 1 << 20:
            raise UsageError(f"SlidingCmvn.frames is {options.frames}; expected 1 to {1 << 20}.")
    elif isinstance(options, GlobalCmvn):
        for name, values in (("mean", options.mean), ("variance", options.variance)):
            if values is not None and (len(values) != feature_count or not np.all(np.isfinite(values))):
                raise UsageError(
                    f"GlobalCmvn.{name} has {len(values)} values; "
                    f"expected {feature_count} finite numbers, one a feature."
                )
        if options.variance is not None and min(options.variance) < 0:
            raise UsageError(f"GlobalCmvn.variance holds {min(options.variance)}; expected numbers of at least 0.")


def global_factors(options: GlobalCmvn) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What to take away and what to multiply with, `[features]` each."""
    mean = np.asarray(options.mean, dtype=np.float64)
    variance = np.ones_like(mean) if options.variance is None else np.asarray(options.variance, dtype=np.float64)
    return mean, 1.0 / np.sqrt(np.maximum(variance, VARIANCE_FLOOR))


def cmvn_reference(features: npt.NDArray[np.float64], options: Cmvn | None) -> npt.NDArray[np.float64]:
    """Normalised features of a whole signal in float64, `[frames, features]`; None changes nothing."""
    if options is None:
        return features
    if isinstance(options, GlobalCmvn):
        shift, gain = global_factors(options)
        return (features - shift) * gain
    result = np.empty_like(features)
    for frame in range(len(features)):
        recent = features[max(0, frame + 1 - options.frames) : frame + 1]
        result[frame] = features[frame] - recent.mean(axis=0)
        if options.variance:
            result[frame] /= np.sqrt(np.maximum(recent.var(axis=0), VARIANCE_FLOOR))
    return result
