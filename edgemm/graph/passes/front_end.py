"""The audio front end put into a graph, and taken out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgemm.errors import ModelError
from edgemm.graph import ops, walk
from edgemm.graph.model import Model
from edgemm.graph.passes.infra import PassResult
from edgemm.graph.tensors import value_spec
from edgemm.kernels.log_mel import frame_count
from edgemm.options import LogMelOptions, MfccOptions, check
from edgemm.types import TensorSpec

OLDEST_OPSET = 13
"""A node's function body is read by the model's opset, and needs this one."""

Options = LogMelOptions | MfccOptions


class PutInFrontEnd:
    """Make an input that takes features take sound, by a `LogMel` or `MFCC` node of these options in front of it.

    The input keeps its name and becomes float32 `[batch, samples]`, in [-1, 1]: as many samples as give the frames that
    it had; the name `<input>_samples` if those are free. `time_axis` is the recipe's: 0 for an input `[.., frames,
    features]`, 1 for `[.., features, frames]`. The model gets the node's function body.

    Raises ModelError if the input does not exist or has not the shape of such features.
    """

    name = "put-in-front-end"

    def __init__(self, input_name: str, options: Options, time_axis: Literal[0, 1] = 0) -> None:
        check(options)
        self.input = input_name
        self.options = options
        self.time_axis = time_axis

    def requires(self, model: Model) -> None:
        """The input takes features of this kind."""
        spec = _input(model, self.input)
        features, axis = feature_count(self.options), -1 if self.time_axis == 0 else -2
        if len(spec.shape) < 3 or spec.dtype != "float32" or spec.shape[axis] not in (features, None):
            layout = "frames, features" if self.time_axis == 0 else "features, frames"
            raise ModelError(
                f"The input {spec} cannot take the front end, which gives float32 [batch, {layout}] with {features} "
                "features. Compare the recipe's n_mels (or n_coefficients) and time_axis with the model."
            )
        if any(size != 1 for size in spec.shape[1:-2]):
            raise ModelError(f"The input {spec} has more than batch, frames and features; expected other axes to be 1.")
        frames = spec.shape[-2 if self.time_axis == 0 else -1]
        if isinstance(frames, int) and frame_count(samples_for(frames, self.options), _log_mel(self.options)) != frames:
            raise ModelError(
                f"The input {spec} holds {frames} frames, and no sound that is long enough to be reflected at its ends "
                "gives so few. Keep the front end outside of the graph."
            )
        if model.opset < OLDEST_OPSET:
            raise ModelError(
                f"The model has opset {model.opset}, and a front end in the graph needs {OLDEST_OPSET}. Convert it: "
                "onnx.version_converter.convert_version(model, 17)."
            )

    def __call__(self, model: Model) -> PassResult:
        """Return the model that takes sound there."""
        spec = _input(model, self.input)
        proto = model.copy_proto()
        namer = walk.Namer.of(proto)
        frames = spec.shape[-2 if self.time_axis == 0 else -1]
        features = namer.fresh(f"{self.input}_features")
        walk.replace_reads(proto.graph, self.input, features)
        # Backwards: what the readers read is the last one's output.
        steps: list[tuple[str, dict[str, Any], list[int]]] = []
        if self.time_axis == 1:
            steps.append(("Transpose", {"perm": [0, 2, 1]}, []))
        if len(spec.shape) > 3:
            steps.append(("Unsqueeze", {}, list(range(1, len(spec.shape) - 2))))
        made = features if not steps else namer.fresh(f"{self.input}_frames")
        node_name = namer.fresh(f"{self.input}_front_end")
        if isinstance(self.options, LogMelOptions):
            new = [ops.log_mel_node(self.input, made, self.options, node_name)]
        else:
            new = [ops.mfcc_node(self.input, made, self.options, node_name)]
        for index, (op, attributes, axes) in enumerate(steps):
            inputs, out = [made], features
            if index < len(steps) - 1:
                out = namer.fresh(f"{self.input}_{op.lower()}")
            if axes:
                table = namer.fresh(f"{self.input}_axes")
                proto.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), table))
                inputs.append(table)
            new.append(helper.make_node(op, inputs, [out], name=namer.fresh(f"{out}_node"), **attributes))
            made = out
        _set_nodes(proto.graph, [*new, *proto.graph.node])
        samples: int | str = f"{self.input}_samples"
        if isinstance(frames, int):
            samples = samples_for(frames, self.options)
        _retype(proto.graph, self.input, [spec.shape[0], samples])
        ops.add_bodies(proto)
        note = f"{self.input} takes {samples} samples instead of {frames} frames"
        return PassResult(model.with_proto(proto), True, (note,))

    def ensures(self, before: Model, after: Model) -> None:
        """The input is read by the front end and by nothing else."""
        if find_front_end(after, self.input) is None:
            raise ModelError(f'The front end of "{self.input}" is not where it was put. Report the model.')


class TakeOutFrontEnd:
    """Make an input that takes sound take features, where a `LogMel` or `MFCC` node of ours is the first to read it.

    The inverse of `PutInFrontEnd`, and what to do after `RecogniseFrontEnd` to compute features in the stream, once for
    every frame. `find_front_end` says beforehand which options the recipe then needs.
    """

    name = "take-out-front-end"

    def __init__(self, input_name: str) -> None:
        self.input = input_name

    def requires(self, model: Model) -> None:
        """There is a front end to take out."""
        _input(model, self.input)
        if find_front_end(model, self.input) is None:
            raise ModelError(
                f'No LogMel or MFCC node is the only reader of the input "{self.input}". If the graph computes the '
                "features by operators of ONNX, run RecogniseFrontEnd first."
            )

    def __call__(self, model: Model) -> PassResult:
        """Return the model that takes features there."""
        proto = model.copy_proto()
        found = find_front_end(model, self.input)
        if found is None:
            return PassResult(model, False)
        gone = set(found.nodes)
        _set_nodes(proto.graph, [node for index, node in enumerate(proto.graph.node) if index not in gone])
        walk.replace_reads(proto.graph, found.features, self.input)
        read = {name for node in proto.graph.node for name in walk.reads(node)}
        for index in reversed(range(len(proto.graph.initializer))):
            if proto.graph.initializer[index].name in found.tables - read:
                del proto.graph.initializer[index]
        _retype(proto.graph, self.input, list(found.shape))
        used = {node.op_type for node, _ in walk.all_nodes(proto) if node.domain == ops.DOMAIN}
        for index in reversed(range(len(proto.functions))):
            if proto.functions[index].domain == ops.DOMAIN and proto.functions[index].name not in used:
                del proto.functions[index]
        note = f"{self.input} takes {list(found.shape)} features instead of samples: {found.options}"
        return PassResult(model.with_proto(proto), True, (note,))

    def ensures(self, before: Model, after: Model) -> None:
        """The input is no longer sound."""
        if find_front_end(after, self.input) is not None:
            raise ModelError(f'The front end of "{self.input}" is still there. Report the model.')


@dataclass(frozen=True)
class FrontEnd:
    """A front end at an input of a graph."""

    options: Options
    time_axis: int
    """The recipe's: 0 if its features leave as `[.., frames, features]`, 1 for `[.., features, frames]`."""
    features: str
    """The value that holds the features."""
    shape: tuple[int | str | None, ...]
    nodes: tuple[int, ...]
    """Indices of its nodes in the graph."""
    tables: frozenset[str]
    """Initializers that its nodes read."""


def find_front_end(model: Model, input_name: str) -> FrontEnd | None:
    """Return the LogMel or MFCC node that alone reads an input, with a Transpose and Unsqueeze behind it; else None."""
    graph = model.proto.graph
    links = walk.link(graph)
    reader = links.sole_consumer(input_name)
    if reader is None or reader.domain != ops.DOMAIN or reader.op_type not in ("LogMel", "MFCC"):
        return None
    options = ops.options_of(reader)
    if not isinstance(options, (LogMelOptions, MfccOptions)):
        return None
    chain, time_axis, extra = [reader], 0, 0
    while (after := links.sole_consumer(chain[-1].output[0])) is not None:
        if time_axis == extra == 0 and walk.is_standard(after, "Transpose"):
            if walk.attribute(after, "perm") != [0, 2, 1]:
                break
            time_axis = 1
        elif extra == 0 and walk.is_standard(after, "Unsqueeze") and len(after.input) == 2:
            stored = links.constant(after.input[1])
            axes = [] if stored is None else sorted(int(axis) for axis in model.array(stored).reshape(-1))
            if not axes or axes != list(range(1, 1 + len(axes))):
                break
            extra = len(axes)
        else:
            break
        chain.append(after)
    spec = _input(model, input_name)
    batch, samples = (spec.shape[0], spec.shape[-1]) if len(spec.shape) == 2 else (None, None)
    frames: int | str | None = f"{input_name}_frames"
    if isinstance(samples, int):
        frames = frame_count(samples, _log_mel(options))
    sizes = [frames, feature_count(options)]
    if time_axis:
        sizes.reverse()
    positions = {id(node): index for index, node in enumerate(graph.node)}
    return FrontEnd(
        options,
        time_axis,
        chain[-1].output[0],
        (batch, *(1,) * extra, *sizes),
        tuple(positions[id(node)] for node in chain),
        frozenset(name for node in chain for name in node.input if name in links.initializers),
    )


def feature_count(options: Options) -> int:
    """Columns of a frame."""
    if isinstance(options, LogMelOptions):
        return options.n_mels
    return options.n_coefficients * (1 + options.deltas)


def samples_for(frames: int, options: Options) -> int:
    """The least number of samples that gives so many frames, but at least one sample."""
    log_mel = _log_mel(options)
    span = log_mel.window_samples
    if log_mel.edges != "snip":
        span = log_mel.fft_size - 2 * (log_mel.fft_size // 2)
        if log_mel.edges == "reflect":
            # A signal is reflected at its ends only as far as it reaches.
            span = max(span, log_mel.fft_size // 2 + 1 - (frames - 1) * log_mel.hop_samples)
    return max(1, (frames - 1) * log_mel.hop_samples + span)


def _log_mel(options: Options) -> LogMelOptions:
    return options if isinstance(options, LogMelOptions) else options.log_mel


def _input(model: Model, name: str) -> TensorSpec:
    for spec in model.inputs:
        if spec.name == name:
            return spec
    raise ModelError(f'The model has no input "{name}", expected one of: {", ".join(s.name for s in model.inputs)}.')


def _set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    copies = []
    for node in nodes:
        private = NodeProto()
        private.CopyFrom(node)
        copies.append(private)
    del graph.node[:]
    graph.node.extend(copies)


def _retype(graph: GraphProto, name: str, shape: list[int | str | None]) -> None:
    for value in graph.input:
        if value.name == name and value_spec(value) is not None:
            new: ValueInfoProto = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            value.type.CopyFrom(new.type)
