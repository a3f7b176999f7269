"""The search for a precision that is accurate enough, and the choice of one that is also faster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgemm.errors import UsageError
from edgemm.graph import Model
from edgemm.quant.operators import Form
from edgemm.quant.qdq import QuantizedModel, insert_qdq
from edgemm.quant.ranges import Ranges
from edgemm.quant.sensitivity import LayerSensitivity, Score


@dataclass(frozen=True)
class Trial:
    """One model that the search tried."""

    in_float: int
    """How many of the layers that could be int8 were left in float."""
    score: float
    fits: bool
    """True if the score holds the budget."""


@dataclass(frozen=True)
class SearchResult:
    """The model with the fewest layers in float that the search found within the budget."""

    quantized: QuantizedModel
    float_score: float
    score: float
    left: Sequence[tuple[str, str]]
    """The layers left in float for the budget's sake, most sensitive first, with the reason."""
    trials: Sequence[Trial]


def search(
    model: Model,
    ranges: Ranges,
    score: Score,
    max_drop: float,
    form: Form,
    order: Callable[[], Sequence[LayerSensitivity]],
    *,
    exclude: Collection[str] = (),
) -> SearchResult:
    """Leave layers in float until the score drops by no more than `max_drop`, with as much work as can be in int8.

    `order` is called only if all-int8 misses the budget, and gives the layers, most sensitive first, with the signal
    over their noise in dB. They are left in float in that order, and in that of their noise for each
    multiply-accumulate, which spares the large layers; the number to leave is bisected in each, and the result with
    more of the work in int8 goes on. Then each of those left, the largest first, is tried in int8 again and kept so if
    the budget holds. Layers in `exclude` stay in float in any case. With every layer in float the score is the float
    model's, so that a result within the budget always exists. Raises UsageError for a budget below zero.
    """
    if max_drop < 0:
        raise UsageError(f"The accuracy that may be lost is 0 or more, found {max_drop}.")
    float_score = score(model)
    least = float_score - max_drop
    trials: list[Trial] = []

    def attempt(chosen: Sequence[str]) -> tuple[QuantizedModel, float]:
        candidate = insert_qdq(model, ranges, form, {*exclude, *chosen})
        # With nothing quantized the graph is the float model; do not let rounding of folded weights decide.
        found = score(candidate.model) if candidate.quantized else float_score
        trials.append(Trial(len(chosen), found, found >= least))
        return candidate, found

    best, best_score = attempt(())
    if best_score >= least:
        return SearchResult(best, float_score, best_score, (), trials)
    full_score = best_score
    ranked = [item for item in order() if item.node not in exclude]
    chosen = names = [item.node for item in ranked]
    best, best_score = attempt(names)
    for ordered in _orders(ranked):
        too_few, enough = 0, len(names)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            candidate, found = attempt(ordered[:middle])
            if found < least:
                too_few = middle
                continue
            enough = middle
            if candidate.int8_macs > best.int8_macs or (candidate.int8_macs == best.int8_macs and middle < len(chosen)):
                chosen, best, best_score = ordered[:middle], candidate, found
    costs = {item.node: item.macs for item in ranked}
    for name in sorted(chosen, key=lambda node: -costs[node]):
        if len(chosen) == 1:
            break
        fewer = [other for other in chosen if other != name]
        candidate, found = attempt(fewer)
        if found >= least:
            chosen, best, best_score = fewer, candidate, found
    alone = {item.node: item for item in ranked}
    left = [
        (
            name,
            f"{alone[name].op} scores {alone[name].score:.4g} by itself in the sensitivity analysis; with every layer "
            f"in int8 the model scores {full_score:.4g}, and {least:.4g} is wanted",
        )
        for name in chosen
    ]
    return SearchResult(best, float_score, best_score, left, trials)


def _orders(ranked: Sequence[LayerSensitivity]) -> list[list[str]]:
    """The layers by their noise, and by their noise for each multiply-accumulate; the worst first."""
    by_noise = [item.node for item in ranked]
    # From dB to noise over signal.
    by_cost = sorted(ranked, key=lambda item: -(10 ** (-item.score / 10)) / max(1, item.macs))
    orders = [by_noise, [item.node for item in by_cost]]
    return orders[:1] if orders[0] == orders[1] else orders


@dataclass(frozen=True)
class Candidate:
    """One precision that could be used."""

    precision: str
    model: Model
    score: float


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate, and the verdict in words."""

    precision: str
    score: float
    seconds: float | None
    """Time of one inference; None if it was not measured because the score is too low already."""
    verdict: str


@dataclass(frozen=True)
class Choice:
    """The precision to use on the device at hand, and why."""

    precision: str
    reason: str
    table: Sequence[Row]


def choose(
    baseline: Candidate,
    candidates: Sequence[Candidate],
    max_drop: float,
    measure: Callable[[Model], float],
    *,
    least_gain: float = 0.03,
) -> Choice:
    """Return the fastest precision that is accurate enough, or the baseline's.

    `measure` gives the time of one inference on the device at hand, in seconds. A candidate must score no more than
    `max_drop` below the baseline, and take at least the share `least_gain` less time: a difference smaller than that is
    within what a timing varies by.
    """
    base_seconds = measure(baseline.model)
    rows = [Row(baseline.precision, baseline.score, base_seconds, "the baseline")]
    best = rows[0]
    for item in candidates:
        if item.score < baseline.score - max_drop:
            rows.append(
                Row(
                    item.precision,
                    item.score,
                    None,
                    f"refused: scores {item.score:.4g}, and {baseline.score - max_drop:.4g} is wanted",
                )
            )
            continue
        seconds = measure(item.model)
        if seconds > base_seconds * (1 - least_gain):
            verdict = f"refused: not faster here, {base_seconds / seconds:.2f} times the baseline's speed"
            rows.append(Row(item.precision, item.score, seconds, verdict))
            continue
        row = Row(
            item.precision,
            item.score,
            seconds,
            f"accurate enough, {base_seconds / seconds:.2f} times the baseline's speed",
        )
        rows.append(row)
        if best.seconds is None or seconds < best.seconds:
            best = row
    if best is rows[0]:
        reason = f"{baseline.precision}: no other precision is both accurate enough and faster on this device"
    else:
        reason = f"{best.precision}: {best.verdict}, score {best.score:.4g} against {baseline.score:.4g}"
    return Choice(best.precision, reason, rows)
