"""Stream the clip through the ONNX without edgemm and score it: `python stream_check.py [MODEL.onnx] [CLIP]`.

An independent reading of the recipe: PyAV decodes, kaldi-native-fbank and OpenCV are the front end, a window ends
every 100 ms. All ten phases of that grid (0, 10, ... 90 ms) are run, so that the score does not hang on one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
import numpy as np
from front_end import (
    AUDIO_FRAMES,
    HOP_SAMPLES,
    RATE_HZ,
    SPAN_SAMPLES,
    VIDEO_FRAMES,
    VIDEO_SPACING_S,
    WINDOW_SAMPLES,
    log_mel,
    picture,
)
from score import HOME, runner

HOP_S = 0.1


def decode(clip: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples float32 [n] from time 0, pictures uint8 [frames, 32, 32], and the pictures' times in seconds."""
    sound, shots, times = [], [], []
    with av.open(str(clip)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE_HZ)
        for frame in container.decode(container.streams.video[0], container.streams.audio[0]):
            if isinstance(frame, av.VideoFrame):
                shots.append(picture(frame.to_ndarray(format="gray")))
                times.append(float(frame.pts * frame.time_base))
            else:
                sound += [f.to_ndarray()[0] for f in resampler.resample(frame)]
    return np.concatenate(sound), np.stack(shots), np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=HOME / "av_digits.onnx")
    parser.add_argument("clip", type=Path, nargs="?", default=HOME / "clip.mkv")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    truth = json.loads(args.clip.with_suffix(".truth.json").read_text())
    normal = json.loads((HOME / "metrics.json").read_text())
    mean, std = np.float32(normal["log_mel_mean"]), np.float32(normal["log_mel_std"])
    run = runner(args.model)
    sound, shots, times = decode(args.clip)
    mels = (log_mel(sound) - mean) / std  # frame k ends at sample 160 k + 400

    rows = []
    for phase in range(10):
        digits, matches = [], []
        ends = np.arange(SPAN_SAMPLES / RATE_HZ + phase * 0.01, sound.size / RATE_HZ, HOP_S)
        for s in truth["segments"]:
            end = ends[np.searchsorted(ends, s["decide_at_s"] - 1e-9)]
            last = (round(end * RATE_HZ) - WINDOW_SAMPLES) // HOP_SAMPLES
            audio = mels[:, last + 1 - AUDIO_FRAMES : last + 1]
            ticks = end - VIDEO_SPACING_S * np.arange(VIDEO_FRAMES - 1, -1, -1)
            video = shots[np.searchsorted(times, ticks + 1e-9, side="right") - 1]
            logits, probability = run(audio[None], video[None].astype(np.float32) / 255)
            if s["match"]:
                digits.append(int(np.argmax(logits)) == s["spoken"])
            matches.append((probability > 0.5) == s["match"])
        row = {"phase_ms": phase * 10, "digit": float(np.mean(digits)), "match": float(np.mean(matches))}
        rows.append(row)
        print(f"phase {phase * 10:2d} ms: digit {row['digit']:.3f} of {len(digits)}, ", end="")
        print(f"match {row['match']:.3f} of {len(matches)}")
    for head in ("digit", "match"):
        values = [r[head] for r in rows]
        print(f"{head}: mean {np.mean(values):.4f}, worst phase {min(values):.4f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
