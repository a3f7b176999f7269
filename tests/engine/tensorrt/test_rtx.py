"""The real TensorRT for RTX: it parses and compiles without a GPU, so all that needs none is tried here for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trt_graphs
from host_driver import HostDriver
from onnx import ModelProto, TensorProto, helper
from require import require

import edgemm
from edgemm import bundle
from edgemm.engine import targets
from edgemm.engine.gpu import Gpu, find_gpu
from edgemm.engine.tensorrt import compiled, flavours
from edgemm.engine.tensorrt.build import Progress, TensorRTRefused, build_plan, plan_key
from edgemm.engine.tensorrt.cache import Host, PlanCache, preflight
from edgemm.engine.tensorrt.plan import BuildOptions, Plan, Profile, read_plan
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.engine.tensorrt.run.engine import TensorRTEngine
from edgemm.errors import EngineError, UsageError
from edgemm.graph import Model, load, ops
from edgemm.graph.passes import ToHalf
from edgemm.graph.passes.fuse_attention import FuseAttention
from edgemm.kernels.attention import AttentionOptions
from edgemm.options import LogMelOptions, MfccOptions

require("tensorrt_rtx", "rtx")

DEMO = Path(__file__).parents[3] / "calibration" / "av_digits"
FLAVOUR = flavours.get("tensorrt-rtx")
EVERY = ["rtx-sm75", "rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120"]


def build(model: bytes | Path, target: str = "rtx-sm86", *profiles: Profile, **more: object) -> Plan:
    options = BuildOptions(
        profiles=profiles, **{k: more.pop(k) for k in list(more) if k in BuildOptions.__dataclass_fields__}
    )  # type: ignore[arg-type]
    arguments = {"flavour": FLAVOUR, "graph": "g", "precision": "fp32"} | more
    return build_plan(model, options, targets.get(target), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", EVERY)
def test_a_convolution_is_compiled_for_every_target(target: str) -> None:
    plan = build(trt_graphs.conv(), target, trt_graphs.CONV_PROFILE)
    assert plan.data[:4] == b"vtrt"
    assert plan.key.sm == targets.get(target).sm
    assert [(t.name, t.is_input, t.dtype, t.shape) for t in plan.io] == [
        ("x", True, "float32", (None, 3, 8, 8)),
        ("y", False, "float32", (None, 4, 8, 8)),
    ]
    assert {"conv", "relu"} <= {layer.name for layer in plan.layers}
    assert read_plan(plan.to_bytes()) == plan


def test_options_that_this_version_has_are_taken() -> None:
    plan = build(
        trt_graphs.conv(1),
        optimization_level=1,
        memory_pools={"WORKSPACE": 64 << 20, "TACTIC_SHARED_MEMORY": 48 << 10},
        tactic_sources=("JIT_CONVOLUTIONS",),
        sparsity=True,
        hardware_compatibility="NONE",
        clear_flags=("TF32",),
        max_aux_streams=0,
        detailed_layers=False,
    )
    assert plan.data


def test_two_profiles() -> None:
    large = {"x": ((4, 3, 8, 8), (8, 3, 8, 8), (16, 3, 8, 8))}
    assert len(build(trt_graphs.conv(), "rtx-sm86", trt_graphs.CONV_PROFILE, large).io[0].profiles) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"refit": True}, "compile on the GPU, and there is none here"),
        ({"strip_weights": True}, "compile on the GPU, and there is none here"),
        ({"version_compatible": True}, "lean runtime"),
        ({"dla_core": 0}, "finds 0 DLA cores here"),
        ({"flags": ("FP16",)}, "has no BuilderFlag FP16"),
        ({"memory_pools": {"WORKSPACE": 1 << 10}}, "Raise the WORKSPACE"),
    ],
)
def test_options_that_cannot_be_say_why(options: dict[str, object], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        build(trt_graphs.conv(1), **options)


def test_a_timing_cache_is_not_touched(tmp_path: Path) -> None:
    build(trt_graphs.conv(1), timing_cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fp32_products_are_refused_on_turing_and_fp16_ones_are_not() -> None:
    with pytest.raises(
        TensorRTRefused, match=r'node "matmul" \(MATRIX_MULTIPLY\): .*no kernel for SM75.*--precision fp16'
    ):
        build(trt_graphs.gemm(), "rtx-sm75")
    half = ToHalf()(Model(ModelProto.FromString(trt_graphs.gemm()))).model
    assert build(half.to_bytes(), "rtx-sm75").data


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("DynamicQuantizeLinear", "does not support this operator"),
        ("NonZero", "no plugin for it is registered"),
    ],
)
def test_what_the_parser_refuses_has_node_and_remedy(op: str, words: str) -> None:
    outputs = ["y", "s", "z"] if op == "DynamicQuantizeLinear" else ["y"]
    kind = TensorProto.UINT8 if op == "DynamicQuantizeLinear" else TensorProto.INT64
    node = helper.make_node(op, ["x"], outputs, name="culprit")
    model = trt_graphs.model([node], [("x", TensorProto.FLOAT, [4])], [("y", kind, None)])
    with pytest.raises(TensorRTRefused, match=words) as caught:
        build(model)
    assert (caught.value.problems[0].node, caught.value.problems[0].op) == ("culprit", op)


def test_a_zero_point_is_refused() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dequantize"),
    ]
    weights = {"s": np.float32(0.1).reshape(()), "z": np.int8(3).reshape(())}
    model = trt_graphs.model(nodes, [("x", TensorProto.FLOAT, [4])], [("y", TensorProto.FLOAT, [4])], weights)
    with pytest.raises(TensorRTRefused, match="its zero point is not 0"):
        build(model)


@pytest.mark.parametrize("stop_at", [1, 20])
def test_a_build_can_be_stopped(stop_at: int) -> None:
    steps: list[Progress] = []

    class Stop(Exception):
        pass

    def count(step: Progress) -> None:
        steps.append(step)
        if len(steps) == stop_at:
            raise Stop

    with pytest.raises(Stop):
        build(trt_graphs.conv(1), progress=count)
    assert len(steps) == stop_at
    assert build(trt_graphs.conv(1)).data, "the next build is not disturbed"


def test_ctrl_c_ends_the_program_as_it_should() -> None:
    """In a process of its own: SIGINT during TensorRT's work becomes KeyboardInterrupt, and nothing crashes."""
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_rtx, trt_graphs\n"
        "def once(step, seen=[]):\n"
        "    if not seen: seen.append(1); os.kill(os.getpid(), signal.SIGINT)\n"
        "try: test_rtx.build(trt_graphs.conv(1), progress=once)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    here = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", script, str(here), str(here.parents[1] / "support")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "interrupted\n"), ran.stderr


def test_plans_differ_and_keys_do_not() -> None:
    """Two builds give other bytes: what is the same is decided by keys, never by comparing plans."""
    first, second = build(trt_graphs.conv(1)), build(trt_graphs.conv(1))
    assert first.key == second.key


def test_the_plan_of_one_target_is_refused_on_another() -> None:
    plan = build(trt_graphs.conv(1), "rtx-sm89")
    with pytest.raises(EngineError, match=r"targets sm_89 .*this device is sm_86 \(RTX 3090\)"):
        preflight(plan.key, Host("tensorrt-rtx", FLAVOUR.version, "8.6", "RTX 3090"))
    preflight(plan.key, Host("tensorrt-rtx", FLAVOUR.version, "8.9", "RTX 4090"))


def test_a_plan_goes_through_the_cache(tmp_path: Path) -> None:
    model = trt_graphs.conv(1)
    options = BuildOptions()
    key = plan_key(FLAVOUR, options, targets.get("rtx-sm86"), graph="g", precision="fp32")
    cache = PlanCache(tmp_path / "plans")
    first = cache.get_or_build(key, lambda: build(model))
    second = cache.get_or_build(key, lambda: pytest.fail("it is in the cache"))
    assert (first.origin, second.origin) == ("built", "cache")
    assert first.plan == second.plan


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU: tests/gpu runs plans on it")
def test_a_runtime_without_a_driver_refuses_with_words() -> None:
    """The real runtime, beyond the preflight, on a machine that has no driver."""
    engine = TensorRTEngine(build(trt_graphs.conv(1)), open_device=HostDriver(device="RTX 3090", arch=86).open)
    with pytest.raises(
        EngineError, match=r"cannot load the plan: the CUDA driver cannot be used here\. There is no GPU"
    ):
        engine.__enter__()


def test_kill_9_during_a_real_build_leaves_no_entry(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "import test_rtx, trt_graphs\n"
        "from edgemm.engine import targets\n"
        "from edgemm.engine.tensorrt.build import plan_key\n"
        "from edgemm.engine.tensorrt.cache import PlanCache\n"
        "from edgemm.engine.tensorrt.plan import BuildOptions\n"
        "def die(step):\n"
        "    if step.phase == 'Optimizing graph': os.kill(os.getpid(), signal.SIGKILL)\n"
        "key = plan_key(test_rtx.FLAVOUR, BuildOptions(), targets.get('rtx-sm86'), graph='g', precision='fp32')\n"
        "PlanCache(Path(sys.argv[3])).get_or_build(key, lambda: test_rtx.build(trt_graphs.conv(1), progress=die))\n"
    )
    here = Path(__file__).parent
    folder = tmp_path / "plans"
    arguments = [sys.executable, "-c", script, str(here), str(here.parents[1] / "support"), str(folder)]
    ran = subprocess.run(arguments, capture_output=True, timeout=120, check=False)
    assert ran.returncode == -signal.SIGKILL
    cache = PlanCache(folder)
    assert cache.list() == ()
    key = plan_key(FLAVOUR, BuildOptions(), targets.get("rtx-sm86"), graph="g", precision="fp32")
    assert cache.get_or_build(key, lambda: build(trt_graphs.conv(1))).origin == "built"


OPERATORS = {
    "LogMel": (ops.log_mel_node("x", "y", LogMelOptions(), "node"), [("x", TensorProto.FLOAT, [1, "T"])], [1, "F", 80]),
    "MFCC": (
        ops.mfcc_node("x", "y", MfccOptions(deltas=1), "node"),
        [("x", TensorProto.FLOAT, [1, "T"])],
        [1, "F", 26],
    ),
    "FusedAttention": (
        ops.attention_node("q", "k", "v", "y", AttentionOptions(64, causal=True), name="node"),
        [(name, TensorProto.FLOAT16, [1, 4, 16, 64]) for name in "qkv"],
        [1, 4, 16, 64],
    ),
    "FusedAttentionBias": (
        ops.attention_node("q", "k", "v", "y", AttentionOptions(32), bias="b", name="node"),
        [(name, TensorProto.FLOAT16, [1, 4, 16, 32]) for name in "qkv"] + [("b", TensorProto.FLOAT16, [1, 4, 16, 16])],
        [1, 4, 16, 32],
    ),
}


def model_of(op: str) -> ModelProto:
    node, inputs, shape = OPERATORS[op]
    kind = TensorProto.FLOAT if op in ("LogMel", "MFCC") else TensorProto.FLOAT16
    proto = ModelProto.FromString(trt_graphs.model([node], inputs, [("y", kind, shape)]))  # type: ignore[arg-type]
    ops.add_bodies(proto)
    return proto


@pytest.mark.parametrize("op", list(OPERATORS))
def test_each_operator_is_compiled_as_a_plugin(op: str) -> None:
    proto = model_of(op)
    plugins = OwnPlugins()
    samples: Profile = {"x": ((1, 400), (1, 16000), (1, 64000))}
    profiles = (samples,) if op in ("LogMel", "MFCC") else ()
    plan = build(ops.without_bodies(proto).SerializeToString(), "rtx-sm86", *profiles, plugins=plugins)
    assert [layer.kind for layer in plan.layers] == ["PLUGIN_V3"]
    assert plan.key.plugins == plugins.digest
    assert plan.io[-1].shape[-1] == OPERATORS[op][2][-1]


@pytest.mark.parametrize("op", list(OPERATORS))
def test_each_operator_is_compiled_from_its_body(op: str) -> None:
    samples: Profile = {"x": ((1, 400), (1, 16000), (1, 64000))}
    profiles = (samples,) if op in ("LogMel", "MFCC") else ()
    plan = build(model_of(op).SerializeToString(), "rtx-sm86", *profiles)
    assert "PLUGIN_V3" not in {layer.kind for layer in plan.layers}


def test_attention_found_in_a_model_is_compiled_as_a_plugin() -> None:
    fused = FuseAttention()(ToHalf()(load(DEMO / "av_digits.onnx")).model)
    assert fused.changed
    plan = build(ops.without_bodies(fused.model.proto).SerializeToString(), plugins=OwnPlugins())
    assert [layer.kind for layer in plan.layers].count("PLUGIN_V3") == 1
    assert build(fused.model.to_bytes()).data, "and from its body"


def test_a_plugin_whose_kernel_does_not_exist_is_refused_by_the_builder() -> None:
    proto = model_of("FusedAttention")
    for attribute in proto.graph.node[0].attribute:
        if attribute.name == "head_dim":
            attribute.i = 7
    with pytest.raises(EngineError):
        build(ops.without_bodies(proto).SerializeToString(), plugins=OwnPlugins())


def test_a_bundle_brings_its_plan_and_another_gpu_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    edgemm.build(DEMO / "recipe.toml", tmp_path / "demo.edgemm", precision="fp32", target="rtx-sm86")
    opened = bundle.open(tmp_path / "demo.edgemm")
    ampere, ada = Gpu("NVIDIA GeForce RTX 3090", "8.6"), Gpu("NVIDIA GeForce RTX 4090", "8.9")
    assert compiled.plan_for_device(opened, "av", "fp32", FLAVOUR, gpu=ampere).origin == "bundle"
    other = compiled.plan_for_device(opened, "av", "fp32", FLAVOUR, gpu=ada)
    assert other.origin == "built"
    assert "targets sm_86" in other.notes[0]
    assert "this device is sm_89" in other.notes[0]
    assert compiled.plan_for_device(opened, "av", "fp32", FLAVOUR, gpu=ada).origin == "cache"


def two_at_once(script: str, *arguments: str, cache: Path) -> list[str]:
    """Start two processes with the same script and arguments, and return what each printed."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "EDGEMM_CACHE": str(cache)}
    pair = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = []
    for process in pair:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        said.append(out.strip())
    return said


def test_two_processes_that_want_the_plan_of_one_bundle_compile_it_once(tmp_path: Path) -> None:
    (tmp_path / "conv.onnx").write_bytes(trt_graphs.conv(1))
    edgemm.build(tmp_path / "conv.onnx", tmp_path / "conv.edgemm")
    script = (
        "import sys\n"
        "import edgemm\n"
        "from edgemm.engine.gpu import Gpu\n"
        "from edgemm.engine.tensorrt import compiled, flavours\n"
        "gpu = Gpu('NVIDIA GeForce RTX 3090', '8.6')\n"
        "flavour = flavours.get('tensorrt-rtx')\n"
        "print(compiled.plan_for_device(edgemm.open(sys.argv[1]), 'conv', 'fp32', flavour, gpu=gpu).origin)\n"
    )
    said = two_at_once(script, str(tmp_path / "conv.edgemm"), cache=tmp_path / "cache")
    assert sorted(said) == ["built", "cache"]
    assert len(PlanCache(tmp_path / "cache" / "plans").list()) == 1


def test_two_processes_that_write_one_bundle_leave_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "conv.onnx").write_bytes(trt_graphs.conv(1))
    script = (
        "import sys\n"
        "import edgemm\n"
        "print(edgemm.build(sys.argv[1], sys.argv[2], precision='fp32', target='rtx-sm86').sha256)\n"
    )
    out = tmp_path / "conv.edgemm"
    said = two_at_once(script, str(tmp_path / "conv.onnx"), str(out), cache=tmp_path / "cache")
    opened = bundle.open(out)
    assert opened.digest in said
    assert read_plan(opened.read(opened.manifest.plans[0].file)).data
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["conv.edgemm", "conv.onnx"]


def test_the_demo_is_compiled_in_fp32_and_fp16() -> None:
    model = load(DEMO / "av_digits.onnx")
    assert build(model.to_bytes(), "rtx-sm86").data
    assert build(ToHalf()(model).model.to_bytes(), "rtx-sm75").data


@pytest.mark.slow
def test_turing_takes_int8_beside_fp16(tmp_path: Path) -> None:
    source = tmp_path / "recipe.toml"
    source.write_text((DEMO / "recipe.toml").read_text() + "\n[tensorrt]\nhalf = true\n")
    (tmp_path / "av_digits.onnx").symlink_to(DEMO / "av_digits.onnx")
    few = [dict(np.load(file)) for file in sorted((DEMO / "calibration").glob("*.npz"))[:4]]
    said = edgemm.build(
        source,
        tmp_path / "o.edgemm",
        precision="int8",
        target="rtx-sm75",
        calibration=few,
        observer="min-max",
    ).plans
    assert any(line.startswith("av, int8: compiled for sm_75 by TensorRT for RTX") for line in said), said


@pytest.mark.slow
@pytest.mark.parametrize("target", EVERY)
def test_the_demo_is_built_in_every_precision_that_the_target_has(target: str, tmp_path: Path) -> None:
    """Through `edgemm build engine --precision P --target T`, with the sentence of each refusal."""
    few = [dict(np.load(file)) for file in sorted((DEMO / "calibration").glob("*.npz"))[:8]]
    sm = targets.get(target).sm
    # In fp32 and int8 the demo has products that Turing has no kernel for; that is found by the compiler.
    no_plan = {("rtx-sm75", "fp32"), ("rtx-sm75", "int8")}
    refused = {("rtx-sm75", "fp8"), ("rtx-sm75", "int4"), ("rtx-sm80", "fp8"), ("rtx-sm86", "fp8")}
    for precision in ("fp32", "fp16", "int8", "fp8", "int4"):
        arguments = {"precision": precision, "target": target, "calibration": few, "observer": "min-max"}
        path = tmp_path / f"{precision}.edgemm"
        if (target, precision) in refused:
            with pytest.raises(UsageError, match=rf"has no kernels for {precision}, which needs SM8\d or newer"):
                edgemm.build(DEMO / "recipe.toml", path, **arguments)  # type: ignore[arg-type]
            continue
        report = edgemm.build(DEMO / "recipe.toml", path, **arguments)  # type: ignore[arg-type]
        said = [line for line in report.plans if line.startswith(f"av, {precision}: ")]
        built = {entry.key["precision"] for entry in bundle.open(path).manifest.plans}
        if (target, precision) in no_plan:
            assert re.search(r'no plan: .*node "/model/\S+" .* no kernel for SM75 .*--precision fp16', said[0])
            assert precision not in built
        else:
            assert said[0].startswith(f"av, {precision}: compiled for {sm} by TensorRT for RTX")
            assert precision in built
