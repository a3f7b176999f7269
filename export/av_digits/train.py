"""Train the model: `python train.py DATA -o model.pt [--steps 6000] [--seed 7]`.

What the heads are trained for:

- `match`: 1 where a word and a picture are both there and say the same digit, else 0.
- `digit`: the digit on which both modalities agree, or the one modality that is there. Pairs that disagree
  are left out of this loss: their digit has no single answer, so read `digit` only where `match` is high.

A tenth of the windows lack one modality altogether (a tensor of zeros), and a few per cent hold noise without a
word or a picture without a digit.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from model import AvDigits
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

BATCH = 128
MATCHED, MISMATCHED = 0.48, 0.42  # the rest lacks a modality
NONE = -1


class Pool:
    """Windows of both modalities of one split, paired by label on demand."""

    def __init__(self, data: Path, split: str, normal: tuple[float, float] | None = None) -> None:
        with np.load(data / f"audio_{split}.npz") as a, np.load(data / f"video_{split}.npz") as v:
            raw, self.spoken = a["audio"], torch.from_numpy(a["label"])
            self.video, self.shown = torch.from_numpy(v["video"]), torch.from_numpy(v["label"])
        self.mean, self.std = normal or (float(raw.mean(dtype=np.float64)), float(raw.std(dtype=np.float64)))
        self.audio = torch.from_numpy((raw - np.float32(self.mean)) / np.float32(self.std))
        self.shown_by_digit = [torch.nonzero(self.shown == d)[:, 0] for d in range(10)]

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """audio, video, spoken, shown; a label is -1 where that modality says nothing."""
        i = torch.from_numpy(rng.integers(len(self.audio), size=size))
        j = torch.from_numpy(rng.integers(len(self.video), size=size))
        spoken = self.spoken[i].clone()
        kind = rng.random(size)
        for k in range(size):
            said = int(spoken[k])
            if said != NONE and kind[k] < MATCHED + MISMATCHED:
                digit = said if kind[k] < MATCHED else (said + int(rng.integers(1, 10))) % 10
                same = self.shown_by_digit[digit]
                if kind[k] < MATCHED or self.shown[j[k]] != NONE:
                    j[k] = same[int(rng.integers(len(same)))]
        shown = self.shown[j].clone()
        audio, video = self.audio[i].clone(), self.video[j].float() / 255.0
        lone = torch.from_numpy(kind)
        no_video = lone >= (1 + MATCHED + MISMATCHED) / 2
        no_audio = (lone >= MATCHED + MISMATCHED) & ~no_video
        audio[no_audio], spoken[no_audio] = 0.0, NONE
        video[no_video], shown[no_video] = 0.0, NONE
        return audio, video, spoken, shown


def augment(audio: Tensor, video: Tensor, rng: np.random.Generator) -> None:
    """In place: mask a few mel bands and frames, vary the light. Absent modalities stay zero."""
    for k in range(len(audio)):
        if rng.random() < 0.5:
            f, n = int(rng.integers(0, 36)), int(rng.integers(1, 6))
            audio[k, f : f + n] = audio[k].mean()
        if rng.random() < 0.4:
            t, n = int(rng.integers(0, 95)), int(rng.integers(2, 9))
            audio[k, :, t : t + n] = audio[k].mean()
    light = torch.from_numpy(rng.uniform(0.75, 1.2, len(video)).astype(np.float32))
    video.mul_(light[:, None, None, None]).clamp_(0.0, 1.0)


def targets(spoken: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Digit targets (-1: none) and match targets."""
    match = (spoken == shown) & (spoken != NONE)
    digit = torch.where(spoken == NONE, shown, torch.where(match | (shown == NONE), spoken, NONE))
    return digit, match.float()


def loss_of(model: AvDigits, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    audio, video, spoken, shown = batch
    digit, match = targets(spoken, shown)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.everything(audio, video)
    said, matched, by_ear, by_eye = (o.float() for o in out)
    return (
        cross_entropy(said, digit, ignore_index=NONE)
        + 1.5 * binary_cross_entropy_with_logits(matched[:, 0], match)
        + 0.4 * cross_entropy(by_ear, spoken, ignore_index=NONE, label_smoothing=0.05)
        + 0.4 * cross_entropy(by_eye, shown, ignore_index=NONE, label_smoothing=0.05)
    )


@torch.no_grad()
def validate(model: AvDigits, pool: Pool, batches: int = 16) -> dict[str, float]:
    """Accuracy on the calibration split's voices and writers, training conditions (noise, occlusion and all)."""
    model.eval()
    rng = np.random.default_rng(1)
    hits = {"digit": [0, 0], "match": [0, 0], "spoken": [0, 0], "shown": [0, 0]}
    for _ in range(batches):
        audio, video, spoken, shown = pool.batch(BATCH, rng)
        digit, match = targets(spoken, shown)
        said, matched, by_ear, by_eye = model.everything(audio, video)
        for name, ok, use in (
            ("digit", said.argmax(1) == digit, digit != NONE),
            ("match", (matched[:, 0] > 0) == (match > 0.5), (spoken != NONE) & (shown != NONE)),
            ("spoken", by_ear.argmax(1) == spoken, spoken != NONE),
            ("shown", by_eye.argmax(1) == shown, shown != NONE),
        ):
            hits[name][0] += int((ok & use).sum())
            hits[name][1] += int(use.sum())
    model.train()
    return {k: round(a / b, 4) for k, (a, b) in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train = Pool(args.data, "train")
    valid = Pool(args.data, "calibration", (train.mean, train.std))
    model = AvDigits().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    print(f"log-mel mean {train.mean:.6f} std {train.std:.6f}; {model.exported_parameters()} parameters", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, args.steps, pct_start=0.1)
    begin, history, running = time.monotonic(), [], 0.0
    model.train()
    for step in range(1, args.steps + 1):
        batch = train.batch(BATCH, rng)
        augment(batch[0], batch[1], rng)
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        running += loss.item()
        decay = min(0.998, step / (step + 20))
        with torch.no_grad():
            for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if mean.dtype.is_floating_point:
                    mean.lerp_(now, 1 - decay)
                else:
                    mean.copy_(now)
        if step % 250 == 0 or step == args.steps:
            found = validate(average, valid)
            history.append({"step": step, "loss": round(running / 250, 4), **found})
            running = 0.0
            print(f"{time.monotonic() - begin:6.0f} s  {history[-1]}", flush=True)
            torch.save(
                {
                    "state": average.state_dict(),
                    "mean": train.mean,
                    "std": train.std,
                    "seed": args.seed,
                    "steps": step,
                    "seconds": round(time.monotonic() - begin),
                    "history": history,
                },
                args.output,
            )
    print(json.dumps(history[-1]))


if __name__ == "__main__":
    main()
