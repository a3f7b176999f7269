"""Differences between models on the same inputs, with confidence intervals: a bootstrap over groups of answers.

Answers that share a sound, a picture or a recording are not independent, so groups are drawn, not answers. Every model
of a comparison is measured on the same draws: what is common to two models cancels in their difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass
class Measured:
    """Figures of one model, each with its values on the bootstrap's draws."""

    figures: dict[str, float]
    drawn: dict[str, np.ndarray]
    """By figure: [DRAWS]."""
    right: np.ndarray | None = None
    """Of each answer whether it is right, where the truth is known."""


def weights(groups: int) -> np.ndarray:
    """How often each draw has each group: [DRAWS, groups], the same for every model."""
    return np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), DRAWS)


def means(values: Mapping[str, np.ndarray], draws: np.ndarray) -> Measured:
    """Figures that are means over groups of equal size: `values` are [groups]."""
    figures = {name: float(value.mean()) for name, value in values.items()}
    return Measured(figures, {name: draws @ value / draws.sum(axis=1) for name, value in values.items()})


@dataclass
class Difference:
    """One figure of one model less that of another."""

    mean: float
    low: float
    high: float
    """The middle 95 % of the draws."""


def difference(one: Measured, other: Measured, figure: str) -> Difference:
    """`one` less `other`, in one figure."""
    gaps = one.drawn[figure] - other.drawn[figure]
    low, high = np.percentile(gaps, [2.5, 97.5])
    return Difference(one.figures[figure] - other.figures[figure], float(low), float(high))


def auc(truth: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve; ties count half. `weight`: how often each answer counts, once if it is not given."""
    _, inverse = np.unique(scores, return_inverse=True)
    counted = np.ones(len(scores)) if weight is None else weight
    positive = np.bincount(inverse, counted * truth)
    negative = np.bincount(inverse, counted * ~truth)
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


def mcnemar(one: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """Answers that only `one` got right, only `other`, and the exact two-sided p that they are as many.

    McNemar 1947; the answers are taken as independent here.
    """
    ours, theirs = int((one & ~other).sum()), int((other & ~one).sum())
    n, k = ours + theirs, min(ours, theirs)
    tail = sum(math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
               for i in range(k + 1))  # fmt: skip
    return ours, theirs, min(1.0, 2 * tail) if n else 1.0
