"""An independent peer of log-mel and MFCC: librosa itself, in float64, against the reference and the kernel."""

from __future__ import annotations

from dataclasses import replace

import log_mel_bounds as bounds
import numpy as np
import pytest
from require import require

from edgemm.kernels.launch import EmulatorRunner
from edgemm.kernels.log_mel import log_mel_reference, mfcc_reference
from edgemm.kernels.log_mel_cuda import LogMelKernel
from edgemm.options import LogMelOptions, MfccOptions
from edgemm.types import Array

librosa = require("librosa", "peers", "pip install librosa")

PLAIN = LogMelOptions(
    window="hann",
    window_periodic=True,
    remove_dc=False,
    preemphasis=0.0,
    low_hz=0.0,
    mel_scale="slaney",
    mel_norm="slaney",
    floor=1e-10,
    log="db",
    edges="reflect",
)
OPTIONS = {
    "slaney": PLAIN,
    "htk": replace(PLAIN, mel_scale="htk", mel_norm="none", n_mels=40),
    "magnitude": replace(PLAIN, power=1, n_mels=64, floor=1e-5),
    "zero-edges": replace(PLAIN, edges="zero", high_hz=7600.0, low_hz=64.0),
    "window-512": replace(PLAIN, window_samples=512, hop_samples=128, window="hamming"),
    "fft-1024": replace(PLAIN, fft_size=1024, window_samples=800, window="blackman", n_mels=128),
    "8-khz": replace(PLAIN, rate_hz=8000, fft_size=256, window_samples=200, hop_samples=80, n_mels=40),
    "22-khz": replace(PLAIN, rate_hz=22050, fft_size=2048, window_samples=2048, hop_samples=512, n_mels=128),
}


def theirs(samples: Array, options: LogMelOptions) -> Array:
    """librosa's features, `[frames, n_mels]`."""
    spectrum = librosa.feature.melspectrogram(
        y=samples.astype(np.float64),
        sr=options.rate_hz,
        n_fft=options.fft_size,
        hop_length=options.hop_samples,
        win_length=options.window_samples,
        window={"hann": "hann", "hamming": "hamming", "blackman": "blackman"}[options.window],
        center=True,
        pad_mode="reflect" if options.edges == "reflect" else "constant",
        power=options.power,
        n_mels=options.n_mels,
        fmin=options.low_hz,
        fmax=options.high_hz or None,
        htk=options.mel_scale == "htk",
        norm="slaney" if options.mel_norm == "slaney" else None,
        dtype=np.float64,
    )
    if options.power == 1:
        return librosa.amplitude_to_db(spectrum, amin=options.floor, top_db=None).T
    return librosa.power_to_db(spectrum, amin=options.floor, top_db=None).T


def sound(samples: int, *, silent_end: bool = True) -> Array:
    """Noise under tones, and silence at the end."""
    time = np.arange(samples) / 16000
    wave = 0.1 * np.random.default_rng(0).standard_normal(samples) + 0.3 * np.sin(2 * np.pi * 440 * time)
    if silent_end:
        wave[-samples // 4 :] = 0
    return wave.astype(np.float32)


def ours(samples: Array, options: LogMelOptions | MfccOptions) -> Array:
    """The kernel's features, `[frames, features]`."""
    kernel = LogMelKernel(options, EmulatorRunner())
    out = np.empty((1, kernel.frame_count(len(samples)), kernel.feature_count), np.float32)
    kernel(samples[None], out)
    return out[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_librosa_agrees(name: str) -> None:
    options, samples = OPTIONS[name], sound(6000)
    want = theirs(samples, options)
    reference = log_mel_reference(samples, options)
    assert reference.shape == want.shape
    np.testing.assert_allclose(reference, want, rtol=0, atol=1e-6, err_msg="the reference, float64 against float64")
    low, high = bounds.interval(samples, options)
    found = ours(samples, options)
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all(), "the kernel, within its derived bound"
    assert ((want >= low - 1e-6) & (want <= high + 1e-6)).all()


def test_librosas_cepstra_agree() -> None:
    options = MfccOptions(replace(PLAIN, n_mels=40), n_coefficients=20, lifter=0.0)
    samples = sound(6000)
    want = librosa.feature.mfcc(S=theirs(samples, options.log_mel).T, n_mfcc=20, dct_type=2, norm="ortho").T
    np.testing.assert_allclose(mfcc_reference(samples, options), want, rtol=0, atol=1e-6)
    low, high = bounds.interval(samples, options)
    found = ours(samples, options)
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()


def test_librosas_filterbanks_agree() -> None:
    from edgemm.kernels.log_mel import mel_filterbank

    for options in OPTIONS.values():
        want = librosa.filters.mel(
            sr=options.rate_hz,
            n_fft=options.fft_size,
            n_mels=options.n_mels,
            fmin=options.low_hz,
            fmax=options.high_hz or None,
            htk=options.mel_scale == "htk",
            norm="slaney" if options.mel_norm == "slaney" else None,
            dtype=np.float64,
        )
        np.testing.assert_allclose(mel_filterbank(options), want, rtol=0, atol=1e-12)
