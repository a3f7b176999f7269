"""Log-mel features and cepstra that a graph computes by operators of ONNX, made one `LogMel` or `MFCC` node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgemm.errors import ModelError, UsageError
from edgemm.graph import ops, ort, walk
from edgemm.graph.known import Known, permutation
from edgemm.graph.model import Model
from edgemm.graph.passes.front_end import OLDEST_OPSET
from edgemm.graph.passes.infer_shapes import infer_leniently
from edgemm.graph.passes.infra import PassResult
from edgemm.graph.passes.remove_dead import RemoveDead
from edgemm.kernels.log_mel import (
    Float64,
    dct_matrix,
    frame_count,
    lifter,
    log_gain,
    log_mel_reference,
    mel_filterbank,
    mfcc_reference,
    window,
    window_offset,
)
from edgemm.options import LogMelOptions, MfccOptions, check
from edgemm.types import Array

TOLERANCE = 1e-5
"""Between a graph's filterbank or spectra and those of the options, relative to the largest."""
LOG_TOLERANCE = 2e-3
"""Between logarithms, before the last normalisation: what float32 spectra leave in weak bands."""

LOW_HZ = (0.0, 20.0, 30.0, 40.0, 50.0, 55.0, 60.0, 64.0, 80.0, 90.0, 100.0, 125.0)
HIGH_HZ = (0.0, 3800.0, 4000.0, 7500.0, 7600.0, 7800.0, 8000.0, 11025.0, 12000.0, 16000.0, -100.0, -200.0, -400.0)
"""The ends of filterbanks that are looked for, 0 being Nyquist."""

LIFTERS = (0.0, *(float(length) for length in range(2, 65)))
"""The lifters that are looked for; 22 is Kaldi's and HTK's."""

_WINDOWS: tuple[Literal["hann", "povey", "hamming", "blackman", "rectangular"], ...] = (
    "hann",
    "povey",
    "hamming",
    "blackman",
    "rectangular",
)
_CONDITIONING = ((False, 0.0), (True, 0.97), (False, 0.97), (True, 0.0), (True, 0.95), (False, 0.95))
"""Removal of the mean, pre-emphasis."""
_SCALES = (1.0, 32768.0)
_FREE_SAMPLES_WINDOWS = 6
"""Length of the test signal in windows, if the graph leaves it open."""
_PROBES = 3
_GAIN_TOLERANCE = 1e-6

_LINEAR = (
    *("Add", "Concat", "Conv", "DFT", "Div", "Expand", "Flatten", "Gather", "Identity", "MatMul", "Mul", "Neg", "Pad"),
    *(
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "STFT",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Sum",
        "Transpose",
        "Unsqueeze",
    ),
)
"""Operators that are linear in what is not constant; those with two such inputs are held to a sum."""
_SUMS = ("Add", "Concat", "Sub", "Sum")


class _NoMatchError(Exception):
    """Why something that looks like a front end is left alone."""


class RecogniseFrontEnd:
    """Replace log-mel features of a signal by one `LogMel` node, where they are exactly those of some LogMelOptions.

    Found are a filterbank's product with a spectrum, `power` of 1 or 2, and the floor, logarithm and scalar
    normalisation behind it. Where an orthonormal DCT-II (with or without a lifter) is all that reads them, both become
    one `MFCC` node. What leads from the samples to the spectrum may be spelled in any way (STFT, DFT of
    gathered frames, Conv, MatMul; with padding, scaling or pre-emphasis): the pass makes sure that all of it is linear,
    runs it in onnxruntime on random signals, and looks for the options that give the same spectra. Two linear maps that
    agree on random signals are the same, but for chance.

    `rate_hz` is the rate of the signal, which the graph does not say. The filterbank must be one of `mel_filterbank`,
    its ends in `LOW_HZ` and `HIGH_HZ`. Filterbank and spectra must agree within 1e-5 of their largest element; then
    the features as a whole, of sound and of silence, are compared with the float64 reference. Anything else is left
    alone, with a note of what did not match.
    """

    name = "recognise-front-end"

    def __init__(self, rate_hz: int) -> None:
        if rate_hz < 1:
            raise UsageError(f"Found rate_hz {rate_hz}; expected the rate of the signal in Hz, such as 16000.")
        self.rate_hz = rate_hz

    def requires(self, model: Model) -> None:
        """Any model will do; run `InferShapes` and `FoldConstants` before, to have more found."""

    def __call__(self, model: Model) -> PassResult:
        """Return the model with its front ends as nodes."""
        proto = model.copy_proto()
        known = Known(model, walk.link(proto.graph), walk.specs(infer_leniently(model).graph))
        notes: list[str] = []
        replaced: list[tuple[NodeProto, list[NodeProto]]] = []
        tensors: list[TensorProto] = []
        namer = walk.Namer.of(proto)
        for node in list(proto.graph.node):
            bands = _filterbank(node, known)
            if bands is None:
                continue
            try:
                if model.opset < OLDEST_OPSET:
                    raise _NoMatchError(f"the model has opset {model.opset}, and {OLDEST_OPSET} is needed")
                found = _Found(known, bands, self.rate_hz, features_first=bands.bands_first)
                options = found.cepstra(found.options())
            except _NoMatchError as error:
                notes.append(f'the filterbank "{walk.label(node)}" left alone: {error}')
                continue
            replaced.append((found.last, found.replacement(options, namer, tensors)))
            kind = "MFCC" if isinstance(options, MfccOptions) else "LogMel"
            notes.append(f'"{found.out}" is {kind} of "{found.samples}": {options}')
        if not replaced:
            return PassResult(model, False, tuple(notes))
        nodes = []
        for node in proto.graph.node:
            new = next((items for last, items in replaced if last is node), [node])
            for item in new:
                private = NodeProto()
                private.CopyFrom(item)
                nodes.append(private)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(tensors)
        try:
            ops.add_bodies(proto)
        except ModelError as error:
            return PassResult(model, False, (*notes, f"nothing replaced: {error}"))
        return PassResult(RemoveDead()(model.with_proto(proto)).model, True, tuple(notes))

    def ensures(self, before: Model, after: Model) -> None:
        """Every LogMel node has options that edgemm knows."""
        for node in after.proto.graph.node:
            if node.domain == ops.DOMAIN:
                ops.options_of(node)


@dataclass(frozen=True)
class _Bands:
    """A filterbank at work: `[bins, bands]` in `filters`, whichever way the graph has it."""

    node: NodeProto
    power: str
    filters: Float64
    bands_first: bool
    """The product is `[.., bands, frames]`, and the power `[.., bins, frames]`."""


def _filterbank(node: NodeProto, known: Known) -> _Bands | None:
    """The node as a product of a power spectrum with a constant filterbank, or None."""
    if walk.is_standard(node, "MatMul"):
        sides = [(node.input[1], node.input[0], False), (node.input[0], node.input[1], True)]
    elif walk.is_standard(node, "Conv") and len(node.input) == 2 and _is_pointwise(node):
        sides = [(node.input[1], node.input[0], True)]
    else:
        return None
    for table, power, bands_first in sides:
        filters = known.array(table)
        if filters is None or _spectrum(power, known) is None:
            continue
        filters = filters.reshape([size for size in filters.shape if size != 1] or [1]).astype(np.float64)
        if filters.ndim == 2:
            return _Bands(node, power, filters.T if bands_first else filters, bands_first)
    return None


def _is_pointwise(node: NodeProto) -> bool:
    kernel = walk.attribute(node, "kernel_shape", [1])
    return kernel == [1] and walk.attribute(node, "group", 1) == 1 and walk.attribute(node, "strides", [1]) == [1]


def _spectrum(name: str, known: Known) -> tuple[list[str], Literal[1, 2]] | None:
    """The values whose squares add up to a power spectrum, and the power of it that `name` is; None if it is none."""
    node = _maker(name, known)
    if node is not None and walk.is_standard(node, "Sqrt"):
        values = _sum_of_squares(_maker(node.input[0], known), known)
        return (values, 1) if values is not None else None
    if node is not None and walk.is_standard(node, "ReduceL2"):
        return [node.input[0]], 1
    root = _squared(node, known)
    inner = _maker(root, known) if root is not None else None
    if inner is not None and walk.is_standard(inner, "ReduceL2"):
        return [inner.input[0]], 2
    if inner is not None and walk.is_standard(inner, "Sqrt"):
        node = _maker(inner.input[0], known)
    values = _sum_of_squares(node, known)
    return (values, 2) if values is not None else None


def _maker(name: str, known: Known) -> NodeProto | None:
    """The node that makes a value, seen through changes of layout."""
    node = known.links.producer.get(name)
    while node is not None and walk.is_standard(node, "Identity", "Transpose"):
        node = known.links.producer.get(node.input[0])
    return node


def _sum_of_squares(node: NodeProto | None, known: Known) -> list[str] | None:
    if node is None:
        return None
    if walk.is_standard(node, "ReduceSumSquare"):
        return [node.input[0]]
    if not walk.is_standard(node, "ReduceSum", "Add"):
        return None
    values = []
    for part in [node.input[0]] if node.op_type == "ReduceSum" else node.input:
        maker = _maker(part, known)
        while maker is not None and walk.is_standard(maker, "Slice", "Squeeze", "Gather", "Split"):
            # The squares of all parts at once, cut apart afterwards.
            maker = _maker(maker.input[0], known)
        value = _squared(maker, known)
        if value is None:
            return None
        values.append(value)
    return list(dict.fromkeys(values))


def _squared(node: NodeProto | None, known: Known) -> str | None:
    """The value that a node squares, or None."""
    if node is None or not walk.is_standard(node, "Mul", "Pow"):
        return None
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return str(node.input[0])
    if node.op_type == "Pow" and known.scalar(node.input[1]) == 2.0:
        return str(node.input[0])
    return None


def _magnitudes(signal: Float64, options: LogMelOptions, frames: int, some: slice) -> Float64:
    """|X| of some frames of a signal, `[frames, bins]`, by the definition."""
    if options.edges != "snip":
        mode: Literal["reflect", "constant"] = "reflect" if options.edges == "reflect" else "constant"
        signal = np.pad(signal, options.fft_size // 2, mode=mode)
    first = np.arange(frames)[some, None] * options.hop_samples + window_offset(options)
    cut = signal[first + np.arange(options.window_samples)] * options.scale
    if options.remove_dc:
        cut = cut - cut.mean(axis=1, keepdims=True)
    cut = cut - options.preemphasis * np.concatenate((cut[:, :1], cut[:, :-1]), axis=1)
    return np.abs(np.fft.rfft(cut * window(options), options.fft_size, axis=1))


def _mfcc_of(log_mel: LogMelOptions, table: Float64) -> MfccOptions | None:
    """The options whose DCT and lifter are `table`, `[n_mels, coefficients]`, or None."""
    if not 1 <= table.shape[1] <= table.shape[0]:
        return None
    for length in LIFTERS:
        options = MfccOptions(log_mel, n_coefficients=table.shape[1], lifter=length)
        wanted = dct_matrix(options) * lifter(options)[:, None]
        if np.abs(wanted.T - table).max() <= TOLERANCE * np.abs(wanted).max():
            return options
    return None


@dataclass
class _Tail:
    """What follows the filterbank: `gain * ln(max(x, floor)) + offset`, or nothing."""

    out: str
    last: NodeProto
    floor: float | None = None
    logarithm: bool = False
    gain: float = 1.0
    offset: float = 0.0


@dataclass
class _Found:
    """A filterbank with the graph around it."""

    known: Known
    bands: _Bands
    rate_hz: int
    features_first: bool
    """`out` is `[.., features, frames]`."""
    samples: str = ""
    out: str = ""
    last: NodeProto = field(default_factory=NodeProto)
    power: Literal[1, 2] = 2
    upstream: list[NodeProto] = field(default_factory=list)
    """The nodes from the samples to the power spectrum, in order."""

    def options(self) -> LogMelOptions:
        """Return the options that compute the same. Raises _NoMatchError with what did not match."""
        spectrum = _spectrum(self.bands.power, self.known)
        if spectrum is None:
            raise _NoMatchError("what it weighs is no power spectrum")
        values, self.power = spectrum
        self._trace(values)
        base = self._mel(self._tail())
        signals = self._signals()
        spectra = self._spectra(signals)
        frames = self._frames(signals, spectra, base)
        found = next((item for item in frames if self._agrees(item, signals, spectra)), None)
        if found is None:
            raise _NoMatchError(
                f"no window, edges or pre-emphasis that edgemm knows gives its spectra (fft_size {base.fft_size})"
            )
        self._compare(found, signals)
        return found

    def cepstra(self, log_mel: LogMelOptions) -> LogMelOptions | MfccOptions:
        """Options of the MFCC, if a DCT is all that reads the features; else those that were given."""
        known, out, last, first = self.known, self.out, self.last, self.features_first
        table: Float64 | None = None
        found: tuple[MfccOptions, str, NodeProto, bool] | None = None
        while (node := known.links.sole_consumer(out)) is not None:
            if walk.is_standard(node, "Transpose"):
                order = permutation(node) or ()
                if order[-2:] != (len(order) - 1, len(order) - 2):
                    break
                first = not first
            elif table is None and (rows := self._transform(node, out, first)) is not None:
                table = rows
            elif table is not None and walk.is_standard(node, "Mul"):
                factors = self._factors(node, out, first, table.shape[1])
                if factors is None:
                    break
                table = table * factors
            elif not walk.is_standard(node, "Identity"):
                break
            out, last = node.output[0], node
            options = _mfcc_of(log_mel, table) if table is not None else None
            if options is not None:
                found = (options, out, last, first)
        if found is None:
            return log_mel
        before = self.out, self.last, self.features_first
        options, self.out, self.last, self.features_first = found
        try:
            self._compare(options, self._signals())
        except _NoMatchError:
            self.out, self.last, self.features_first = before
            return log_mel
        return options

    def _transform(self, node: NodeProto, name: str, first: bool) -> Float64 | None:
        """The constant matrix `[n_mels, coefficients]` that a node multiplies the features with, or None."""
        bands = self.bands.filters.shape[1]
        if walk.is_standard(node, "MatMul"):
            stored = self.known.array(node.input[0 if first else 1])
            right_place = node.input[1 if first else 0] == name
        elif walk.is_standard(node, "Conv") and len(node.input) == 2 and _is_pointwise(node):
            stored, right_place = self.known.array(node.input[1]), first and node.input[0] == name
        else:
            return None
        if stored is None or not right_place:
            return None
        shape = stored.shape[:2] if node.op_type == "Conv" else stored.shape[-2:]
        if len(shape) != 2 or stored.size != shape[0] * shape[1]:
            return None
        table = stored.reshape(shape).astype(np.float64)
        table = table.T if first else table
        return table if len(table) == bands else None

    def _factors(self, node: NodeProto, name: str, first: bool, count: int) -> Float64 | None:
        """The constant factors on the coefficients, or None."""
        stored = self.known.array(next((item for item in node.input if item != name), ""))
        if stored is None or stored.size != count:
            return None
        sizes: list[int] = [1, 1, *stored.shape]
        along = sizes[-2 if first else -1] == count
        return stored.reshape(-1).astype(np.float64) if along else None

    # up: the linear part

    def _trace(self, values: list[str]) -> None:
        """Find the samples that the spectrum is made of, and hold all between to linearity."""
        producer = self.known.links.producer
        sources: dict[str, None] = {}
        seen: set[str] = set()
        waiting = list(values)
        while waiting:
            name = waiting.pop()
            if name in seen or self._is_constant(name):
                continue
            seen.add(name)
            node = producer.get(name)
            if node is None or not self._is_linear(node):
                sources[name] = None
            else:
                waiting += [item for item in node.input if item]
        if len(sources) != 1:
            raise _NoMatchError(f"its spectrum is made of {len(sources)} values: {', '.join(sources)}")
        self.samples = next(iter(sources))
        self.upstream = self._order()

    def _order(self) -> list[NodeProto]:
        """All nodes that make the power, producers first."""
        ordered: dict[int, NodeProto] = {}

        def visit(name: str) -> None:
            node = self.known.links.producer.get(name)
            if name == self.samples or node is None or id(node) in ordered:
                return
            for item in walk.reads(node):
                visit(item)
            ordered[id(node)] = node

        visit(self.bands.power)
        return list(ordered.values())

    def _is_constant(self, name: str) -> bool:
        """True if no input decides the value; shapes count as constants only if they are known."""
        if name in self.known.links.initializers:
            return True
        node = self.known.links.producer.get(name)
        if node is None:
            return False
        if walk.is_standard(node, "Constant"):
            return True
        numbers = self.known.numbers(name)
        return numbers is not None and not np.isnan(numbers).any()

    def _is_linear(self, node: NodeProto) -> bool:
        if not walk.is_standard(node) or node.op_type not in _LINEAR:
            return False
        given = [name for name in node.input if name and not self._is_constant(name)]
        if node.op_type in _SUMS:
            # A constant summand would make it affine.
            return len(given) == len([name for name in node.input if name])
        if node.op_type == "Div":
            return given == [node.input[0]]
        if node.op_type == "Conv" and len(node.input) > 2:
            bias = self.known.array(node.input[2])
            return given == [node.input[0]] and bias is not None and not bias.any()
        if node.op_type == "Pad" and len(node.input) > 2 and node.input[2]:
            return given == [node.input[0]] and self.known.scalar(node.input[2]) == 0.0
        return len(given) == 1

    # down: floor, logarithm, normalisation

    def _tail(self) -> _Tail:
        """Follow the filterbank's product down."""
        known = self.known
        tail = _Tail(self.bands.node.output[0], self.bands.node)
        while (node := known.links.sole_consumer(tail.out)) is not None and self._extend(tail, node):
            tail.out, tail.last = node.output[0], node
        if tail.logarithm and tail.floor is None:
            raise _NoMatchError("its logarithm has no floor under it (Clip or Max)")
        self.out, self.last = tail.out, tail.last
        return tail

    def _extend(self, tail: _Tail, node: NodeProto) -> bool:
        """Take one more node into the tail if it belongs there."""
        known = self.known
        if walk.is_standard(node, "Identity"):
            return True
        if not tail.logarithm:
            if walk.is_standard(node, "Clip") and len(node.input) > 1 and not any(node.input[2:]):
                tail.floor = known.scalar(node.input[1])
                return tail.floor is not None
            if walk.is_standard(node, "Log"):
                tail.logarithm = True
                return True
            others = [known.scalar(name) for name in node.input if name != tail.out]
            if walk.is_standard(node, "Max") and len(others) == 1 and others[0] is not None:
                tail.floor = others[0]
                return True
            if walk.is_standard(node, "Add") and len(others) == 1 and others[0] is not None:
                after = known.links.sole_consumer(node.output[0])
                if after is not None and walk.is_standard(after, "Log"):
                    raise _NoMatchError(
                        f"it adds {others[0]:g} before the logarithm, where LogMel takes the larger of the two"
                    )
            return False
        others = [known.scalar(name) for name in node.input if name != tail.out]
        if len(others) != 1 or others[0] is None or not walk.is_standard(node, "Mul", "Div", "Add", "Sub"):
            return False
        value, first = others[0], node.input[0] == tail.out
        if node.op_type in ("Mul", "Div") and value > 0 and (first or node.op_type == "Mul"):
            factor = value if node.op_type == "Mul" else 1.0 / value
            tail.gain, tail.offset = tail.gain * factor, tail.offset * factor
            return True
        if node.op_type == "Add" or (node.op_type == "Sub" and first):
            tail.offset += value if node.op_type == "Add" else -value
            return True
        return False

    # options

    def _mel(self, tail: _Tail) -> LogMelOptions:
        """Options with the graph's filterbank, floor and normalisation; its frames are not looked at yet."""
        bins, count = self.bands.filters.shape
        base = LogMelOptions(
            rate_hz=self.rate_hz,
            fft_size=2 * (bins - 1),
            window_samples=2 * (bins - 1),
            n_mels=count,
            power=self.power,
            log="none",
        )
        if tail.logarithm:
            base = self._normalised(replace(base, floor=float(tail.floor or 0.0)), tail)
        try:
            check(base)
        except UsageError as error:
            raise _NoMatchError(str(error)) from error
        largest = float(np.abs(self.bands.filters).max(initial=0.0))
        best = np.inf
        scales: tuple[Literal["htk", "slaney", "kaldi"], ...] = ("htk", "slaney", "kaldi")
        norms: tuple[Literal["none", "slaney"], ...] = ("none", "slaney")
        for low, high, scale, norm in product(LOW_HZ, HIGH_HZ, scales, norms):
            candidate = replace(base, low_hz=low, high_hz=high, mel_scale=scale, mel_norm=norm)
            top = high if high > 0 else self.rate_hz / 2 + high
            if not low < top <= self.rate_hz / 2:
                continue
            apart = float(np.abs(mel_filterbank(candidate).T - self.bands.filters).max())
            if apart <= TOLERANCE * largest:
                return candidate
            best = min(best, apart)
        raise _NoMatchError(
            f"no filterbank of {count} bands at {self.rate_hz} Hz that edgemm knows matches; "
            f"the nearest is {best:.1e} away"
        )

    def _normalised(self, base: LogMelOptions, tail: _Tail) -> LogMelOptions:
        """The logarithm and normalisation that make `gain * ln(x) + offset`."""
        kinds: tuple[Literal["ln", "log10", "db"], ...] = ("ln", "log10", "db")
        for kind in kinds:
            candidate = replace(base, log=kind, mean=-tail.offset)
            if abs(log_gain(candidate) / tail.gain - 1.0) < _GAIN_TOLERANCE:
                return candidate
        # None of the three by itself: natural logarithms, normalised.
        return replace(base, log="ln", mean=-tail.offset / tail.gain, std=1.0 / tail.gain)

    def _signals(self) -> Array:
        """Random signals, `[probes, samples]`."""
        shape = self.known.shape(self.samples)
        if shape is None or not 1 <= len(shape) <= 3:
            raise _NoMatchError(f'the shape of "{self.samples}" is not known, or is no signal')
        bins = self.bands.filters.shape[0]
        length = shape[-1] if isinstance(shape[-1], int) else _FREE_SAMPLES_WINDOWS * 2 * (bins - 1)
        if any(isinstance(size, int) and size != 1 for size in shape[:-1]):
            raise _NoMatchError(f'"{self.samples}" is {list(shape)}; expected one signal, [1, samples]')
        return np.random.default_rng(0).uniform(-1, 1, (_PROBES, length)).astype(np.float32)

    def _spectra(self, signals: Array) -> Float64:
        """|X|, `[probes, frames, bins]`, as the graph computes them."""
        shape = self.known.shape(self.samples) or ()
        found = []
        for signal in signals:
            (power,) = self._run(
                self.upstream, signal.reshape((1,) * (len(shape) - 1) + signal.shape), self.bands.power
            )
            power = power.reshape(power.shape[-2:]).astype(np.float64)
            power = power.T if self.bands.bands_first else power
            found.append(power if self.power == 1 else np.sqrt(power))
        if found[0].shape[1:] != self.bands.filters.shape[:1]:
            raise _NoMatchError(f"its spectra are {found[0].shape}, the filterbank has {len(self.bands.filters)} bins")
        return np.stack(found)

    def _run(self, nodes: list[NodeProto], signal: Array, out: str) -> list[Array]:
        made = {name for node in nodes for name in node.output}
        needed = {name for node in nodes for name in walk.reads(node)} - made - {self.samples}
        stored = [
            self.known.links.initializers[name] for name in sorted(needed) if name in self.known.links.initializers
        ]
        graph = helper.make_graph(
            nodes,
            "part",
            [helper.make_tensor_value_info(self.samples, TensorProto.FLOAT, signal.shape)],
            [helper.make_empty_tensor_value_info(out)],
            stored,
        )
        proto = self.known.model.proto
        small = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        try:
            return ort.compute(Model(small, self.known.model.folder), {self.samples: signal})
        except ModelError as error:
            raise _NoMatchError(f"onnxruntime cannot run what leads to it: {error}") from error

    def _frames(self, signals: Array, spectra: Float64, base: LogMelOptions) -> Iterator[LogMelOptions]:
        """Options with so many frames as there are, of every window and edge that edgemm knows."""
        frames, length, fft = spectra.shape[1], signals.shape[1], base.fft_size
        lengths = sorted({fft, *self._lengths(fft)}, reverse=True)
        places: tuple[Literal["snip", "reflect", "zero"], ...] = ("snip", "reflect", "zero")
        for window_samples, hop, edges in product(lengths, self._hops(), places):
            framed = replace(base, window_samples=window_samples, hop_samples=hop, edges=edges)
            if frame_count(length, framed) != frames or (edges == "reflect" and length <= fft // 2):
                continue
            for shape, periodic, (dc, emphasis), scale in product(_WINDOWS, (True, False), _CONDITIONING, _SCALES):
                yield replace(
                    framed, window=shape, window_periodic=periodic, remove_dc=dc, preemphasis=emphasis, scale=scale
                )

    def _hops(self) -> list[int]:
        """The distances between frames that the part's nodes speak of."""
        found: set[int] = set()
        for node in self.upstream:
            if walk.is_standard(node, "STFT"):
                step = self.known.scalar(node.input[1])
                found.add(int(step or 0))
            elif walk.is_standard(node, "Conv"):
                strides = walk.attribute(node, "strides", [1])
                found.update(strides if isinstance(strides, list) else [])
            elif walk.is_standard(node, "Gather"):
                table = self.known.array(node.input[1])
                if table is not None and table.ndim >= 2:
                    flat = table.reshape(-1, table.shape[-1])
                    found.add(int(flat[1, 0] - flat[0, 0]) if len(flat) > 1 else int(table.shape[-1]))
        found -= {0, 1}
        if not found:
            raise _NoMatchError(
                "nothing says how far its frames are apart (STFT, strides of a Conv, a table of indices)"
            )
        return sorted(found)

    def _lengths(self, fft: int) -> Iterator[int]:
        """Lengths of windows that the part's constants have, as a dimension or between zeros."""
        for node in self.upstream:
            for name in node.input:
                table = self.known.array(name) if name else None
                if table is None or table.dtype.kind != "f":
                    continue
                sizes = {size for size in table.shape if 2 <= size <= fft}
                if table.ndim and table.shape[-1] == fft:
                    used = np.flatnonzero(table.reshape(-1, fft).any(axis=0))
                    # A window in the middle of zeros; a window may begin and end with a zero of its own.
                    sizes |= {len(used) + more for more in (0, 1, 2) if len(used) and len(used) + more <= fft}
                yield from sizes

    def _agrees(self, options: LogMelOptions, signals: Array, spectra: Float64) -> bool:
        """True if the options' spectra of the signals are the graph's."""
        try:
            check(options)
        except UsageError:
            return False
        largest = float(spectra.max())
        for signal, want in zip(signals.astype(np.float64), spectra, strict=True):
            # Some frames are enough to turn most options down.
            for some in (slice(0, 2), slice(None)):
                apart = np.abs(_magnitudes(signal, options, len(want), some) - want[some])
                if float(apart.max(initial=0.0)) > TOLERANCE * largest:
                    return False
        return True

    def _compare(self, options: LogMelOptions | MfccOptions, signals: Array) -> None:
        """Compare the features themselves with the reference, silence among them. Raises _NoMatchError."""
        log_mel = options if isinstance(options, LogMelOptions) else options.log_mel
        shape = self.known.shape(self.samples) or ()
        signal = signals[0].copy()
        if not isinstance(shape[-1], int):
            # A free length is tried at a second one.
            signal = np.concatenate((signal, signals[1][: 3 * log_mel.hop_samples + 7]))
        signal[len(signal) // 2 :] = 0
        nodes = [*self.upstream, *self._downstream()]
        (got,) = self._run(nodes, signal.reshape((1,) * (len(shape) - 1) + signal.shape), self.out)
        want = log_mel_reference(signal, log_mel)
        tolerance = LOG_TOLERANCE / log_mel.std if log_mel.log != "none" else TOLERANCE * float(want.max())
        if isinstance(options, MfccOptions):
            want = mfcc_reference(signal, options)
            transform = dct_matrix(options) * lifter(options)[:, None]
            tolerance *= float(np.abs(transform).sum(axis=1).max())
        got = got.reshape(got.shape[-2:])
        got = got.T if self.features_first else got
        if got.shape != want.shape or not np.allclose(got, want, atol=tolerance, rtol=1e-4):
            raise _NoMatchError("its features differ from those of the options that have its tables")

    def _downstream(self) -> list[NodeProto]:
        """From the filterbank to the end of the tail, and the constants that they read."""
        chain = [self.bands.node]
        while chain[-1] is not self.last:
            following = self.known.links.sole_consumer(chain[-1].output[0])
            if following is None:
                raise _NoMatchError("its logarithm is read elsewhere, too")
            chain.append(following)
        makers = [self.known.links.producer.get(name) for node in chain for name in node.input]
        made = {id(node) for node in (*chain, *self.upstream)}
        constants = {id(item): item for item in makers if item is not None and id(item) not in made}
        return [*constants.values(), *chain]

    # the replacement

    def replacement(
        self, options: LogMelOptions | MfccOptions, namer: walk.Namer, tensors: list[TensorProto]
    ) -> list[NodeProto]:
        """The nodes that make `out` of `samples`."""
        rank = len(self.known.shape(self.samples) or ())
        out_rank = len(self.known.shape(self.out) or self.known.shape(self.bands.power) or (0,) * 3)
        nodes: list[NodeProto] = []

        def add(op: str, name: str, axes: list[int] | None = None, **attributes: Any) -> str:
            inputs = [name]
            if axes is not None:
                table = namer.fresh(f"{self.out}/axes")
                tensors.append(numpy_helper.from_array(np.array(axes, np.int64), table))
                inputs.append(table)
            made = namer.fresh(f"{self.out}/{op.lower()}")
            nodes.append(helper.make_node(op, inputs, [made], name=namer.fresh(f"{made}/node"), **attributes))
            return made

        name = self.samples
        if rank == 1:
            name = add("Unsqueeze", name, [0])
        elif rank == 3:
            name = add("Squeeze", name, [1])
        made = namer.fresh(f"{self.out}/features")
        node_name = namer.fresh(f"{made}/node")
        if isinstance(options, LogMelOptions):
            nodes.append(ops.log_mel_node(name, made, options, node_name))
        else:
            nodes.append(ops.mfcc_node(name, made, options, node_name))
        name = made
        if self.features_first:
            name = add("Transpose", name, perm=[0, 2, 1])
        if out_rank == 2:
            name = add("Squeeze", name, [0])
        elif out_rank > 3:
            name = add("Unsqueeze", name, list(range(1, out_rank - 2)))
        nodes[-1].output[0] = self.out
        return nodes
