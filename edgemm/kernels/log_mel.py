"""The mathematics of log-mel and MFCC: tables, and float64 references that every implementation is held to.

The CPU front ends, the CUDA kernel and the graph operators take their tables from here, so that they differ
only in arithmetic. The references are written to be read and take whole signals; they are not fast.

Sources: Kaldi's feature-window.cc, mel-computations.cc, feature-functions.cc (windows, order of the steps,
HTK mel with triangles linear in mel, DCT, lifter, deltas); torchaudio's `melscale_fbanks` (HTK mel with
triangles linear in Hz); librosa's `filters.mel` after Slaney's Auditory Toolbox (mel linear to 1 kHz, then
logarithmic; unit-area triangles); Davis and Mermelstein 1980 for MFCC.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemm.options import LogMelOptions, MfccOptions, check

Float64 = npt.NDArray[np.float64]

DELTA_REACH = 2
"""A delta is a regression over this many frames on either side (Kaldi's and HTK's default)."""


def window(options: LogMelOptions) -> Float64:
    """The window, `[window_samples]`.

    With a denominator N of `window_samples - 1` (symmetric) or `window_samples` (periodic), n from 0:
    hann `0.5 - 0.5 cos(2 pi n / N)`; povey `hann ** 0.85`; hamming `0.54 - 0.46 cos(2 pi n / N)`;
    blackman `0.42 - 0.5 cos(2 pi n / N) + 0.08 cos(4 pi n / N)`.
    """
    count = options.window_samples
    period = count if options.window_periodic else count - 1
    if options.window == "rectangular" or period == 0:
        return np.ones(count)
    angle = 2.0 * np.pi * np.arange(count) / period
    hann = 0.5 - 0.5 * np.cos(angle)
    if options.window == "hann":
        return hann
    if options.window == "povey":
        return hann**0.85
    if options.window == "hamming":
        return 0.54 - 0.46 * np.cos(angle)
    return 0.42 - 0.5 * np.cos(angle) + 0.08 * np.cos(2.0 * angle)


def window_offset(options: LogMelOptions) -> int:
    """Where the window starts within the `fft_size` samples: 0, or the middle when frames are centred.

    It shifts the phase of the spectrum only, so it matters for which samples a frame covers and for nothing else.
    """
    return 0 if options.edges == "snip" else (options.fft_size - options.window_samples) // 2


def frame_count(sample_count: int, options: LogMelOptions) -> int:
    """How many frames a whole signal of `sample_count` samples has; none if it has no samples."""
    if sample_count <= 0:
        return 0
    if options.edges == "snip":
        span, total = options.window_samples, sample_count
    else:
        span, total = options.fft_size, sample_count + 2 * (options.fft_size // 2)
    return 0 if total < span else 1 + (total - span) // options.hop_samples


def high_edge_hz(options: LogMelOptions) -> float:
    """The upper end of the filterbank in Hz, with 0 and negative `high_hz` resolved against Nyquist."""
    nyquist_hz = options.rate_hz / 2
    return options.high_hz if options.high_hz > 0 else nyquist_hz + options.high_hz


def _hz_to_mel_htk(hz: Float64) -> Float64:
    return 1127.0 * np.log1p(hz / 700.0)


def _mel_to_hz_htk(mel: Float64) -> Float64:
    return 700.0 * np.expm1(mel / 1127.0)


# Slaney: 200/3 Hz a mel up to 1 kHz (15 mel), then 27 mel for each factor of 6.4.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_CORNER_HZ = 1000.0
_SLANEY_CORNER_MEL = _SLANEY_CORNER_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel_slaney(hz: Float64) -> Float64:
    above = _SLANEY_CORNER_MEL + np.log(np.maximum(hz, _SLANEY_CORNER_HZ) / _SLANEY_CORNER_HZ) / _SLANEY_LOG_STEP
    return np.where(hz < _SLANEY_CORNER_HZ, hz / _SLANEY_HZ_PER_MEL, above)


def _mel_to_hz_slaney(mel: Float64) -> Float64:
    above = _SLANEY_CORNER_HZ * np.exp(_SLANEY_LOG_STEP * (np.maximum(mel, _SLANEY_CORNER_MEL) - _SLANEY_CORNER_MEL))
    return np.where(mel < _SLANEY_CORNER_MEL, mel * _SLANEY_HZ_PER_MEL, above)


def mel_filterbank(options: LogMelOptions) -> Float64:
    """The triangular filters, `[n_mels, fft_size // 2 + 1]`: a row times |X| ** power is one mel band.

    The `n_mels + 2` corners are equally spaced in mel from `low_hz` to `high_hz`. "kaldi" draws the triangles over
    the mel axis, "htk" and "slaney" over Hz. `mel_norm` "slaney" divides each by half its width in Hz. A filter
    narrower than a bin may be all zeros, as in Kaldi and librosa: its band is then the floor.
    """
    to_mel, to_hz = (
        (_hz_to_mel_slaney, _mel_to_hz_slaney) if options.mel_scale == "slaney" else (_hz_to_mel_htk, _mel_to_hz_htk)
    )
    bins_hz: Float64 = np.arange(options.fft_size // 2 + 1, dtype=np.float64) * options.rate_hz / options.fft_size
    ends_mel = to_mel(np.array([options.low_hz, high_edge_hz(options)], dtype=np.float64))
    step_mel = float(ends_mel[1] - ends_mel[0]) / (options.n_mels + 1)
    corners_mel: Float64 = ends_mel[0] + step_mel * np.arange(options.n_mels + 2)
    corners_hz = to_hz(corners_mel)
    axis, corners = bins_hz, corners_hz
    if options.mel_scale == "kaldi":
        axis, corners = to_mel(bins_hz), corners_mel

    left, center, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (axis - left) / (center - left)
    falling = (right - axis) / (right - center)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if options.mel_norm == "slaney":
        filters *= (2.0 / (corners_hz[2:] - corners_hz[:-2]))[:, None]
    return np.asarray(filters, dtype=np.float64)


def log_gain(options: LogMelOptions) -> float:
    """The factor on the natural logarithm: 1 for ln; for dB 10 log10 of a power, 20 log10 of a magnitude."""
    if options.log == "log10":
        return float(1.0 / np.log(10.0))
    if options.log == "db":
        return float(20.0 / options.power / np.log(10.0))
    return 1.0


def dct_matrix(options: MfccOptions) -> Float64:
    """The orthonormal DCT-II, `[n_coefficients, n_mels]`.

    Row k is `sqrt(2 / M) cos(pi k (m + 0.5) / M)` for the M bands m, row 0 `sqrt(1 / M)`.
    """
    bands = options.log_mel.n_mels
    k = np.arange(options.n_coefficients)[:, None]
    matrix = np.sqrt(2.0 / bands) * np.cos(np.pi / bands * k * (np.arange(bands) + 0.5))
    matrix[0] = np.sqrt(1.0 / bands)
    return np.asarray(matrix, dtype=np.float64)


def lifter(options: MfccOptions) -> Float64:
    """The factors on the cepstra, `[n_coefficients]`: `1 + lifter / 2 * sin(pi k / lifter)`, ones if `lifter` is 0."""
    if options.lifter == 0:
        return np.ones(options.n_coefficients)
    k = np.arange(options.n_coefficients)
    return np.asarray(1.0 + 0.5 * options.lifter * np.sin(np.pi * k / options.lifter), dtype=np.float64)


def delta_filter(order: int) -> Float64:
    """The weights of frames `t - 2 * order` to `t + 2 * order` in the time derivative of that order.

    Order 1 is `j / sum(j ** 2)` for j from -2 to 2; order 2 is that filter applied twice. As in Kaldi the
    second derivative is taken from the cepstra themselves, with frames beyond the ends repeated.
    """
    reach = np.arange(-DELTA_REACH, DELTA_REACH + 1, dtype=np.float64)
    first = reach / np.sum(reach**2)
    taps = np.ones(1)
    for _ in range(order):
        taps = np.convolve(taps, first)
    return taps


def to_unit_range(samples: npt.NDArray[np.generic]) -> Float64:
    """Samples as float64 in [-1, 1]: int16 is divided by 32768, floats are taken as they are."""
    values = samples.astype(np.float64)
    return values / 32768.0 if samples.dtype == np.int16 else values


def log_mel_reference(samples: npt.NDArray[np.generic], options: LogMelOptions) -> Float64:
    """Log-mel frames of a whole mono signal in float64, `[frames, n_mels]`.

    `samples` is `[samples]`, floats in [-1, 1] or int16. The mean and the pre-emphasis are those of the
    `window_samples` that the window covers; the first of them is its own predecessor (Kaldi).
    """
    check(options)
    signal = to_unit_range(samples) * options.scale
    count = frame_count(len(signal), options)
    if options.edges != "snip" and count:
        half = options.fft_size // 2
        signal = np.pad(signal, half, mode="reflect" if options.edges == "reflect" else "constant")
    shape, filters = window(options), mel_filterbank(options)
    frames = np.empty((count, options.n_mels))
    for k in range(count):
        start = k * options.hop_samples + window_offset(options)
        frame = signal[start : start + options.window_samples].copy()
        if options.remove_dc:
            frame -= frame.mean()
        frame -= options.preemphasis * np.concatenate((frame[:1], frame[:-1]))
        spectrum = np.abs(np.fft.rfft(frame * shape, options.fft_size)) ** options.power
        frames[k] = filters @ spectrum
    if options.log != "none":
        frames = np.log(np.maximum(frames, options.floor)) * log_gain(options)
    return (frames - options.mean) / options.std


def mfcc_reference(samples: npt.NDArray[np.generic], options: MfccOptions) -> Float64:
    """MFCC of a whole mono signal in float64, `[frames, n_coefficients * (1 + deltas)]`.

    The columns are the cepstra, then their first and second time derivatives, as far as asked for. The zeroth
    cepstrum stays (Kaldi's `--use-energy=false`).
    """
    check(options)
    cepstra = log_mel_reference(samples, options.log_mel) @ dct_matrix(options).T * lifter(options)
    columns = [cepstra]
    for order in range(1, options.deltas + 1):
        taps = delta_filter(order)
        reach = len(taps) // 2
        at = np.arange(len(cepstra))[:, None] + np.arange(-reach, reach + 1)
        neighbours = cepstra[np.clip(at, 0, max(len(cepstra) - 1, 0))]  # [frames, taps, n_coefficients]
        columns.append(np.einsum("ftc,t->fc", neighbours, taps))
    return np.concatenate(columns, axis=1)
