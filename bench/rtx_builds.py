"""Compile models with the real TensorRT for RTX, no GPU needed: model x precision x target, built or why not.

    pip install "edgemm[rtx]"
    python bench/rtx_builds.py                       # the demo model
    python bench/rtx_builds.py pnet.onnx:M1=64,M2=64  # others, with random calibration data for int8 and fp8

Every build runs in a process of its own with limits on time and memory. Seconds are TensorRT's own build time on
this machine's CPU; they say nothing of speed on a GPU. Writes bench/results/rtx_builds.json and .md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.engine import targets
from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.engine.tensorrt import flavours
from edgemm.engine.tensorrt.build import build_plan
from edgemm.engine.tensorrt.plan import BuildOptions
from edgemm.errors import EdgemmError, EngineError
from edgemm.graph import Model, from_bytes, load
from edgemm.graph.passes import FixDims, FoldConstants, InlineFunctions, NameDims, ToHalf, run
from edgemm.quant import Sample, calibrate, from_folder, insert_qdq
from edgemm.quant.narrow import to_fp8, to_int4

HOME = Path(__file__).resolve().parents[1]
DEMO = HOME / "calibration" / "av_digits"
RESULTS = HOME / "bench" / "results"
TARGETS = ("rtx-sm75", "rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120")
TIME_LIMIT_S = 120.0
MEMORY_LIMIT_BYTES = 16 << 30


def precisions(model: Model, samples: Sequence[Sample]) -> dict[str, Callable[[], Model]]:
    """How to make the model in each precision."""
    ranges = calibrate(model, samples, OnnxRuntimeExecutor())

    def half(of: Model) -> Model:
        return ToHalf()(of).model

    return {
        "fp32": lambda: model,
        "fp16": lambda: half(model),
        "int8": lambda: insert_qdq(model, ranges, "tensorrt").model,
        "int8 + fp16": lambda: insert_qdq_half(model, ranges),
        "fp8": lambda: to_fp8(model, ranges),
        "int4 weights": lambda: to_int4(model),
        "int4 weights + fp16": lambda: to_int4(half(model)),
    }


def insert_qdq_half(model: Model, ranges: Any) -> Model:
    """int8 where it can be, and fp16 elsewhere: what SM75 needs for what stays in float."""
    return ToHalf()(insert_qdq(model, ranges, "tensorrt").model).model


def prepared(model: Model, sizes: dict[str, int]) -> Model:
    """The model with fixed dimensions (1 where `sizes` names none) and folded constants, as a build makes it."""
    model = NameDims()(model).model
    names = {dim for spec in model.inputs for dim in spec.shape if isinstance(dim, str)}
    fixed = {name: sizes.get(name, 1) for name in names}
    return run(model, [FixDims(fixed), InlineFunctions(), FoldConstants()]).model


def random_samples(model: Model, count: int = 8) -> list[Sample]:
    """Calibration data for a model that brings none."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        feeds = {}
        for spec in model.inputs:
            shape = [int(dim or 1) for dim in spec.shape]
            kind = np.dtype(spec.dtype)
            feeds[spec.name] = rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.ones(shape, kind)
        samples.append(Sample([feeds], "random"))
    return samples


def work(model: bytes, name: str, precision: str, target: str, answer: Connection) -> None:
    """Build in a child process, and send what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    loaded = from_bytes(model)
    try:
        plan = build_plan(
            model,
            BuildOptions(),
            targets.get(target),
            flavour=flavours.get("tensorrt-rtx"),
            graph=loaded.digest,
            precision=precision,
        )
        answer.send({"built": True, "seconds": round(plan.seconds, 2), "bytes": len(plan.data)})
    except EngineError as error:
        answer.send({"built": False, "reason": str(error)})


def build(model: bytes, name: str, precision: str, target: str) -> dict[str, Any]:
    """Return what became of one build: built, seconds and bytes, or the reason."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(model, name, precision, target, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(TIME_LIMIT_S):
            return {"built": False, "reason": f"no answer within {TIME_LIMIT_S:.0f} s"}
        return dict(receiver.recv())
    except EOFError:
        child.join()
        return {"built": False, "reason": f"TensorRT ended the process, exit code {child.exitcode}"}
    finally:
        child.kill()
        child.join()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table: a line a model and precision, a column a target."""
    reasons: dict[str, int] = {}
    lines = ["| model | precision | " + " | ".join(name.removeprefix("rtx-").upper() for name in TARGETS) + " |"]
    lines.append("|---|---|" + "---|" * len(TARGETS))
    for model, precision in dict.fromkeys((row["model"], row["precision"]) for row in rows):
        cells = []
        for target in TARGETS:
            row = next(r for r in rows if (r["model"], r["precision"], r["target"]) == (model, precision, target))
            if row["built"]:
                cells.append(f"{row['seconds']:.2f} s, {row['bytes'] / 1e6:.2f} MB")
            else:
                cells.append(f"no [{reasons.setdefault(row['reason'], len(reasons) + 1)}]")
        lines.append(f"| {model} | {precision} | " + " | ".join(cells) + " |")
    lines += ["", *(f"[{number}] {reason}\n" for reason, number in reasons.items())]
    return "\n".join(lines)


def main() -> int:
    """Build everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", help="ONNX files, [NAME=]FILE[:DIM=SIZE,...]; the demo model if none is given"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "rtx_builds.json")
    args = parser.parse_args()
    flavour = flavours.get("tensorrt-rtx")
    rows: list[dict[str, Any]] = []
    for named in args.models or [str(DEMO / "av_digits.onnx")]:
        file, _, dims = named.partition(":")
        title, _, file = file.rpartition("=")
        path = Path(file)
        title = title or path.stem
        model = prepared(load(path), {k: int(v) for k, v in (pair.split("=") for pair in dims.split(",") if pair)})
        folder = path.parent / "calibration"
        samples = list(from_folder(folder, model.inputs)) if folder.is_dir() else random_samples(model)
        for precision, make in precisions(model, samples).items():
            try:
                data = make().to_bytes()
            except EdgemmError as error:
                found = {target: {"built": False, "reason": str(error)} for target in TARGETS}
            else:
                found = {target: build(data, title, precision, target) for target in TARGETS}
            for target, outcome in found.items():
                rows.append({"model": title, "precision": precision, "target": target, **outcome})
                print(title, precision, target, outcome, flush=True)
    head = f"{flavour.title}, {platform.machine()}, no GPU: build time (beside other work) and plan size, or why not"
    args.out.write_text(json.dumps({"what": head, "rows": rows}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(f"# Plans compiled with {head}\n\n{table(rows)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
