"""What every inference engine offers, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from edgemm.types import StatePair, Tensors, TensorSpec


@dataclass(frozen=True)
class LayerTime:
    """Time that one layer took, summed over `calls` runs."""

    name: str
    op: str
    total_ns: int
    calls: int


class Engine(Protocol):
    """A loaded model, ready to run. Entering it takes the device; leaving it gives everything back.

    State pairs belong to the engine: a state input is not fed by the caller, the engine carries the output of
    the last step (on a GPU by swapping pointers) and starts from zeros.
    """

    @property
    def name(self) -> str:
        """Which engine this is: "onnxruntime", "tensorrt" or "tensorrt-rtx"."""

    @property
    def device(self) -> str:
        """What it runs on, in words for a report."""

    @property
    def fallback(self) -> str | None:
        """Why this engine and not the one that was wanted first, or None; every result carries it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The inputs that `run` wants: all but the state."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The outputs that `run` returns: all but the state."""

    @property
    def states(self) -> Sequence[StatePair]:
        """The pairs that the engine carries from step to step."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, feeds: Tensors) -> Tensors:
        """Run one step.

        The arrays returned may be reused by the next call: copy what must outlive it. Raises EngineError if a
        feed is missing or does not fit its TensorSpec.
        """

    def reset(self) -> None:
        """Set every state to its initial value (zeros)."""

    def layer_times(self) -> Sequence[LayerTime]:
        """Per-layer times since the engine was entered, if it was opened with `profile_layers=True`."""
