"""Calibration: run real data through the float model and watch what its tensors do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgemm.errors import CalibrationError
from edgemm.graph import Model, walk
from edgemm.quant.data import HOW_TO_GIVE_DATA, Sample, samples_of
from edgemm.quant.executor import Executor, run_samples, zero_states
from edgemm.quant.observers import Observer, new_observer
from edgemm.quant.operators import COMPUTE, RECURRENT
from edgemm.quant.placement import place, tensors_to_observe
from edgemm.quant.prepare import prepare
from edgemm.quant.ranges import Ranges, TensorRange
from edgemm.quant.rounding import MomentsObserver, WeightRounding, can_be_observed
from edgemm.types import Array, StatePair, Tensors

CalibrationData = Iterable[Tensors | Sequence[Tensors] | Sample]
"""A dict is one sample; a sequence of dicts is one recording whose state is carried from step to step."""


def calibrate(
    model: Model,
    data: CalibrationData,
    executor: Executor,
    observer: str = "entropy",
    *,
    states: Sequence[StatePair] = (),
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Run `data` through `model` step by step and return the range of every tensor that int8 may need.

    Memory does not grow with the number of samples: each is read, run and forgotten. `states` are carried inside a
    sample and start from zeros; their inputs are not in the data. `progress` is called after each step with the number
    of steps done.

    Raises CalibrationError if there is no data, only one step, a sample that does not fit the model, or a tensor that
    becomes NaN or infinite; UsageError for an unknown observer.
    """
    new_observer(observer)
    prepared = prepare(model)
    watched = tensors_to_observe(prepared)
    if not watched:
        raise CalibrationError(
            "The model has no convolution or matrix product that can run in int8, so there is nothing to calibrate. "
            "Build it with --precision fp32 or fp16."
        )
    zeros = zero_states(model, states)
    fed = [spec for spec in model.inputs if spec.name not in zeros]
    inputs = {spec.name for spec in model.inputs}
    shapes_of = _shapes_to_note(prepared)
    wanted = dict.fromkeys(name for name in (*watched, *shapes_of) if name not in inputs)
    wanted.update(dict.fromkeys(pair.output for pair in states))
    exposed = _expose(prepared, list(wanted))
    records = {name: _Record(new_observer(observer)) for name in watched}
    moments = _moments_to_sum(prepared)
    shapes: dict[str, tuple[int, ...]] = {}
    steps = 0
    with executor.open(exposed, list(wanted)) as runner:
        for origin, feeds, outputs in run_samples(runner, samples_of(data, fed), states, zeros):
            for name, record in records.items():
                record.add(name, feeds[name] if name in inputs else outputs[name], origin)
            for name, _, sums in moments:
                sums.observe(np.asarray(feeds[name] if name in inputs else outputs[name]))
            for name in shapes_of:
                shapes.setdefault(name, tuple(np.shape(feeds[name] if name in inputs else outputs[name])))
            steps += 1
            if progress is not None:
                progress(steps)
    if steps < 2:
        found = "no sample" if steps == 0 else "one sample"
        raise CalibrationError(
            f"Calibration found {found}; expected at least 2, and 100 or more that show what the model will meet: a "
            f"range clips whatever it was not shown. {HOW_TO_GIVE_DATA}"
        )
    return Ranges(
        model.digest,
        observer,
        steps,
        {name: record.range() for name, record in records.items()},
        shapes,
        WeightRounding({node: sums.moments() for _, node, sums in moments}),
    )


def _moments_to_sum(prepared: Model) -> list[tuple[str, str, MomentsObserver]]:
    """For each node whose weights can be rounded by their inputs: the tensor that it reads, its name, its sums."""
    links = walk.link(prepared.proto.graph)
    found = []
    for name, item in place(prepared, "tensorrt").compute.items():
        weight = links.constant(item.node.input[item.weight]) if item.weight is not None else None
        if weight is not None and can_be_observed(item, array := prepared.array(weight)):
            found.append((item.node.input[item.activations[0]], name, MomentsObserver(item, array)))
    return found


def _shapes_to_note(prepared: Model) -> list[str]:
    """Return the activations of nodes that multiply: their shapes tell what a node costs."""
    graph = prepared.proto.graph
    links = walk.link(graph)
    names: dict[str, None] = {}
    for node in graph.node:
        if walk.is_standard(node, *COMPUTE, *RECURRENT):
            names.update(dict.fromkeys(name for name in node.input[:2] if name and links.constant(name) is None))
            names.update(dict.fromkeys(name for name in node.output[:1] if name))
    return list(names)


def _expose(prepared: Model, names: Sequence[str]) -> Model:
    """Return the model with these tensors added to its outputs."""
    proto = prepared.copy_proto()
    have = {value.name for value in proto.graph.output}
    for name in names:
        if name not in have:
            # Without a type: the engine finds it, and a wrong guess would be an error.
            proto.graph.output.add().name = name
    return prepared.with_proto(proto)


@dataclass
class _Record:
    """What one tensor has done so far."""

    observer: Observer
    lo: float = field(default=float("inf"))
    hi: float = field(default=float("-inf"))
    shape: tuple[int, ...] | None = None

    def add(self, name: str, values: Array, origin: str) -> None:
        values = np.asarray(values)
        if self.shape is None:
            self.shape = values.shape
        if values.size == 0:
            return
        lo, hi = float(values.min()), float(values.max())
        if not (np.isfinite(lo) and np.isfinite(hi)):
            # min and max of an array with a NaN are NaN.
            raise CalibrationError(
                f'The tensor "{name}" holds NaN or infinity when calibration {origin} runs through the float model. '
                "Remove that sample, or repair the model: int8 has neither."
            )
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        self.observer.observe(values)

    def range(self) -> TensorRange:
        empty = self.hi < self.lo
        return TensorRange(0.0 if empty else self.lo, 0.0 if empty else self.hi, self.observer.amax(), self.shape or ())
