"""Compare what `edgemm check --engine tensorrt-rtx` predicts with what TensorRT for RTX really does.

Every ONNX node test (`onnx.backend.test.case.node`) is parsed and built by the real builder, which needs no GPU,
and judged by `edgemm.graph.check`. Printed: the confusion table, and every wrong prediction with its reason.

    pip install "edgemm[rtx]"
    python bench/check_accuracy.py [--truth FILE.json] [--match WORD] [--target SM86] [--random 100]

With `--random N` it is N random graphs of `tests/support/random_graphs.py`, each in float32 and in float16, instead of
the node tests: graphs that the rules were not made from.

The builder may abort the process on a model it does not like, so each build runs in a child of its own, with a time
limit. That takes some minutes: `--truth` keeps the outcomes in a file and reads them from there the next time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx

from edgemm.errors import ModelError
from edgemm.graph import check, from_proto
from edgemm.graph.passes import FoldConstants, RemoveDead, ToHalf, run

TIME_LIMIT_S = 60.0


def collect(match: str) -> dict[str, tuple[onnx.ModelProto, list[object]]]:
    """Return model and first input set of each node test, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {case.name: (case.model, list(case.data_sets[0][0])) for case in cases if case.model and match in case.name}


def collect_random(count: int) -> dict[str, tuple[onnx.ModelProto, list[object]]]:
    """Return random graphs with control flow, in float32 and in float16."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    import random_graphs

    cases: dict[str, tuple[onnx.ModelProto, list[object]]] = {}
    for seed in range(100, 100 + count):
        graph = random_graphs.random_graph(seed)
        whole = from_proto(graph.model)
        half = run(whole, [FoldConstants(), RemoveDead(), ToHalf(), RemoveDead()]).model
        for name, model in (("float32", whole), ("float16", half)):
            cases[f"random_{seed}_{name}"] = (model.proto, [graph.feeds[spec.name] for spec in model.inputs])
    return cases


def build(model: onnx.ModelProto, feeds: list[object], target: str, answer: Connection) -> None:
    """Parse and build one model; send "ok", "parse: why" or "build: why"."""
    import tensorrt_rtx as trt

    class Quiet(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    log = Quiet()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        answer.send("parse: " + " | ".join(reasons or log.errors))
        return
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    values = dict(zip((value.name for value in model.graph.input), feeds, strict=False))
    profile = builder.create_optimization_profile()
    needed = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in values:
            answer.send(f"build: the parser made an input of its own, {tensor.name}")
            return
        value = np.asarray(values[tensor.name])
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, value.shape, value.shape, value.shape)
            needed = True
        elif tensor.is_shape_tensor:
            flat = [int(item) for item in value.ravel()]
            profile.set_shape_input(tensor.name, flat, flat, flat)
            needed = True
    if needed:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    answer.send("ok" if plan is not None else "build: " + " | ".join(log.errors))


def outcome(model: onnx.ModelProto, feeds: list[object], target: str) -> str:
    """Return what the real builder does with a model, or how it died."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=build, args=(model, feeds, target, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(TIME_LIMIT_S):
            return f"build: no answer within {TIME_LIMIT_S:.0f} s"
        return str(receiver.recv())
    except EOFError:
        child.join()
        return f"crash: exit code {child.exitcode}"
    finally:
        child.kill()
        child.join()


def predict(model: onnx.ModelProto) -> str:
    """Return "" if check finds no error, else its reasons."""
    try:
        report = check(from_proto(model, any_opset=True), engine="tensorrt-rtx")
    except ModelError as error:
        return f"not loaded: {error}"
    return " | ".join(f"{finding.op}: {finding.reason}" for finding in report.findings if finding.severity == "error")


def main() -> int:
    """Run the comparison; exit code 1 if fewer than 97 % of the predictions are right."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--truth", type=Path, help="keep the builder's outcomes in this file")
    options.add_argument("--match", default="", help="only tests with this word in their name")
    options.add_argument("--target", default="SM86", help="compute capability to build for")
    options.add_argument("--random", type=int, default=0, metavar="N", help="N random graphs instead of the node tests")
    args = options.parse_args()

    cases = collect_random(args.random) if args.random else collect(args.match)
    truth: dict[str, str] = {}
    if args.truth and args.truth.exists():
        truth = json.loads(args.truth.read_text())
    missing = [name for name in cases if name not in truth]
    for count, name in enumerate(missing, 1):
        truth[name] = outcome(*cases[name], args.target)
        if count % 100 == 0:
            print(f"built {count} of {len(missing)}", file=sys.stderr, flush=True)
            if args.truth:
                args.truth.write_text(json.dumps(truth, indent=1, sort_keys=True))
    if args.truth:
        args.truth.write_text(json.dumps(truth, indent=1, sort_keys=True))

    table: Counter[tuple[bool, bool]] = Counter()
    refused: Counter[bool] = Counter()
    wrong = []
    for name, (model, _) in cases.items():
        works = truth[name] == "ok"
        said = predict(model)
        if said.startswith("not loaded"):
            refused[works] += 1
            continue
        table[works, not said] += 1
        if works != (not said):
            wrong.append(f"{name}\n    real: {truth[name][:200]}\n    check: {said[:200] or 'fine'}")
    print("\n".join(wrong))
    judged = sum(table.values())
    right = table[True, True] + table[False, False]
    what = "random graphs" if args.random else "node tests"
    print(f"\n{judged} {what}, onnx {onnx.__version__}, against TensorRT for RTX, target {args.target}\n")
    print("                 check: fine   check: error")
    print(f"real: builds     {table[True, True]:11}   {table[True, False]:12}")
    print(f"real: fails      {table[False, True]:11}   {table[False, False]:12}")
    print(f"\nright: {right} of {judged} = {100 * right / max(judged, 1):.1f} %")
    print(f"not judged: {sum(refused.values())} that are not whole; TensorRT for RTX builds {refused[True]} of them")
    return 0 if judged and right >= 0.97 * judged else 1


if __name__ == "__main__":
    sys.exit(main())
