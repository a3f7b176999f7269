"""An engine that is a Python function: for tests of what stands around an engine, yours as well as edgemm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from edgemm.engine.protocol import LayerTime
from edgemm.errors import EngineError
from edgemm.types import Array, StatePair, Tensors, TensorSpec


class FakeEngine:
    """Calls `function(feeds)` for every step, after holding the feeds against `inputs` as a real engine would.

    `feeds` are the caller's own arrays: copy what the function keeps. `resets` counts the calls of `reset`, `steps`
    those of `run`.
    """

    name = "fake"
    fallback = None
    device = "Python"

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        states: Sequence[StatePair] = (),
    ) -> None:
        self._function = function
        self.inputs: Sequence[TensorSpec] = tuple(inputs)
        self.outputs: Sequence[TensorSpec] = tuple(outputs)
        self.states: Sequence[StatePair] = tuple(states)
        self.resets = 0
        self.steps = 0
        self.is_open = False

    def __enter__(self) -> FakeEngine:
        self.is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_open = False

    def run(self, feeds: Tensors) -> Tensors:
        """Run one step. Raises EngineError if a feed is missing or does not fit its TensorSpec."""
        for spec in self.inputs:
            array: Array | None = feeds.get(spec.name)
            if array is None or not spec.accepts(array):
                found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise EngineError(f'The input "{spec.name}" was fed {found}, expected {spec}.')
        self.steps += 1
        return self._function(feeds)

    def reset(self) -> None:
        """Count the reset."""
        self.resets += 1

    def layer_times(self) -> Sequence[LayerTime]:
        """None: a function has no layers."""
        return ()
