"""Run a compiled plan: one step is copies in, one enqueue or one CUDA graph, copies out, all in a stream of its own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from edgemm.device import Device, Graph, Stream, array_view, open_device, stream_handle
from edgemm.engine.protocol import LayerTime
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import Plan, PlanTensor
from edgemm.engine.tensorrt.plugins.protocol import Plugins
from edgemm.engine.tensorrt.run.loaded import LoadedPlan
from edgemm.engine.tensorrt.run.memory import DeviceTensor, TensorMemory
from edgemm.engine.tensorrt.run.outputs import Outputs, make_allocator
from edgemm.errors import DeviceError, EngineError
from edgemm.types import Array, StatePair, Tensors, TensorSpec

_MAX_GRAPHS = 16
"""CUDA graphs kept for the latest shapes; each holds some device memory."""

Shapes = dict[str, tuple[int, ...]]


class TensorRTEngine:
    """A compiled plan as an Engine. Enter, run and leave it in one thread: CUDA's context belongs to a thread.

    `plan` may be one that is loaded already (`LoadedPlan`, entered): several engines then share its weights, each
    with its own context, stream, buffers and state. `cuda_graph` records a step once its shapes have been seen and
    replays it; where that cannot be done the step is enqueued as before, and `notes` says why.
    """

    def __init__(
        self,
        plan: Plan | LoadedPlan,
        states: Sequence[StatePair] = (),
        *,
        cuda_graph: bool = True,
        profile_layers: bool = False,
        flavour: Flavour | None = None,
        plugins: Plugins | None = None,
        weights: bytes | None = None,
        open_device: Callable[[], Device] = open_device,
    ) -> None:
        if isinstance(plan, Plan):
            plan = LoadedPlan(plan, flavour=flavour, plugins=plugins, weights=weights, open_device=open_device)
        self._loaded = plan
        self._io = {tensor.name: tensor for tensor in plan.plan.io}
        self.states = tuple(states)
        self._fed_back = {pair.input: pair.output for pair in self.states}
        _check_states(self._io, self.states)
        self._cuda_graph = cuda_graph and not profile_layers
        self._profile_layers = profile_layers
        self.notes: list[str] = []
        """Sentences for the user about what was not done as asked."""
        self._layer_ns: dict[str, tuple[int, int]] = {}
        self._context: Any = None
        self._stream: Stream | None = None
        self._thread = 0
        self._outputs = Outputs()
        self._profiler: Any = None
        self._memory: dict[str, TensorMemory] = {}
        self._spare: dict[str, TensorMemory] = {}
        """For each state input, where the next value is written; the two change places after every step."""
        self._parity = 0
        self._shapes: Shapes = {}
        self._bound_shapes: Shapes = {}
        self._result_shapes: Shapes = {}
        self._computed_sizes: set[str] = set()
        """Outputs whose shape depends on values, not only on shapes."""
        self._graphs: dict[tuple[object, ...], Graph | None] = {}

    fallback: str | None = None

    @property
    def name(self) -> str:
        """ "tensorrt" or "tensorrt-rtx"."""
        return self._loaded.plan.key.flavour

    @property
    def device(self) -> str:
        """The GPU and the TensorRT version."""
        key = self._loaded.plan.key
        gpu = key.gpu if key.gpu != "any" else "GPU"
        return f"{gpu} ({key.sm}), {self.name} {key.version}"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that `run` wants: all but the state."""
        return tuple(t.spec for t in self._io.values() if t.is_input and t.name not in self._fed_back)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that `run` returns: all but the state."""
        fed_back = set(self._fed_back.values())
        return tuple(t.spec for t in self._io.values() if not t.is_input and t.name not in fed_back)

    def __enter__(self) -> TensorRTEngine:
        self._loaded.__enter__()
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def stream(self) -> Stream:
        """The stream that steps run in. Raises EngineError if the engine is not entered, or by another thread."""
        if self._stream is None:
            raise EngineError('The engine is not open. Use it inside its "with" block.')
        if threading.get_ident() != self._thread:
            raise EngineError("The engine was entered in another thread. Enter, run and leave it in one.")
        return self._stream

    def run(self, feeds: Tensors) -> Tensors:
        """Run one step and wait for it.

        The arrays returned lie in page-locked memory of the engine: the next step overwrites them. Raises EngineError
        if a feed is missing or does not fit, DeviceError if the GPU failed.
        """
        stream = self.stream
        shapes: Shapes = {}
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                raise EngineError(f'The input "{spec.name}" was not fed; expected {spec}.')
            self._check(spec, array.dtype.name, array.shape)
            shapes[spec.name] = array.shape
        self._bind_shapes(shapes)
        for name, shape in shapes.items():
            self._memory[name].host(shape)[...] = feeds[name]
        if not self._replay(stream):
            self._enqueue(stream, copies=True)
        results = {spec.name: self._result(spec.name) for spec in self.outputs}
        stream.synchronize()
        self._turn()
        return results

    def run_on_device(self, feeds: Mapping[str, Any], stream: Any = None) -> dict[str, DeviceTensor]:
        """Run one step on arrays that are on the device already, and return the outputs there, without a copy.

        A feed is anything contiguous with `__cuda_array_interface__` or DLPack: CuPy, torch, PyCUDA's GPUArray. In a
        `stream` of the caller's nothing waits; without one the step is waited for. The outputs are overwritten by the
        next step. Raises EngineError and KernelError for a feed that does not fit.
        """
        own = self.stream
        device = self._loaded.device
        shapes: Shapes = {}
        addresses: dict[str, int] = {}
        for spec in self.inputs:
            if spec.name not in feeds:
                raise EngineError(f'The input "{spec.name}" was not fed; expected {spec}.')
            view = array_view(feeds[spec.name], f'The input "{spec.name}"', device=device)
            self._check(spec, view.dtype.name, view.shape)
            if view.strides is not None and not _is_contiguous(view.shape, view.strides, view.dtype.itemsize):
                raise EngineError(f'The input "{spec.name}" is not contiguous. Copy it into a contiguous array first.')
            if view.stream is not None:
                device.order_after(view.stream, own if stream is None else stream)
            shapes[spec.name] = view.shape
            addresses[spec.name] = view.pointer
        self._bind_shapes(shapes)
        self._enqueue(own if stream is None else stream, copies=False, addresses=addresses)
        results = {
            spec.name: DeviceTensor(
                self._memory[spec.name].address,
                self._result_shapes[spec.name],
                self._memory[spec.name].dtype,
                device.info.index,
            )
            for spec in self.outputs
        }
        if stream is None:
            own.synchronize()
        self._turn()
        return results

    def reset(self) -> None:
        """Set every state to zeros; one of a dynamic shape to the smallest that the plan takes."""
        stream = self.stream
        for pair in self.states:
            tensor = self._io[pair.input]
            shape = self._first_shape(tensor)
            memory = self._memory[pair.input]
            size = math.prod(shape) * memory.dtype.itemsize
            if memory.reserve(size):
                self._forget_graphs()
            memory.clear(size, stream)
            self._shapes[pair.input] = shape
        stream.synchronize()

    def layer_times(self) -> Sequence[LayerTime]:
        """Per-layer times since the engine was entered, slowest first; empty without `profile_layers=True`."""
        kinds = {
            str(layer.get("Name")): str(layer.get("LayerType", ""))
            for layer in (self._loaded.layers() if self._layer_ns else ())
        }
        times = [LayerTime(name, kinds.get(name, ""), ns, calls) for name, (ns, calls) in self._layer_ns.items()]
        return sorted(times, key=lambda time: time.total_ns, reverse=True)

    def layers(self) -> list[dict[str, Any]]:
        """What TensorRT's engine inspector says of each layer; see `LoadedPlan.layers`."""
        return self._loaded.layers()

    def sibling(self, *, cuda_graph: bool = True, profile_layers: bool = False) -> TensorRTEngine:
        """Return another engine on the same loaded plan, with its own context, stream, buffers and state."""
        return TensorRTEngine(self._loaded, self.states, cuda_graph=cuda_graph, profile_layers=profile_layers)

    def _open(self) -> None:
        loaded = self._loaded
        device, flavour = loaded.device, loaded.flavour
        self._layer_ns = {}
        self._context = loaded.create_context()
        self._stream = device.stream()
        self._thread = threading.get_ident()
        self._outputs = make_allocator(flavour.module)
        fed_back = set(self._fed_back.values())
        for name, tensor in self._io.items():
            if name in fed_back:
                continue
            if name in self._fed_back:
                self._memory[name] = TensorMemory(device, tensor.dtype, host_access=False)
                self._spare[name] = TensorMemory(device, tensor.dtype, host_access=False)
            else:
                self._memory[name] = TensorMemory(device, tensor.dtype)
        if self._profile_layers:
            self._profiler = self._make_profiler(flavour.module)
            self._context.profiler = self._profiler
        self.reset()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        self._forget_graphs()
        for memory in (*self._memory.values(), *self._spare.values()):
            memory.close()
        self._memory, self._spare = {}, {}
        self._context = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._shapes, self._bound_shapes = {}, {}
        self._loaded.__exit__(None, None, None)

    def _make_profiler(self, trt: Any) -> Any:
        layer_ns = self._layer_ns

        class Sink(trt.IProfiler):  # type: ignore[misc]  # the base class is known only at run time
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                total, calls = layer_ns.get(layer_name, (0, 0))
                layer_ns[layer_name] = (total + round(ms * 1e6), calls + 1)

        return Sink()

    def _check(self, spec: TensorSpec, dtype: str, shape: tuple[int, ...]) -> None:
        fits = (
            dtype == spec.dtype
            and len(shape) == len(spec.shape)
            and all(want is None or want == have for want, have in zip(spec.shape, shape, strict=True))
        )
        if not fits:
            raise EngineError(f'The input "{spec.name}" is {dtype}{list(shape)}; expected {spec}.')

    def _first_shape(self, tensor: PlanTensor) -> tuple[int, ...]:
        if tensor.profiles:
            return tensor.profiles[0][0]
        return tuple(dim if dim is not None else 0 for dim in tensor.shape)

    def _bind_shapes(self, shapes: Shapes) -> None:
        """Tell TensorRT the inputs' shapes, learn the outputs', make room; the last shapes cost nothing."""
        self._shapes.update(shapes)
        if self._shapes == self._bound_shapes:
            return
        context = self._context
        profile = self._profile_for(self._shapes)
        if profile != context.active_optimization_profile:
            stream = self.stream
            if not context.set_optimization_profile_async(profile, stream.handle):
                raise EngineError(f"TensorRT refused optimization profile {profile}: {self._loaded.errors}.")
            stream.synchronize()
        moved = False
        for name, shape in self._shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f'TensorRT refused the shape {list(shape)} of the input "{name}".')
            memory = self._memory[name]
            moved |= memory.reserve(math.prod(shape) * memory.dtype.itemsize)
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise EngineError(f"These shapes do not go together: {self._loaded.errors}.") from error
        if missing:
            raise EngineError(f"TensorRT does not know the shapes of: {', '.join(missing)}. Compile the plan again.")
        self._computed_sizes = set()
        for name, tensor in self._io.items():
            if tensor.is_input:
                continue
            shape = tuple(context.get_tensor_shape(name))
            memory = self._written(name)
            if min(shape, default=0) < 0:
                self._computed_sizes.add(name)
                continue
            self._result_shapes[name] = shape
            moved |= memory.reserve(math.prod(shape) * memory.dtype.itemsize)
        if moved:
            self._forget_graphs()
        self._bound_shapes = dict(self._shapes)

    def _profile_for(self, shapes: Shapes) -> int:
        ranges = {name: self._io[name].profiles for name in shapes if self._io[name].profiles}
        count = max((len(found) for found in ranges.values()), default=1)
        for index in range(count):
            if all(_within(shapes[name], found[index]) for name, found in ranges.items()):
                return index
        told = "; ".join(
            f"{name} {list(shapes[name])} not in {' or '.join(f'{list(low)}..{list(high)}' for low, _, high in found)}"
            for name, found in ranges.items()
        )
        raise EngineError(
            f"No optimization profile takes these shapes: {told}. Widen dims in the recipe and build again."
        )

    def _written(self, output: str) -> TensorMemory:
        """Where an output goes: its own memory, or for a state what is not being read."""
        for read, written in self._fed_back.items():
            if written == output:
                return self._spare[read]
        return self._memory[output]

    def _enqueue(self, stream: Any, *, copies: bool, addresses: Mapping[str, int] | None = None) -> None:
        context, outputs = self._context, self._outputs
        for name, tensor in self._io.items():
            if tensor.is_input:
                memory = self._memory[name]
                if copies and name not in self._fed_back:
                    memory.send(math.prod(self._shapes[name]) * memory.dtype.itemsize, stream)
                context.set_tensor_address(name, (addresses or {}).get(name, memory.address))
            elif name in self._computed_sizes:
                outputs.memory[name] = self._written(name)
                context.set_output_allocator(name, outputs.sink)
            else:
                context.set_tensor_address(name, self._written(name).address)
        if not context.execute_async_v3(stream_handle(stream)):
            if outputs.failure is not None:
                failure, outputs.failure = outputs.failure, None
                raise EngineError(f"There is no memory for an output: {failure}") from failure
            raise EngineError(f"TensorRT could not start the step: {self._loaded.errors}.")
        self._result_shapes.update({name: outputs.shapes[name] for name in self._computed_sizes})
        if copies:
            for spec in self.outputs:
                memory = self._memory[spec.name]
                memory.fetch(math.prod(self._result_shapes[spec.name]) * memory.dtype.itemsize, stream)

    def _replay(self, stream: Stream) -> bool:
        """Run the step as a CUDA graph if one was recorded for it or can be now; return False if not."""
        if not self._cuda_graph or self._computed_sizes:
            return False
        key = (self._parity, *self._shapes.items())
        if key not in self._graphs:
            if len(self._graphs) >= _MAX_GRAPHS:
                self._forget_graphs()
            # TensorRT finishes its preparations in the first step of a shape, which cannot be captured.
            self._graphs[key] = None
            return False
        graph = self._graphs[key]
        if graph is None:
            try:
                graph = self._capture(stream)
            except (EngineError, DeviceError) as error:
                self._cuda_graph = False
                self.notes.append(f"CUDA graphs are not used: {error}")
                return False
            self._graphs[key] = graph
        graph.launch(stream)
        return True

    def _capture(self, stream: Stream) -> Graph:
        asked = getattr(self._context, "is_stream_capturable", None)
        if asked is not None and not asked(stream.handle):
            raise EngineError("TensorRT says that this plan cannot be captured.")
        with self._loaded.device.capture(stream) as graph:
            self._enqueue(stream, copies=True)
        return graph

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            if graph is not None:
                graph.close()
        self._graphs.clear()

    def _result(self, name: str) -> Array:
        return self._memory[name].host(self._result_shapes[name])

    def _turn(self) -> None:
        """Make the state that was written the one that is read."""
        for read, written in self._fed_back.items():
            self._memory[read], self._spare[read] = self._spare[read], self._memory[read]
            self._shapes[read] = self._result_shapes[written]
        if self._fed_back:
            self._parity ^= 1


def _check_states(io: Mapping[str, PlanTensor], states: Sequence[StatePair]) -> None:
    for pair in states:
        source, target = io.get(pair.output), io.get(pair.input)
        if source is None or target is None or source.is_input or not target.is_input:
            raise EngineError(
                f'The plan has no state pair "{pair.output}" -> "{pair.input}". Correct it in the recipe.'
            )
        if source.dtype != target.dtype:
            raise EngineError(
                f'The state "{pair.input}" is {target.dtype} but is fed by "{pair.output}", {source.dtype}. '
                "Insert a Cast in the model."
            )


def _within(shape: tuple[int, ...], limits: tuple[tuple[int, ...], ...]) -> bool:
    return all(low <= have <= high for low, have, high in zip(limits[0], shape, limits[2], strict=True))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    step = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != step:
            return False
        step *= max(length, 1)
    return True
