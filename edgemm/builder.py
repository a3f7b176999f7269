"""Path 1: an ONNX model or a recipe becomes a bundle.

    read -> load -> check -> prepare -> calibrate -> quantize -> compare -> choose -> write

`build` reads from top to bottom in that order. Nothing is written before all of it went well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np

from edgemm import bundle as bundles
from edgemm import recipe as recipes
from edgemm.bundle import ModelEntry, Variant
from edgemm.calibration_data import CalibrationSource, Data, split
from edgemm.engine import targets
from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.engine.targets import Target
from edgemm.engine.tensorrt.prepared import Prepared, prepare
from edgemm.errors import CalibrationError, ModelError, RecipeError, UsageError
from edgemm.graph import Model, Report, check, load
from edgemm.graph.ops import operators_of
from edgemm.graph.passes import (
    FixDims,
    FixInputs,
    FoldConstants,
    FuseAttention,
    InferShapes,
    NameDims,
    Pass,
    PassResult,
    PutInFrontEnd,
    RemoveDead,
    TakeBranches,
    ToHalf,
)
from edgemm.graph.passes import run as run_passes
from edgemm.graph.passes.front_end import samples_for
from edgemm.kernels.log_mel_cuda import features_reference
from edgemm.options import LogMelOptions
from edgemm.quant import (
    Agreement,
    Candidate,
    Decision,
    LayerSensitivity,
    QuantizedModel,
    Ranges,
    Reference,
    Sample,
    calibrate,
    choose,
    insert_qdq,
    load_ranges,
    search,
    sensitivity,
    zero_states,
)
from edgemm.quant.narrow import to_fp8, to_int4
from edgemm.recipe import Argmax, Output, Precision, Recipe, Sigmoid, Softmax, Threshold
from edgemm.types import Array, Tensors

_WARM_UP_RUNS = 10
_TIMED_RUNS = 300
_TIMING_SECONDS = 4.0
"""A model so slow that the runs take longer is timed for this long."""

FRONT_END_TOLERANCE = 2e-3
"""What an output may change when the front end moves into the graph: float32 features for those of float64."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class VariantReport:
    """One precision of one model, as it was measured."""

    precision: str
    bytes: int = 0
    agreement: float | None = None
    """With float, by the recipe's metric, 0 to 1; None where there was no data to compare on."""
    sqnr_db: float | None = None
    milliseconds: float | None = None
    """One inference on onnxruntime, one thread, here: the median. None where it was not measured."""
    int8_share: float | None = None
    """Share of the multiply-accumulates that are int8."""
    left_in_float: Mapping[str, str] = field(default_factory=dict)
    """Nodes that multiply and are not int8, with the reason."""


@dataclass(frozen=True)
class ModelReport:
    """What the build did with one model."""

    name: str
    opset: int
    nodes: int
    precision: str
    reason: str
    variants: Sequence[VariantReport]
    calibration: str
    """Where the ranges came from, in words."""
    notes: Sequence[str]


@dataclass(frozen=True)
class BuildReport:
    """What a build did, and what it measured."""

    path: str
    sha256: str
    bytes: int
    target: str
    seconds: float
    models: Sequence[ModelReport]
    plans: Sequence[str] = ()
    """What was compiled for the target, or when it will be, in sentences."""

    def to_json(self) -> str:
        """The report as JSON."""
        return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1).decode() + "\n"


@dataclass(frozen=True)
class Settings:
    """What the caller asked for; None leaves it to the recipe."""

    precision: Precision | None = None
    observer: str | None = None
    max_drop: float | None = None
    ranges: Path | None = None
    target: str = "cpu"


def build(
    source: str | Path,
    output: str | Path,
    *,
    precision: Precision | None = None,
    calibration: Data | None = None,
    observer: str | None = None,
    max_drop: float | None = None,
    ranges: str | Path | None = None,
    export_ranges: str | Path | None = None,
    target: str = "cpu",
    dla: tuple[int, bool] | None = None,
    workspace_mb: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the bundle `output` from an ONNX model or a recipe, and say what was done and measured.

    `precision` overrides the recipe's ("auto" if there is none): fp32, fp16 and int4 need no data; int8, fp8 and auto
    need `calibration` or `ranges` (the JSON of an earlier `export_ranges`). `dla` is a DLA core, and whether a layer
    that it cannot run is an error; it and `workspace_mb` go before what the recipe says under [tensorrt]. Raises
    UsageError or RecipeError for a wrong call, ModelError, CalibrationError, EngineError or BundleError if the work
    fails; then nothing is written.
    """
    began = time.perf_counter()
    tell = progress or (lambda message: None)
    source, output = Path(source), Path(output)
    device = None if target == "cpu" else targets.get(target)
    settings = Settings(precision, observer, max_drop, Path(ranges) if ranges else None, target)
    recipe = _with_tensorrt(_read(source), dla, workspace_mb)
    for name in recipe.models:
        _refuse_precision(name, precision or recipe.precision_of(name), device)
    shipped = recipe
    models: dict[str, ModelEntry] = {}
    reports: list[ModelReport] = []
    files: dict[str, bytes | Path] = {}
    with tempfile.TemporaryDirectory(prefix="edgemm-build-") as scratch:
        floats = {name: _load(recipe, name, source, device, tell) for name in recipe.models}
        graphs = {name: loaded.model for name, loaded in floats.items()}
        given = calibration
        if given is None and recipe.calibration.source is not None:
            given = source.parent / recipe.calibration.source
        data = CalibrationSource(given, recipe, graphs, lambda clip: _record(recipe, graphs, clip, Path(scratch), tell))
        for name, loaded in floats.items():
            work = _ModelBuild(recipe, name, loaded, settings, data, Path(scratch), tell)
            models[name], report = work.run(files)
            shipped = _with_inputs(shipped, name, work.inputs)
            reports.append(report)
            if export_ranges is not None:
                _export_ranges(Path(export_ranges), work.ranges, name, len(floats))
        made = Prepared() if device is None else prepare(shipped, models, files, device, tell)
        tell(f"writing {output}")
        written = bundles.write(
            output,
            recipe=shipped,
            models=models,
            files=files,
            target=target,
            plans=made.plans,
            kernels=made.kernels,
        )
    seconds = time.perf_counter() - began
    return BuildReport(str(output), written.digest, output.stat().st_size, target, seconds, reports, made.said)


# read


def _read(source: Path) -> Recipe:
    """The recipe, or for a bare ONNX file one that names it and nothing else."""
    if source.suffix == ".toml":
        return recipes.load(source)
    if bundles.is_bundle(source):
        raise UsageError(f"{source} is a bundle already. Build from the recipe or the ONNX model that it was made of.")
    name = "".join(c if c.isalnum() or c in "_-" else "-" for c in source.stem).strip("-") or "model"
    return Recipe(edgemm=recipes.SCHEMA, name=name, models={name: recipes.Model(file=source.name)})


def _with_tensorrt(recipe: Recipe, dla: tuple[int, bool] | None, workspace_mb: int | None) -> Recipe:
    """The recipe with the caller's settings of TensorRT for every model; the bundle keeps them, for the device."""

    def changed(wanted: recipes.TensorRT) -> recipes.TensorRT:
        if dla is not None:
            wanted = msgspec.structs.replace(wanted, dla_core=dla[0], dla_strict=dla[1])
        if workspace_mb is not None:
            pools = {**wanted.memory_pools_mb, "WORKSPACE": workspace_mb}
            wanted = msgspec.structs.replace(wanted, memory_pools_mb=pools)
        return wanted

    models = {
        name: model if model.tensorrt is None else msgspec.structs.replace(model, tensorrt=changed(model.tensorrt))
        for name, model in recipe.models.items()
    }
    return msgspec.structs.replace(recipe, models=models, tensorrt=changed(recipe.tensorrt))


def _with_inputs(recipe: Recipe, name: str, inputs: Mapping[str, recipes.Input]) -> Recipe:
    """The recipe with other inputs of one model: what feeds a graph that holds its front end."""
    model = recipe.models[name]
    changed = msgspec.structs.replace(model, inputs={**model.inputs, **inputs})
    return msgspec.structs.replace(recipe, models={**recipe.models, name: changed})


def _refuse_precision(name: str, precision: str, device: Target | None) -> None:
    """Raise UsageError if the device has no arithmetic for the precision."""
    reason = targets.refusal(device, precision) if device is not None else None
    if reason is not None:
        raise UsageError(f'"{name}" cannot be built in {precision}: {reason}')


# load, check, prepare


@dataclass(frozen=True)
class _Loaded:
    model: Model
    notes: tuple[str, ...]
    opset: int


def check_recipe(source: str | Path, engine: str) -> dict[str, Report]:
    """What of each model of a recipe will not work on an engine, by the model's name.

    "onnxruntime" is held against the files as they are, TensorRT against the graphs that the build would compile: with
    the recipe's dims, its constant inputs, and what follows from them folded. Raises RecipeError or ModelError.
    """
    source = Path(source)
    recipe = _read(source)
    reports = {}
    for name in recipe.models:
        model = _read_model(recipe, name, source)
        if engine != "onnxruntime":
            model = _prepare(recipe, name, source, model).model
        reports[name] = check(model, engine)
    return reports


def _load(recipe: Recipe, name: str, source: Path, device: Target | None, tell: Progress) -> _Loaded:
    path = source.parent / recipe.models[name].file
    tell(f"{name}: loading {path.name}")
    model = _read_model(recipe, name, source)
    tell(f"{name}: checking")
    _refuse(path, check(model, "onnxruntime"))
    prepared = _prepare(recipe, name, source, model)
    if device is not None and device.release is not None:
        # After folding: what constants and static shapes take out of the graph is nobody's problem.
        engine = "tensorrt-rtx" if device.family == "rtx" else "tensorrt"
        _refuse(path, check(prepared.model, engine), f" on {device.title}")
    return _Loaded(prepared.model, prepared.notes, model.opset)


def _read_model(recipe: Recipe, name: str, source: Path) -> Model:
    """The model as it is in its file, held against the recipe."""
    wanted = recipe.models[name]
    model = load(source.parent / wanted.file)
    recipes.check_tensors(name, wanted, model.inputs, model.outputs, source.name)
    return model


def _prepare(recipe: Recipe, name: str, source: Path, model: Model) -> PassResult:
    """The model with what the recipe fixes, and what follows from it, taken out of the graph."""
    wanted = recipe.models[name]
    fixed = run_passes(model, [NameDims(), FixInputs(_fixed_inputs(wanted, model)), TakeBranches()])
    model = fixed.model
    sizes = {dim: size for dim, size in wanted.dims.items() if isinstance(size, int)}
    known = {d for spec in model.inputs for d in spec.shape if isinstance(d, str)}
    unknown = set(wanted.dims) - known
    if unknown:
        raise RecipeError(
            f'{source.name}: models.{name}.dims: no input has the dimension "{sorted(unknown)[0]}", there are: '
            f"{', '.join(sorted(known)) or '(none)'}."
        )
    steps: list[Pass] = [FixDims(sizes)] if sizes else []
    steps += [InferShapes(), FoldConstants(), RemoveDead(), InferShapes()]
    prepared = run_passes(model, steps)
    return PassResult(prepared.model, True, (*fixed.notes, *prepared.notes))


def _fixed_inputs(wanted: recipes.Model, model: Model) -> dict[str, Array]:
    """The inputs to which the recipe gives a value, with that value, where it fits as it is or in every element."""
    found: dict[str, Array] = {}
    for spec in model.inputs:
        entry = wanted.inputs.get(spec.name)
        if entry is None or entry.value is None:
            continue
        value = np.asarray(entry.value, spec.dtype)
        if not value.ndim and spec.is_static:
            value = np.full([int(size or 0) for size in spec.shape], value)
        if spec.accepts(value):
            found[spec.name] = value
    return found


def _refuse(path: Path, report: Report, where: str = "") -> None:
    """Raise ModelError with the first of a report's errors, if it has any."""
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        worst = errors[0]
        place = f' at "{worst.node}"' if worst.node else ""
        more = f" ({len(errors) - 1} more: edgemm check {path} --engine {report.engine})" if len(errors) > 1 else ""
        raise ModelError(f"{path} cannot run{where}{place}: {worst.reason} {worst.remedy}{more}")


# calibrate


def _record(
    recipe: Recipe, graphs: Mapping[str, Model], clip: Path, scratch: Path, tell: Progress
) -> dict[str, list[Tensors]]:
    """Run a recording through the recipe in float and keep what each model was fed."""
    if not recipe.streams:
        raise CalibrationError(
            f"{clip} is a recording, and without a recipe nothing says which tensor is sound and which is picture. "
            "Write one: edgemm recipe MODEL.onnx -o recipe.toml"
        )
    tell(f"running {clip.name} through the front ends")
    files: dict[str, bytes | Path] = {}
    entries = {}
    for name, model in graphs.items():
        variant = _store(files, name, "fp32", model, scratch)
        entries[name] = _entry(recipe, name, model, {"fp32": variant}, "fp32", "for calibration")
    path = scratch / "calibration.edgemm"
    bundles.write(path, recipe=recipe, models=entries, files=files)
    feeds: dict[str, list[Tensors]] = {name: [] for name in graphs}

    def keep(model: str, fed: Tensors) -> None:
        feeds[model].append({key: np.array(value) for key, value in fed.items()})

    from edgemm import runner

    runner.run(path, input=clip, clock="virtual", engine="onnxruntime", on_feeds=keep)
    return feeds


def _export_ranges(path: Path, ranges: Ranges | None, name: str, models: int) -> None:
    if ranges is None:
        raise UsageError(f'There are no ranges of "{name}" to export: it was built without calibration.')
    (path if models == 1 else path.with_name(f"{path.stem}.{name}{path.suffix}")).write_text(ranges.to_json())


# quantize, compare, choose: one model


@dataclass(frozen=True)
class _Int8:
    """The int8 graph that was found, and how it compares; None where there was no data to compare on."""

    quantized: QuantizedModel
    excluded: frozenset[str]
    """Nodes left in float, by the recipe's wish or for the budget's sake."""
    sensitive: Mapping[str, str]
    """Those for the budget's sake, with the reason."""
    agreement: Agreement | None
    score: float | None


class _ModelBuild:
    """The build of one model, from its float graph to its entry in the bundle."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        loaded: _Loaded,
        settings: Settings,
        data: CalibrationSource,
        scratch: Path,
        tell: Progress,
    ) -> None:
        self._recipe = recipe
        self._name = name
        self._wanted = recipe.models[name]
        self._loaded = loaded
        self._model = loaded.model
        self._settings = settings
        self._data = data
        self._scratch = scratch
        self._tell: Progress = lambda message: tell(f"{name}: {message}")
        self._precision = settings.precision or recipe.precision_of(name)
        self._max_drop = recipe.accuracy.max_drop if settings.max_drop is None else settings.max_drop
        self._executor = OnnxRuntimeExecutor()
        self._notes = list(loaded.notes)
        self._calibration = "none"
        self.ranges: Ranges | None = None
        self.inputs: dict[str, recipes.Input] = {}
        """What the recipe must say of the inputs whose front end has moved into the graph."""

    def run(self, files: dict[str, bytes | Path]) -> tuple[ModelEntry, ModelReport]:
        """Make the variants that are wanted, add them to `files`, and choose one."""
        graphs = {"fp32": self._model}
        rows = {"fp32": VariantReport("fp32")}
        chosen, reason = "fp32", "asked for"
        forms: dict[str, Model] = {}
        if self._precision in ("fp16", "int4", "fp8"):
            chosen = self._precision
            graphs[chosen], rows[chosen] = self._converted(chosen)
        elif self._precision == "auto" and not (self._data.given or self._settings.ranges):
            reason = "no calibration data was given, so int8 was not tried: give --calibration"
        elif self._precision in ("int8", "auto"):
            samples = self._data.samples(self._name) if self._data.given else []
            calibrating, comparing, held_out = split(samples)
            self.ranges = self._ranges(calibrating)
            int8 = self._quantize(self.ranges, comparing, held_out)
            if int8 is None:
                reason = "the graph has no convolution or matrix product that can run in int8"
                if self._precision == "int8":
                    raise ModelError(f'"{self._name}" cannot be built in int8: {reason}. Use --precision fp32 or fp16.')
            else:
                quantized = int8.quantized
                graphs["int8"] = quantized.model
                rows["int8"] = VariantReport(
                    "int8",
                    agreement=int8.score,
                    sqnr_db=int8.agreement.sqnr_db if int8.agreement else None,
                    int8_share=quantized.int8_share,
                    left_in_float={**quantized.left_in_float, **int8.sensitive},
                )
                forms["int8"] = insert_qdq(self._model, self.ranges, "tensorrt", int8.excluded).model
                chosen, reason = self._choose(int8, comparing, rows)
        if self._recipe.tensorrt_of(self._name).half:
            for precision in graphs.keys() & {"int8", "fp8", "int4"}:
                halved = self._halved(precision, forms.get(precision, graphs[precision]))
                if halved is not None:
                    forms[precision] = halved
        if self._recipe.tensorrt_of(self._name).fuse_attention:
            fused = self._fuse_attention(graphs.get("fp16"))
            if fused is not None:
                forms["fp16"] = fused
        graphs, forms = self._put_in_front_ends(graphs, forms)
        return self._finish(files, graphs, rows, forms, chosen, reason)

    def _converted(self, precision: str) -> tuple[Model, VariantReport]:
        """The fp16, fp8 or int4 graph, and how it compares where there is data."""
        self._tell(f"converting to {precision}")
        calibrating, comparing, _ = split(self._data.samples(self._name)) if self._data.given else ([], [], False)
        keep = self._wanted.keep_float
        if precision == "fp16":
            result = run_passes(self._model, [ToHalf(keep), InferShapes()])
            self._notes += result.notes
            made = result.model
        elif precision == "int4":
            made = to_int4(self._model, keep)
        else:
            self.ranges = self._ranges(calibrating)
            made = to_fp8(self._model, self.ranges, keep)
        if precision != "fp16":
            self._notes.append(f"{precision} is made for TensorRT; onnxruntime runs it, too, but no faster")
        if not comparing:
            return made, VariantReport(precision)
        agreement = self._reference(comparing).compare(made)
        score = self._score(agreement)
        if score < 1 - self._max_drop:
            self._notes.append(
                f"{precision} agrees with float in {score:.4f} only, and {1 - self._max_drop:.4f} is wanted: name its "
                "most sensitive nodes in keep_float, or choose another precision"
            )
        return made, VariantReport(precision, agreement=score, sqnr_db=agreement.sqnr_db)

    def _halved(self, precision: str, graph: Model) -> Model | None:
        """The graph for TensorRT with fp16 for what it has in fp32, if the outputs stay."""
        self._tell(f"converting what {precision} leaves in fp32 to fp16")
        result = run_passes(graph, [ToHalf(self._wanted.keep_float)])
        kept, agreement = self._outputs_stay(graph, result.model)
        self._notes.append(f"half, {precision}: {agreement}")
        return result.model if kept else None

    def _outputs_stay(self, before: Model, after: Model) -> tuple[bool, str]:
        """Whether a rewrite loses no more than may be lost, and what was measured, in words."""
        if not self._data.given:
            return True, "not compared, as there is no data"
        _, comparing, _ = split(self._data.samples(self._name))
        reference = self._reference(comparing)
        first, second = (self._score(reference.compare(model)) for model in (before, after))
        kept = second >= first - self._max_drop
        words = f"agreement with float {first:.4f} before, {second:.4f} after"
        return kept, words + ("" if kept else ": undone, that is more than may be lost")

    def _fuse_attention(self, graph: Model | None) -> Model | None:
        """The fp16 graph with its attention fused for edgemm's kernel, if the outputs stay."""
        if graph is None:
            self._notes.append("fuse-attention: edgemm's kernel takes fp16, and nothing was built in it")
            return None
        self._tell("fusing attention")
        result = run_passes(graph, [FuseAttention()])
        self._notes += result.notes
        if not result.changed:
            self._notes.append("fuse-attention: nothing was fused")
            return None
        if not operators_of(result.model.proto):
            self._notes.append("fuse-attention: undone, as keep_float leaves the attention in fp32")
            return None
        kept, agreement = self._outputs_stay(graph, result.model)
        self._notes.append(f"fuse-attention: each compared on random numbers; {agreement}")
        return result.model if kept else None

    def _put_in_front_ends(
        self, graphs: Mapping[str, Model], forms: Mapping[str, Model]
    ) -> tuple[dict[str, Model], dict[str, Model]]:
        """Every graph with the front ends that the recipe wants inside, if the float graph's outputs stay."""
        steps: list[Pass] = []
        for name, entry in self._wanted.inputs.items():
            options = entry.log_mel or entry.mfcc
            if not entry.in_graph or options is None or entry.window is None:
                continue
            log_mel = options if isinstance(options, LogMelOptions) else options.log_mel
            samples = samples_for(recipes.window_frames(entry.window, log_mel), options)
            steps.append(PutInFrontEnd(name, options, 1 if entry.time_axis else 0))
            self.inputs[name] = msgspec.structs.replace(
                entry,
                window=recipes.Duration(Fraction(samples), "samples"),
                time_axis=0,
                log_mel=None,
                mfcc=None,
                in_graph=False,
            )
        if not steps:
            return dict(graphs), dict(forms)
        self._tell("moving the front end into the graph")
        moved = run_passes(self._model, steps)
        error = self._front_end_error(moved.model)
        if error > FRONT_END_TOLERANCE:
            self.inputs.clear()
            self._notes.append(
                f"put-in-front-end: left outside: the outputs differ by {error:.2g} of their largest value, and "
                f"{FRONT_END_TOLERANCE:g} is allowed"
            )
            return dict(graphs), dict(forms)
        self._notes += (*moved.notes, f"put-in-front-end: on noise the outputs differ by {error:.2g} of their largest")
        return (
            {precision: run_passes(graph, steps).model for precision, graph in graphs.items()},
            {precision: run_passes(form, steps).model for precision, form in forms.items()},
        )

    def _front_end_error(self, moved: Model) -> float:
        """The largest difference of an output, as a share of its largest value, between front ends inside and outside.

        On noise; outside the features are those of the float64 reference.
        """
        rng = np.random.default_rng(0)
        inside: dict[str, Array] = {}
        outside: dict[str, Array] = {}
        for spec, before in zip(moved.inputs, self._model.inputs, strict=True):
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            if spec.name not in self.inputs:
                inside[spec.name] = outside[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
                continue
            entry = self._wanted.inputs[spec.name]
            options = entry.log_mel or entry.mfcc
            inside[spec.name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
            frames = [features_reference(row, options) for row in inside[spec.name]] if options else []
            features = np.stack([frame.T if entry.time_axis else frame for frame in frames])
            wanted = [1 if not isinstance(size, int) else size for size in before.shape]
            outside[spec.name] = features.reshape(wanted).astype(np.float32)
        with self._executor.open(self._model) as one, self._executor.open(moved) as other:
            expected, found = one.run(outside), other.run(inside)
        return max(
            float(np.abs(expected[name] - found[name]).max() / max(float(np.abs(expected[name]).max()), 1e-6))
            for name in expected
        )

    def _ranges(self, samples: Sequence[Sample]) -> Ranges:
        """The calibration ranges: those of the file that was given, or measured on the samples."""
        if self._settings.ranges is not None:
            ranges = load_ranges(self._settings.ranges)
            ranges.check(self._model)
            self._calibration = f"ranges from {self._settings.ranges}"
            if sum(len(sample.steps) for sample in samples) < 2:
                return ranges
            # The file does not hold what the weights are rounded by.
            self._tell("looking at the inputs of the weights")
            seen = calibrate(self._model, samples, self._executor, "min-max", states=self._wanted.states)
            return replace(ranges, rounding=seen.rounding)
        observer = self._settings.observer or self._recipe.calibration.observer
        steps = sum(len(sample.steps) for sample in samples)
        self._tell(f"calibrating on {steps} steps ({observer})")
        ranges = calibrate(self._model, samples, self._executor, observer, states=self._wanted.states)
        self._calibration = f"{ranges.samples} steps of {self._data.origin}, observer {observer}"
        return ranges

    def _quantize(self, ranges: Ranges, comparing: Sequence[Sample], held_out: bool) -> _Int8 | None:
        """The int8 graph that holds the budget with the fewest layers in float; None if nothing can be int8."""
        keep = frozenset(self._wanted.keep_float)
        if not comparing:
            self._notes.append(
                "accuracy was not measured, and weights are rounded to nearest: ranges were given without data"
            )
            quantized = insert_qdq(self._model, ranges, "onnxruntime", keep)
            return _Int8(quantized, keep, {}, None, None) if quantized.quantized else None
        self._calibration += f"; compared on {sum(len(s.steps) for s in comparing)} steps"
        self._calibration += " held out" if held_out else ", the same ones"
        reference = self._reference(comparing)

        def most_sensitive_first() -> Sequence[LayerSensitivity]:
            self._tell("int8 throughout loses too much: looking for the layers that must stay in float")
            return sensitivity(self._model, ranges, lambda model: reference.compare(model).sqnr_db, "onnxruntime")

        self._tell("quantizing")
        found = search(
            self._model,
            ranges,
            lambda model: self._score(reference.compare(model)),
            self._max_drop,
            "onnxruntime",
            most_sensitive_first,
            exclude=keep,
        )
        if not found.quantized.quantized:
            return None
        sensitive = dict(found.left)
        return _Int8(
            found.quantized, keep.union(sensitive), sensitive, reference.compare(found.quantized.model), found.score
        )

    def _choose(self, int8: _Int8, comparing: Sequence[Sample], rows: dict[str, VariantReport]) -> tuple[str, str]:
        """Choose between float and int8, and note the times that decided in `rows`."""
        if self._precision == "int8":
            return "int8", "asked for"
        if self._settings.target != "cpu":
            return (
                "fp32",
                f"int8 is in the bundle; its speed on {self._settings.target} is unmeasured: profile it there",
            )
        if int8.score is None:
            return "fp32", "there is no data to measure int8 on"
        self._tell("timing fp32 and int8")
        feeds = {**comparing[0].steps[0], **zero_states(self._model, self._wanted.states)}
        float_seconds, int8_seconds = self._seconds(self._model, int8.quantized.model, feeds)
        choice = choose(
            Candidate("fp32", self._model, 1.0),
            [Candidate("int8", int8.quantized.model, int8.score)],
            self._max_drop,
            lambda model: float_seconds if model is self._model else int8_seconds,
        )
        for item in choice.table:
            if item.seconds is not None:
                rows[item.precision] = replace(rows[item.precision], milliseconds=item.seconds * 1e3)
        return choice.precision, choice.reason

    def _reference(self, samples: Sequence[Sample]) -> Reference:
        decisions = {name: found for name, kind in self._wanted.outputs.items() if (found := _decision(kind))}
        return Reference(self._model, samples, self._executor, states=self._wanted.states, decisions=decisions)

    def _score(self, agreement: Agreement) -> float:
        """The recipe's metric; the cosine where no output is a decision."""
        if self._recipe.accuracy.metric == "agreement" and agreement.decisions is not None:
            return agreement.decisions
        return agreement.cosine

    def _seconds(self, first: Model, second: Model, feeds: Tensors) -> tuple[float, float]:
        """Median time of one inference of each, one thread, after a warm-up.

        The two take turns, so that other work on the machine slows both down alike.
        """
        with self._executor.open(first) as one, self._executor.open(second) as other:
            for _ in range(_WARM_UP_RUNS):
                one.run(feeds)
                other.run(feeds)
            times: tuple[list[float], list[float]] = ([], [])
            end = time.perf_counter() + _TIMING_SECONDS
            while len(times[0]) < _TIMED_RUNS and (len(times[0]) < 5 or time.perf_counter() < end):
                for engine, taken in zip((one, other), times, strict=True):
                    began = time.perf_counter()
                    engine.run(feeds)
                    taken.append(time.perf_counter() - began)
        return statistics.median(times[0]), statistics.median(times[1])

    def _finish(
        self,
        files: dict[str, bytes | Path],
        graphs: Mapping[str, Model],
        rows: Mapping[str, VariantReport],
        forms: Mapping[str, Model],
        chosen: str,
        reason: str,
    ) -> tuple[ModelEntry, ModelReport]:
        """Put the graphs and the ranges among the bundle's files and describe them."""
        variants: dict[str, Variant] = {}
        reports = []
        for precision, graph in graphs.items():
            variant = _store(files, self._name, precision, graph, self._scratch)
            row = replace(rows[precision], bytes=sum(_size(files[f]) for f in (variant.file, variant.data) if f))
            reports.append(row)
            scores = {
                key: value
                for key in ("agreement", "sqnr_db", "milliseconds", "int8_share")
                if (value := getattr(row, key)) is not None
            }
            variants[precision] = msgspec.structs.replace(variant, scores=scores)
            form = forms.get(precision)
            if form is not None:
                stored = _store(files, self._name, f"{precision}-tensorrt", form, self._scratch)
                variants[precision] = msgspec.structs.replace(
                    variants[precision],
                    tensorrt=stored.file,
                    tensorrt_digest=stored.digest,
                    tensorrt_data=stored.data,
                    operators=stored.operators,
                )
        entry = _entry(self._recipe, self._name, graphs["fp32"], variants, chosen, reason)
        if self.ranges is not None:
            member = f"models/{self._name}/ranges.json"
            files[member] = self.ranges.to_json().encode()
            entry = msgspec.structs.replace(entry, ranges=member)
        nodes = len(self._model.proto.graph.node)
        report = ModelReport(
            self._name, self._loaded.opset, nodes, chosen, reason, reports, self._calibration, self._notes
        )
        return entry, report


def _decision(kind: Output) -> Decision | None:
    """What an application acts on, for the decodings that decide something."""
    if isinstance(kind, Softmax | Argmax):
        return lambda array: array.argmax(-1)
    if isinstance(kind, Threshold):
        return lambda array: array >= kind.threshold
    if isinstance(kind, Sigmoid):
        # The logit of the threshold; 0 and 1 lie at infinity.
        with np.errstate(divide="ignore"):
            logit = float(np.log(kind.threshold) - np.log1p(-kind.threshold))
        return lambda array: array >= logit
    return None


# write


def _store(files: dict[str, bytes | Path], name: str, precision: str, model: Model, scratch: Path) -> Variant:
    """Add a graph to the bundle's files: in memory, or from disk if it is too large for one ONNX file."""
    member = f"models/{name}/{precision}.onnx"
    try:
        files[member] = model.to_bytes()
        return Variant(file=member, digest=model.digest, operators=list(operators_of(model.proto)))
    except ModelError:
        folder = scratch / name
        folder.mkdir(exist_ok=True)
        graph, data = model.save(folder / f"{precision}.onnx")
        files[member], files[f"{member}.data"] = graph, data
        operators = list(operators_of(model.proto))
        return Variant(file=member, digest=model.digest, data=f"{member}.data", operators=operators)


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _entry(
    recipe: Recipe, name: str, model: Model, variants: dict[str, Variant], precision: str, reason: str
) -> ModelEntry:
    return ModelEntry(
        inputs=list(model.inputs),
        outputs=list(model.outputs),
        states=list(recipe.models[name].states),
        variants=variants,
        precision=precision,
        reason=reason,
    )
