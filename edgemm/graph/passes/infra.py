"""What a pass is, and how passes are run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from edgemm.errors import ModelError
from edgemm.graph.model import Model


@dataclass(frozen=True)
class PassResult:
    """A model after a pass (or several), whether it differs from the one before, and what a reader should know."""

    model: Model
    changed: bool
    notes: tuple[str, ...] = ()


class Pass(Protocol):
    """A rewrite of a model. It leaves the model it is given untouched and returns another."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def requires(self, model: Model) -> None:
        """Raise ModelError if the pass cannot work on this model; the message says what to do."""

    def __call__(self, model: Model) -> PassResult:
        """Return the rewritten model."""

    def ensures(self, before: Model, after: Model) -> None:
        """Raise ModelError if the result does not hold what the pass promises."""


def run(model: Model, passes: Iterable[Pass]) -> PassResult:
    """Run passes one after the other, each between its `requires` and `ensures`.

    Besides each pass's own promises, the names of inputs and outputs, in their order, must survive: recipes refer
    to them. Notes carry the name of the pass in front.
    """
    changed = False
    notes: list[str] = []
    for step in passes:
        step.requires(model)
        result = step(model)
        _same_interface(step.name, model, result.model)
        step.ensures(model, result.model)
        changed |= result.changed
        notes += (f"{step.name}: {note}" for note in result.notes)
        model = result.model
    return PassResult(model, changed, tuple(notes))


def _same_interface(name: str, before: Model, after: Model) -> None:
    for kind in ("input", "output"):
        had = [value.name for value in getattr(before.proto.graph, kind)]
        has = [value.name for value in getattr(after.proto.graph, kind)]
        if had != has:
            raise ModelError(
                f"The pass {name} turned the {kind}s {had} into {has}; their names must survive. "
                "This is a defect of the pass: build without it and report the model."
            )
