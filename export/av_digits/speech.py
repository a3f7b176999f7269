"""Spoken digits and babble from espeak-ng, split by voice.

A voice is an espeak-ng variant (`!v/...`: a set of formants, pitches and excitations). Variants whose names
differ only by a trailing number are kin (`robosoft2`, `robosoft3`), so whole families go to one split. Test and
calibration use at most two voices of a family, or the eight robosofts alone would make a third of the test. Some
variants are near copies under another name (`RicishayMax` of `max`): a test or calibration voice that shares most of
its definition with a training voice is left out.
"""

from __future__ import annotations

import io
import re
import subprocess
import wave
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from front_end import RATE_HZ
from scipy.signal import resample_poly

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = (
    "en-gb",
    "en-us",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-rp",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
SPLITS = ("train", "calibration", "test")
MAX_WORD_S = 0.80
KIN = {"anikarobot": "anika", "anxiousandy": "andy", "whisperf": "whisper"}
MAX_OF_A_FAMILY = 2
MAX_ALIKE = 0.6
# No number is spoken in the babble.
BABBLE = (
    "The river bends around the old stone mill, and the road follows it as far as the harbour.",
    "She opened the window to hear the rain, then closed it again and went back to her letters.",
    "Every morning the baker carries warm bread across the square to people waiting by the door.",
    "A small engine hums under the bridge while gulls argue about the remains of a sandwich.",
    "Nobody remembers who planted these apple trees, yet all of us come here in early autumn.",
)


@dataclass(frozen=True)
class Utterance:
    digit: int
    voice: str
    accent: str
    samples: np.ndarray  # int16 at 16 kHz, silence trimmed


def variants() -> Path:
    """The folder of this espeak-ng installation that defines the variants, one file each."""
    text = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    return Path(re.search(r"Data at: (\S+)", text).group(1)) / "voices" / "!v"


def definition(voice: Path) -> frozenset[str]:
    """The lines that make a variant's sound: without its name, language, gender and comments."""
    lines = (line.strip() for line in voice.read_text(encoding="utf-8", errors="replace").splitlines())
    return frozenset(x for x in lines if x and not re.match(r"name|language|gender|variant|//|#", x))


def alike(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared lines of two definitions, 0 to 1."""
    return len(a & b) / max(1, len(a | b))


def split_voices(seed: int) -> dict[str, list[str]]:
    """Voices of each split: families are shuffled and dealt, a fifth to test, a tenth to calibration."""
    families: dict[str, list[str]] = defaultdict(list)
    folder = variants()
    for name in sorted(p.name for p in folder.iterdir() if " " not in p.name):
        stem = re.sub(r"\d+$", "", name).lower()
        families[KIN.get(stem, stem)].append(name)
    names = sorted(families)
    np.random.default_rng(seed).shuffle(names)
    n_test, n_calibration = len(names) // 5, len(names) // 10
    dealt = {
        "test": [v for n in names[:n_test] for v in families[n][:MAX_OF_A_FAMILY]],
        "calibration": [v for n in names[n_test : n_test + n_calibration] for v in families[n][:MAX_OF_A_FAMILY]],
        "train": [v for n in names[n_test + n_calibration :] for v in families[n]],
    }
    trained = [definition(folder / v) for v in dealt["train"]]
    for held_out in ("test", "calibration"):
        dealt[held_out] = [
            v for v in dealt[held_out] if max(alike(definition(folder / v), t) for t in trained) < MAX_ALIKE
        ]
    return {s: sorted(dealt[s]) for s in SPLITS}


def speak(text: str, voice: str, accent: str, pitch: int, words_per_minute: int) -> np.ndarray:
    """One utterance as float32 samples at 16 kHz, leading and trailing silence removed; empty if silent."""
    command = ["espeak-ng", "-v", f"{accent}+{voice}", "-p", str(pitch), "-s", str(words_per_minute)]
    raw = subprocess.run([*command, "--stdout", text], check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(raw)) as reader:
        rate = reader.getframerate()
        # On a pipe espeak-ng cannot seek back to write the length, so read to the end.
        data = np.frombuffer(raw[44:][: (len(raw) - 44) // 2 * 2], dtype="<i2")
    signal = resample_poly(data.astype(np.float32) / 32768.0, 320, 441 * rate // 22050)
    level = np.convolve(signal**2, np.ones(160) / 160, mode="same")
    loud = np.flatnonzero(level > max(1e-7, level.max(initial=0.0) * 1e-4))
    return signal[loud[0] : loud[-1] + 1].astype(np.float32) if loud.size else signal[:0]


def utterances(split: list[str], per_word: int, seed: int) -> list[Utterance]:
    """`per_word` utterances of each digit for every voice and accent, with drawn pitch, speed and ending."""
    rng = np.random.default_rng(seed)
    jobs = []
    for voice in split:
        for accent in ACCENTS:
            for digit in range(10):
                for _ in range(per_word):
                    ending = rng.choice([".", "?", ",", "!"])
                    jobs.append((digit, voice, accent, ending, int(rng.integers(20, 81)), int(rng.integers(110, 240))))

    def say(job: tuple) -> Utterance | None:
        digit, voice, accent, ending, pitch, speed = job
        signal = speak(WORDS[digit] + ending, voice, accent, pitch, speed)
        if not 0.12 * RATE_HZ < signal.size < MAX_WORD_S * RATE_HZ:
            return None
        signal = signal / np.abs(signal).max()
        return Utterance(digit, voice, accent, (signal * 32767).astype(np.int16))

    with ThreadPoolExecutor(2) as pool:
        return [u for u in pool.map(say, jobs) if u is not None]


def babble(split: list[str], seed: int, seconds: float = 40.0, talkers: int = 6) -> np.ndarray:
    """Several voices of one split talking at once, about other things: float32, rms 1."""
    rng = np.random.default_rng(seed)
    out = np.zeros(int(seconds * RATE_HZ), np.float32)
    for _ in range(talkers):
        parts, length = [], 0
        while length < out.size:
            part = speak(
                str(rng.choice(BABBLE)),
                str(rng.choice(split)),
                str(rng.choice(ACCENTS)),
                int(rng.integers(20, 81)),
                int(rng.integers(130, 220)),
            )
            if part.size:
                part = part / np.sqrt(np.mean(part**2))
                parts.append(part)
                length += part.size
        out += np.roll(np.concatenate(parts)[: out.size], int(rng.integers(out.size)))
    return out / np.sqrt(np.mean(out**2))
