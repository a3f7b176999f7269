"""How far float32 log-mel features may be from the float64 reference: derived, not fitted.

With u = 2^-24, and S the sum of |sample| * scale * window * (1 + pre-emphasis), with the mean counted too, every
value inside the FFT is at most S. Each of its log2(N) levels rounds a few times (6), so do sample, mean (a sum of at
most 64 + 5 terms a lane), pre-emphasis and window: an amplitude X[k] is wrong by at most d = u * S * (6 log2 N + 80).
A power is then wrong by 2 |X| d + d^2, and a band by their weighted sum, and its own roundings, one a bin. The
logarithm is monotonic, so the band's interval gives that of the feature, which adds four roundings of its own.
"""

from __future__ import annotations

import numpy as np

from edgemm.kernels.cmvn import VARIANCE_FLOOR, Cmvn, GlobalCmvn, SlidingCmvn, global_factors
from edgemm.kernels.log_mel import (
    dct_matrix,
    delta_filter,
    frame_count,
    lifter,
    log_gain,
    mel_filterbank,
    to_unit_range,
    window,
    window_offset,
)
from edgemm.options import LogMelOptions, MfccOptions
from edgemm.types import Array

UNIT = 2.0**-24
SMALLEST = 2.0**-149


def interval(samples: Array, options: LogMelOptions | MfccOptions, cmvn: Cmvn | None = None) -> tuple[Array, Array]:
    """The lowest and the highest value that each feature may have, `[frames, features]`."""
    mel = options if isinstance(options, LogMelOptions) else options.log_mel
    low, high = _bands(samples, mel)
    middle, error = (low + high) / 2, (high - low) / 2
    if isinstance(options, MfccOptions):
        matrix = dct_matrix(options) * lifter(options)[:, None]
        size = np.abs(middle) @ np.abs(matrix).T
        middle, error = middle @ matrix.T, error @ np.abs(matrix).T + UNIT * (mel.n_mels + 4) * size
    middle, error = _normalised(middle, error, cmvn)
    if isinstance(options, MfccOptions) and options.deltas:
        middle, error = _derived(middle, error, options.deltas)
    error = error + 4 * UNIT * np.abs(middle) + SMALLEST
    return middle - error, middle + error


def half(low: Array, high: Array) -> tuple[Array, Array]:
    """The interval after a conversion to float16, which keeps the order."""
    with np.errstate(over="ignore"):
        return low.astype(np.float16), high.astype(np.float16)


def _bands(samples: Array, options: LogMelOptions) -> tuple[Array, Array]:
    signal = to_unit_range(samples) * options.scale
    count = frame_count(len(signal), options)
    if options.edges != "snip" and count:
        mode = "reflect" if options.edges == "reflect" else "constant"
        signal = np.pad(signal, options.fft_size // 2, mode=mode)
    shape, filters = window(options), mel_filterbank(options)
    taps = (filters != 0).sum(axis=1)
    low, high = np.empty((2, count, options.n_mels))
    for k in range(count):
        start = k * options.hop_samples + window_offset(options)
        frame = signal[start : start + options.window_samples]
        mean = frame.mean() if options.remove_dc else 0.0
        size = np.abs(frame) + np.abs(frame).mean()
        centred = frame - mean
        emphasised = centred - options.preemphasis * np.concatenate((centred[:1], centred[:-1]))
        amplitude = np.abs(np.fft.rfft(emphasised * shape, options.fft_size))
        total = float(np.sum(size * shape) * (1 + options.preemphasis) + np.max(size) * options.preemphasis)
        wrong = UNIT * total * (6 * np.log2(options.fft_size) + 80)
        # squares below 2^-149 are lost, and with them, where there is a root, amplitudes below 2^-74
        spread = wrong + 2.0**-74 if options.power == 1 else 2 * amplitude * wrong + wrong**2 + SMALLEST
        value = filters @ amplitude**options.power
        error = filters @ (spread + 4 * UNIT * amplitude**options.power) + UNIT * (taps + 4) * value + SMALLEST
        low[k], high[k] = np.maximum(value - error, 0), value + error
    if options.log != "none":
        gain = log_gain(options)
        low, high = (np.log(np.maximum(x, options.floor)) * gain for x in (low, high))
        slack = 4 * UNIT * (np.abs(low) + np.abs(high) + gain)
        low, high = low - slack, high + slack
    low, high = (low - options.mean) / options.std, (high - options.mean) / options.std
    slack = 4 * UNIT * (np.abs(low) + np.abs(high) + abs(options.mean) / options.std)
    return low - slack, high + slack


def _normalised(middle: Array, error: Array, cmvn: Cmvn | None) -> tuple[Array, Array]:
    if isinstance(cmvn, GlobalCmvn):
        shift, gain = global_factors(cmvn)
        slack = 3 * UNIT * (np.abs(middle) + np.abs(shift))
        return (middle - shift) * gain, (error + slack) * gain
    if isinstance(cmvn, SlidingCmvn):
        value, wrong = np.empty_like(middle), np.empty_like(middle)
        for t in range(len(middle)):
            recent = slice(max(0, t + 1 - cmvn.frames), t + 1)
            value[t] = middle[t] - middle[recent].mean(axis=0)
            wrong[t] = error[t] + error[recent].mean(axis=0) + UNIT * np.abs(value[t])
            if cmvn.variance:
                # a deviation is a norm, so it is wrong by at most the norm of the errors
                spread = np.sqrt(np.maximum(middle[recent].var(axis=0), VARIANCE_FLOOR))
                off = np.sqrt(np.mean(error[recent] ** 2, axis=0))
                least = np.maximum(spread - off, np.sqrt(VARIANCE_FLOOR))
                value[t] /= spread
                wrong[t] = wrong[t] / least + np.abs(value[t]) * off / least
        return value, wrong
    return middle, error


def _derived(middle: Array, error: Array, orders: int) -> tuple[Array, Array]:
    values, errors = [middle], [error]
    for order in range(1, orders + 1):
        taps = delta_filter(order)
        reach = len(taps) // 2
        at = np.clip(np.arange(len(middle))[:, None] + np.arange(-reach, reach + 1), 0, max(len(middle) - 1, 0))
        values.append(np.einsum("ftc,t->fc", middle[at], taps))
        size = np.einsum("ftc,t->fc", np.abs(middle[at]), np.abs(taps))
        errors.append(np.einsum("ftc,t->fc", error[at], np.abs(taps)) + (len(taps) + 2) * UNIT * size)
    return np.concatenate(values, axis=1), np.concatenate(errors, axis=1)
