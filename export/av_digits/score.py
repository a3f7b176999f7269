"""Score an ONNX file of the model on the small test set: `python score.py [MODEL.onnx] [TEST.npz]`.

Needs numpy and onnxruntime only, and runs any model with the same inputs and outputs, quantized or not.

`digit` is scored on pairs that match, because only there it has one answer; alone, against the modality that is
there. `match` (a probability) is scored at 0.5 on as many matching as differing pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

HOME = Path(__file__).resolve().parents[2] / "calibration" / "av_digits"

Pair = tuple[np.ndarray, np.ndarray, int, int]  # audio, video, spoken, shown
Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]


def load_test(path: Path) -> dict[str, np.ndarray]:
    """The test set as float32: `audio_*` [n, 40, 100], `video_*` [n, 8, 32, 32]; the other arrays as stored."""
    with np.load(path) as data:
        out = {k: data[k] for k in data.files}
    for key in out:
        if key.startswith("video_"):
            out[key] = out[key].astype(np.float32) / 255.0
        elif key.startswith("audio_"):
            out[key] = out[key].astype(np.float32) * out["sound_step"] + out["sound_offset"]
    return out


# condition: sound, picture; None is a tensor of zeros
CONDITIONS: dict[str, tuple[str | None, str | None]] = {
    "clean": ("clean", "clean"),
    "noise -5 dB": ("snr-5", "clean"),
    "occluded": ("clean", "occluded"),
    "noise -5 dB, occluded": ("snr-5", "occluded"),
    "sound alone, clean": ("clean", None),
    "sound alone, noise -5 dB": ("snr-5", None),
    "picture alone, clean": (None, "clean"),
    "picture alone, occluded": (None, "occluded"),
}


def pairs(test: dict[str, np.ndarray], sound: str | None, picture: str | None) -> Iterable[Pair]:
    silence, dark = np.zeros((40, 100), np.float32), np.zeros((8, 32, 32), np.float32)
    for i, j in test["pairs"]:
        audio = silence if sound is None else test[f"audio_{sound}"][i]
        video = dark if picture is None else test[f"video_{picture}"][j]
        yield audio, video, int(test["spoken"][i]), int(test["shown"][j])


def accuracy(run: Run, items: Iterable[Pair], sound: bool, picture: bool) -> dict[str, float | int]:
    """Shares of right answers, and of how many; see the top of this file for what is counted."""
    digit, match = [], []
    for audio, video, spoken, shown in items:
        logits, probability = run(audio[None], video[None])
        if not (sound and picture) or spoken == shown:
            digit.append(int(np.argmax(logits)) == (spoken if sound else shown))
        match.append((probability > 0.5) == (spoken == shown))
    return {
        "digit": round(float(np.mean(digit)), 4),
        "digit_of": len(digit),
        "match": round(float(np.mean(match)), 4),
        "match_of": len(match),
    }


def runner(model: Path) -> Run:
    """One onnxruntime session on one CPU thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(audio: np.ndarray, video: np.ndarray) -> tuple[np.ndarray, float]:
        digit, match = session.run(["digit", "match"], {"audio": audio, "video": video})
        return digit[0], float(match[0, 0])

    return run


def table(rows: dict[str, dict[str, float | int]]) -> str:
    lines = [f"{'condition':26} {'digit':>8} {'of':>6} {'match':>8} {'of':>6}"]
    for name, r in rows.items():
        lines.append(f"{name:26} {r['digit']:8.4f} {r['digit_of']:6d} {r['match']:8.4f} {r['match_of']:6d}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=HOME / "av_digits.onnx")
    parser.add_argument("test", type=Path, nargs="?", default=HOME / "test.npz")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    test, run = load_test(args.test), runner(args.model)
    rows = {
        name: accuracy(run, pairs(test, *how), how[0] is not None, how[1] is not None)
        for name, how in CONDITIONS.items()
    }
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
