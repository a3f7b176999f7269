"""A wide test set, for differences too small for the 2000 windows of the test split: `make_wide_test.py OUT`.

The same test voices, words and writers as `make_data.py` left in OUT, drawn anew: place, level, noise, motion, cover.
Written to OUT/wide.npz:

- `audio_clean`, `audio_snr-5`: log-mel windows before normalisation, float16 [n, 40, 100].
- `video_clean`, `video_occluded`: pictures uint8 [n, 8, 32, 32].

Sound k and picture k show the digit k % 10. Ten in a row, one of each digit, are a block of their own seed: pairs are
made inside blocks, so that blocks are drawn independently and a confidence interval may count them as such.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pictures
from make_data import Words, test_audio, test_video

AUDIO, VIDEO = ("clean", "snr-5"), ("clean", "occluded")
BLOCKS_A_JOB = 20


def job(work: tuple[str, int, int]) -> dict[str, np.ndarray]:
    """The sounds and pictures of some blocks."""
    out, seed, first = work
    cv2.setNumThreads(1)
    words = Words(Path(out), "test")
    images, labels = pictures.glyphs("test")
    by_digit = [np.flatnonzero(labels == d) for d in range(10)]
    sounds, films = [], []
    for block in range(first, first + BLOCKS_A_JOB):
        rng = np.random.default_rng([seed, block])
        sounds += [test_audio(words, digit, rng, AUDIO) for digit in range(10)]
        films += [test_video(images, by_digit, digit, rng) for digit in range(10)]
    made = {f"audio_{name}": np.stack([s[name] for s in sounds]).astype(np.float16) for name in AUDIO}
    return made | {f"video_{name}": np.stack([f[name] for f in films]) for name in VIDEO}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder that make_data.py filled")
    parser.add_argument("--blocks", type=int, default=1200, help=f"of ten windows; a multiple of {BLOCKS_A_JOB}")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    begin = time.monotonic()
    jobs = [(str(args.out), args.seed, first) for first in range(0, args.blocks, BLOCKS_A_JOB)]
    with get_context("spawn").Pool(args.processes) as pool:
        parts = pool.map(job, jobs, chunksize=1)
    np.savez(args.out / "wide.npz", **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    print(f"{10 * args.blocks} windows: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
