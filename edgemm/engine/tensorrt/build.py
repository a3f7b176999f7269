"""Compile an ONNX graph with TensorRT, strongly typed, on every version from 10.3 and on TensorRT for RTX.

`plan_key` says beforehand under which key the plan is kept; `build_plan` makes it. What a version has is probed by
name. Precision comes from the graph: no precision flag is ever set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.engine.gpu import Gpu
from edgemm.engine.targets import Target
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.log import Log, construct, make_logger
from edgemm.engine.tensorrt.plan import BuildOptions, Plan, PlanKey, PlanLayer, PlanTensor, Profile, ShapeRange
from edgemm.engine.tensorrt.plugins.protocol import Plugins
from edgemm.engine.tensorrt.problems import Problem, builder_problems, parser_problems
from edgemm.engine.tensorrt.timing import TimingCacheFile
from edgemm.errors import EngineError

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's DataType by name to numpy's name; the others keep TensorRT's in lower case."""

_POLL_S = 0.05
"""How often the waiting thread looks up, and so how late Ctrl-C can be."""


@dataclass(frozen=True)
class Progress:
    """One step of a build. Phases nest: `parent` is the phase that this one is a step of, "" for the outermost."""

    phase: str
    parent: str
    step: int
    steps: int


def plan_key(
    flavour: Flavour,
    options: BuildOptions,
    target: Target,
    *,
    graph: str,
    precision: str,
    gpu: Gpu | None = None,
    plugins: Plugins | None = None,
) -> PlanKey:
    """Return the key of the plan that `build_plan` would make with the same arguments.

    `graph` is the model's digest. Raises EngineError if this TensorRT cannot compile for the target here.
    """
    if flavour.builds_without_gpu:
        compute_capability, name = target.compute_capability, "any"
        _capability(flavour, target)
    else:
        gpu = _gpu_for(flavour, target, gpu)
        compute_capability, name = gpu.compute_capability, gpu.name
    compatibility = [
        word for word in ("version" if options.version_compatible else "", options.hardware_compatibility or "") if word
    ]
    return PlanKey(
        flavour=flavour.name,
        version=flavour.version,
        compute_capability=compute_capability,
        gpu=name,
        dla="" if options.dla_core is None else str(options.dla_core),
        precision=precision,
        plugins=plugins.digest if plugins is not None else "",
        graph=graph,
        options=options.digest(),
        compatibility="+".join(compatibility),
    )


def build_plan(
    model: bytes | Path,
    options: BuildOptions,
    target: Target,
    *,
    flavour: Flavour,
    graph: str,
    precision: str,
    gpu: Gpu | None = None,
    plugins: Plugins | None = None,
    timing_cache: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """Compile `model`, an ONNX file or its bytes, for `target`.

    `timing_cache` is a folder: kernel timings are kept there by TensorRT version and device, and shared between
    builds. `progress` is called from the building thread. Ctrl-C cancels the build and raises KeyboardInterrupt.
    Raises EngineError that names node, op, reason and remedy if TensorRT refuses the graph or the options.
    """
    key = plan_key(flavour, options, target, graph=graph, precision=precision, gpu=gpu, plugins=plugins)
    if plugins is not None:
        plugins.register(flavour)
    trt = flavour.module
    log = make_logger(trt)
    builder = construct(trt.Builder, log, flavour.title)
    network = builder.create_network(_network_flags(flavour, plugins is not None and plugins.ahead_of_time))
    config = builder.create_builder_config()
    _parse(flavour, network, config, model, log, for_dla=options.dla_core is not None)
    _configure(flavour, builder, config, network, options)
    if flavour.builds_without_gpu:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(_capability(flavour, target), 0):
            raise EngineError(f"{flavour.title} refused the target {target.name}. Choose another one.")
    layers = _place(flavour, builder, config, network, options)
    _refuse_shape_inputs(network)
    profiles = options.profiles
    _add_profiles(builder, config, network, profiles)
    timing = None
    if timing_cache is not None and _keeps_timings(flavour):
        timing = TimingCacheFile(timing_cache, flavour, key.compute_capability, key.gpu)
        timing.load(config)
    started = time.perf_counter()
    data = _run(flavour, builder, network, config, log, progress)
    seconds = time.perf_counter() - started
    if timing is not None:
        timing.save(config)
    on_gpu = [layer.name for layer in layers if options.dla_core is not None and layer.device == "GPU"]
    notes = (
        [f"{len(on_gpu)} of {len(layers)} layers run on the GPU, not on the DLA: {', '.join(on_gpu)}"] if on_gpu else []
    )
    return Plan(
        key=key,
        data=data,
        io=tuple(_tensors(network, profiles)),
        layers=layers,
        seconds=seconds,
        warnings=tuple(notes + list(dict.fromkeys(log.warnings))),
    )


def dla_cores(flavour: Flavour) -> int:
    """Return how many DLA cores this TensorRT finds here. Raises EngineError if CUDA cannot be used."""
    return int(construct(flavour.module.Builder, make_logger(flavour.module), flavour.title).num_DLA_cores)


def _capability(flavour: Flavour, target: Target) -> Any:
    name = "SM" + target.compute_capability.replace(".", "")
    known = [member for member in flavour.members("ComputeCapability") if member.startswith("SM")]
    if name not in known:
        raise EngineError(
            f"{flavour.title} does not compile for {target.title} ({name}); it knows {', '.join(known)}. "
            + (
                "Its plan is compiled on the board itself: copy the bundle there and run edgemm build engine BUNDLE."
                if target.family == "jetson"
                else 'Use NVIDIA TensorRT on that machine: pip install "edgemm[tensorrt]".'
            )
        )
    return flavour.member("ComputeCapability", name)


def _gpu_for(flavour: Flavour, target: Target, gpu: Gpu | None) -> Gpu:
    if gpu is None:
        raise EngineError(
            f"{flavour.title} compiles plans only for the GPU in the machine, and none was found. "
            f"Build the bundle here and compile its plan on {target.title}: edgemm build engine BUNDLE"
        )
    if gpu.compute_capability != target.compute_capability:
        raise EngineError(
            f"{flavour.title} compiles plans only for the GPU in the machine ({gpu.name}, compute capability "
            f"{gpu.compute_capability}); {target.title} has {target.compute_capability}. "
            "Compile the plan on that device: edgemm build engine BUNDLE"
        )
    return gpu


def _network_flags(flavour: Flavour, ahead_of_time: bool) -> int:
    flags = 1 << int(flavour.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    if ahead_of_time and "PREFER_AOT_PYTHON_PLUGINS" in flavour.members("NetworkDefinitionCreationFlag"):
        flags |= 1 << int(flavour.member("NetworkDefinitionCreationFlag", "PREFER_AOT_PYTHON_PLUGINS"))
    return flags


def _parse(flavour: Flavour, network: Any, config: Any, model: bytes | Path, log: Log, *, for_dla: bool) -> None:
    parser = flavour.module.OnnxParser(network, log.sink)
    if for_dla and "ADJUST_FOR_DLA" in flavour.members("OnnxParserFlag"):
        parser.set_flag(flavour.member("OnnxParserFlag", "ADJUST_FOR_DLA"))
    if hasattr(parser, "set_builder_config"):
        parser.set_builder_config(config)
    parsed = parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))
    if not parsed:
        raise _refused(flavour, parser_problems(parser), log)


def _refused(flavour: Flavour, problems: Sequence[Problem], log: Log) -> EngineError:
    shown = [str(problem) for problem in problems[:5]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    if not shown:
        shown = log.errors[-1:] or ["it gave no reason"]
    return TensorRTRefused(f"{flavour.title} refused the model. " + " ".join(shown), tuple(problems))


class TensorRTRefused(EngineError):
    """TensorRT parsed or compiled a graph and refused it; `problems` says what and why."""

    def __init__(self, message: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(message)
        self.problems = problems


def _configure(flavour: Flavour, builder: Any, config: Any, network: Any, options: BuildOptions) -> None:
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    for pool, size in options.memory_pools.items():
        config.set_memory_pool_limit(flavour.member("MemoryPoolType", pool), size)
    if options.tactic_sources is not None:
        mask = 0
        for name in options.tactic_sources:
            mask |= 1 << int(flavour.member("TacticSource", name))
        if not config.set_tactic_sources(mask):
            raise EngineError(f"{flavour.title} refused the tactic sources {', '.join(options.tactic_sources)}.")
    if options.hardware_compatibility is not None:
        config.hardware_compatibility_level = flavour.member(
            "HardwareCompatibilityLevel", options.hardware_compatibility
        )
    if options.detailed_layers:
        config.profiling_verbosity = flavour.member("ProfilingVerbosity", "DETAILED")
    asked = {
        "SPARSE_WEIGHTS": options.sparsity,
        "VERSION_COMPATIBLE": options.version_compatible,
        "STRIP_PLAN": options.strip_weights,
        "REFIT": options.refit,
    }
    for name in (*(name for name, wanted in asked.items() if wanted), *options.flags):
        config.set_flag(flavour.member("BuilderFlag", name))
    for name in options.clear_flags:
        config.clear_flag(flavour.member("BuilderFlag", name))


def _place(flavour: Flavour, builder: Any, config: Any, network: Any, options: BuildOptions) -> tuple[PlanLayer, ...]:
    """Put the layers on the DLA where that was asked and is possible, and say where each one is."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if options.dla_core is None:
        return tuple(PlanLayer(layer.name, layer.type.name) for layer in layers)
    cores = builder.num_DLA_cores
    if options.dla_core >= cores:
        raise EngineError(
            f"DLA core {options.dla_core} was asked for, and {flavour.title} finds {cores} DLA cores here. "
            "Leave --dla out, or compile on a device with a DLA (AGX Orin, Orin NX, Xavier)."
        )
    config.default_device_type = flavour.member("DeviceType", "DLA")
    config.DLA_core = options.dla_core
    placed = tuple(
        PlanLayer(layer.name, layer.type.name, "DLA" if config.can_run_on_DLA(layer) else "GPU") for layer in layers
    )
    refused = [layer for layer in placed if layer.device == "GPU"]
    if refused and options.dla_strict:
        names = ", ".join(f"{layer.name} ({layer.kind})" for layer in refused)
        raise EngineError(
            f"{len(refused)} of {len(placed)} layers cannot run on the DLA: {names}. "
            "Leave --dla strict out to run them on the GPU, or change the model."
        )
    if not options.dla_strict:
        config.set_flag(flavour.member("BuilderFlag", "GPU_FALLBACK"))
    return placed


def _refuse_shape_inputs(network: Any) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise EngineError(
                f'The values of the input "{tensor.name}" decide shapes inside the model, so TensorRT wants '
                "them on the CPU before each step. Make it a constant of the model, or an input with the shape itself."
            )


def _add_profiles(builder: Any, config: Any, network: Any, profiles: Sequence[Profile]) -> None:
    dynamic = {
        tensor.name: tuple(tensor.shape)
        for tensor in (network.get_input(index) for index in range(network.num_inputs))
        if -1 in tuple(tensor.shape)
    }
    if dynamic and not profiles:
        name, shape = next(iter(dynamic.items()))
        raise EngineError(
            f'The input "{name}" has the dynamic shape {list(shape)} and no range was given. '
            "Give its dimensions in the recipe: dims = { NAME = [min, opt, max] }, or a fixed number."
        )
    for number, ranges in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name in dynamic:
            if name not in ranges:
                raise EngineError(f'Optimization profile {number} has no range for the input "{name}". Add its dims.')
            profile.set_shape(name, *ranges[name])
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                f"TensorRT refused optimization profile {number}: {dict(ranges)}. "
                "Each range must fit the input's shape, with min <= opt <= max."
            )


def _keeps_timings(flavour: Flavour) -> bool:
    # TensorRT for RTX times nothing when it builds: its timing cache does nothing and warns when touched.
    return not flavour.builds_without_gpu


def _run(
    flavour: Flavour,
    builder: Any,
    network: Any,
    config: Any,
    log: Log,
    progress: Callable[[Progress], None] | None,
) -> bytes:
    """Build in a thread, so that this one stays free for Ctrl-C, and return the plan's bytes."""
    cancelled = threading.Event()
    failures: list[BaseException] = []
    config.progress_monitor = _monitor(flavour.module, progress, cancelled, failures)
    built: list[Any] = []

    done = threading.Event()

    def work() -> None:
        try:
            built.append(builder.build_serialized_network(network, config))
        except Exception as error:  # noqa: BLE001  # handed to the waiting thread, which raises it
            failures.append(error)
        finally:
            done.set()

    worker = threading.Thread(target=work, name="edgemm-trt-build")
    worker.start()
    # An event, not join: a join that Ctrl-C interrupts takes the thread for ended (python/cpython issue 90882).
    try:
        while not done.wait(_POLL_S):
            pass
    except BaseException:
        # TensorRT's objects must outlive its thread.
        cancelled.set()
        done.wait()
        raise
    finally:
        worker.join()
    if failures:
        raise failures[0]
    plan = built[0]
    if plan is None:
        ops = {layer.name: layer.type.name for layer in (network.get_layer(i) for i in range(network.num_layers))}
        raise _refused(flavour, builder_problems(log.errors, ops), log)
    return bytes(plan)


def _monitor(
    trt: Any, progress: Callable[[Progress], None] | None, cancelled: threading.Event, failures: list[BaseException]
) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (parent_phase or "", num_steps)
            self.tell(phase_name, 0)

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.phases[phase_name][1])
            del self.phases[phase_name]

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return not cancelled.is_set()

        def tell(self, phase: str, step: int) -> None:
            if progress is None or cancelled.is_set():
                return
            parent, steps = self.phases[phase]
            try:
                progress(Progress(phase, parent, step, steps))
            except BaseException as error:  # noqa: BLE001  # must not cross C++; raised by the waiting thread
                failures.append(error)
                cancelled.set()

    return Monitor()


def _tensors(network: Any, profiles: Sequence[Profile]) -> Iterator[PlanTensor]:
    for index in range(network.num_inputs):
        yield _tensor(network.get_input(index), True, profiles)
    for index in range(network.num_outputs):
        yield _tensor(network.get_output(index), False, ())


def _tensor(tensor: Any, is_input: bool, profiles: Sequence[Profile]) -> PlanTensor:
    shape = tuple(None if dim < 0 else int(dim) for dim in tensor.shape)
    ranges: tuple[ShapeRange, ...] = ()
    if None in shape:
        ranges = tuple(profile[tensor.name] for profile in profiles if tensor.name in profile)
    kind = tensor.dtype.name
    return PlanTensor(tensor.name, is_input, _DTYPES.get(kind, kind.lower()), shape, ranges)
