"""Score the ONNX on the whole test split, and write what is committed of the data:

`python evaluate.py DATA model.pt av_digits.onnx -o calibration/av_digits` writes `metrics.json` (whole test split),
`test.npz` (a part of it, 8 bits a value) and `calibration/*.npz` (windows of the calibration split).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from model import AvDigits
from score import CONDITIONS, accuracy, pairs, runner, table
from train import NONE, Pool, validate

SEED = 7
SMALL = 180  # sounds, and pictures, in test.npz
CALIBRATION = 64
SOUND_STEP, SOUND_OFFSET = 0.03, -3.8  # normalised log-mel: 8 bits reach from -3.8 to 3.85
MORE = {"noise 10 dB": ("snr10", "clean"), "noise 5 dB": ("snr5", "clean"), "noise 0 dB": ("snr0", "clean")}


def whole_test(data: Path, mean: float, std: float) -> dict[str, np.ndarray]:
    """All of the test split in the form of `score.load_test`; sound k and picture k show the digit k % 10."""
    test: dict[str, np.ndarray] = {}
    with np.load(data / "audio_test.npz") as a, np.load(data / "video_test.npz") as v:
        for name in a.files:
            if name != "label":
                test[f"audio_{name}"] = ((a[name] - np.float32(mean)) / np.float32(std)).astype(np.float32)
        for name in v.files:
            if name != "label":
                test[f"video_{name}"] = v[name]
        test["spoken"], test["shown"] = a["label"], v["label"]
    test["pairs"] = draw_pairs(test["spoken"], test["shown"], 1)
    return test


def draw_pairs(spoken: np.ndarray, shown: np.ndarray, rounds: int) -> np.ndarray:
    """For each sound, `rounds` times: a picture of the same digit and one of another. int32 [pairs, 2]."""
    rng = np.random.default_rng(SEED)
    out = []
    for _ in range(rounds):
        for i, digit in enumerate(spoken):
            out.append((i, rng.choice(np.flatnonzero(shown == digit))))
            out.append((i, rng.choice(np.flatnonzero(shown == (digit + rng.integers(1, 10)) % 10))))
    return np.array(out, np.int32)


def small_test(test: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    part = {"spoken": test["spoken"][:SMALL].astype(np.uint8), "shown": test["shown"][:SMALL].astype(np.uint8)}
    for condition in ("clean", "snr-5"):
        codes = np.round((test[f"audio_{condition}"][:SMALL] - SOUND_OFFSET) / SOUND_STEP)
        part[f"audio_{condition}"] = np.clip(codes, 0, 255).astype(np.uint8)
    for condition in ("clean", "occluded"):
        part[f"video_{condition}"] = test[f"video_{condition}"][:SMALL]
    part["pairs"] = draw_pairs(part["spoken"].astype(int), part["shown"].astype(int), 2)
    part["sound_step"], part["sound_offset"] = np.float32(SOUND_STEP), np.float32(SOUND_OFFSET)
    return part


def write_calibration(data: Path, mean: float, std: float, folder: Path) -> None:
    """One file a window, batch dimension included, values rounded to float16 so that they compress."""
    pool = Pool(data, "calibration", (mean, std))
    rng = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.npz"):
        old.unlink()
    count = 0
    while count < CALIBRATION:
        audio, video, spoken, shown = pool.batch(1, rng)
        if int(spoken) == NONE or int(shown) == NONE:
            continue
        rounded = audio.numpy().astype(np.float16).astype(np.float32)
        np.savez_compressed(folder / f"{count:03d}.npz", audio=rounded, video=video.numpy())
        count += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    test, run = whole_test(args.data, saved["mean"], saved["std"]), runner(args.model)
    rows = {}
    for name, (sound, picture) in (CONDITIONS | MORE).items():
        # Pictures stay in 8 bits until here: as float32 the split would be 130 MB more.
        items = (
            (a, v.astype(np.float32) / (255 if v.dtype == np.uint8 else 1), s, t)
            for a, v, s, t in pairs(test, sound, picture)
        )
        rows[name] = accuracy(run, items, sound is not None, picture is not None)
    print(table(rows))

    args.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output / "test.npz", **small_test(test))
    write_calibration(args.data, saved["mean"], saved["std"], args.output / "calibration")
    audio, video = np.zeros((1, 40, 100), np.float32), np.zeros((1, 8, 32, 32), np.float32)
    times = []
    for _ in range(500):
        begin = time.perf_counter_ns()
        run(audio, video)
        times.append(time.perf_counter_ns() - begin)
    model = AvDigits()
    model.load_state_dict(saved["state"])
    metrics = {
        "test": rows,
        "log_mel_mean": round(saved["mean"], 6),
        "log_mel_std": round(saved["std"], 6),
        "seed": saved["seed"],
        "steps": saved["steps"],
        "training_seconds": saved["seconds"],
        "validation": validate(model, Pool(args.data, "calibration", (saved["mean"], saved["std"]))),
        "onnxruntime_one_thread_ms_p50": round(float(np.median(times)) / 1e6, 3),
    }
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
