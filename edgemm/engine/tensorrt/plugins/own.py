"""TensorRT plugins for edgemm's operators: `IPluginV3` in Python, which launch our CUDA kernels.

A graph is compiled with them after `edgemm.graph.ops.without_bodies`. The plan holds each plugin's options; to run
it, the same plugins must be registered (`LoadedPlan(plugins=...)` does it), which the plan's key makes sure of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemm.device import open_device
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plugins import aot
from edgemm.engine.tensorrt.rtx_library import provide_library
from edgemm.engine.tensorrt.run.memory import DeviceTensor
from edgemm.errors import EngineError, KernelError
from edgemm.kernels.attention import HEAD_DIMS, AttentionKernel, AttentionOptions
from edgemm.kernels.launch import CudaRunner, Runner
from edgemm.kernels.log_mel_cuda import LogMelKernel
from edgemm.kernels.sources import source_dir
from edgemm.options import LogMelOptions, MfccOptions

NAMESPACE = "edgemm"
VERSION = "1"
OPERATORS = ("LogMel", "MFCC", "FusedAttention", "FusedAttentionBias")

_ATTENTION_FIELDS = ("head_dim", "dtype", "scale", "window_before", "window_after", "align_end")
_UNLIMITED = 1 << 29
_FLOAT16, _BFLOAT16 = 10, 16
"""TensorProto's numbers; a device that only runs plans has no onnx to ask."""


class OwnPlugins:
    """edgemm's plugins. `make_runner` gives what launches the kernels, asked for when the first one is to run.

    `cubins` are kernels that are compiled already for the device, by source; the others are compiled on first use.
    With `ahead_of_time`, attention becomes an ahead-of-time plugin where the version has them (`aot`).
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner] | None = None,
        *,
        cubins: Mapping[str, bytes] | None = None,
        ahead_of_time: bool = False,
    ) -> None:
        self._make_runner = make_runner or (lambda: CudaRunner(open_device(), cubins=cubins))
        self.ahead_of_time = ahead_of_time
        self._runner: Runner | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of the CUDA sources and of the Python that launches them, in hex."""
        state = hashlib.sha256()
        here = Path(__file__).resolve()
        kernels = here.parents[3] / "kernels"
        python = [
            here,
            here.with_name("aot.py"),
            *(kernels / name for name in ("attention.py", "log_mel.py", "log_mel_cuda.py")),
        ]
        for file in (*sorted(source_dir().rglob("*.cu*")), *python):
            state.update(file.name.encode() + b"\0" + file.read_bytes())
        if self.ahead_of_time:
            state.update(b"ahead of time")
        return state.hexdigest()

    def register(self, flavour: Flavour) -> None:
        """Register a creator for each operator, once. Raises EngineError if this TensorRT has no `IPluginV3`."""
        if flavour.get("IPluginV3") is None:
            raise EngineError(f"{flavour.title} has no IPluginV3; edgemm's operators need TensorRT 10.0 or newer.")
        if flavour.name == "tensorrt-rtx":
            provide_library()
        registry = flavour.module.get_plugin_registry()
        ahead_of_time = self.ahead_of_time and aot.is_available(flavour)
        if ahead_of_time:
            aot.register_attention(flavour, lambda: open_device().arch)
        for op in OPERATORS:
            if ahead_of_time and op == "FusedAttention":
                continue
            if registry.get_creator(op, VERSION, NAMESPACE) is None:
                creator = make_creator(flavour.module, op, self.runner)
                if not registry.register_creator(creator, NAMESPACE):
                    raise EngineError(
                        f'{flavour.title} refused the plugin "{op}". Another one of that name is registered.'
                    )
                _CREATORS.append(creator)

    def runner(self) -> Runner:
        """What launches the kernels; made on the first call, with a CUDA context current."""
        if self._runner is None:
            self._runner = self._make_runner()
        return self._runner


_CREATORS: list[Any] = []
"""TensorRT's registry keeps no reference of its own to a Python creator."""


def kernel_source(options: LogMelOptions | MfccOptions | AttentionOptions) -> str:
    """The CUDA source that a plugin with these options launches: a name of `edgemm.kernels.compile.sources`."""
    return f"attention_d{options.head_dim}" if isinstance(options, AttentionOptions) else "log_mel"


class Operator(Protocol):
    """What a plugin computes, apart from TensorRT."""

    def output_shape(self, trt: Any, inputs: Any, expressions: Any) -> Any:
        """The output's dimensions as TensorRT's expressions of the inputs'."""
        ...

    def takes(self, trt: Any, position: int, kinds: list[Any]) -> bool:
        """True if the type at `position` (inputs, then the output) fits, those before it given."""
        ...

    def run(self, inputs: list[DeviceTensor], out: DeviceTensor, stream: int) -> None:
        """Launch the kernel into `stream`."""
        ...


class FrontEnd:
    """LogMel and MFCC: samples `[batch, samples]` float32 to `[batch, frames, features]` float32."""

    def __init__(self, options: LogMelOptions | MfccOptions, runner: Callable[[], Runner]) -> None:
        self._options = options
        self._log_mel = options if isinstance(options, LogMelOptions) else options.log_mel
        self._runner = runner
        self._kernel: LogMelKernel | None = None

    @property
    def features(self) -> int:
        """Columns of a frame."""
        if isinstance(self._options, LogMelOptions):
            return self._options.n_mels
        return self._options.n_coefficients * (1 + self._options.deltas)

    def output_shape(self, trt: Any, inputs: Any, expressions: Any) -> Any:
        """frames = max(samples + padding - span + hop, 0) // hop, which is 0 for less than a whole frame."""
        options = self._log_mel
        span, padding = options.window_samples, 0
        if options.edges != "snip":
            span, padding = options.fft_size, 2 * (options.fft_size // 2)
        operation = trt.DimensionOperation
        more = expressions.constant(padding - span + options.hop_samples)
        reach = expressions.operation(operation.SUM, inputs[0][1], more)
        reach = expressions.operation(operation.MAX, reach, expressions.constant(0))
        shape = trt.DimsExprs(3)
        shape[0] = inputs[0][0]
        shape[1] = expressions.operation(operation.FLOOR_DIV, reach, expressions.constant(options.hop_samples))
        shape[2] = expressions.constant(self.features)
        return shape

    def takes(self, trt: Any, position: int, kinds: list[Any]) -> bool:
        """float32 in and out."""
        return bool(kinds[position] == trt.DataType.FLOAT)

    def run(self, inputs: list[DeviceTensor], out: DeviceTensor, stream: int) -> None:
        """Launch the log-mel kernel over a batch of signals."""
        if self._kernel is None:
            self._kernel = LogMelKernel(self._options, self._runner())
        self._kernel(inputs[0], out, stream=stream)


class Attention:
    """FusedAttention and FusedAttentionBias: q, k, v and perhaps a bias, of one type, to the shape and type of q."""

    def __init__(self, options: AttentionOptions, runner: Callable[[], Runner]) -> None:
        self._options = options
        self._runner = runner
        self._kernel: AttentionKernel | None = None

    def output_shape(self, trt: Any, inputs: Any, expressions: Any) -> Any:
        """q's."""
        return trt.DimsExprs(inputs[0])

    def takes(self, trt: Any, position: int, kinds: list[Any]) -> bool:
        """The type in the options, everywhere."""
        wanted = trt.DataType.HALF if self._options.dtype == "float16" else trt.DataType.BF16
        return bool(kinds[position] == wanted)

    def run(self, inputs: list[DeviceTensor], out: DeviceTensor, stream: int) -> None:
        """Launch the attention kernel."""
        if self._kernel is None:
            self._kernel = AttentionKernel(self._options, self._runner())
        bias = inputs[3] if len(inputs) > 3 else None
        q, k, v = inputs[:3]
        self._kernel(q, k, v, out, bias=bias, stream=stream)


def make_operator(op: str, fields: dict[str, Any], runner: Callable[[], Runner]) -> Operator:
    """Return the operator that a node with these attributes asks for. Raises EngineError if they do not fit."""
    try:
        if op in ("LogMel", "MFCC"):
            return FrontEnd(_front_end_options(op, fields["options"]), runner)
        if int(fields["dtype"]) not in (_FLOAT16, _BFLOAT16):
            raise ValueError(f"dtype {fields['dtype']}, and the kernel takes float16 and bfloat16")
        return Attention(
            AttentionOptions(
                head_dim=int(fields["head_dim"]),
                dtype="bfloat16" if int(fields["dtype"]) == _BFLOAT16 else "float16",
                scale=float(fields["scale"]),
                window=(_limit(fields["window_before"]), _limit(fields["window_after"])),
                queries_at="end" if int(fields["align_end"]) else "start",
            ),
            runner,
        )
    except (KeyError, TypeError, ValueError, KernelError) as error:
        raise EngineError(
            f"A {op} node has attributes that this edgemm does not know: {error}. Make it with edgemm.graph.ops "
            f"(head dimensions: {', '.join(map(str, HEAD_DIMS))})."
        ) from error


def make_creator(trt: Any, op: str, runner: Callable[[], Runner]) -> Any:
    """Return a plugin creator of this TensorRT module for one of `OPERATORS`."""
    names = ("options",) if op in ("LogMel", "MFCC") else _ATTENTION_FIELDS
    kinds = trt.PluginFieldType
    types = {"options": kinds.CHAR, "scale": kinds.FLOAT32}

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        """One node of the graph, for TensorRT: build, serialise, run."""

        def __init__(self, fields: dict[str, Any]) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.num_outputs = 1
            self.plugin_namespace = NAMESPACE
            self.plugin_name = op
            self.plugin_version = VERSION
            self.fields = fields
            self.operator = make_operator(op, fields, runner)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self.fields)

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expressions: Any) -> list[Any]:
            return [self.operator.output_shape(trt, inputs, expressions)]

        def supports_format_combination(self, position: int, in_out: Any, num_inputs: int) -> bool:
            described = [item.desc for item in in_out]
            linear = described[position].format == trt.TensorFormat.LINEAR
            return linear and self.operator.takes(trt, position, [item.type for item in described])

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            return None

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            return None

        def get_fields_to_serialize(self) -> Any:
            return _collection(trt, [(name, types.get(name, kinds.INT32), self.fields[name]) for name in names])

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def set_tactic(self, tactic: int) -> None:
            return None

        def enqueue(
            self, inputs_desc: Any, outputs_desc: Any, inputs: Any, outputs: Any, workspace: Any, stream: int
        ) -> None:
            given = [_tensor(trt, item, address) for item, address in zip(inputs_desc, inputs, strict=True)]
            self.operator.run(given, _tensor(trt, outputs_desc[0], outputs[0]), int(stream))

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes the plugin from a node's attributes, or from what a plan holds of it."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = op
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            self.field_names = _collection(trt, [(name, types.get(name, kinds.INT32), None) for name in names])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return Plugin({field.name: _value(field, trt) for field in fields})

    return Creator()


def field_text(options: LogMelOptions | MfccOptions) -> str:
    """Options as the attribute `options` of a node holds them."""
    return json.dumps(asdict(options), sort_keys=True)


def _front_end_options(op: str, text: str) -> LogMelOptions | MfccOptions:
    found = json.loads(text)
    if op == "LogMel":
        return LogMelOptions(**found)
    return MfccOptions(**{**found, "log_mel": LogMelOptions(**found["log_mel"])})


def _limit(value: Any) -> int | None:
    return None if int(value) >= _UNLIMITED else int(value)


def _collection(trt: Any, entries: list[tuple[str, Any, Any]]) -> Any:
    kinds = trt.PluginFieldType
    fields = []
    for name, kind, value in entries:
        if kind == kinds.CHAR:
            data = np.frombuffer((value or "").encode(), np.int8).copy()
        else:
            dtype = np.float32 if kind == kinds.FLOAT32 else np.int32
            data = np.array([] if value is None else [value], dtype)
        fields.append(trt.PluginField(name, data, kind))
    return trt.PluginFieldCollection(fields)


def _value(field: Any, trt: Any) -> Any:
    data = np.asarray(field.data)
    if field.type == trt.PluginFieldType.CHAR:
        return data.tobytes().rstrip(b"\0").decode()
    return data.reshape(-1)[0].item()


def _tensor(trt: Any, description: Any, address: int) -> DeviceTensor:
    # numpy alone has no bfloat16: the kernels take its bits as uint16.
    names = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "uint16",
    }
    return DeviceTensor(int(address), tuple(description.dims), np.dtype(names[description.type]))
