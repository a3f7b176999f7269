"""Options of the front ends: one definition, read by recipes, CPU front ends, CUDA kernels and graph ops.

The defaults are Kaldi's (`compute-fbank-feats`, `compute-mfcc-feats`) at 16 kHz, without dither.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Literal, get_args, get_origin, get_type_hints

from edgemm.errors import UsageError

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
    """kaldi: HTK's mel, triangles linear in mel; htk: HTK's mel, triangles linear in Hz (torchaudio);
    slaney: Slaney's mel, triangles linear in Hz (librosa)."""
    mel_norm: Literal["none", "slaney"] = "none"
    """slaney: each triangle has unit area in Hz."""
    low_hz: float = 20.0
    high_hz: float = 0.0
    """0 means the Nyquist frequency; below 0 is an offset from it (Kaldi)."""
    log: Literal["ln", "log10", "db", "none"] = "ln"
    """db: 10 log10 of a power (`power` 2), 20 log10 of a magnitude (`power` 1). none: neither floor nor logarithm."""
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
    """1 appends the first, 2 also the second time derivative (Kaldi's regression over +-2 frames, ends repeated)."""


@dataclass(frozen=True)
class SpectrumOptions:
    """How samples become frames of a spectrum `[frames, fft_size // 2 + 1]`: |X| or |X| ** 2, without a filterbank.

    The fields are those of LogMelOptions, with the same meaning; the frame's mean stays and there is no pre-emphasis.
    The defaults give `numpy.abs(numpy.fft.rfft(block))` of blocks of 512 samples, every 128.
    """

    rate_hz: int = 16000
    window_samples: int = 512
    hop_samples: int = 128
    fft_size: int = 512
    window: Literal["povey", "hann", "hamming", "blackman", "rectangular"] = "rectangular"
    window_periodic: bool = False
    scale: float = 1.0
    power: Literal[1, 2] = 1
    log: Literal["ln", "log10", "db", "none"] = "none"
    floor: float = FLOAT32_EPSILON
    edges: Literal["snip", "reflect", "zero"] = "snip"
    mean: float = 0.0
    std: float = 1.0

    @property
    def bins(self) -> int:
        """How many values a frame has."""
        return self.fft_size // 2 + 1

    def as_log_mel(self) -> LogMelOptions:
        """The same frames, window and spectrum in the terms of a log-mel; its filterbank means nothing."""
        # Not vars(self): what is left at its default need not be in the instance.
        same = {each.name: getattr(self, each.name) for each in fields(self)}
        return LogMelOptions(remove_dc=False, preemphasis=0.0, n_mels=self.bins, low_hz=0.0, **same)


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


def check(options: LogMelOptions | MfccOptions | SpectrumOptions | ImageOptions) -> None:
    """Raise UsageError, naming the field, what it holds and what it may hold, if `options` cannot be worked with."""
    if isinstance(options, LogMelOptions):
        _check_log_mel(options)
    elif isinstance(options, SpectrumOptions):
        _check_frames(options)
    elif isinstance(options, MfccOptions):
        _check_log_mel(options.log_mel)
        _check_mfcc(options)
    else:
        _check_image(options)


def _require(holds: bool, options: object, name: str, expected: str) -> None:
    if not holds:
        raise UsageError(f"{type(options).__name__}.{name} is {getattr(options, name)!r}; expected {expected}.")


def _check_choices(options: object) -> None:
    """Hold every field annotated with a Literal to its values: a dataclass itself does not."""
    for name, hint in get_type_hints(type(options)).items():
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            _require(getattr(options, name) in choices, options, name, "one of " + ", ".join(map(repr, choices)))


def _check_frames(options: LogMelOptions | SpectrumOptions) -> None:
    """What both have: frames, their spectrum, its logarithm."""
    _check_choices(options)
    for name in ("rate_hz", "window_samples", "hop_samples", "fft_size"):
        _require_count(options, name)
    # OpenCV's DFT takes another path below, for one row and not for many.
    _require(options.fft_size >= 128, options, "fft_size", "at least 128")
    _require(
        options.fft_size >= options.window_samples,
        options,
        "fft_size",
        f"at least window_samples, {options.window_samples}",
    )
    _require(isfinite(options.scale) and options.scale > 0, options, "scale", "a number above 0")
    _require(
        isfinite(options.floor) and options.floor > 0,
        options,
        "floor",
        "a number above 0, as the logarithm of 0 is not finite",
    )
    _require(isfinite(options.mean), options, "mean", "a finite number")
    _require(isfinite(options.std) and options.std > 0, options, "std", "a number above 0")


def _require_count(options: object, name: str) -> None:
    value = getattr(options, name)
    _require(isinstance(value, int) and value >= 1, options, name, "a whole number of at least 1")


def _check_log_mel(options: LogMelOptions) -> None:
    _check_frames(options)
    _require_count(options, "n_mels")
    _require(0 <= options.preemphasis <= 1, options, "preemphasis", "a number from 0 to 1")
    nyquist_hz = options.rate_hz / 2
    high_hz = options.high_hz if options.high_hz > 0 else nyquist_hz + options.high_hz
    _require(0 <= options.low_hz < nyquist_hz, options, "low_hz", f"0 up to below Nyquist, {nyquist_hz:g} Hz")
    _require(
        options.low_hz < high_hz <= nyquist_hz,
        options,
        "high_hz",
        f"above low_hz ({options.low_hz:g}) and at most Nyquist ({nyquist_hz:g}), 0 for Nyquist, "
        "or a negative offset from it",
    )


def _check_mfcc(options: MfccOptions) -> None:
    _check_choices(options)
    bands = options.log_mel.n_mels
    _require(
        isinstance(options.n_coefficients, int) and 1 <= options.n_coefficients <= bands,
        options,
        "n_coefficients",
        f"1 to log_mel.n_mels, {bands}",
    )
    _require(isfinite(options.lifter) and options.lifter >= 0, options, "lifter", "a number above 0, or 0 for none")


def _check_image(options: ImageOptions) -> None:
    _check_choices(options)
    for name in ("width", "height"):
        value = getattr(options, name)
        _require(isinstance(value, int) and value >= 1, options, name, "a whole number of pixels, at least 1")
    if options.crop is not None:
        _require(
            len(options.crop) == 4 and min(options.crop[:2]) >= 0 and min(options.crop[2:]) >= 1,
            options,
            "crop",
            "(x, y, width, height) with x and y at least 0, width and height at least 1",
        )
    _require(options.pad_value in range(256), options, "pad_value", "a whole number from 0 to 255")
    channels = 1 if options.color == "gray" else 3
    for name in ("mean", "std"):
        values = getattr(options, name)
        _require(
            len(values) in (1, channels) and all(isfinite(v) for v in values),
            options,
            name,
            f"one finite number, or {channels} for color {options.color!r}",
        )
    _require(isfinite(options.scale) and options.scale > 0, options, "scale", "a number above 0")
    _require(all(v > 0 for v in options.std), options, "std", "numbers above 0")
    if options.dtype == "uint8":
        plain = options.scale == 1 and not any(options.mean) and all(v == 1 for v in options.std)
        _require(
            plain,
            options,
            "dtype",
            '"float32" or "float16", as uint8 holds pixels only as they are: scale 1, mean 0, std 1',
        )
