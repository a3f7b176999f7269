"""Noise of several colours, mixed at a stated ratio."""

from __future__ import annotations

import numpy as np

KINDS = ("white", "pink", "brown", "band", "hum", "babble")
SILENT_DB = 60.0  # below the speech; every recording has at least this much noise


def noise(kind: str, n: int, rng: np.random.Generator, babble: np.ndarray) -> np.ndarray:
    """`n` samples of noise with rms 1, float32."""
    if kind == "babble":
        start = int(rng.integers(babble.size - n))
        out = babble[start : start + n]
    elif kind == "hum":
        t = np.arange(n) / 16000.0
        base = rng.uniform(45, 130)
        out = sum(rng.uniform(0.1, 1) * np.sin(2 * np.pi * (k * base * t + rng.random())) / k for k in range(1, 12))
        out = out + 0.2 * rng.standard_normal(n)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(n))
        f = np.maximum(np.fft.rfftfreq(n, 1 / 16000.0), 20.0)
        if kind == "pink":
            spectrum /= np.sqrt(f)
        elif kind == "brown":
            spectrum /= f
        elif kind == "band":
            center, octaves = np.exp(rng.uniform(np.log(200), np.log(5000))), rng.uniform(0.5, 2)
            spectrum *= 0.05 + (np.abs(np.log2(f / center)) < octaves / 2)
        out = np.fft.irfft(spectrum, n)
    return (out / np.sqrt(np.mean(out**2) + 1e-12)).astype(np.float32)


def mix(speech: np.ndarray, active: np.ndarray, background: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech plus background; the ratio is that of the word's own power (`active`) to the background's."""
    power = float(np.mean(active**2))
    return speech + background * np.sqrt(power / 10 ** (snr_db / 10))
