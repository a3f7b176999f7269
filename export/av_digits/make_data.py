"""Make the training, calibration and test data: `python make_data.py OUT [--seed 7]`.

Sound and pictures are made apart and paired by label later, so that a few thousand of each give millions of
pairs. Written to OUT:

- `words_{split}.npz`: utterances (int16, concatenated), labels, voices, accents; `babble_{split}.npy`.
- `audio_{split}.npz`: log-mel windows before normalisation, float32 [n, 40, 100], and their labels (-1: no word).
- `video_{split}.npz`: pictures uint8 [n, 8, 32, 32] and their labels (-1: no digit).
- `splits.json`: voices and forms of each split.

The test has each sound in several noise conditions and each picture sequence clean and occluded.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection
from multiprocessing import get_context
from pathlib import Path

import cv2
import noise
import numpy as np
import pictures
import speech
from front_end import (
    AUDIO_FRAMES,
    N_MELS,
    RATE_HZ,
    SPAN_SAMPLES,
    VIDEO_FRAMES,
    VIDEO_SPACING_S,
    log_mel,
    picture,
)

TRAIN_WINDOWS = 36000
CALIBRATION_WINDOWS = 1500
TEST_WINDOWS = 2000
PER_WORD = {"train": 3, "calibration": 1, "test": 2}
TEST_SNR_DB = {"clean": 40.0, "snr10": 10.0, "snr5": 5.0, "snr0": 0.0, "snr-5": -5.0}
SPLIT_CODE = {"train": 1, "calibration": 2, "test": 3}


class Words:
    """The utterances of one split, read back from disk."""

    def __init__(self, out: Path, split: str) -> None:
        with np.load(out / f"words_{split}.npz") as data:
            self.samples, self.ends = data["samples"], data["ends"]
            self.digits = data["digits"]
        self.babble = np.load(out / f"babble_{split}.npy")
        self.by_digit = [np.flatnonzero(self.digits == d) for d in range(10)]

    def word(self, index: int) -> np.ndarray:
        start = self.ends[index - 1] if index else 0
        return self.samples[start : self.ends[index]].astype(np.float32) / 32768.0

    def draw(self, digit: int, rng: np.random.Generator) -> np.ndarray:
        return self.word(int(rng.choice(self.by_digit[digit])))


def make_words(out: Path, seed: int) -> None:
    voices = speech.split_voices(seed)
    forms = {s: list(f) for s, f in pictures.SPLIT_FORMS.items()}
    (out / "splits.json").write_text(json.dumps({"voices": voices, "forms": forms}, indent=1))
    for split in speech.SPLITS:
        code = SPLIT_CODE[split]
        said = speech.utterances(voices[split], PER_WORD[split], seed * 100 + code)
        np.savez(
            out / f"words_{split}.npz",
            samples=np.concatenate([u.samples for u in said]),
            ends=np.cumsum([u.samples.size for u in said]),
            digits=np.array([u.digit for u in said]),
            voices=np.array([u.voice for u in said]),
            accents=np.array([u.accent for u in said]),
        )
        np.save(out / f"babble_{split}.npy", speech.babble(voices[split], seed * 100 + 10 + code))
        print(f"{split}: {len(said)} utterances of {len(voices[split])} voices", flush=True)


def place(word: np.ndarray, start: int) -> np.ndarray:
    """A silent window with the word at sample `start`, which may be outside."""
    window = np.zeros(SPAN_SAMPLES, np.float32)
    a, b = max(start, 0), min(start + word.size, SPAN_SAMPLES)
    if b > a:
        window[a:b] = word[a - start : b - start]
    return window


def tilt(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A microphone's colour: up to +-8 dB from low to high frequencies, and a gentle low cut at times."""
    spectrum = np.fft.rfft(signal)
    f = np.linspace(0.0, 1.0, spectrum.size)
    spectrum *= 10 ** (rng.uniform(-8, 8) * (f - 0.3) / 20)
    if rng.random() < 0.3:
        spectrum *= np.minimum(1.0, f * 8000 / rng.uniform(80, 400)) ** 2
    return np.fft.irfft(spectrum, signal.size).astype(np.float32)


def echo(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small room: decaying noise as impulse response."""
    n = int(rng.uniform(0.03, 0.2) * RATE_HZ)
    tail = rng.standard_normal(n) * np.exp(-5 * np.arange(n) / n) * rng.uniform(0.02, 0.15)
    tail[0] = 1.0
    size = 1 << (signal.size + n).bit_length()
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(tail, size), size)[: signal.size].astype(np.float32)


def train_audio(words: Words, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """One training window: log-mel and label, with drawn place, level, colour, noise and neighbours."""
    background = noise.noise(str(rng.choice(noise.KINDS)), SPAN_SAMPLES, rng, words.babble)
    level = 10 ** (rng.uniform(-22, -1) / 20)
    if rng.random() < 0.05:
        quiet = 10 ** (rng.uniform(-60, -15) / 20)
        return log_mel(np.clip(background * quiet, -1, 1)), -1
    digit = int(rng.integers(10))
    word = words.draw(digit, rng)
    outside = int(0.12 * word.size) if rng.random() < 0.15 else 0
    start = int(rng.integers(-outside, SPAN_SAMPLES - word.size + outside + 1))
    window = place(word, start)
    if rng.random() < 0.15 and start > 0.25 * RATE_HZ:
        # The end of the word before, as a sliding window sees it.
        other = words.draw(int(rng.integers(10)), rng)
        end = int(rng.uniform(0.02, start / RATE_HZ - 0.12) * RATE_HZ)
        window += place(other, end - other.size)
    if rng.random() < 0.7:
        window = tilt(window, rng)
    if rng.random() < 0.3:
        window = echo(window, rng)
    window *= level / np.abs(window).max()
    active = window[max(start, 0) : start + word.size]
    snr = rng.uniform(-8, 15) if rng.random() < 0.6 else rng.uniform(15, noise.SILENT_DB)
    return log_mel(np.clip(noise.mix(window, active, background, snr), -1, 1)), digit


def test_audio(
    words: Words, digit: int, rng: np.random.Generator, conditions: Collection[str]
) -> dict[str, np.ndarray]:
    """One word at a drawn place and level, in each of the noise conditions (same place, same noise)."""
    word = words.draw(digit, rng)
    start = int(rng.integers(0, SPAN_SAMPLES - word.size + 1))
    window = place(word, start) * 10 ** (rng.uniform(-15, -3) / 20)
    background = noise.noise(str(rng.choice(noise.KINDS)), SPAN_SAMPLES, rng, words.babble)
    active = window[start : start + word.size]
    return {
        name: log_mel(np.clip(noise.mix(window, active, background, TEST_SNR_DB[name]), -1, 1)) for name in conditions
    }


def frame_times(rng: np.random.Generator) -> np.ndarray:
    """Capture times of the window's frames: the newest of a 25 fps camera at or before each 125 ms tick."""
    ticks = 1.0 - VIDEO_SPACING_S * np.arange(VIDEO_FRAMES - 1, -1, -1)
    phase = rng.uniform(0, 1 / pictures.FPS)
    return np.floor((ticks - phase) * pictures.FPS) / pictures.FPS + phase


def film(scene: pictures.Scene, times: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([picture(scene.frame(t, rng)) for t in times])


def train_video(
    images: np.ndarray, labels: np.ndarray, by_digit: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """One training sequence and its label, with bent strokes, occlusion, neighbours or nothing at all."""
    times, seed = frame_times(rng), int(rng.integers(1 << 31))
    if rng.random() < 0.04:
        return film(pictures.Scene.draw(None, rng), times, seed), -1
    digit = int(rng.integers(10))
    glyph = pictures.smooth(images[rng.choice(by_digit[digit])], rng if rng.random() < 0.85 else None)
    occluder = pictures.Occluder.draw(rng, 0.25, 0.6) if rng.random() < 0.3 else None
    frames = film(pictures.Scene.draw(glyph, rng, occluder), times, seed)
    if rng.random() < 0.12:
        # The digit before, in the oldest frames, as a sliding window sees it.
        other = pictures.smooth(images[rng.integers(len(images))], rng)
        count = int(rng.integers(1, 3))
        frames[:count] = film(pictures.Scene.draw(other, rng), times[:count], seed)
    return frames, digit


def test_video(
    images: np.ndarray, by_digit: list[np.ndarray], digit: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One digit as it is in the data, clean and occluded (same motion)."""
    times, seed = frame_times(rng), int(rng.integers(1 << 31))
    glyph = pictures.smooth(images[rng.choice(by_digit[digit])])
    occluder, scene_seed = pictures.Occluder.draw(rng), int(rng.integers(1 << 31))
    return {
        name: film(pictures.Scene.draw(glyph, np.random.default_rng(scene_seed), o), times, seed)
        for name, o in (("clean", None), ("occluded", occluder))
    }


def train_chunk(job: tuple[str, str, int, int]) -> tuple[np.ndarray, ...]:
    out, split, count, seed = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    words = Words(Path(out), split)
    images, labels = pictures.glyphs(split)
    by_digit = [np.flatnonzero(labels == d) for d in range(10)]
    audio = np.empty((count, N_MELS, AUDIO_FRAMES), np.float32)
    video = np.empty((count, VIDEO_FRAMES, 32, 32), np.uint8)
    spoken, shown = np.empty(count, np.int64), np.empty(count, np.int64)
    for k in range(count):
        audio[k], spoken[k] = train_audio(words, rng)
        video[k], shown[k] = train_video(images, labels, by_digit, rng)
    return audio, spoken, video, shown


def make_train(out: Path, split: str, count: int, seed: int, processes: int) -> None:
    chunk = 500
    jobs = [(str(out), split, chunk, seed * 100000 + SPLIT_CODE[split] * 10000 + k) for k in range(count // chunk)]
    with get_context("spawn").Pool(processes) as pool:
        parts = pool.map(train_chunk, jobs, chunksize=1)
    audio, spoken, video, shown = (np.concatenate(p) for p in zip(*parts, strict=True))
    np.savez(out / f"audio_{split}.npz", audio=audio, label=spoken)
    np.savez(out / f"video_{split}.npz", video=video, label=shown)


def make_test(out: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed * 100000 + SPLIT_CODE["test"] * 10000)
    words = Words(out, "test")
    images, labels = pictures.glyphs("test")
    by_digit = [np.flatnonzero(labels == d) for d in range(10)]
    digits = np.arange(count) % 10
    sounds = [test_audio(words, int(d), rng, TEST_SNR_DB) for d in digits]
    films = [test_video(images, by_digit, int(d), rng) for d in digits]
    np.savez(out / "audio_test.npz", label=digits, **{c: np.stack([s[c] for s in sounds]) for c in TEST_SNR_DB})
    np.savez(
        out / "video_test.npz",
        label=digits,
        **{c: np.stack([f[c] for f in films]) for c in ("clean", "occluded")},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    make_words(args.out, args.seed)
    print(f"words: {time.monotonic() - begin:.0f} s", flush=True)
    make_test(args.out, TEST_WINDOWS, args.seed)
    make_train(args.out, "calibration", CALIBRATION_WINDOWS, args.seed, args.processes)
    make_train(args.out, "train", TRAIN_WINDOWS, args.seed, args.processes)
    print(f"all: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
