"""Make log_mel.npz: what librosa and torchaudio compute from a second of voice-like sound.

    pip install librosa==0.11.0 torch==2.13.0 torchaudio==2.11.0
    python make_golden.py

Neither is needed to run the tests. Nothing here imports edgemm.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import torch
import torchaudio

RATE_HZ = 16000


def voice(seed: int) -> np.ndarray:
    """A second of pulses at a gliding pitch through three formants, with noise and an offset; int16."""
    rng = np.random.default_rng(seed)
    count = RATE_HZ
    pitch_hz = 110 + 60 * np.sin(2 * np.pi * 1.5 * np.arange(count) / RATE_HZ)
    phase = np.cumsum(pitch_hz) / RATE_HZ
    sound = np.diff(np.floor(phase), prepend=0.0) + 0.02 * rng.standard_normal(count)
    for center_hz, width_hz in ((600, 90), (1400, 110), (2900, 170)):
        radius = np.exp(-np.pi * width_hz / RATE_HZ)
        a1, a2 = 2 * radius * np.cos(2 * np.pi * center_hz / RATE_HZ), -(radius**2)
        filtered = np.zeros(count + 2)
        for n in range(count):
            filtered[n + 2] = sound[n] + a1 * filtered[n + 1] + a2 * filtered[n]
        sound = filtered[2:]
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * np.arange(count) / RATE_HZ)
    sound = sound / np.abs(sound).max() * loudness * 0.7 + 0.002 * rng.standard_normal(count) + 0.03
    return np.round(sound * 32767).astype(np.int16)


def main() -> None:
    samples = voice(1)
    floats = samples.astype(np.float32) / 32768
    tensor = torch.from_numpy(floats)
    common = {"sr": RATE_HZ, "hop_length": 160}
    slaney = librosa.feature.melspectrogram(
        y=floats,
        n_fft=512,
        win_length=400,
        window="hann",
        center=True,
        pad_mode="reflect",
        power=2.0,
        n_mels=64,
        **common,
    )
    magnitude = librosa.feature.melspectrogram(
        y=floats,
        n_fft=400,
        window="hamming",
        center=True,
        pad_mode="constant",
        power=1.0,
        n_mels=32,
        htk=True,
        norm=None,
        fmin=60,
        fmax=7000,
        **common,
    )
    slaney_db = librosa.power_to_db(slaney, amin=1e-10, top_db=None)
    htk = torchaudio.transforms.MelSpectrogram(RATE_HZ, n_fft=512, win_length=400, hop_length=160, n_mels=40)(tensor)
    cepstra = torch.from_numpy(librosa.feature.mfcc(S=slaney_db, n_mfcc=13))
    np.savez_compressed(
        Path(__file__).with_name("log_mel.npz"),
        samples=samples,
        librosa_slaney_db=slaney_db.T.astype(np.float32),
        librosa_htk_magnitude=magnitude.T.astype(np.float32),
        librosa_mfcc=cepstra.numpy().T.astype(np.float32),
        torchaudio_htk_power=htk.numpy().T.astype(np.float32),
        torchaudio_deltas=torchaudio.functional.compute_deltas(cepstra, win_length=5).numpy().T.astype(np.float32),
        torchaudio_kaldi_fbank=torchaudio.compliance.kaldi.fbank(
            tensor[None] * 32768, num_mel_bins=40, dither=0.0, window_type="hamming", low_freq=40.0, high_freq=-200.0
        ).numpy(),
    )


if __name__ == "__main__":
    main()
