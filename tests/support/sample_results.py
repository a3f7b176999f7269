"""Results as a run would make them, for tests of what takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemm.stream.decode import Decoded, Label, Score, Values, Vector
from edgemm.stream.results import Result


def result(step: int = 1, **changes: Any) -> Result:
    """A result with one output of each kind; `changes` replace its fields."""
    outputs: dict[str, Decoded] = {
        "digit": Label("three", 3, 0.75),
        "match": Score(0.5, True),
        "face": Vector(np.array([0.6, 0.8], np.float32)),
        "raw": Values(np.array([[1, np.nan]], np.float64)),
    }
    values: dict[str, Any] = {
        "model": "av",
        "step": step,
        "time_ns": 1_100_000_000,
        "made_ns": 1_101_500_000,
        "outputs": outputs,
        "capture_ns": 1_080_000_000,
        "audio_age_ns": 6_500_000,
        "video_age_ns": 21_500_000,
        "skew_ns": 15_000_000,
        "in_sync": True,
        "latency": None,
        "engine": "fake",
        "deadline_missed": False,
        "state_reset": None,
        "skipped": 0,
    }
    return Result(**{**values, **changes})
