"""Options of the front ends: one definition, read by recipes, CPU front ends, CUDA kernels and graph ops.

The defaults are Kaldi's (`compute-fbank-feats`, `compute-mfcc-feats`) at 16 kHz, without dither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FLOAT32_EPSILON = 1.1920929e-07
"""Kaldi's floor under the logarithm."""


@dataclass(frozen=True)
class LogMelOptions:
    """How samples become log-mel frames `[frames, n_mels]`.

    Frame k covers the samples `[k * hop_samples, k * hop_samples + window_samples)` when `edges` is "snip"
    (Kaldi's snip_edges: only whole frames). With "reflect" or "zero" the signal is first padded by
    `fft_size // 2` on both sides (librosa's and torch's `center=True`) and the window, if shorter, stands in the
    middle of the `fft_size` samples.

    The steps, in order: scale, remove the frame's mean, pre-emphasis, window, zero-pad to `fft_size`, real FFT,
    |X| ** power, mel filterbank, logarithm with floor, normalisation `(x - mean) / std`.
    """

    rate_hz: int = 16000
    window_samples: int = 400
    hop_samples: int = 160
    fft_size: int = 512
    window: Literal["povey", "hann", "hamming", "blackman", "rectangular"] = "povey"
    window_periodic: bool = False
    """False: the symmetric window (Kaldi); True: the periodic one (librosa, torch)."""
    remove_dc: bool = True
    preemphasis: float = 0.97
    scale: float = 1.0
    """Factor on the samples, which are in [-1, 1]; 32768 gives Kaldi's int16 range."""
    power: Literal[1, 2] = 2
    n_mels: int = 80
    mel_scale: Literal["kaldi", "htk", "slaney"] = "kaldi"
    """kaldi: HTK's mel, triangles linear in mel; htk: HTK's mel, triangles linear in Hz (torchaudio); slaney: librosa."""
    mel_norm: Literal["none", "slaney"] = "none"
    """slaney: each triangle has unit area in Hz."""
    low_hz: float = 20.0
    high_hz: float = 0.0
    """0 means the Nyquist frequency; below 0 is an offset from it (Kaldi)."""
    log: Literal["ln", "log10", "db", "none"] = "ln"
    floor: float = FLOAT32_EPSILON
    """Smallest value handed to the logarithm."""
    edges: Literal["snip", "reflect", "zero"] = "snip"
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class MfccOptions:
    """How log-mel frames become cepstra `[frames, n_coefficients * (1 + deltas)]`.

    DCT-II, orthonormal, of the log-mel frame, cut to `n_coefficients`, then liftering
    `1 + lifter / 2 * sin(pi * n / lifter)` (0 switches it off).
    """

    log_mel: LogMelOptions = field(default_factory=lambda: LogMelOptions(n_mels=23))
    n_coefficients: int = 13
    lifter: float = 22.0
    deltas: Literal[0, 1, 2] = 0
    """1 appends the first, 2 also the second time derivative (Kaldi's regression over +-2 frames)."""


@dataclass(frozen=True)
class ImageOptions:
    """How a picture becomes a tensor: crop, resize, colour, `(x * scale - mean) / std`, layout, dtype."""

    width: int
    height: int
    resize: Literal["bilinear", "area", "nearest"] = "bilinear"
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    """stretch ignores the aspect ratio, letterbox pads, crop cuts the centre."""
    pad_value: float = 0.0
    """Value of the letterbox bars, in the picture's 0-255 range."""
    crop: tuple[int, int, int, int] | None = None
    """x, y, width, height, in pixels of the source, applied first."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    """One value, or one per channel."""
    layout: Literal["chw", "hwc"] = "chw"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
