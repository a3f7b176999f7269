"""All that waits for a GPU, in one command: tests on the device, then the demo's latency on it.

    python tests/gpu/run.py [--out FILE.json] [-- PYTEST ARGUMENTS]

Needs an NVIDIA GPU with its driver and a TensorRT for it (`pip install "edgemm[tensorrt]"`, `"edgemm[rtx]"`, or a
Jetson's own). Runs every test marked `gpu`; a missing GPU is a failure here, not a skip. Then compiles the demo model
in fp32, fp16 (also with its attention by edgemm's kernel), int8, fp8 and with int4 weights, where the GPU has them, and
measures a step, host to host, enqueued and as a CUDA graph, after a warm-up, beside onnxruntime's CPU in the same run.
Writes bench/results/gpu-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(HOME / "tests" / "support")]

WARM_UP = 200
STEPS = 2000


def percentiles(engine: Any, feeds: dict[str, np.ndarray]) -> dict[str, float]:
    """Microseconds of a step: median and 99th percentile."""
    for _ in range(WARM_UP):
        engine.run(feeds)
    times = np.empty(STEPS)
    for step in range(STEPS):
        start = time.perf_counter_ns()
        engine.run(feeds)
        times[step] = time.perf_counter_ns() - start
    return {
        "p50_us": round(float(np.median(times)) / 1e3, 2),
        "p99_us": round(float(np.percentile(times, 99)) / 1e3, 2),
    }


def measure() -> list[dict[str, Any]]:
    """Latency of the demo in each precision, on every TensorRT here and on the CPU."""
    import test_trt as on_gpu

    from edgemm.engine.executor import OnnxRuntimeExecutor
    from edgemm.engine.onnxruntime import OnnxRuntimeEngine
    from edgemm.engine.tensorrt.plugins.own import OwnPlugins
    from edgemm.engine.tensorrt.run.engine import TensorRTEngine
    from edgemm.errors import EngineError
    from edgemm.graph import load, ops
    from edgemm.graph.passes import FuseAttention, ToHalf
    from edgemm.quant import calibrate, from_folder, insert_qdq
    from edgemm.quant.narrow import to_fp8, to_int4

    model = load(on_gpu.DEMO / "av_digits.onnx")
    samples = list(from_folder(on_gpu.DEMO / "calibration", model.inputs))[:16]
    feeds = dict(samples[0].steps[0])
    ranges = calibrate(model, samples, OnnxRuntimeExecutor(), "min-max")
    half = ToHalf()(model).model
    fused = FuseAttention()(half).model
    variants: dict[str, tuple[bytes, OwnPlugins | None]] = {
        "fp32": (model.to_bytes(), None),
        "fp16": (half.to_bytes(), None),
        "fp16, attention by edgemm's kernel": (ops.strip_bodies(fused.to_bytes()), OwnPlugins()),
        "int8": (insert_qdq(model, ranges, "tensorrt").model.to_bytes(), None),
        "fp8": (to_fp8(model, ranges).to_bytes(), None),
        "int4 weights": (to_int4(model).to_bytes(), None),
    }
    rows = []
    with OnnxRuntimeEngine(model.to_bytes()) as cpu:
        rows.append({"engine": "onnxruntime CPU, 1 thread", "precision": "fp32", **percentiles(cpu, feeds)})
    for flavour in on_gpu.here():
        for precision, (variant, plugins) in variants.items():
            try:
                plan = on_gpu.build(flavour, variant, plugins=plugins)
            except EngineError as error:
                rows.append({"engine": flavour.title, "precision": precision, "refused": str(error)})
                continue
            for graph in (False, True):
                with TensorRTEngine(plan, flavour=flavour, cuda_graph=graph, plugins=plugins) as engine:
                    row = {"engine": flavour.title, "precision": precision, "cuda_graph": graph}
                    rows.append({**row, **percentiles(engine, feeds), "notes": engine.notes})
    return rows


def main() -> int:
    """Run the tests, measure, and write the figures. The exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    args = parser.parse_args()

    from edgemm.engine.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        print("Found no NVIDIA GPU, no driver, or no cuda-bindings. This waits for a GPU.", file=sys.stderr)
        return 2
    environment = {**os.environ, "EDGEMM_CI_REQUIRE": "gpu"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests", *args.pytest]
    code = subprocess.run(command, cwd=HOME, env=environment, check=False).returncode
    rows = measure()
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    out = args.out or HOME / "bench" / "results" / f"gpu-{name}.json"
    what = f"one step of the demo model, host to host, batch 1, {WARM_UP} steps of warm-up, {STEPS} measured"
    found = {"device": gpu.name, "compute_capability": gpu.compute_capability, "what": what, "rows": rows}
    out.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(row)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
