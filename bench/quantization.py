"""Accuracy of int8: edgemm's calibrators against float and against onnxruntime's own static quantizer.

    python bench/quantization.py                                  # the demo model
    python bench/quantization.py --silero MODEL.onnx --speech DIR # and a speech detector with state

Both quantizers get the same float graph and the same calibration steps, and both results run on onnxruntime on one
CPU thread. The share of int8 operations is counted in the graph that onnxruntime really executes after its own fusions,
so that Q/DQ which does not fuse counts as float. `--silero` takes `silero_vad_openvino_16k.onnx` of the Python package
silero-vad; `--speech` a folder of mono 16-bit wav files of speech (Debian's `asterisk-core-sounds-en-wav` was used).
Writes bench/results/quantization.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import tempfile
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.graph import Model, load, walk
from edgemm.quant import (
    OBSERVERS,
    QuantizedModel,
    Reference,
    Sample,
    calibrate,
    from_folder,
    insert_qdq,
    search,
    sensitivity,
)
from edgemm.quant.prepare import prepare
from edgemm.types import StatePair

HOME = Path(__file__).resolve().parents[1]
DEMO = HOME / "calibration" / "av_digits"
RESULTS = HOME / "bench" / "results"

SAME = "answers as float"
"""Share of the answers (best class, or above 0.5) that are the float model's: what int8 changes, right or wrong."""

INT8_OPS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
)
FLOAT_OPS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM")


@dataclass
class Case:
    """One model, its calibration set, and how its answers are judged."""

    name: str
    model: Model
    samples: list[Sample]
    states: list[StatePair]
    score: Callable[[Model], dict[str, float]]
    """Figures of a model, higher is better; the first is the one that the search works with."""
    held_out: list[Sample]
    """Inputs that calibration does not see, for the agreement with float in dB."""
    certainty: str
    """How far the first figure may be off because the test set is finite, in words."""


@dataclass
class Row:
    """One quantized model."""

    who: str
    calibrator: str
    settings: str
    scores: dict[str, float]
    sqnr_db: float
    int8_share: float
    ms_p50: float
    megabytes: float
    calibration_s: float


# What onnxruntime really runs


def executed_share(model: Model, feeds: dict[str, np.ndarray]) -> float:
    """Return the share of multiply-accumulates in int8 kernels, in the graph as onnxruntime has rewritten it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        # Layout changes for blocked kernels come last and hide the weights' shapes; fusion to int8 is before them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = onnx.load(f"{folder}/optimized.onnx").graph
    shapes = {
        e["name"].removesuffix("_kernel_time"): [
            [list(next(iter(s.values()))) for s in e["args"][key]] for key in ("input_type_shape", "output_type_shape")
        ]
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    }
    stored = {t.name: list(t.dims) for t in graph.initializer}
    # A weight in Q/DQ that did not fuse.
    stored |= {n.output[0]: stored[n.input[0]] for n in graph.node if n.input and n.input[0] in stored}
    int8 = total = 0
    for node in graph.node:
        if node.op_type in INT8_OPS + FLOAT_OPS:
            cost = executed_macs(node, *shapes[node.name], stored)
            total += cost
            int8 += cost if node.op_type in INT8_OPS else 0
    return int8 / total


def executed_macs(
    node: onnx.NodeProto, ins: list[list[int]], outs: list[list[int]], stored: dict[str, list[int]]
) -> int:
    """Return the multiply-accumulates of one node of the executed graph."""
    if node.op_type == "LSTM":
        return math.prod(ins[0][:2]) * (math.prod(stored[node.input[1]]) + math.prod(stored[node.input[2]]))
    weight = stored.get(node.input[3 if node.op_type in ("QLinearConv", "QGemm", "QLinearMatMul") else 1])
    if "Conv" in node.op_type:
        places = ins[0] if node.op_type == "ConvTranspose" else outs[0]
        assert weight is not None, f"{node.name}: a convolution without a constant weight"
        return math.prod(places) * math.prod(weight[1:])
    if weight is not None and len(weight) == 2:
        return math.prod(outs[0]) * math.prod(weight) // outs[0][-1]
    turned = node.op_type == "FusedMatMul" and walk.attribute(node, "transA", 0)
    return math.prod(outs[0]) * ins[0][-2 if turned else -1]


def milliseconds(model: Model, feeds: dict[str, np.ndarray]) -> float:
    """Return the median time of one run on one CPU thread, after warming up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    times = []
    for k in range(250):
        start = time.perf_counter_ns()
        session.run(None, feeds)
        if k >= 50:
            times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6


# onnxruntime's static quantizer

ORT_METHODS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "distribution": CalibrationMethod.Distribution,
}
ORT_SETTINGS = {
    "default": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": False},
    "u8, per channel": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True},
}


class Steps(CalibrationDataReader):
    """Hands a list of feeds to onnxruntime, state included."""

    def __init__(self, steps: Sequence[dict[str, np.ndarray]]) -> None:
        self._steps = iter(steps)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._steps, None)


def steps_of(case: Case, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:
    """Return every step with the state that the float model has there."""
    steps = []
    specs = {spec.name: spec for spec in case.model.inputs}
    with OnnxRuntimeExecutor().open(case.model) as runner:
        for sample in samples:
            state = {p.input: np.zeros(specs[p.input].shape, specs[p.input].dtype) for p in case.states}
            for feeds in sample.steps:
                steps.append({**feeds, **state})
                if case.states:
                    outputs = runner.run(steps[-1])
                    state = {p.input: np.array(outputs[p.output]) for p in case.states}
    return steps


def by_onnxruntime(case: Case, steps: Sequence[dict[str, np.ndarray]], method: str, settings: str) -> Model:
    """Quantize with onnxruntime, after the preparation that it recommends."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (f"{folder}/{n}.onnx" for n in ("float", "prepared", "int8"))
        case.model.save(source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Steps(steps),
            quant_format=QuantFormat.QDQ,
            calibrate_method=ORT_METHODS[method],
            **ORT_SETTINGS[settings],
        )
        return load(result)


# The cases


def demo_case() -> Case:
    """The audio-visual digits: accuracy on the committed test set, ranges from the committed calibration set."""
    spec = importlib.util.spec_from_file_location("score", HOME / "export" / "av_digits" / "score.py")
    assert spec is not None
    assert spec.loader is not None
    scoring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scoring)
    model = load(DEMO / "av_digits.onnx")
    test = scoring.load_test(DEMO / "test.npz")
    conditions = ("clean", "noise -5 dB", "occluded")
    counts: dict[str, int] = {}
    by_float: list[int] = []

    def score(candidate: Model) -> dict[str, float]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(candidate.to_bytes(), options, providers=["CPUExecutionProvider"])

        given: list[int] = []

        def run(audio: np.ndarray, video: np.ndarray) -> tuple[np.ndarray, float]:
            digit, match = session.run(["digit", "match"], {"audio": audio, "video": video})
            given.extend([int(np.argmax(digit)), int(match[0, 0] > 0.5)])
            return digit[0], float(match[0, 0])

        found = {
            name: scoring.accuracy(run, scoring.pairs(test, *scoring.CONDITIONS[name]), True, True)
            for name in conditions
        }
        answers = {f"{what}, {name}": found[name][what] for what in ("digit", "match") for name in conditions}
        counts.update(
            {f"{what}, {name}": found[name][f"{what}_of"] for what in ("digit", "match") for name in conditions}
        )
        if not by_float:
            by_float.extend(given)
        same = float(np.mean(np.array(given) == np.array(by_float)))
        return {"mean accuracy": float(np.mean(list(answers.values()))), SAME: same, **answers}

    clean = [
        Sample([{"audio": a[None], "video": v[None]}], "test")
        for a, v, _, _ in list(scoring.pairs(test, "clean", "clean"))[:200]
    ]
    samples = list(from_folder(DEMO / "calibration", model.inputs))
    shares = score(model)
    variance = sum(shares[name] * (1 - shares[name]) / count for name, count in counts.items()) / len(counts) ** 2
    certainty = (
        f"The mean is over {sum(counts.values())} answers; its standard error is {variance**0.5:.4f}, and a smaller "
        "difference means nothing."
    )
    return Case("av_digits", model, samples, [], score, clean, certainty)


WINDOW, CONTEXT, RATE = 512, 64, 16000


def silero_case(path: Path, speech: Path) -> Case:
    """A speech detector with state: area under the ROC curve, frame by frame, on speech in noise and on noise alone."""
    model = load(path)
    states = [StatePair("state", "stateN")]
    files = sorted(speech.rglob("*.wav"))
    rng = np.random.default_rng(0)
    files = [files[i] for i in rng.permutation(len(files))]
    clips = [(audio, file.name) for file in files if len(audio := read_wav(file)) > RATE][:120]
    calibration = [recording(audio, rng, name) for audio, name in clips[:24]]
    test = [recording(audio, rng, name) for audio, name in clips[24:]]
    by_float: list[bool] = []

    def score(candidate: Model) -> dict[str, float]:
        truth, scores, given = [], [], []
        with OnnxRuntimeExecutor().open(candidate) as runner:
            for sample, labels in test:
                state = np.zeros((2, 1, 128), np.float32)
                for feeds, label in zip(sample.steps, labels, strict=True):
                    out = runner.run({**feeds, "state": state})
                    state = np.array(out["stateN"])
                    given.append(float(np.asarray(out["output"]).reshape(-1)[0]) > 0.5)
                    if label is not None:
                        truth.append(label)
                        scores.append(float(np.asarray(out["output"]).reshape(-1)[0]))
        if not by_float:
            by_float.extend(given)
        same = float(np.mean(np.array(given) == np.array(by_float)))
        return {"AUC": auc(np.array(truth), np.array(scores)), SAME: same}

    score(model)
    judged = sum(label is not None for _, labels in test for label in labels)
    return Case(
        "silero_vad",
        model,
        [sample for sample, _ in calibration],
        states,
        score,
        [sample for sample, _ in test[:12]],
        f"The area is over {judged} windows of {len(test)} recordings.",
    )


def read_wav(file: Path) -> np.ndarray:
    """Read 16-bit mono as float32 at 16 kHz; 8 kHz is interpolated."""
    with wave.open(str(file)) as stream:
        rate, audio = stream.getframerate(), np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
    audio = audio.astype(np.float32) / 32768
    if rate != RATE:
        spectrum = np.fft.rfft(audio)
        count = len(audio) * RATE // rate
        audio = (np.fft.irfft(spectrum, count) * (count / len(audio))).astype(np.float32)
    return audio


def recording(audio: np.ndarray, rng: np.random.Generator, name: str) -> tuple[Sample, list[bool | None]]:
    """Return noise, then speech in noise, then noise: the steps of one recording, and for each whether it is speech.

    A window is speech if its clean energy is within 30 dB of the clip's loudest window, no speech below 50 dB (the
    rest is not judged). The noise is white, pink or brown, 0 to 15 dB below the speech. The
    whole is 0 to 36 dB below full scale: talkers near and far.
    """
    audio = audio[: 4 * RATE]
    pad = rng.integers(RATE // 2, RATE, 2)
    clean = np.concatenate([np.zeros(pad[0]), audio, np.zeros(pad[1])]).astype(np.float32)
    clean = clean[: len(clean) // WINDOW * WINDOW]
    frequency = np.maximum(np.fft.rfftfreq(len(clean), 1 / RATE), 20)
    spectrum = np.fft.rfft(rng.normal(size=len(clean))) / frequency ** (rng.integers(0, 3) / 2)
    noise = np.fft.irfft(spectrum, len(clean))
    level = np.sqrt(np.mean(audio**2)) * 10 ** (-rng.uniform(0, 15) / 20)
    mixed = (clean + noise / np.sqrt(np.mean(noise**2)) * level).astype(np.float32)
    mixed *= min(1.0, 0.99 / float(np.abs(mixed).max())) * 10 ** (-rng.uniform(0, 36) / 20)
    energy = 10 * np.log10((clean.reshape(-1, WINDOW) ** 2).mean(axis=1) + 1e-12)
    below = energy.max() - energy
    labels = [True if b < 30 else False if b > 50 else None for b in below.tolist()]
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), mixed])
    steps = [{"input": padded[None, k : k + WINDOW + CONTEXT]} for k in range(0, len(mixed), WINDOW)]
    return Sample(steps, name), labels


def auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(truth.sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


# The comparison


def compare(case: Case, max_drop: float) -> Iterator[Row]:
    """Yield the float model's row, then every quantizer's, then the search's."""
    executor = OnnxRuntimeExecutor()
    reference = Reference(case.model, case.held_out, executor, states=case.states)
    steps = steps_of(case, case.samples)

    def row(who: str, calibrator: str, settings: str, model: Model, seconds: float, share: float | None = None) -> Row:
        return Row(
            who,
            calibrator,
            settings,
            case.score(model),
            reference.compare(model).sqnr_db,
            executed_share(model, steps[0]) if share is None else share,
            milliseconds(model, steps[0]),
            len(model.to_bytes()) / 1e6,
            seconds,
        )

    yield row("float", "-", "-", case.model, 0.0)
    ranges = {}
    for name in OBSERVERS:
        start = time.perf_counter()
        ranges[name] = calibrate(case.model, case.samples, executor, name, states=case.states)
        seconds = time.perf_counter() - start
        for form in ("onnxruntime", "tensorrt"):
            done = insert_qdq(case.model, ranges[name], form)
            yield row("edgemm", name, f"{form} form", done.model, seconds, placed(done))
    for settings in ORT_SETTINGS:
        for method in ORT_METHODS:
            start = time.perf_counter()
            model = by_onnxruntime(case, steps, method, settings)
            yield row("onnxruntime", method, settings, model, time.perf_counter() - start)

    def score(model: Model) -> float:
        return next(iter(case.score(model).values()))

    found = search(
        case.model,
        ranges["min-max"],
        score,
        max_drop,
        "onnxruntime",
        lambda: sensitivity(case.model, ranges["min-max"], score, "onnxruntime"),
    )
    left = ", ".join(name for name, _ in found.left) or "nothing"
    settings = f"onnxruntime form, drop <= {max_drop}, left in float: {left}"
    yield row("edgemm", "min-max", settings, found.quantized.model, 0.0)


def placed(done: QuantizedModel) -> float | None:
    """Return the share that the placement promises TensorRT; onnxruntime's own form is counted as it runs."""
    return done.int8_share if done.form == "tensorrt" else None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    names = list(rows[0].scores)
    lines = [
        "| quantizer | calibrator | settings | " + " | ".join(names) + " | SQNR dB | int8 share | ms | MB |",
        "|---|---|---|" + "---:|" * (len(names) + 4),
    ]
    for r in rows:
        figures = [f"{v:.4f}" for v in r.scores.values()]
        figures += [f"{r.sqnr_db:.1f}", f"{r.int8_share:.3f}", f"{r.ms_p50:.3f}", f"{r.megabytes:.2f}"]
        lines.append("| " + " | ".join([r.who, r.calibrator, r.settings, *figures]) + " |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> str:
    """Return, for each calibrator that both have, the two best settings side by side, as a Markdown table."""
    judged = next(iter(rows[0].scores))
    lines = [
        f"| calibrator | edgemm, {judged} | onnxruntime, {judged} | difference | edgemm, {SAME} | onnxruntime "
        "| edgemm, SQNR dB | onnxruntime | edgemm, int8 share | onnxruntime |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in OBSERVERS:
        ours = [r for r in rows if (r.who, r.calibrator, r.settings) == ("edgemm", name, "onnxruntime form")]
        theirs = [r for r in rows if (r.who, r.calibrator) == ("onnxruntime", name)]
        if ours and theirs:
            best = max(theirs, key=lambda r: r.scores[judged])
            mine = ours[0]
            lines.append(
                f"| {name} | {mine.scores[judged]:.4f} | {best.scores[judged]:.4f} ({best.settings}) "
                f"| {mine.scores[judged] - best.scores[judged]:+.4f} "
                f"| {mine.scores[SAME]:.4f} | {best.scores[SAME]:.4f} | {mine.sqnr_db:.1f} | {best.sqnr_db:.1f} "
                f"| {mine.int8_share:.3f} | {best.int8_share:.3f} |"
            )
    return "\n".join(lines)


def processor() -> str:
    """Return the CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silero", type=Path, help="silero_vad_openvino_16k.onnx")
    parser.add_argument("--speech", type=Path, help="a folder of wav files of speech, for --silero")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantization")
    args = parser.parse_args()
    if (args.silero is None) != (args.speech is None):
        parser.error("--silero and --speech go together")
    cases = [(demo_case(), 0.002)]
    if args.silero is not None:
        cases.append((silero_case(args.silero, args.speech), 0.005))
    device = f"{processor()}, one thread, onnxruntime {ort.__version__}"
    document: dict[str, object] = {"device": device}
    text = [
        f"# int8 accuracy: edgemm's calibrators and onnxruntime's static quantizer\n\n{device}. "
        "Same float graph, same calibration steps. The int8 share is counted in the graph that onnxruntime runs; for "
        "the TensorRT form it is what the placement offers TensorRT, and its time here says nothing, because that form "
        "does not fuse on a CPU: it is run to see the accuracy that a GPU will have."
    ]
    for case, max_drop in cases:
        rows = []
        for row in compare(case, max_drop):
            rows.append(row)
            print(case.name, row.who, row.calibrator, row.settings, row.scores, f"{row.sqnr_db:.1f} dB", flush=True)
        document[case.name] = [vars(row) for row in rows]
        multiplies = sum(1 for n in prepare(case.model).proto.graph.node if n.op_type in FLOAT_OPS)
        text.append(
            f"\n## {case.name}\n\n{sum(len(s.steps) for s in case.samples)} calibration steps in {len(case.samples)} "
            f"samples; {multiplies} nodes that multiply.\n\n{table(rows)}\n\n"
            f"The same calibrator in both, each at its best settings on this engine. {case.certainty}\n\n"
            f"{verdicts(rows)}"
        )
    args.output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    args.output.with_suffix(".md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
