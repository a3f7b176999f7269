"""Strict doubles of TensorRT: modules that have exactly the public names of one version, and no more.

`double("10.3")` returns a module made from `trt_api/*.json`, the names that the real Python bindings of that version
have. A name or attribute outside the list raises AttributeError, as the real module would; one that is in the list
but that no test needed raises NotImplementedError. So running our builder and runtime against it proves that they touch
only what the version has. It proves names, not behaviour: what a plan computes here is onnxruntime's work.

A "plan" of a double is the ONNX model itself with its profiles, and its device memory is the host's.
"""

from __future__ import annotations

import ctypes
import enum
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

VERSIONS = {
    "10.3": ("tensorrt", "10.3.0"),
    "10.13": ("tensorrt", "10.13.3"),
    "11.4": ("tensorrt", "11.4.0"),
    "rtx": ("tensorrt_rtx", "1.7.1"),
}

_DTYPE_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_LAYER_TYPES = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Relu": "ACTIVATION"}


class Double(ModuleType):
    """A module with a version's names; knobs for tests begin with an underscore."""

    def __init__(self, name: str, version: str, api: dict[str, Any]) -> None:
        super().__init__(name)
        self.__version__ = version
        self._api = api
        self._dla_cores = 0
        self._dla_refuses = ()  # operators that the DLA does not take
        self._fail_build = None  # text that build_serialized_network logs before it returns None
        self._fail_parse = None  # (node, op, text) that the parser reports
        self._build_steps = 3
        self._shape_inputs = ()
        self._parser_flags = []
        self._jit_hits = []  # for each context, whether its kernels were compiled already
        self._cuda_fails = ""  # what Builder and Runtime log before they fail, or "silently"
        self._shapes_clash = False
        self._fail_execution = False
        self._uncapturable = False
        self._driver = None  # where steps are enqueued: a HostDriver
        self._logger = None
        self._creators = {}
        self._executions = []  # names and addresses at each execute_async_v3
        for key, entry in api.items():
            if "enum" in entry:
                setattr(self, key, enum.IntEnum(key, entry["enum"]))
        for key, entry in api.items():
            if "attrs" in entry:
                setattr(self, key, self._strict(key, set(entry["attrs"])))
        for function in (_init_libnvinfer_plugins, _get_plugin_registry):
            name_of = function.__name__[1:]
            if name_of in api:
                setattr(self, name_of, lambda *args, _f=function: _f(self, *args))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.__name__} {self.__version__} has no {name!r}")

    def _strict(self, name: str, attrs: set[str]) -> type:
        behaviour = _BEHAVIOURS.get(name)
        members: dict[str, Any] = {"_module": self, "_attrs": attrs, "_own": True}
        for key, value in vars(behaviour).items() if behaviour else ():
            if (key.startswith("_") and key not in vars(object)) or key in attrs or key in ("__init__", "__bytes__"):
                members[key] = value
        for key in attrs - members.keys():
            members[key] = _Absent(name, key)
        if name in ("ILogger", "Logger"):
            members["Severity"] = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
        members.pop("__dict__", None)
        members.pop("__weakref__", None)
        members["__setattr__"] = _strict_setattr
        return type(name, (), members)


def double(version: str) -> Double:
    """Make the double of one of `VERSIONS`."""
    name, full = VERSIONS[version]
    file = next(Path(__file__).with_name("trt_api").glob(f"{name}_api_{full}.json"))
    return Double(name, full, json.loads(file.read_text()))


class _Absent:
    """Stands for a name of the version that no behaviour implements; a value set on the instance goes before it."""

    def __init__(self, owner: str, key: str) -> None:
        self.text = f"the double has no behaviour for {owner}.{key}"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        raise NotImplementedError(self.text)


def _strict_setattr(self: Any, name: str, value: Any) -> None:
    # A Python subclass of a binding may hold what it likes; a binding itself only what it has.
    if vars(type(self)).get("_own") and not name.startswith("_") and name not in self._attrs:
        raise AttributeError(f"{type(self).__name__} of {self._module.__version__} has no attribute {name!r}")
    object.__setattr__(self, name, value)


def _init_libnvinfer_plugins(module: Double, logger: Any, namespace: str) -> bool:
    return True


def _get_plugin_registry(module: Double) -> Any:
    return module.IPluginRegistry()


def _start(module: Double, logger: Any) -> None:
    if module._cuda_fails:
        if module._cuda_fails != "silently":
            logger.log(module.ILogger.Severity.ERROR, module._cuda_fails)
        raise TypeError("pybind11::init(): factory function returned nullptr")


class _Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        _start(self._module, logger)

    def create_network(self, flags: int = 0) -> Any:
        return self._module.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return self._module.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._module.IOptimizationProfile()

    @property
    def num_DLA_cores(self) -> int:  # TensorRT's name
        return self._module._dla_cores

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        module = self._module
        strong = module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert network._flags & (1 << int(strong)), "the network is not strongly typed"
        monitor = config._get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building engine", None, module._build_steps)
            for step in range(module._build_steps):
                if not monitor.step_complete("Building engine", step):
                    monitor.phase_finish("Building engine")
                    return None
            monitor.phase_finish("Building engine")
        if module._fail_build:
            self._logger.log(module.ILogger.Severity.ERROR, module._fail_build)
            return None
        self._logger.log(module.ILogger.Severity.WARNING, "a warning of the double")
        return module.IHostMemory(pickle.dumps((network._model, [profile._shapes for profile in config._profiles])))


class _Network:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model = b""
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._layers: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class _Tensor:
    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.is_shape_tensor = name in self._module._shape_inputs


class _Layer:
    def __init__(self, name: str, kind: Any, op: str) -> None:
        self.name, self.type, self._op = name, kind, op


class _Parser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[Any] = []

    def set_flag(self, flag: Any) -> None:
        self._module._parser_flags.append(flag.name)

    def set_builder_config(self, config: Any) -> bool:
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        return self.parse(Path(path).read_bytes())

    def parse(self, model: bytes, path: str | None = None) -> bool:
        module = self._module
        if module._fail_parse:
            self._errors.append(module.ParserError(*module._fail_parse))
            return False
        proto = onnx.load_from_string(model)
        self._network._model = model
        for mine, theirs in ((self._network._inputs, proto.graph.input), (self._network._outputs, proto.graph.output)):
            for value in theirs:
                tensor = value.type.tensor_type
                dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
                shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
                mine.append(module.ITensor(value.name, module.DataType[_DTYPE_NAMES[dtype]], shape))
        for number, node in enumerate(proto.graph.node):
            kind = module.LayerType[_LAYER_TYPES.get(node.op_type, "SHUFFLE")]
            self._network._layers.append(module.ILayer(node.name or f"node_{number}", kind, node.op_type))
        return True


class _ParserError:
    def __init__(self, node: str, op: str, text: str) -> None:
        self._node, self._op, self._text = node, op, text

    def code(self) -> Any:
        return self._module.ErrorCode.UNSUPPORTED_NODE

    def desc(self) -> str:
        return self._text

    def func(self) -> str:
        return "double"

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._op


class _Config:
    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._flag_set: set[Any] = set()
        self._profiles: list[Any] = []
        self._pools: dict[Any, int] = {}
        self._timings: Any = None

    def _get(self, name: str) -> Any:
        value = vars(self).get(name)
        return value

    def set_flag(self, flag: Any) -> None:
        self._flag_set.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flag_set.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flag_set

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[pool] = size

    def set_tactic_sources(self, mask: int) -> bool:
        self._sources = mask
        return mask != 0

    def add_optimization_profile(self, profile: Any) -> int:
        if any(not low <= best <= high for low, best, high in profile._shapes.values()):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"damaged" else self._module.ITimingCache(content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._timings = cache
        cache._lines.add(b"timed here")
        return True

    def get_timing_cache(self) -> Any:
        return self._timings

    def can_run_on_DLA(self, layer: Any) -> bool:  # TensorRT's name
        return layer._op not in self._module._dla_refuses

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        return index == 0 and self._get("num_compute_capabilities") == 1


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self._lines = set(content.split(b"\n")) - {b""}

    def combine(self, other: Any, ignore_mismatch: bool) -> bool:
        self._lines |= other._lines
        return True

    def serialize(self) -> Any:
        return self._module.IHostMemory(b"\n".join(sorted(self._lines)))


class _Profile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self._shapes[name] = (tuple(low), tuple(best), tuple(high))


class _HostMemory:
    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def nbytes(self) -> int:
        return len(self._content)

    def __bytes__(self) -> bytes:
        return self._content


class _Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = self._module._logger = logger
        _start(self._module, logger)

    @property
    def num_DLA_cores(self) -> int:  # TensorRT's name
        return self._module._dla_cores

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        try:
            model, profiles = pickle.loads(content)
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError):
            self._logger.log(self._module.ILogger.Severity.ERROR, "the double cannot read this plan")
            return None
        return self._module.ICudaEngine(model, profiles)


class _Engine:
    def __init__(self, model: bytes, profiles: list[Any]) -> None:
        self._model, self._profiles = model, profiles
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self._io = {value.name: (value, True) for value in graph.input} | {
            value.name: (value, False) for value in graph.output
        }
        self._refitted = False

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._profiles))

    @property
    def num_layers(self) -> int:
        return len(onnx.load_from_string(self._model).graph.node)

    @property
    def device_memory_size_v2(self) -> int:
        return 1024

    @property
    def refittable(self) -> bool:
        return True

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._module.TensorIOMode
        return mode.INPUT if self._io[name][1] else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self._io[name][0].type.tensor_type.elem_type
        return self._module.DataType[_DTYPE_NAMES[onnx.helper.tensor_dtype_to_np_dtype(kind).name]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self._io[name][0].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_tensor_location(self, name: str) -> Any:
        return self._module.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shape = self.get_tensor_shape(name)
        return list(self._profiles[profile].get(name, (shape,) * 3)) if self._profiles else [shape] * 3

    def create_execution_context(self, config: Any = None) -> Any:
        jit = vars(config).get("_cache") if config is not None else None
        if jit is not None:
            self._module._jit_hits.append(b"kernels" in jit._content)
            jit._content = b"kernels"
        return self._module.IExecutionContext(self)

    def create_runtime_config(self) -> Any:
        return self._module.IRuntimeConfig()

    def create_engine_inspector(self) -> Any:
        return self._module.EngineInspector(self)


class _RuntimeConfig:
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return self._module.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


class _RuntimeCache:
    def __init__(self) -> None:
        self._content = b""

    def deserialize(self, content: bytes) -> bool:
        self._content = content
        return content != b"refused"

    def serialize(self) -> Any:
        return self._module.IHostMemory(self._content)


class _Inspector:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, kind: Any) -> str:
        nodes = onnx.load_from_string(self._engine._model).graph.node
        assert kind == self._module.LayerInformationFormat.JSON
        return json.dumps({"Layers": [{"Name": node.name, "LayerType": node.op_type} for node in nodes]})


class _Context:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._allocators: dict[str, Any] = {}
        self._profile = 0
        self._starved = False

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return 0 <= index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine._io

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def infer_shapes(self) -> list[str]:
        engine = self._engine
        if self._module._shapes_clash:
            self._module._logger.log(self._module.ILogger.Severity.ERROR, "the double finds the shapes at odds")
            raise RuntimeError("shape inference failed")
        return [
            name for name, (_, is_input) in engine._io.items() if is_input and -1 in tuple(self.get_tensor_shape(name))
        ]

    def is_stream_capturable(self, stream: int) -> bool:
        return not self._module._uncapturable

    def report_to_profiler(self) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, module = self._engine, self._module
        if self.infer_shapes() or module._fail_execution:
            module._logger.log(module.ILogger.Severity.ERROR, "the double was told to fail")
            return False
        addresses, shapes = dict(self._addresses), {name: tuple(self.get_tensor_shape(name)) for name in engine._io}
        module._executions.append((stream, addresses))
        computed = {name: value for name, value in self._allocators.items() if -1 in shapes[name]}

        def work() -> None:
            feeds = {
                name: _at(addresses[name], _dtype(value), shapes[name])
                for name, (value, is_input) in engine._io.items()
                if is_input
            }
            names = [name for name, (_, is_input) in engine._io.items() if not is_input]
            for name, result in zip(names, engine._session.run(names, feeds), strict=True):
                result = np.ascontiguousarray(result)
                address = addresses.get(name, 0)
                if name in computed:
                    address = _ask(computed[name], name, address, result, stream)
                self._starved |= not address
                if address:
                    _at(address, result.dtype, result.shape)[...] = result

        if computed or module._driver is None:
            work()
        else:
            module._driver.enqueue(work)
        profiler = vars(self).get("profiler")
        if profiler is not None:
            for node in onnx.load_from_string(engine._model).graph.node:
                profiler.report_layer_time(node.name, 0.25)
        return not self._starved

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        engine = self._engine
        shape = self._shapes.get(name, tuple(engine.get_tensor_shape(name)))
        if engine._io[name][1] or -1 not in shape:
            return shape
        feeds = {}
        for key, (value, is_input) in engine._io.items():
            if is_input:
                if -1 in self._shapes.get(key, engine.get_tensor_shape(key)):
                    return shape
                feeds[key] = np.zeros(self._shapes.get(key, engine.get_tensor_shape(key)), _dtype(value))
        if any(node.op_type == "NonZero" for node in onnx.load_from_string(engine._model).graph.node):
            return shape  # it depends on values
        return tuple(engine._session.run([name], feeds)[0].shape)


def _dtype(value: Any) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _ask(allocator: Any, name: str, address: int, result: Any, stream: int) -> int:
    if hasattr(allocator, "reallocate_output_async"):
        found = allocator.reallocate_output_async(name, address, result.nbytes, 256, stream)
    else:
        found = allocator.reallocate_output(name, address, result.nbytes, 256)
    allocator.notify_shape(name, result.shape)
    return int(found)


def _at(address: int, dtype: Any, shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape, dtype=np.int64))
    memory = (ctypes.c_char * max(1, count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class _Registry:
    def register_creator(self, creator: Any, namespace: str = "") -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        known = self._module._creators
        if key in known:
            return False
        known[key] = creator
        return True

    def get_creator(self, kind: str, version: str, namespace: str = "") -> Any:
        return self._module._creators.get((kind, version, namespace))


class _Refitter:
    def __init__(self, engine: Any, logger: Any) -> None:
        self._engine = engine
        self._loaded = False

    def refit_cuda_engine(self) -> bool:
        self._engine._refitted = self._loaded
        return self._loaded


class _ParserRefitter:
    def __init__(self, refitter: Any, logger: Any) -> None:
        self._refitter = refitter

    @property
    def num_errors(self) -> int:
        return 0

    def refit_from_bytes(self, model: bytes, path: str | None = None) -> bool:
        self._refitter._loaded = model[:1] != b"!"
        return self._refitter._loaded


class _PluginField:
    def __init__(self, name: str = "", data: Any = None, kind: Any = None) -> None:
        self.name, self.data, self.type = name, data, kind
        self.size = 0 if data is None else len(data)


class _FieldCollection:
    def __init__(self, fields: Any = ()) -> None:
        self._fields = list(fields)

    def __iter__(self) -> Any:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _DimsExprs:
    def __init__(self, dims: Any) -> None:
        self._dims = [None] * dims if isinstance(dims, int) else list(dims)

    def __getitem__(self, index: int) -> Any:
        return self._dims[index]

    def __setitem__(self, index: int, value: Any) -> None:
        self._dims[index] = value

    def __iter__(self) -> Any:
        return iter(self._dims)

    def __len__(self) -> int:
        return len(self._dims)


class _Silent:
    """Base of what Python code subclasses: it only has to be constructible."""

    def __init__(self) -> None:
        pass


_BEHAVIOURS: dict[str, type] = {
    "Builder": _Builder,
    "INetworkDefinition": _Network,
    "ITensor": _Tensor,
    "ILayer": _Layer,
    "OnnxParser": _Parser,
    "ParserError": _ParserError,
    "IBuilderConfig": _Config,
    "ITimingCache": _TimingCache,
    "IOptimizationProfile": _Profile,
    "IHostMemory": _HostMemory,
    "Runtime": _Runtime,
    "ICudaEngine": _Engine,
    "IRuntimeConfig": _RuntimeConfig,
    "IRuntimeCache": _RuntimeCache,
    "EngineInspector": _Inspector,
    "IExecutionContext": _Context,
    "IPluginRegistry": _Registry,
    "Refitter": _Refitter,
    "OnnxParserRefitter": _ParserRefitter,
    "PluginField": _PluginField,
    "PluginFieldCollection": _FieldCollection,
    "DimsExprs": _DimsExprs,
    "ILogger": _Silent,
    "IProgressMonitor": _Silent,
    "IOutputAllocator": _Silent,
    "IProfiler": _Silent,
    "IPluginV3": _Silent,
    "IPluginV3OneCore": _Silent,
    "IPluginV3OneBuild": _Silent,
    "IPluginV3OneRuntime": _Silent,
    "IPluginCreatorV3One": _Silent,
}
