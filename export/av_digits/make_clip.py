"""Film the demo clip from test voices and test writers: `python make_clip.py DATA -o calibration/av_digits`.

Writes `clip.mkv` (H.264 320x240 at 25 fps, FLAC 16 kHz mono) and `clip.truth.json`. Segments of 1.4 s follow
one another without a gap: in each a digit is shown all the time and a digit is said once, at a drawn moment.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import noise
import numpy as np
import pictures
from front_end import RATE_HZ
from make_data import Words

SEGMENTS = 40
MATCHED = 24
SEGMENT_FRAMES = 35  # 1.4 s
DECIDE_AFTER_S = 1.1
FIRST_WORD_S, LAST_WORD_S = 0.2, 1.08  # inside every window that ends 1.1 to 1.2 s after the segment's start
ROOM_DB = 40.0
# Without mbtree, with one thread: otherwise two runs of x264 differ by some bytes.
X264 = {"crf": "31", "preset": "slow", "x264-params": "mbtree=0:weightp=0"}
RULE = (
    "A segment is scored by one result: the first whose window ends at or after decide_at_s. Its digit is the "
    "argmax of `digit`, counted on matching segments only (otherwise it has no single answer); its match is "
    "`match` > 0.5, counted on all segments. No such result before end_s: wrong on both. With a window of 1.015 s "
    "and a hop of at most 100 ms the window lies inside the segment and holds the whole word."
)


def plan(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Spoken and shown digit of each segment: every digit is spoken equally often."""
    spoken = rng.permutation(np.arange(SEGMENTS) % 10)
    agree = np.zeros(SEGMENTS, bool)
    agree[rng.permutation(SEGMENTS)[:MATCHED]] = True
    return [
        (int(d), int(d) if same else int((d + rng.integers(1, 10)) % 10)) for d, same in zip(spoken, agree, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    words = Words(args.data, "test")
    images, labels = pictures.glyphs("test")
    by_digit = [np.flatnonzero(labels == d) for d in range(10)]

    length_s = Fraction(SEGMENT_FRAMES, pictures.FPS)
    sound = np.zeros(int(SEGMENTS * length_s * RATE_HZ), np.float32)
    frames: list[np.ndarray] = []
    segments = []
    for k, (spoken, shown) in enumerate(plan(rng)):
        start_s = k * length_s
        word = words.draw(spoken, rng)
        while word.size > 0.75 * RATE_HZ:
            word = words.draw(spoken, rng)
        lead = int(rng.uniform(FIRST_WORD_S * RATE_HZ, LAST_WORD_S * RATE_HZ - word.size))
        at = int(start_s * RATE_HZ) + lead
        sound[at : at + word.size] = word * 10 ** (rng.uniform(-12, -5) / 20)
        scene = pictures.Scene.draw(pictures.smooth(images[rng.choice(by_digit[shown])]), rng)
        for n in range(SEGMENT_FRAMES):
            frames.append(scene.frame(n / pictures.FPS, rng))
        segments.append(
            {
                "start_s": float(start_s),
                "end_s": float(start_s + length_s),
                "decide_at_s": round(float(start_s) + DECIDE_AFTER_S, 3),
                "spoken": spoken,
                "shown": shown,
                "match": spoken == shown,
            }
        )
    active = sound[sound != 0]
    room = noise.noise("pink", sound.size, rng, words.babble)
    sound = np.clip(noise.mix(sound, active, room, ROOM_DB), -1, 1)

    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "clip.mkv"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=pictures.FPS, options=X264)
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        video.thread_count = 1
        audio = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        # Interleaved, so that a player (and a live source) finds sound and picture of one moment side by side.
        per_frame = RATE_HZ // pictures.FPS
        pcm = np.round(sound * 32767).astype(np.int16)
        for n, small in enumerate(frames):
            gray = cv2.resize(small, (320, 240), interpolation=cv2.INTER_LINEAR)
            frame = av.VideoFrame.from_ndarray(gray, format="gray8").reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, pictures.FPS)
            container.mux(video.encode(frame))
            block = av.AudioFrame.from_ndarray(
                pcm[None, n * per_frame : (n + 1) * per_frame], format="s16", layout="mono"
            )
            block.sample_rate, block.pts, block.time_base = RATE_HZ, n * per_frame, Fraction(1, RATE_HZ)
            container.mux(audio.encode(block))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    truth = {
        "rule": RULE,
        "seed": args.seed,
        "window_s": 1.015,
        "hop_s": 0.1,
        "duration_s": float(SEGMENTS * length_s),
        "segments": segments,
    }
    (args.output / "clip.truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    print(f"{path}: {path.stat().st_size} bytes, {SEGMENTS} segments, {MATCHED} of them match")


if __name__ == "__main__":
    main()
