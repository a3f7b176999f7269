"""Write where the committed files come from: `python provenance.py DATA -o calibration/av_digits`."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "kaldi-native-fbank",
    "onnx",
    "onnxruntime",
    "av",
    "opencv-python-headless",
)
FILES = ("av_digits.onnx", "clip.mkv", "clip.truth.json", "labels.txt", "metrics.json", "test.npz")

TEXT = """# Where these files come from

Written by `export/av_digits/provenance.py`. `sh export/av_digits/run_all.sh` makes them all again (seed {seed},
{steps} training steps, {seconds} s of training on one thread of a shared x86-64 CPU). `recipe.toml` is written by hand.
The data, the test set and the clip come out byte for byte on the same versions; a model trained on another kind of
CPU may differ in the last digits.

## Data

- **Speech**: digits "zero" to "nine" spoken by {espeak}, eight English accents, variants as voices. espeak-ng
  is GPL-3.0-or-later, whose section 2 covers a program's output only where that output is itself a covered work.
  No code and no data file of espeak-ng is in these files.
- **Digits**: scikit-learn's `load_digits`, a copy of the test part of UCI "Optical Recognition of Handwritten
  Digits" (E. Alpaydin, C. Kaynak, 1998, https://doi.org/10.24432/C50P49), CC BY 4.0. Changed: enlarged, bent, moved,
  lit, partly covered.
- **Noise**: computed (white, pink, brown, band-limited, hum), and babble of the same split's espeak-ng voices.
- **The model, the clip and these sets**: made by this project, Apache-2.0 as the rest, with the attribution above.

## Splits

Voices (espeak-ng variants; kin variants always go to one split, and near copies of a training voice are left out of
the others) and forms are disjoint. The forms are the 14 runs of
about 130 digits that open with the same prompt sequence. scikit-learn's description counts 13 writers, so one writer
may have filled two. The calibration split also served as validation while training; nothing was chosen on the test
split.

| split | voices | forms |
|---|---|---|
{splits}

## Hashes (sha256)

| file | bytes | sha256 |
|---|---|---|
{hashes}

`calibration/*.npz` is one line: the hash of the files' bytes, in the order of their names.

## Tools

{tools}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    splits = json.loads((args.data / "splits.json").read_text())
    metrics = json.loads((args.output / "metrics.json").read_text())
    rows = [
        f"| {name} | {', '.join(voices)} | {', '.join(str(f) for f in splits['forms'][name])} |"
        for name, voices in splits["voices"].items()
    ]
    hashes = []
    for name in FILES:
        data = (args.output / name).read_bytes()
        hashes.append(f"| `{name}` | {len(data)} | `{hashlib.sha256(data).hexdigest()}` |")
    windows = sorted((args.output / "calibration").glob("*.npz"))
    data = b"".join(p.read_bytes() for p in windows)
    hashes.append(
        f"| `calibration/*.npz` ({len(windows)} files) | {len(data)} | `{hashlib.sha256(data).hexdigest()}` |"
    )
    espeak = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    espeak = "espeak-ng " + espeak.split(":")[1].split()[0]
    tools = [f"Python {platform.python_version()}", espeak]
    tools += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    text = TEXT.format(
        seed=metrics["seed"],
        steps=metrics["steps"],
        seconds=metrics["training_seconds"],
        espeak=espeak,
        splits="\n".join(rows),
        hashes="\n".join(hashes),
        tools=", ".join(tools) + ".",
    )
    (args.output / "PROVENANCE.md").write_text(text)


if __name__ == "__main__":
    main()
