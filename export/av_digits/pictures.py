"""Moving handwritten digits, drawn the way a small camera would see them.

The 8x8 digits of scikit-learn (UCI optdigits, test part) are filled forms of 130 digits, one form after the
other; the same prompt sequence opens each form, which is how the boundaries below were found. Forms are split, so no
writer's form is in two splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.datasets import load_digits

# First image of each form, and the end.
FORMS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667, 1797)
SPLIT_FORMS = {"train": range(10), "calibration": range(10, 11), "test": range(11, 14)}
HEIGHT, WIDTH = 120, 160
GLYPH = 64
FPS = 25


def glyphs(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [n, 8, 8] in [0, 1] and labels int64 [n] of one split."""
    data = load_digits()
    index = np.concatenate([np.arange(FORMS[f], FORMS[f + 1]) for f in SPLIT_FORMS[split]])
    return (data.images[index] / 16.0).astype(np.float32), data.target[index]


def smooth(glyph: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """An 8x8 glyph as float32 [GLYPH, GLYPH]; with `rng` its strokes are bent and thinned or thickened."""
    big = cv2.resize(np.pad(glyph, 1), (GLYPH, GLYPH), interpolation=cv2.INTER_CUBIC)
    gain, threshold = 1.5, 0.5
    if rng is not None:
        bend = rng.normal(0, 3.0, (2, 4, 4)).astype(np.float32)
        dx, dy = (cv2.resize(b, (GLYPH, GLYPH), interpolation=cv2.INTER_CUBIC) for b in bend)
        ys, xs = np.mgrid[:GLYPH, :GLYPH].astype(np.float32)
        big = cv2.remap(big, xs + dx, ys + dy, cv2.INTER_LINEAR)
        gain, threshold = rng.uniform(1.2, 3.0), rng.uniform(0.35, 0.6)
    return np.clip((big - threshold) * gain + 0.5, 0.0, 1.0)


@dataclass(frozen=True)
class Motion:
    """Where a digit is, as smooth functions of time; lengths in picture heights, angles in degrees."""

    center: np.ndarray  # [2] x, y
    drift: np.ndarray  # [2] amplitude
    drift_hz: np.ndarray  # [2]
    phase: np.ndarray  # [4]
    size: float
    swell: float
    angle: float
    swing: float
    swing_hz: float
    shear: float
    stretch: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Motion:
        return cls(
            center=np.array([WIDTH / HEIGHT / 2, 0.5]) + rng.uniform(-1, 1, 2) * [0.2, 0.08],
            drift=rng.uniform(0.0, 1.0, 2) * [0.22, 0.08],
            drift_hz=rng.uniform(0.1, 0.6, 2),
            phase=rng.uniform(0, 2 * np.pi, 4),
            size=rng.uniform(0.62, 0.95),
            swell=rng.uniform(0.0, 0.12),
            angle=rng.uniform(-12, 12),
            swing=rng.uniform(0, 12),
            swing_hz=rng.uniform(0.2, 0.8),
            shear=rng.uniform(-0.15, 0.15),
            stretch=rng.uniform(0.9, 1.15),
        )

    def matrix(self, t: float) -> np.ndarray:
        """The affine map from glyph pixels to picture pixels at `t` seconds: float64 [2, 3]."""
        turn = 2 * np.pi * t
        x, y = (self.center + self.drift * np.sin(turn * self.drift_hz + self.phase[:2])) * HEIGHT
        size = self.size * (1 + self.swell * np.sin(turn * 0.5 + self.phase[2])) * HEIGHT / GLYPH
        a = np.deg2rad(self.angle + self.swing * np.sin(turn * self.swing_hz + self.phase[3]))
        rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        linear = size * rotation @ np.array([[self.stretch, self.shear], [0.0, 1.0]])
        return np.column_stack([linear, np.array([x, y]) - linear @ [GLYPH / 2, GLYPH / 2]])


@dataclass(frozen=True)
class Occluder:
    """A rectangle in glyph coordinates that moves with the digit and hides part of it."""

    corners: np.ndarray  # [4, 2]
    gray: float

    @classmethod
    def draw(cls, rng: np.random.Generator, low: float = 0.4, high: float = 0.55) -> Occluder:
        """Hides `low` to `high` of the digit's box, from one of its four sides."""
        share = rng.uniform(low, high)
        near, far = 0.1 * GLYPH, 0.9 * GLYPH  # the box of the 8x8 glyph inside its margin
        cut = near + share * (far - near)
        x0, x1, y0, y1 = -0.1 * GLYPH, 1.1 * GLYPH, -0.1 * GLYPH, 1.1 * GLYPH
        side = rng.integers(4)
        if side == 0:
            x1 = cut
        elif side == 1:
            x0 = GLYPH - cut
        elif side == 2:
            y1 = cut
        else:
            y0 = GLYPH - cut
        return cls(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), rng.uniform(20, 200))


@dataclass(frozen=True)
class Scene:
    """One digit's motion, lighting and camera; `frame` draws it at any time."""

    glyph: np.ndarray | None  # float32 [GLYPH, GLYPH]; None: an empty picture
    motion: Motion
    occluder: Occluder | None
    background: np.ndarray  # float32 [HEIGHT, WIDTH]
    ink: float
    blur: float
    noise: float

    @classmethod
    def draw(cls, glyph: np.ndarray | None, rng: np.random.Generator, occluder: Occluder | None = None) -> Scene:
        dark, slope = rng.uniform(10, 70), rng.uniform(-20, 20, 2)
        ys, xs = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
        return cls(
            glyph=glyph,
            motion=Motion.draw(rng),
            occluder=occluder,
            background=np.clip(dark + slope[0] * xs + slope[1] * ys, 0, 255).astype(np.float32),
            ink=rng.uniform(150, 250),
            blur=rng.uniform(0.0, 1.5),
            noise=rng.uniform(0.0, 8.0),
        )

    def frame(self, t: float, rng: np.random.Generator) -> np.ndarray:
        """The gray picture at `t` seconds: uint8 [HEIGHT, WIDTH]; `rng` makes the camera's noise."""
        out = self.background
        if self.glyph is not None:
            matrix = self.motion.matrix(t)
            cover = cv2.warpAffine(self.glyph, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
            out = out + cover * (self.ink - out)
            if self.occluder is not None:
                points = self.occluder.corners @ matrix[:, :2].T + matrix[:, 2]
                out = cv2.fillConvexPoly(out, np.round(points).astype(np.int32), self.occluder.gray)
        if self.blur > 0.3:
            out = cv2.GaussianBlur(out, (0, 0), self.blur)
        if self.noise > 0.5:
            out = out + self.noise * rng.standard_normal(out.shape, dtype=np.float32)
        return np.clip(out + 0.5, 0, 255).astype(np.uint8)
