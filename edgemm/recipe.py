"""The recipe: what the tensors of one or more ONNX models mean in a stream.

A recipe is a TOML file. It names the streams (microphone, camera), and for each model where every input comes
from, how often a step is made, which outputs are state, and how the others are decoded. docs/recipe.md explains
every key; `edgemm recipe MODEL.onnx` writes a first one. Unknown keys, wrong types and names that do not exist
raise RecipeError with file, line, key, found and expected.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from edgemm.errors import RecipeError
from edgemm.options import ImageOptions, LogMelOptions, MfccOptions, SpectrumOptions
from edgemm.types import StatePair, TensorSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1
"""Version of the recipe's schema: the value of the key `edgemm` at the top of the file."""

Precision = Literal["auto", "fp32", "fp16", "int8", "fp8", "int4"]
"""fp8: weights and activations in FP8 (E4M3); int4: weights alone, in blocks. Both are for TensorRT."""
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]

_UNITS_NS = {"s": Fraction(10**9), "ms": Fraction(10**6), "us": Fraction(10**3)}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\d+/\d+)\s*(s|ms|us|samples|frames)")


Unit = Literal["s", "ms", "us", "samples", "frames"]
Compare = Literal[">", ">=", "<", "<="]


class _Value:
    """Base of values written as text. Not a dataclass: msgspec would then want a table instead of text."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f'{type(self).__name__}.parse("{self}")'


class Duration(_Value):
    """A length of time with its unit, as written in a recipe: "100 ms", "1 s", "512 samples", "8 frames"."""

    def __init__(self, value: Fraction, unit: Unit) -> None:
        self.value = value
        self.unit = unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "<number> <unit>"; raises ValueError with the accepted units."""
        match = _DURATION.fullmatch(text.strip())
        if match is None or Fraction(match[1]) <= 0:
            raise ValueError(f'expected a duration like "100 ms", "1 s", "512 samples" or "8 frames", found "{text}"')
        return cls(Fraction(match[1]), cast(Unit, match[2]))

    def ns(self, rate_hz: int | None = None) -> int:
        """The length in nanoseconds, rounded; samples need `rate_hz`. Raises ValueError for frames."""
        if self.unit == "samples" and rate_hz:
            return round(self.value * 10**9 / rate_hz)
        if self.unit in _UNITS_NS:
            return round(self.value * _UNITS_NS[self.unit])
        raise ValueError(f'"{self}" has no length in seconds here')

    def samples(self, rate_hz: int) -> int:
        """The length in samples at `rate_hz`. Raises ValueError if that is not a whole number."""
        value = self.value if self.unit == "samples" else Fraction(self.ns()) * rate_hz / 10**9
        if value.denominator != 1:
            raise ValueError(f'"{self}" is {float(value)} samples at {rate_hz} Hz: expected a whole number')
        return int(value)

    def __str__(self) -> str:
        return f"{self.value} {self.unit}"


class _Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of the recipe: immutable, and a misspelt key is an error."""


class AudioStream(_Node, frozen=True, tag_field="kind", tag="audio"):
    """Sound: one channel of float32 samples in [-1, 1] (several channels are averaged)."""

    rate_hz: PositiveInt = 16000


class VideoStream(_Node, frozen=True, tag_field="kind", tag="video"):
    """Pictures. Size and rate are what a camera is asked for; a file gives what it holds."""

    fps: Annotated[float, msgspec.Meta(gt=0)] = 25.0
    width: PositiveInt | None = None
    height: PositiveInt | None = None


Stream = AudioStream | VideoStream


class Input(_Node, frozen=True):
    """Where one input tensor comes from: a stream, another model's output, or a constant.

    An audio window is the last `window` of the stream at the step's time; with a log-mel or MFCC front end it is
    counted in frames of the front end. A video window is `window = "N frames"`, `spacing` apart, the last one being
    the newest picture captured at or before the step's time.
    """

    stream: str | None = None
    streams: list[str] = []
    """Several cameras instead of one stream: their pictures lie side by side on the tensor's first axis, the batch."""
    source: str | None = msgspec.field(default=None, name="from")
    """"model.output" of a model that stands earlier in the recipe."""
    value: float | int | list[float | int] | None = None
    """A constant, for inputs like a sample rate."""
    window: Duration | None = None
    spacing: Duration | None = None
    missing: Literal["repeat", "zeros", "skip"] = "repeat"
    """When a picture of the window is missing: repeat the nearest earlier one (or the first), zeros, or skip."""
    time_axis: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Where the time axis stands in the tensor, batch not counted: 1 makes [frames, mels] into [mels, frames]."""
    log_mel: LogMelOptions | None = None
    mfcc: MfccOptions | None = None
    spectrum: SpectrumOptions | None = None
    image: ImageOptions | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The streams that it reads."""
        return (self.stream,) if self.stream is not None else tuple(self.streams)

    in_graph: bool = False
    """True: the build moves the log-mel or MFCC front end into the graph, which then takes sound."""


class State(_Node, frozen=True):
    """One state pair: the output that is fed back as the input of the next step."""

    input: str
    output: str


class Softmax(_Node, frozen=True, tag_field="decode", tag="softmax"):
    """Logits to the best label and its probability."""

    labels: list[str] = []


class Argmax(_Node, frozen=True, tag_field="decode", tag="argmax"):
    """Scores that are probabilities already: the best label and its score."""

    labels: list[str] = []


class Sigmoid(_Node, frozen=True, tag_field="decode", tag="sigmoid"):
    """One logit to a probability, and whether it reaches `threshold`."""

    threshold: float = 0.5


class Threshold(_Node, frozen=True, tag_field="decode", tag="threshold"):
    """One score, and whether it reaches `threshold`."""

    threshold: float = 0.5


class Embedding(_Node, frozen=True, tag_field="decode", tag="embedding"):
    """A vector, scaled to unit length."""


class Raw(_Node, frozen=True, tag_field="decode", tag="raw"):
    """The numbers as they are."""


Output = Softmax | Argmax | Sigmoid | Threshold | Embedding | Raw


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_GATE = re.compile(r"\s*([\w-]+)\.([\w./:-]+?)\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*")


class Gate(_Value):
    """A condition on another model's decoded score, written `when = "vad.speech > 0.5"`."""

    def __init__(self, model: str, output: str, compare: Compare, value: float) -> None:
        self.model = model
        self.output = output
        self.compare = compare
        self.value = value

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read "model.output > number"; raises ValueError."""
        match = _GATE.fullmatch(text)
        if match is None:
            raise ValueError(f'expected a condition like "vad.speech > 0.5", found "{text}"')
        return cls(match[1], match[2], cast(Compare, match[3]), float(match[4]))

    def holds(self, score: float) -> bool:
        """True if `score` meets the condition."""
        return {
            ">": score > self.value,
            ">=": score >= self.value,
            "<": score < self.value,
            "<=": score <= self.value,
        }[self.compare]

    def __str__(self) -> str:
        return f"{self.model}.{self.output} {self.compare} {self.value:g}"


class TensorRT(_Node, frozen=True):
    """How TensorRT compiles the plans. Names are TensorRT's own; precision is not here: it is in the graph."""

    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    """0 builds fastest, 5 searches longest; TensorRT's default is 3."""
    memory_pools_mb: dict[str, PositiveInt] = {}
    """Limits by pool, e.g. { WORKSPACE = 512 }."""
    tactic_sources: list[str] | None = None
    dla_core: Annotated[int, msgspec.Meta(ge=0)] | None = None
    dla_strict: bool = False
    """True: a layer that the DLA cannot run is an error; otherwise it runs on the GPU, and the build says which."""
    sparsity: bool = False
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    strip_weights: bool = False
    refit: bool = False
    plugins: bool = True
    """True: edgemm's kernels run edgemm's operators in the graph; False: the ONNX operators in their bodies do."""
    ahead_of_time: bool = False
    """True: attention becomes an ahead-of-time plugin, whose kernel is in the plan, where the version has them."""
    half: bool = False
    """True: what of an int8, fp8 or int4 graph is neither runs in fp16 on TensorRT, not in fp32."""
    fuse_attention: bool = False
    """True: attention in fp16 that the graph spells out is fused into one operator, and so run by edgemm's kernel."""


class Degrade(_Node, frozen=True):
    """What a model makes do with when the engine is too slow for what the recipe asks."""

    every: PositiveInt = 1
    """Make every n-th step only."""
    precision: Annotated[str, msgspec.Meta(pattern="^(fp32|fp16|int8|int4|fp8)$")] | None = None
    """Another precision that the bundle holds."""
    model: str | None = None
    """A smaller model of the recipe, without a hop of its own, with the same inputs and outputs."""

    def __str__(self) -> str:
        rate = [f"every {self.every}"] if self.every > 1 else []
        return ", ".join([*rate, *(what for what in (self.model, self.precision) if what is not None)])


class Model(_Node, frozen=True):
    """One ONNX model in the stream."""

    file: str
    """Path of the ONNX file, relative to the recipe."""
    hop: Duration | None = None
    """Time from one step to the next, or pictures ("1 frames": a step with each picture). None: the model is
    not streamed (it can be built and profiled)."""
    inputs: dict[str, Input] = {}
    state: list[State] = []
    outputs: dict[str, Output] = {}
    """Outputs that appear in the results; all outputs but the state, raw, if empty."""
    when: Gate | None = None
    hold: Duration | None = None
    """How long the gate stays open after its condition last held."""
    dims: dict[str, int | list[int]] = {}
    """Values of symbolic dimensions: a number, or [min, opt, max] for an optimization profile (more threes, more)."""
    precision: Precision | None = None
    """Overrides the recipe's precision for this model."""
    keep_float: list[str] = []
    """Names of nodes that are never quantized or converted to fp16."""
    priority: int = 0
    deadline: Duration | None = None
    """Overrides the schedule's for this model."""
    degrade: list[Degrade] = []
    """Modes for when the engine is too slow, the first to be taken first."""
    tensorrt: TensorRT | None = None
    """What differs from the recipe's own [tensorrt] for this model; once read, with the rest filled in from there."""

    @property
    def states(self) -> tuple[StatePair, ...]:
        """The state pairs as edgemm's own type."""
        return tuple(StatePair(pair.input, pair.output) for pair in self.state)


class Sync(_Node, frozen=True):
    """How far apart the audio and the video of one result may have been captured."""

    tolerance: Duration = Duration(Fraction(40), "ms")
    """About one picture at 25 per second, and within the 45 ms lead that ITU-R BT.1359 calls detectable."""


class Schedule(_Node, frozen=True):
    """What to do when steps come faster than the engine makes them."""

    policy: Literal["latest", "every", "deadline"] = "latest"
    """latest: skip to the newest step; every: make each one, late if need be; deadline: skip those already too old."""
    deadline: Duration = Duration(Fraction(200), "ms")


class Accuracy(_Node, frozen=True):
    """What quantization may cost."""

    max_drop: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    """Largest loss, on the metric's own scale from 0 to 1."""
    metric: Literal["agreement", "cosine"] = "agreement"
    """agreement: share of calibration samples with the same decision as float; cosine: similarity of the outputs."""


class Calibration(_Node, frozen=True):
    """Where calibration data comes from, relative to the recipe."""

    source: str | None = None
    """A folder of .npz samples, one .npz, or a recording which is run through the front ends."""
    observer: Literal["min-max", "percentile", "entropy", "mse"] = "entropy"


class Recipe(_Node, frozen=True):
    """A whole recipe; `load` reads one from a file."""

    edgemm: int
    name: str
    models: dict[str, Model]
    """In the order in which they run when several are due at the same time."""
    description: str = ""
    streams: dict[str, Stream] = {}
    sync: Sync = Sync()
    schedule: Schedule = Schedule()
    precision: Precision = "auto"
    accuracy: Accuracy = Accuracy()
    calibration: Calibration = Calibration()
    tensorrt: TensorRT = TensorRT()

    def precision_of(self, model: str) -> Precision:
        """The precision wanted for one model."""
        return self.models[model].precision or self.precision

    def tensorrt_of(self, model: str) -> TensorRT:
        """How TensorRT compiles one model."""
        return self.models[model].tensorrt or self.tensorrt

    def to_json(self) -> bytes:
        """The recipe as JSON, what the bundle stores: the same text for the same recipe, models in their order."""
        return msgspec.json.format(msgspec.json.encode(self, enc_hook=_encode), indent=1)


def load(path: Path) -> Recipe:
    """Read and check the recipe at `path`. Raises RecipeError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a recipe: expected TOML in UTF-8, found other bytes.") from error
    return parse(text, str(path))


def parse(text: str, file: str = "recipe") -> Recipe:
    """Read and check a recipe from TOML text; `file` is the name used in errors. Raises RecipeError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file}: not valid TOML: {error}.") from error
    return _decode(raw, file, text)


def from_json(data: bytes, file: str = "recipe") -> Recipe:
    """Read and check a recipe that `Recipe.to_json` wrote. Raises RecipeError."""
    try:
        raw = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise RecipeError(f"{file}: not a recipe: {error}.") from error
    return _decode(raw, file, "")


def _decode(raw: Any, file: str, text: str) -> Recipe:
    where = _Where(file, text)
    version = raw.get("edgemm") if isinstance(raw, dict) else None
    if version != SCHEMA:
        raise where.error(
            ("edgemm",),
            f"expected the recipe's schema version, edgemm = {SCHEMA}, found {version!r}"
            + (". This recipe needs a newer edgemm" if isinstance(version, int) and version > SCHEMA else ""),
        )
    for path, table, options in _option_tables(raw):
        known = {field.name for field in dataclasses.fields(options)}
        for key in table:
            if key not in known:
                raise where.error((*path, key), f"unknown key, expected one of: {', '.join(sorted(known))}")
    try:
        recipe = msgspec.convert(raw, Recipe, dec_hook=_convert)
        if any(model.tensorrt for model in recipe.models.values()):
            recipe = msgspec.convert(_with_defaults(raw), Recipe, dec_hook=_convert)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        keys = _spell_out(raw, str(error), [k for k in re.split(r"[.\[\]`]+", place.replace("[...]", ".*")) if k])
        unknown = re.search(r"unknown field `([^`]+)`", message)
        if unknown:
            keys = (*keys, unknown[1])
            message = "Unknown key (misspelt, or in the wrong table?)"
        raise where.error(keys, message[0].lower() + message[1:].replace("`", "")) from error
    for path, problem in _problems(recipe):
        raise where.error(path, problem)
    return recipe


def _with_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a recipe, each model's [tensorrt] completed from the recipe's."""
    common = raw.get("tensorrt", {})
    models = {
        name: {**model, "tensorrt": {**common, **model["tensorrt"]}} if "tensorrt" in model else model
        for name, model in raw["models"].items()
    }
    return {**raw, "models": models}


def _spell_out(raw: Any, message: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Replace each "*" of msgspec's path (it does not name the keys of free tables) by the key at fault.

    The key at fault is the one with which alone, its neighbours removed, the same message comes again.
    """
    path: tuple[str, ...] = ()
    for key in keys:
        if key != "*":
            path = (*path, key)
            continue
        for candidate in _at(raw, path):
            alone = copy.deepcopy(raw)
            table = _at(alone, path)
            for other in [k for k in table if k != candidate]:
                del table[other]
            try:
                msgspec.convert(alone, Recipe, dec_hook=_convert)
            except msgspec.ValidationError as error:
                if str(error) == message:
                    path = (*path, candidate)
                    break
    return path


def _at(raw: Any, path: Sequence[str]) -> Any:
    for key in path:
        raw = raw[int(key)] if isinstance(raw, list) else raw[key]
    return raw


def _convert(kind: type, value: Any) -> Any:
    if kind is Duration or kind is Gate:
        if not isinstance(value, str):
            raise ValueError(f"expected text, found {value!r}")
        return Duration.parse(value) if kind is Duration else Gate.parse(value)
    raise NotImplementedError(f"no conversion to {kind}")  # msgspec's own protocol for unknown types


def _encode(value: Any) -> Any:
    if isinstance(value, Duration | Gate):
        return str(value)
    raise NotImplementedError(f"no encoding of {type(value)}")


def _option_tables(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], Any]]:
    """Every front-end table with its dataclass: msgspec does not refuse unknown keys of dataclasses."""
    kinds = {"log_mel": LogMelOptions, "mfcc": MfccOptions, "spectrum": SpectrumOptions, "image": ImageOptions}
    models = raw.get("models")
    for model, table in models.items() if isinstance(models, dict) else ():
        inputs = table.get("inputs") if isinstance(table, dict) else None
        for name, entry in inputs.items() if isinstance(inputs, dict) else ():
            for kind, options in kinds.items():
                front_end = entry.get(kind) if isinstance(entry, dict) else None
                if not isinstance(front_end, dict):
                    continue
                path = ("models", model, "inputs", name, kind)
                yield path, front_end, options
                if kind == "mfcc" and isinstance(front_end.get("log_mel"), dict):
                    yield (*path, "log_mel"), front_end["log_mel"], LogMelOptions


Problem = tuple[tuple[str, ...], str]


def _problems(recipe: Recipe) -> Iterator[Problem]:
    """What the types alone cannot say; each problem with the path of its key."""
    if not recipe.models:
        yield ("models",), "expected at least one model, found none"
    seen: list[str] = []
    for name, model in recipe.models.items():
        path = ("models", name)
        if not _NAME.fullmatch(name):
            yield path, f'expected a name of letters, digits, "_" and "-", found "{name}"'
        for input_name, entry in model.inputs.items():
            yield from _input_problems(recipe, model, entry, seen, (*path, "inputs", input_name))
        if model.when is not None:
            gate = model.when
            if gate.model not in seen:
                yield (
                    (*path, "when"),
                    f'"{gate}" names the model "{gate.model}", expected one that stands before '
                    f'"{name}": {_names(seen)}',
                )
            else:
                outputs = recipe.models[gate.model].outputs
                if gate.output not in outputs:
                    yield (
                        (*path, "when"),
                        f'"{gate}" names the output "{gate.output}", expected one of: {_names(outputs)}',
                    )
        if model.hold is not None and model.when is None:
            yield (*path, "hold"), "a hold time without a gate: add when, or remove hold"
        streamed = [e for e in model.inputs.values() if e.reads]
        if streamed and model.hop is None:
            yield path, 'an input comes from a stream but hop is missing: say how often to step, e.g. hop = "100 ms"'
        if model.hop is not None and model.hop.unit == "frames":
            sounds = [e.stream for e in streamed if isinstance(recipe.streams.get(e.stream or ""), AudioStream)]
            if model.hop.value.denominator != 1:
                yield (*path, "hop"), f'expected a whole number of pictures, found "{model.hop}"'
            elif sounds or not streamed:
                yield (
                    (*path, "hop"),
                    f'"{model.hop}" counts pictures, for a model that reads cameras only: expected a time or samples',
                )
        if model.hop is not None and model.hop.unit == "samples" and _rate(recipe, model) is None:
            yield (*path, "hop"), f'"{model.hop}" needs exactly one audio stream among the inputs, to know its rate'
        yield from _degrade_problems(recipe, model, path)
        for key, value in model.dims.items():
            sizes = value if isinstance(value, list) else [value]
            triples = [sizes[i : i + 3] for i in range(0, len(sizes), 3)]
            whole = isinstance(value, int) or (sizes and len(sizes) % 3 == 0)
            if not whole or min(sizes) < 1 or any(triple != sorted(triple) for triple in triples):
                yield (*path, "dims", key), f"expected a positive number or [min, opt, max], found {value}"
        seen.append(name)


def _degrade_problems(recipe: Recipe, model: Model, path: tuple[str, ...]) -> Iterator[Problem]:
    if model.degrade and model.hop is None:
        yield (*path, "degrade"), "degraded modes are for a model that steps by itself: this one has no hop"
    for mode in model.degrade:
        if not str(mode):
            yield (*path, "degrade"), "expected every, precision or model in each mode, e.g. { every = 2 }"
        if mode.model is None:
            continue
        other = recipe.models.get(mode.model)
        if other is None:
            yield (*path, "degrade"), f'no model "{mode.model}", expected one of: {_names(recipe.models)}'
        elif other.hop is not None or other.inputs:
            yield (
                (*path, "degrade"),
                f'"{mode.model}" takes over the inputs of another model: expected one without hop and inputs',
            )


def _input_problems(
    recipe: Recipe, model: Model, entry: Input, seen: Sequence[str], path: tuple[str, ...]
) -> Iterator[Problem]:
    found = {"stream": entry.stream, "streams": entry.streams or None, "from": entry.source, "value": entry.value}
    origins = [key for key, value in found.items() if value is not None]
    if len(origins) != 1:
        yield path, f"expected one of stream, streams, from or value, found {' and '.join(origins) or 'none'}"
        return
    if entry.in_graph and entry.log_mel is None and entry.mfcc is None:
        yield (*path, "in_graph"), "only a log_mel or mfcc front end can move into the graph, and there is none"
    if entry.source is not None:
        source, _, output = entry.source.partition(".")
        if source not in seen:
            yield (*path, "from"), f'"{entry.source}": expected a model that stands earlier: {_names(seen)}'
        elif not output:
            yield (*path, "from"), f'expected "model.output", found "{entry.source}"'
    if not entry.reads:
        for key in ("window", "spacing", "log_mel", "mfcc", "spectrum", "image"):
            if getattr(entry, key) is not None:
                yield (*path, key), f"{key} belongs to an input with a stream"
        return
    for name in entry.reads:
        if name not in recipe.streams:
            yield (*path, origins[0]), f'no stream "{name}", expected one of: {_names(recipe.streams)}'
            return
    if entry.streams:
        sounds = [name for name in entry.streams if isinstance(recipe.streams[name], AudioStream)]
        if sounds:
            yield (*path, "streams"), f'"{sounds[0]}" is sound, expected cameras: they alone can be a batch'
        if len(set(entry.streams)) != len(entry.streams):
            yield (*path, "streams"), "a camera is named twice"
        counts = {len(other.streams) for other in model.inputs.values() if other.streams}
        if len(counts) > 1:
            yield (*path, "streams"), "the inputs of one model have batches of different sizes"
    stream = recipe.streams[entry.reads[0]]
    if isinstance(stream, AudioStream):
        yield from _audio_problems(stream, entry, path)
    else:
        yield from _video_problems(entry, path)


def _audio_problems(stream: AudioStream, entry: Input, path: tuple[str, ...]) -> Iterator[Problem]:
    for key in ("image", "spacing"):
        if getattr(entry, key) is not None:
            yield (*path, key), f"{key} belongs to a video stream, found an audio stream"
    front_ends = [key for key in ("log_mel", "mfcc", "spectrum") if getattr(entry, key) is not None]
    if len(front_ends) > 1:
        yield path, f"expected one front end, found {' and '.join(front_ends)}"
    if entry.window is None:
        yield path, 'window is missing: say how much sound a step sees, e.g. window = "1 s"'
        return
    options = entry.log_mel or entry.spectrum or (entry.mfcc.log_mel if entry.mfcc else None)
    if options is None:
        if entry.window.unit == "frames":
            yield (*path, "window"), "frames need a log_mel, mfcc or spectrum front end: expected a time or samples"
            return
        try:
            entry.window.samples(stream.rate_hz)
        except ValueError as error:
            yield (*path, "window"), str(error)
        return
    if options.rate_hz != stream.rate_hz:
        yield path, f"the front end expects {options.rate_hz} Hz, the stream has {stream.rate_hz} Hz"
    try:
        window_frames(entry.window, options)
    except ValueError as error:
        yield (*path, "window"), str(error)


def _video_problems(entry: Input, path: tuple[str, ...]) -> Iterator[Problem]:
    for key in ("log_mel", "mfcc", "spectrum"):
        if getattr(entry, key) is not None:
            yield (*path, key), f"{key} belongs to an audio stream, found a video stream"
    if entry.image is None:
        yield path, "image is missing: say which size the model wants, e.g. image = { width = 224, height = 224 }"
    if entry.window is not None and (entry.window.unit != "frames" or entry.window.value.denominator != 1):
        yield (*path, "window"), f'expected a number of pictures like "8 frames", found "{entry.window}"'
    if entry.spacing is not None and entry.spacing.unit in ("samples", "frames"):
        yield (*path, "spacing"), f'expected a time like "40 ms", found "{entry.spacing}"'
    if entry.window is not None and entry.window.value > 1 and entry.spacing is None:
        yield path, 'spacing is missing: say how far apart the pictures are, e.g. spacing = "40 ms"'


def window_frames(window: Duration, options: LogMelOptions | SpectrumOptions) -> int:
    """Front-end frames in `window`: as many hops as fit, which must be a whole number. Raises ValueError."""
    frames = window.value if window.unit == "frames" else Fraction(window.samples(options.rate_hz), options.hop_samples)
    if frames.denominator != 1:
        raise ValueError(
            f'"{window}" is {float(frames):g} frames of {options.hop_samples} samples: expected a whole number'
        )
    return int(frames)


def _rate(recipe: Recipe, model: Model) -> int | None:
    """The rate of the model's one audio stream, if it has exactly one."""
    rates = {
        stream.rate_hz
        for entry in model.inputs.values()
        if entry.stream and isinstance(stream := recipe.streams.get(entry.stream), AudioStream)
    }
    return rates.pop() if len(rates) == 1 else None


def streamed(recipe: Recipe) -> list[str]:
    """The models that a run steps: those that read a stream, and those that take the outputs of such."""
    names: list[str] = []
    for name, model in recipe.models.items():
        reads = any(entry.reads for entry in model.inputs.values())
        takes = any(entry.source is not None for entry in model.inputs.values())
        if (reads and model.hop is not None) or (takes and not reads):
            names.append(name)
    return names


def hop_pictures(model: Model) -> int:
    """How many pictures lie between two steps; 0 if the hop is a time."""
    return int(model.hop.value) if model.hop is not None and model.hop.unit == "frames" else 0


def hop_ns(recipe: Recipe, name: str) -> Fraction:
    """Exact time in ns between two steps of the model `name`. Raises RecipeError if it is not streamed."""
    model = recipe.models[name]
    if model.hop is None:
        raise RecipeError(f'The model "{name}" has no hop: it can be profiled, but not run on a stream.')
    if model.hop.unit == "samples":
        rate = _rate(recipe, model)
        if rate is None:
            raise RecipeError(f'The hop "{model.hop}" of "{name}" needs one audio stream among its inputs.')
        return model.hop.value * 10**9 / rate
    return Fraction(model.hop.ns())


def check_tensors(
    name: str, model: Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], file: str = "recipe"
) -> None:
    """Hold one model of a recipe against the tensors of its graph. Raises RecipeError naming the tensor."""

    def fail(key: str, tensor: str, specs: Sequence[TensorSpec], what: str) -> RecipeError:
        return RecipeError(
            f'{file}: models.{name}.{key}: "{model.file}" has no {what} "{tensor}", '
            f"expected one of: {_names([s.name for s in specs])}."
        )

    input_names = {s.name for s in inputs}
    output_names = {s.name for s in outputs}
    for tensor in model.inputs:
        if tensor not in input_names:
            raise fail(f"inputs.{tensor}", tensor, inputs, "input")
    for tensor in model.outputs:
        if tensor not in output_names:
            raise fail(f"outputs.{tensor}", tensor, outputs, "output")
    for pair in model.state:
        if pair.input not in input_names:
            raise fail("state", pair.input, inputs, "input")
        if pair.output not in output_names:
            raise fail("state", pair.output, outputs, "output")
    fed = set(model.inputs) | {pair.input for pair in model.state}
    missing = [s for s in inputs if s.name not in fed]
    if missing and model.hop is not None:
        raise RecipeError(
            f'{file}: models.{name}.inputs: the input "{missing[0]}" of "{model.file}" has no source. '
            f"Add a table [models.{name}.inputs.{missing[0].name}], or a state pair."
        )


def _names(names: Any) -> str:
    return ", ".join(f'"{n}"' for n in names) or "(there is none)"


class _Where:
    """Turns the path of a key into "file:line: key"."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()

    def error(self, path: Sequence[str], problem: str) -> RecipeError:
        line = self._line(path)
        place = f"{self.file}:{line}" if line else self.file
        key = ".".join(path)
        return RecipeError(f"{place}: {key + ': ' if key else ''}{problem}.")

    def _line(self, path: Sequence[str]) -> int | None:
        """The line that defines the longest prefix of `path` which the text spells out."""
        best: tuple[int, int] | None = None
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.lines, 1):
            header = re.fullmatch(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?", line)
            key = re.match(r'\s*((?:[\w-]+|"[^"]*")(?:\s*\.\s*(?:[\w-]+|"[^"]*"))*)\s*=', line)
            if header:
                table = _split_key(header[1])
                here = table
            elif key:
                here = (*table, *_split_key(key[1]))
            else:
                continue
            names = tuple(p for p in path if not p.isdigit())
            depth = len(here) if here == names[: len(here)] else 0
            if depth and (best is None or depth > best[0]):
                best = (depth, number)
        return best[1] if best else None


def _split_key(text: str) -> tuple[str, ...]:
    return tuple(part.strip('"') for part in re.findall(r'"[^"]*"|[\w-]+', text))
