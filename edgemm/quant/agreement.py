"""How close a candidate's outputs are to the float model's, on the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.errors import CalibrationError
from edgemm.graph import Model
from edgemm.quant.calibrate import CalibrationData
from edgemm.quant.data import HOW_TO_GIVE_DATA, samples_of
from edgemm.quant.executor import Executor, run_samples, zero_states
from edgemm.types import Array, StatePair

SQNR_CEILING_DB = 150.0
"""Reported for outputs that are equal: float32 itself ends about there."""


@dataclass(frozen=True)
class Agreement:
    """Closeness of two models' outputs."""

    sqnr_db: float
    """Signal to quantization noise, 10 log10(sum ref^2 / sum (ref - out)^2), of the worst output."""
    cosine: float
    """Cosine between reference and output, of the worst output."""
    by_output: Mapping[str, float]
    """SQNR in dB of each output."""
    decisions: float | None
    """Share of the decisions that are the same, 0 to 1, of the worst output; None if no output is a decision."""


Decision = Callable[[Array], Array]
"""Turns an output into what an application acts on: the index of the best class, or above a threshold or not."""


class Reference:
    """The float model's outputs on a set of samples, against which candidates are compared.

    `data` is walked once and kept, with the outputs, so hand in a set of a size that fits in memory. State outputs are
    carried but not compared. `decisions` says of which outputs a decision is made, and how. Raises CalibrationError
    if there is no data or it does not fit.
    """

    def __init__(
        self,
        model: Model,
        data: CalibrationData,
        executor: Executor,
        *,
        states: Sequence[StatePair] = (),
        decisions: Mapping[str, Decision] | None = None,
    ) -> None:
        self._executor = executor
        self._decisions = dict(decisions or {})
        self._states = tuple(states)
        self._zeros = zero_states(model, states)
        fed = [spec for spec in model.inputs if spec.name not in self._zeros]
        self._samples = list(samples_of(data, fed))
        carried = {pair.output for pair in states}
        self._names = [
            spec.name
            for spec in model.outputs
            if spec.name not in carried and spec.dtype in ("float32", "float16", "float64")
        ]
        if not self._samples:
            raise CalibrationError(f"There is no data to compare with. {HOW_TO_GIVE_DATA}")
        if not self._names:
            raise CalibrationError(
                "No output of the model is a float tensor, so agreement cannot be measured in dB. "
                "Hand in a metric of your own."
            )
        self._reference = self._run(model)

    def compare(self, candidate: Model) -> Agreement:
        """Run a model with the same inputs and outputs on the samples and return its agreement."""
        outputs = self._run(candidate)
        by_output: dict[str, float] = {}
        cosines = []
        for name in self._names:
            signal = noise = dot = power = 0.0
            for reference, value in zip(self._reference[name], outputs[name], strict=True):
                signal += float(np.sum(reference**2))
                noise += float(np.sum((reference - value) ** 2))
                dot += float(np.sum(reference * value))
                power += float(np.sum(value**2))
            by_output[name] = _decibel(signal, noise)
            cosines.append(dot / math.sqrt(signal * power) if signal * power > 0 else float(noise == 0))
        shares = [
            float(
                np.mean([np.mean(decide(a) == decide(b)) for a, b in zip(self._reference[n], outputs[n], strict=True)])
            )
            for n, decide in self._decisions.items()
            if n in self._names
        ]
        return Agreement(min(by_output.values()), min(cosines), by_output, min(shares, default=None))

    def _run(self, model: Model) -> dict[str, list[Array]]:
        collected: dict[str, list[Array]] = {name: [] for name in self._names}
        names = [*self._names, *(pair.output for pair in self._states)]
        with self._executor.open(model, names) as runner:
            for _, _, outputs in run_samples(runner, iter(self._samples), self._states, self._zeros):
                for name in self._names:
                    collected[name].append(np.array(outputs[name], np.float64))
        return collected


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return SQNR_CEILING_DB
    if not math.isfinite(noise) or signal == 0:
        return -SQNR_CEILING_DB
    return max(-SQNR_CEILING_DB, min(SQNR_CEILING_DB, 10 * math.log10(signal / noise)))
