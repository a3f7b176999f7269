"""What calibration needs from whoever can run a model: this package runs none itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from edgemm.errors import CalibrationError
from edgemm.graph import Model
from edgemm.quant.data import Sample
from edgemm.types import Array, StatePair, Tensors


class Runner(Protocol):
    """A model that is loaded and ready."""

    def run(self, feeds: Tensors) -> Tensors:
        """Run once and return every output that was asked for. The arrays may be reused by the next call."""


class Executor(Protocol):
    """Runs ONNX models, for calibration and for measuring agreement."""

    def open(self, model: Model, outputs: Sequence[str] | None = None) -> AbstractContextManager[Runner]:
        """Load a model; `outputs` names the graph outputs to compute, None means all of them."""


def run_samples(
    runner: Runner, samples: Iterator[Sample], states: Sequence[StatePair], zeros: Mapping[str, Array]
) -> Iterator[tuple[str, Tensors, Tensors]]:
    """Run every step of every sample and yield where it came from, all that was fed, and the outputs.

    Before the first step of each sample every state is what `zeros` says; inside a sample the outputs are carried.
    What is yielded is valid until the next step.
    """
    for sample in samples:
        carried = dict(zeros)
        for number, feeds in enumerate(sample.steps, 1):
            origin = sample.origin if len(sample.steps) == 1 else f"{sample.origin}, step {number}"
            fed = {**feeds, **carried}
            outputs = runner.run(fed)
            carried = {pair.input: np.array(outputs[pair.output]) for pair in states}
            yield origin, fed, outputs


def zero_states(model: Model, states: Sequence[StatePair]) -> dict[str, Array]:
    """Return the initial value of every state input: zeros.

    Raises CalibrationError if a pair names what the model does not have, or a state has no fixed shape.
    """
    if not states:
        return {}
    inputs = {spec.name: spec for spec in model.inputs}
    outputs = {spec.name for spec in model.outputs}
    zeros: dict[str, Array] = {}
    for pair in states:
        spec = inputs.get(pair.input)
        if spec is None or pair.output not in outputs:
            raise CalibrationError(
                f'The model has no state pair "{pair.output}" -> "{pair.input}". It has the inputs '
                f"{', '.join(inputs)} and the outputs {', '.join(sorted(outputs))}."
            )
        if not spec.is_static:
            raise CalibrationError(
                f"The state {spec} has no fixed shape, so its first value is unknown. Fix its dimensions in the model "
                "first."
            )
        zeros[pair.input] = np.zeros([int(d or 0) for d in spec.shape], spec.dtype)
    return zeros
