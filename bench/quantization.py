"""Accuracy of int8: edgemm's calibrators against float and against onnxruntime's own static quantizer.

    python bench/quantization.py                                       # the demo model on its committed test set
    python bench/quantization.py --wide out/av_digits/wide.npz         # on that of export/av_digits/make_wide_test.py
    python bench/quantization.py --models out/models silero_vad onet   # models that bench/models_fetch.sh fetched

Both quantizers get the same float graph and the same calibration steps, and both results run on onnxruntime on one
CPU thread. The share of int8 operations is counted in the graph that onnxruntime really executes after its own fusions,
so that Q/DQ which does not fuse counts as float. Every model is judged on the same inputs, and differences are paired
(paired.py). Writes bench/results/quantization.json and .md; cases that were not asked for keep what was found before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import paired
import quantization_cases as cases
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from paired import Measured
from quantization_cases import Case

from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.graph import Model, load, walk
from edgemm.quant import OBSERVERS, Reference, Sample, calibrate, insert_qdq, search, sensitivity
from edgemm.quant.prepare import prepare

RESULTS = Path(__file__).resolve().parent / "results"

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
class Row:
    """One quantized model."""

    who: str
    calibrator: str
    settings: str
    figures: dict[str, float]
    sqnr_db: float
    int8_share: float
    ms_p50: float
    megabytes: float


@dataclass
class Verdict:
    """One of edgemm's models against one of onnxruntime's, of the same calibrator, or against float."""

    calibrator: str
    against: str
    differences: dict[str, tuple[float, float, float]]
    """By figure: edgemm's less the other's, and the middle 95 % of the draws."""
    mcnemar: tuple[int, int, float] | None
    """Answers that only edgemm's model gets right, only the other, and p; where the truth is known."""
    int8_shares: tuple[float, float] | None


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
        proto = case.model.copy_proto()
        # Below opset 13 a DequantizeLinear has no axis, and what it writes for one scale a channel is no valid model.
        proto = proto if case.model.opset >= 13 else version_converter.convert_version(proto, 17)
        onnx.save(proto, source)
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


# The comparison


@dataclass
class Report:
    """All that was found of one case."""

    name: str
    about: str
    calibration: str
    load: float
    """Average number of processes that wanted a core of this machine while the times were taken."""
    rows: list[Row]
    verdicts: list[Verdict]


def compare(case: Case) -> Report:
    """Measure float, edgemm with every calibrator, onnxruntime's quantizer with its own, and the search's result."""
    executor = OnnxRuntimeExecutor()
    reference = Reference(case.model, case.held_out, executor, states=case.states)
    steps = steps_of(case, case.samples)
    known: dict[str, Measured] = {}

    def measured(model: Model) -> Measured:
        """onnxruntime's entropy and min-max are often one model: measured once."""
        if model.digest not in known:
            known[model.digest] = case.measure(model)
        return known[model.digest]

    rows: list[Row] = []
    models: dict[tuple[str, str, str], Measured] = {}

    def add(who: str, calibrator: str, settings: str, model: Model, share: float | None = None) -> None:
        found = models[who, calibrator, settings] = measured(model)
        rows.append(
            Row(
                who,
                calibrator,
                settings,
                found.figures,
                reference.compare(model).sqnr_db,
                executed_share(model, steps[0]) if share is None else share,
                milliseconds(model, steps[0]),
                len(model.to_bytes()) / 1e6,
            )
        )
        print(case.name, who, calibrator, settings, found.figures, flush=True)

    add("float", "-", "-", case.model, 0.0)
    ranges = {}
    for name in OBSERVERS:
        ranges[name] = calibrate(case.model, case.samples, executor, name, states=case.states)
        for form in case.forms:
            done = insert_qdq(case.model, ranges[name], form)
            # onnxruntime does not fuse the TensorRT form: what counts is what the placement offers TensorRT.
            add("edgemm", name, f"{form} form", done.model, done.int8_share if form == "tensorrt" else None)
    for settings, method in ((s, m) for s in ORT_SETTINGS for m in ORT_METHODS) if case.peers else ():
        add("onnxruntime", method, settings, by_onnxruntime(case, steps, method, settings))
    if case.max_drop is not None:

        def score(model: Model) -> float:
            return measured(model).figures[case.judged]

        def in_db(model: Model) -> float:
            return reference.compare(model).sqnr_db

        found = search(
            case.model,
            ranges["min-max"],
            score,
            case.max_drop,
            "onnxruntime",
            lambda: sensitivity(case.model, ranges["min-max"], in_db, "onnxruntime"),
        )
        left = ", ".join(name for name, _ in found.left) or "nothing"
        settings = f"onnxruntime form, drop <= {case.max_drop}, left in float: {left}"
        add("edgemm", "min-max", settings, found.quantized.model)
    multiplies = sum(1 for node in prepare(case.model).proto.graph.node if node.op_type in FLOAT_OPS)
    return Report(
        case.name,
        case.about,
        f"{sum(len(s.steps) for s in case.samples)} calibration steps in {len(case.samples)} samples; "
        f"{multiplies} nodes that multiply",
        os.getloadavg()[1],
        rows,
        list(verdicts(rows, models)),
    )


def verdicts(rows: Sequence[Row], models: dict[tuple[str, str, str], Measured]) -> Iterator[Verdict]:
    """Each of edgemm's models against onnxruntime's with that calibrator, or with any where it has not that one."""
    shares = {(row.who, row.calibrator, row.settings): row.int8_share for row in rows}
    for mine, ours in models.items():
        if mine[0] != "edgemm" or mine[2] != f"{mine[2].split()[0]} form":
            continue
        others = [key for key in models if key[0] == "onnxruntime"]
        same = [key for key in others if key[1] == mine[1]]
        for key in [("float", "-", "-"), *(same or others)]:
            theirs = models[key]
            gaps = {name: paired.difference(ours, theirs, name) for name in ours.drawn}
            right = ours.right is not None and theirs.right is not None
            yield Verdict(
                mine[1] if "onnxruntime" in mine[2] else f"{mine[1]}, TensorRT form",
                "float" if key[0] == "float" else f"{key[1]}, {key[2]}",
                {name: (gap.mean, gap.low, gap.high) for name, gap in gaps.items()},
                paired.mcnemar(ours.right, theirs.right) if right else None,  # type: ignore[arg-type]
                None if key[0] == "float" else (shares[mine], shares[key]),
            )


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    names = list(rows[0].figures)
    lines = [
        "| quantizer | calibrator | settings | " + " | ".join(names) + " | SQNR dB | int8 share | ms | MB |",
        "|---|---|---|" + "---:|" * (len(names) + 4),
    ]
    for r in rows:
        figures = [f"{v:.4f}" for v in r.figures.values()]
        figures += [f"{r.sqnr_db:.1f}", f"{r.int8_share:.3f}", f"{r.ms_p50:.3f}", f"{r.megabytes:.2f}"]
        lines.append("| " + " | ".join([r.who, r.calibrator, r.settings, *figures]) + " |")
    return "\n".join(lines)


def verdict_table(found: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table; differences whose interval does not hold 0 are bold."""
    names = [name for name in found[0].differences if not name.startswith(("digit, ", "match, "))]
    lines = [
        "| edgemm | less | " + " | ".join(names) + " | right: only edgemm, only the other (p) | int8 shares |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for item in found:
        cells = []
        for name in names:
            mean, low, high = item.differences[name]
            digits = 2 if name in (cases.DIVERGENCE, cases.LOSS, cases.NOISE) else 5
            text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        mcnemar = "" if item.mcnemar is None else f"{item.mcnemar[0]}, {item.mcnemar[1]} ({item.mcnemar[2]:.2g})"
        shares = "" if item.int8_shares is None else f"{item.int8_shares[0]:.3f}, {item.int8_shares[1]:.3f}"
        lines.append("| " + " | ".join([item.calibrator, item.against, *cells, mcnemar, shares]) + " |")
    return "\n".join(lines)


def processor() -> str:
    """Return the CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def as_markdown(device: str, reports: Sequence[Report]) -> str:
    """The result as Markdown."""
    text = [
        f"# int8 accuracy: edgemm's calibrators and onnxruntime's static quantizer\n\n{device}. "
        "Same float graph, same calibration steps. The int8 share is counted in the graph that onnxruntime runs; for "
        "the TensorRT form it is what the placement offers TensorRT, and its time here says nothing, because that form "
        "does not fuse on a CPU: it is run to see the accuracy that a GPU will have. Differences are edgemm's less the "
        "other's on the same inputs, with the middle 95 % of 2000 bootstrap draws of whole groups; bold where that "
        f"leaves out 0. Of {cases.DIVERGENCE}, {cases.LOSS} and {cases.NOISE} less is better, of all else more."
    ]
    for report in reports:
        text.append(
            f"\n## {report.name}\n\n{report.calibration}. Judged on {report.about} Load average while the times were "
            f"taken: {report.load:.1f}, on {os.cpu_count()} cores.\n\n{table(report.rows)}\n\n"
            f"{verdict_table(report.verdicts)}"
        )
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="av_digits, av_digits_tensorrt, silero_vad, models of bench/models.py")
    parser.add_argument("--wide", type=Path, help="wide.npz of export/av_digits/make_wide_test.py")
    parser.add_argument("--models", type=Path, help="the folder that bench/models_fetch.sh filled")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantization")
    args = parser.parse_args()
    names = args.names or ["av_digits", "av_digits_tensorrt"]
    if args.models is None and not set(names) <= {"av_digits", "av_digits_tensorrt"}:
        parser.error("models of packages need --models FOLDER: sh bench/models_fetch.sh FOLDER")
    kept = args.output.with_suffix(".json")
    found = json.loads(kept.read_text())["reports"] if kept.is_file() else {}
    device = f"{processor()}, one thread, onnxruntime {ort.__version__}"
    for name in names:
        found[name] = asdict(compare(cases.make(name, args.wide, args.models)))
        kept.write_text(json.dumps({"device": device, "reports": found}, indent=1) + "\n")
        reports = [
            Report(
                **{
                    **report,
                    "rows": [Row(**row) for row in report["rows"]],
                    "verdicts": [Verdict(**verdict) for verdict in report["verdicts"]],
                }
            )
            for report in json.loads(kept.read_text())["reports"].values()
        ]
        args.output.with_suffix(".md").write_text(as_markdown(device, reports))
    print(args.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
