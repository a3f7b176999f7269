"""Our CPU front ends against kaldi-native-fbank, librosa, torch and plain OpenCV, in one run.

    pip install -e . kaldi-native-fbank librosa==0.11.0 torch==2.13.0
    python bench/frontend.py [--output bench/results/frontend.md]

What is not installed is named and left out. Everything runs on one thread. The rounds of all candidates
alternate, so that a busy machine slows all of them; the figures are over all rounds.

Log-mel: 80 bands, 16 kHz, 25 ms windows every 10 ms, 512-point DFT, natural logarithm. edgemm and Kaldi also take the
frame's mean off and pre-emphasise; librosa and torch do not offer that and do less. "Offline" is 60 s at once; "a hop"
is 160 new samples to one new frame. librosa and torch have no stream: they are given the last 400 samples.
"""

# The environment is set between imports, hence:
# ruff: noqa: E402
from __future__ import annotations

import os

# Before numpy and torch are imported: their thread pools read it then.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import importlib
import platform
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgemm.frontend import Image, LogMel, Mfcc
from edgemm.kernels.log_mel import mel_filterbank
from edgemm.options import ImageOptions, LogMelOptions, MfccOptions

RATE_HZ, SECONDS, HOP, WINDOW, SIZE, BANDS = 16000, 60, 160, 400, 512, 80
Candidates = dict[str, Callable[[], Iterable[int]]]
"""By name: one round, which yields times in ns."""


def voice_like() -> np.ndarray:
    """Pulses at a gliding pitch with noise, syllable by syllable; float32, `[samples]`."""
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE_HZ * SECONDS) / RATE_HZ
    phase = np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * seconds)) / RATE_HZ
    pulses = np.exp(-40 * (phase % 1.0)) * np.sin(2 * np.pi * 900 * seconds)
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 3.1 * seconds)
    return (0.5 * loudness * pulses + 0.01 * rng.standard_normal(len(seconds))).astype(np.float32)


def optional(name: str) -> Any:
    """The module, or None with a line that says that it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed and is left out", file=sys.stderr)
        return None


def calls(function: Callable[[], object], times: int) -> Callable[[], Iterable[int]]:
    """Time a function this often in a round."""

    def one_round() -> Iterable[int]:
        for _ in range(times):
            start = time.perf_counter_ns()
            function()
            yield time.perf_counter_ns() - start

    return one_round


def hops(samples: np.ndarray, begin: Callable[[], Callable[[np.ndarray], object]]) -> Callable[[], Iterable[int]]:
    """Time a fresh stream over 10 s in pieces of 160 samples, but for the first, which complete no frame."""
    pieces = [samples[at : at + HOP] for at in range(0, 10 * RATE_HZ, HOP)]
    first = -(-WINDOW // HOP)

    def one_round() -> Iterable[int]:
        push = begin()
        for piece in pieces[:first]:
            push(piece)
        for piece in pieces[first:]:
            start = time.perf_counter_ns()
            push(piece)
            yield time.perf_counter_ns() - start

    return one_round


def last_window(
    samples: np.ndarray, function: Callable[[np.ndarray], object], count: int
) -> Callable[[], Iterable[int]]:
    """Time a function over the last 400 samples, hop after hop."""
    frames = [samples[at : at + WINDOW] for at in range(0, count * HOP, HOP)]

    def one_round() -> Iterable[int]:
        for frame in frames:
            start = time.perf_counter_ns()
            function(frame)
            yield time.perf_counter_ns() - start

    return one_round


def measure(candidates: Candidates, rounds: int) -> dict[str, np.ndarray]:
    """All times in us by name; a round before the first is not counted."""
    taken: dict[str, list[int]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, one_round in candidates.items():
            times = list(one_round())
            if number:
                taken[name] += times
    return {name: np.array(times) / 1e3 for name, times in taken.items()}


def kaldi_stream(knf: Any, kind: str) -> Callable[[], Callable[[np.ndarray], object]]:
    """What begins a kaldi-native-fbank stream: push samples, get every frame that is ready."""

    def begin() -> Callable[[np.ndarray], object]:
        options = knf.FbankOptions() if kind == "fbank" else knf.MfccOptions()
        options.frame_opts.dither = 0
        options.mel_opts.num_bins = BANDS
        if kind == "mfcc":
            options.use_energy = False
        stream = knf.OnlineFbank(options) if kind == "fbank" else knf.OnlineMfcc(options)
        seen = 0

        def push(piece: np.ndarray) -> list[np.ndarray]:
            nonlocal seen
            stream.accept_waveform(RATE_HZ, piece)
            ready = stream.num_frames_ready
            frames = [stream.get_frame(k) for k in range(seen, ready)]
            seen = ready
            return frames

        return push

    return begin


def log_mel_tables(samples: np.ndarray, rounds: int) -> list[str]:
    """Offline, per hop, and how far the results are apart."""
    knf, librosa, torch = optional("kaldi_native_fbank"), optional("librosa"), optional("torch")
    front_end = LogMel(LogMelOptions(n_mels=BANDS))
    mfcc = Mfcc(MfccOptions(LogMelOptions(n_mels=BANDS)))
    offline: Candidates = {"edgemm": calls(lambda: front_end.offline(samples), 5)}
    hop: Candidates = {"edgemm": hops(samples, lambda: LogMel(front_end.options).push)}
    mfcc_hop: Candidates = {"edgemm": hops(samples, lambda: Mfcc(mfcc.options).push)}
    agreement: list[str] = []

    if knf:
        offline["kaldi-native-fbank"] = calls(lambda: kaldi_stream(knf, "fbank")()(samples), 1)
        hop["kaldi-native-fbank"] = hops(samples, kaldi_stream(knf, "fbank"))
        mfcc_hop["kaldi-native-fbank"] = hops(samples, kaldi_stream(knf, "mfcc"))
        theirs = np.stack(kaldi_stream(knf, "fbank")()(samples))
        cepstra = np.stack(kaldi_stream(knf, "mfcc")()(samples))
        for name, ours, their in (
            ("log-mel", front_end.offline(samples), theirs),
            ("MFCC", mfcc.offline(samples), cepstra),
        ):
            apart = np.abs(ours - their)
            agreement.append(
                f"- {name}, edgemm against kaldi-native-fbank, {apart.size} values: at most {apart.max():.1e} apart, "
                f"{apart.mean():.1e} in the mean"
            )
    pieces = np.concatenate([front_end.push(samples[at : at + HOP]) for at in range(0, len(samples), HOP)])
    same = np.array_equal(pieces, front_end.offline(samples))
    agreement.append(f"- log-mel, edgemm hop by hop against offline: {'the same bits' if same else 'DIFFERENT'}")

    if librosa:

        def librosa_mel(signal: np.ndarray) -> np.ndarray:
            sizes = {"sr": RATE_HZ, "n_fft": SIZE, "win_length": WINDOW, "hop_length": HOP, "n_mels": BANDS}
            return np.log(np.maximum(librosa.feature.melspectrogram(y=signal, center=False, **sizes), 1e-10))

        padded = np.concatenate((np.zeros(SIZE - WINDOW, np.float32), samples[:WINDOW]))
        offline["librosa"] = calls(lambda: librosa_mel(samples), 2)
        hop["librosa"] = calls(lambda: librosa_mel(padded), 50)
    if torch:
        torch.set_num_threads(1)
        window = torch.hann_window(WINDOW, periodic=True)
        bank = torch.from_numpy(np.ascontiguousarray(mel_filterbank(front_end.options).T, np.float32))
        tensor = torch.from_numpy(samples)

        def torch_mel(frames: Any) -> Any:
            spectrum = torch.fft.rfft(frames * window, n=SIZE)
            power = spectrum.real.square() + spectrum.imag.square()
            return torch.log(torch.clamp(power @ bank, min=1e-10))

        def torch_offline() -> Any:
            with torch.inference_mode():
                return torch_mel(tensor.unfold(0, WINDOW, HOP))

        def torch_hop(frame: np.ndarray) -> Any:
            with torch.inference_mode():
                return torch_mel(torch.from_numpy(frame))

        offline["torch"] = calls(torch_offline, 5)
        hop["torch"] = last_window(samples, torch_hop, 1000)

    lines = ["## Log-mel", ""]
    lines += table("60 s offline, ms", measure(offline, rounds), 1e3)
    lines += table("one 10 ms hop, us", measure(hop, rounds), 1.0)
    lines += table("MFCC (80 bands, 13 cepstra), one 10 ms hop, us", measure(mfcc_hop, rounds), 1.0)
    return [*lines, "Agreement:", "", *agreement, ""]


def picture_table(rounds: int) -> list[str]:
    """A camera frame to a network's input: 1280x720 BGR to 224x224 RGB, float32, normalised, planes."""
    picture = np.random.default_rng(1).integers(0, 256, (720, 1280, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    front_end = Image(ImageOptions(224, 224, mean=mean, std=std))
    out = np.empty(front_end.shape, front_end.dtype)
    mean32, std32 = np.array(mean, np.float32), np.array(std, np.float32)

    def plain() -> np.ndarray:
        small = cv2.cvtColor(cv2.resize(picture, (224, 224)), cv2.COLOR_BGR2RGB)
        return np.ascontiguousarray(((small.astype(np.float32) / 255 - mean32) / std32).transpose(2, 0, 1))

    candidates: Candidates = {
        "edgemm": calls(lambda: front_end.prepare(picture, "bgr", out=out), 50),
        "OpenCV and numpy, as usually written": calls(plain, 50),
    }
    difference = float(np.abs(front_end.prepare(picture, "bgr") - plain()).max())
    torch = optional("torch")
    if torch:
        from torch.nn.functional import interpolate

        mean_t, std_t = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

        def torch_picture() -> Any:
            with torch.inference_mode():
                planes = torch.from_numpy(picture).permute(2, 0, 1)[None]
                small = interpolate(planes, size=(224, 224), mode="bilinear")[0].flip(0)
                return (small.float() / 255 - mean_t) / std_t

        candidates["torch"] = calls(torch_picture, 20)
    lines = ["## Pictures", "", "1280x720 BGR to 224x224 RGB float32, bilinear, mean and std, [3, 224, 224].", ""]
    lines += table("one picture, us", measure(candidates, rounds), 1.0)
    return [*lines, f"edgemm against OpenCV and numpy: at most {difference:.1e} apart.", ""]


def table(title: str, times_us: dict[str, np.ndarray], unit: float) -> list[str]:
    """A Markdown table; the ratio is the peer's median over ours. The least is what a busy machine disturbs least."""
    ours = np.median(times_us["edgemm"])
    lines = [f"| {title} | least | p50 | p99 | n | p50 over edgemm's |", "|---|---|---|---|---|---|"]
    for name, times in times_us.items():
        least, p50, p99 = np.percentile(times, [0, 50, 99]) / unit
        lines.append(f"| {name} | {least:.2f} | {p50:.2f} | {p99:.2f} | {len(times)} | {np.median(times) / ours:.2f} |")
    return [*lines, ""]


def processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def versions() -> str:
    """What was compared."""
    found = []
    for name in ("numpy", "opencv-python-headless", "kaldi-native-fbank", "librosa", "torch"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="rounds of every candidate")
    parser.add_argument("--output", type=Path, help="write the tables there, too (Markdown)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    load = os.getloadavg()[0]
    lines = [
        "# Front ends on the CPU",
        "",
        f"`python bench/frontend.py --rounds {arguments.rounds}`, {time.strftime('%Y-%m-%d', time.gmtime())}. "
        f"{processor()}; Python {platform.python_version()}; {versions()}. One thread. "
        f"Load of the machine at the start: {load:.1f}.",
        "",
        *__doc__.split("\n\n")[3].splitlines(),
        "",
    ]
    lines += log_mel_tables(voice_like(), arguments.rounds)
    lines += picture_table(arguments.rounds)
    report = "\n".join(lines)
    print(report)
    if arguments.output:
        arguments.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
