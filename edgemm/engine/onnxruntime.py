"""The onnxruntime engine: everywhere, the CPU default, and the reference for the others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgemm.engine.protocol import LayerTime
from edgemm.errors import EngineError
from edgemm.types import Array, StatePair, Tensors, TensorSpec

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "bool": "bool",
    "string": "object",
    **{name: name for name in ("float16", "bfloat16")},
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

_BINDABLE = frozenset(dtype for dtype in _DTYPES.values() if dtype not in ("object", "bfloat16"))


class OnnxRuntimeEngine:
    """An ONNX model on onnxruntime's CPU provider. `model` is the serialised graph, or a path (external data).

    `threads` is the number of threads inside one operator. `profile_layers` makes `layer_times` work and costs
    some microseconds a layer. `outputs` names the outputs to compute, None all of them; `optimize=False` switches
    onnxruntime's graph rewriting off. `fp8` is for a graph with FP8: onnxruntime's further rewriting takes its Q/DQ for
    int8 and makes operators of it that it does not have, or (1.31) other numbers. `fallback` says why it stands in for
    another engine. Raises EngineError on entry if onnxruntime refuses the model.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: bytes | Path,
        states: Sequence[StatePair] = (),
        *,
        threads: int = 1,
        profile_layers: bool = False,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        fp8: bool = False,
        fallback: str | None = None,
    ) -> None:
        self._model = model
        self.states = tuple(states)
        self._threads = threads
        self._profile_layers = profile_layers
        self._wanted = outputs
        self.fallback = fallback
        self._optimize = optimize
        self._fp8 = fp8
        self._profile_folder: tempfile.TemporaryDirectory[str] | None = None
        self._layer_times: tuple[LayerTime, ...] | None = None
        self._session: Any = None
        self._binding: Any = None
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.device = f"CPU, {threads} thread{'s' if threads != 1 else ''}"

    def __enter__(self) -> OnnxRuntimeEngine:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not self._optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif self._fp8:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # A spinning pool burns a core between steps and takes it from capture: 3.9 ms p99 hand-off against 0.1.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._profile_layers:
            self._profile_folder = tempfile.TemporaryDirectory(prefix="edgemm-profile-")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profile_folder.name) / "layers")
        model = str(self._model) if isinstance(self._model, Path) else self._model
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(f"onnxruntime refuses the model: {_first_line(error)}") from error
        inputs = {i.name: _spec(i) for i in self._session.get_inputs()}
        outputs = {
            o.name: _spec(o) for o in self._session.get_outputs() if self._wanted is None or o.name in self._wanted
        }
        for pair in self.states:
            if pair.input not in inputs or pair.output not in outputs:
                raise EngineError(f'The model has no state pair "{pair.output}" -> "{pair.input}".')
        state_inputs = {pair.input for pair in self.states}
        self.inputs = tuple(spec for name, spec in inputs.items() if name not in state_inputs)
        self.outputs = tuple(
            spec for name, spec in outputs.items() if name not in {pair.output for pair in self.states}
        )
        self._names = [spec.name for spec in self.outputs]
        self._fetch = [*self._names, *(pair.output for pair in self.states)]
        self._state_specs = {pair.input: inputs[pair.input] for pair in self.states}
        self._binding = self._open_binding([*inputs.values(), *(outputs[name] for name in self._fetch)])
        self._bound: dict[str, Array] = {}
        """What is bound; onnxruntime holds the memory's address, and this the memory."""
        self.reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile_layers and self._session is not None:
            self.layer_times()
        self._session = self._binding = None
        if self._profile_folder is not None:
            self._profile_folder.cleanup()

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Run one step; the arrays returned are new and stay valid. Raises EngineError if a feed does not fit."""
        if self._session is None:
            raise EngineError("The engine is not open: use it in a with statement.")
        results = self._run_bound(feeds) if self._binding is not None else None
        if results is None:
            try:
                results = self._session.run(self._fetch, {**feeds, **self._state})
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise EngineError(self._explain(feeds, error)) from error
            self._binding = None
        for pair in reversed(self.states):
            self._state[pair.input] = results.pop()
        return dict(zip(self._names, results))  # noqa: B905  # as many as were asked for

    def reset(self) -> None:
        """Set every state to zeros."""
        self._state = {
            name: np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.dtype)
            for name, spec in self._state_specs.items()
        }

    def _open_binding(self, specs: Sequence[TensorSpec]) -> Any:
        """onnxruntime keeps the memory of bound outputs for the next run, which then must be of the same shape."""
        if not all(spec.dtype in _BINDABLE for spec in specs) or not all(
            spec.is_static for spec in specs if spec.name in self._fetch
        ):
            return None
        binding = self._session.io_binding()
        for name in self._fetch:
            binding.bind_output(name, "cpu")
        return binding

    def _run_bound(self, feeds: Tensors) -> list[Array] | None:
        """A run on arrays that are bound once, instead of anew by every `session.run`: half of what that adds to the
        model's own time. None if it failed; `session.run` may yet do it, or says better why not."""
        bound = self._bound
        if len(feeds) != len(self.inputs):
            return None
        try:
            for group in (feeds, self._state):
                for name, array in group.items():
                    if bound.get(name) is not array:
                        if not (array.flags.c_contiguous and array.flags.aligned):
                            return None  # a copy would be bound, which does not see what is written to the array
                        self._binding.bind_cpu_input(name, array)
                        bound[name] = array
            self._session.run_with_iobinding(self._binding)
            results: list[Array] = self._binding.copy_outputs_to_cpu()
        except Exception:  # noqa: BLE001  # they share no base class, and session.run will say why
            bound.clear()
            return None
        return results

    def layer_times(self) -> Sequence[LayerTime]:
        """Times by node since the engine was entered; reading them ends the measurement."""
        if not self._profile_layers:
            raise EngineError("Layer times were not asked for: open the engine with profile_layers=True.")
        if self._layer_times is None:
            events = json.loads(Path(self._session.end_profiling()).read_text())
            self._layer_times = _sum_layers(events)
        return self._layer_times

    def _explain(self, feeds: Tensors, error: Exception) -> str:
        for spec in self.inputs:
            if spec.name not in feeds:
                return f'The input "{spec.name}" was not fed, expected {spec}.'
            array = np.asarray(feeds[spec.name])
            if not spec.accepts(array):
                return f'The input "{spec.name}" is {array.dtype}{list(array.shape)}, expected {spec}.'
        return f"onnxruntime failed: {_first_line(error)}"


def _spec(value: Any) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(value.name, _DTYPES.get(kind, kind), tuple(value.shape))


def _sum_layers(events: list[dict[str, Any]]) -> tuple[LayerTime, ...]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", ""))
            total, calls = sums.get(key, (0, 0))
            sums[key] = (total + int(event["dur"]) * 1000, calls + 1)
    return tuple(LayerTime(name, op, total, calls) for (name, op), (total, calls) in sums.items())


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
