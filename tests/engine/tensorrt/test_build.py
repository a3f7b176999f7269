"""The builder against the strict double of every TensorRT version: names, options, errors."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trt_graphs
from trt_double import VERSIONS, Double, double

from edgemm.engine import targets
from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt.build import Progress, TensorRTRefused, build_plan, plan_key
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import BuildOptions, Plan
from edgemm.errors import EngineError

ORIN = Gpu("Orin", "8.7", integrated=True)
PROFILES = (trt_graphs.CONV_PROFILE,)


def flavour_of(module: Double) -> Flavour:
    return Flavour("tensorrt-rtx" if "rtx" in module.__name__ else "tensorrt", module.__version__, module)


@pytest.fixture(params=list(VERSIONS))
def module(request: pytest.FixtureRequest) -> Double:
    return double(request.param)


@pytest.fixture
def jetson() -> Double:
    return double("10.3")


def build(module: Double, model: bytes | Path | None = None, **more: Any) -> Plan:
    options = {name: more.pop(name) for name in list(more) if name in BuildOptions.__dataclass_fields__}
    options.setdefault("profiles", PROFILES)
    flavour = flavour_of(module)
    target = targets.get("rtx-sm86" if flavour.name == "tensorrt-rtx" else "orin-nano")
    arguments = {"flavour": flavour, "graph": "a graph", "precision": "fp32", "gpu": ORIN} | more
    return build_plan(trt_graphs.conv() if model is None else model, BuildOptions(**options), target, **arguments)


def test_a_plan_says_what_it_takes_and_gives(module: Double) -> None:
    plan = build(module)
    x, y = plan.io
    assert (x.name, x.is_input, x.dtype, x.shape) == ("x", True, "float32", (None, 3, 8, 8))
    assert x.profiles == (trt_graphs.CONV_PROFILE["x"],)
    assert (y.name, y.is_input, y.dtype, y.shape) == ("y", False, "float32", (None, 4, 8, 8))
    assert [layer.name for layer in plan.layers] == ["conv", "relu"]
    assert plan.warnings == ("a warning of the double",)
    assert plan.seconds >= 0


def test_the_key_is_known_before_the_build(module: Double) -> None:
    flavour = flavour_of(module)
    target = targets.get("rtx-sm86" if flavour.name == "tensorrt-rtx" else "orin-nano")
    options = BuildOptions(profiles=PROFILES)
    key = plan_key(flavour, options, target, graph="a graph", precision="fp32", gpu=ORIN)
    assert key == build(module).key
    assert key.version == module.__version__
    assert key.gpu == ("any" if flavour.name == "tensorrt-rtx" else "Orin")


def test_a_file_is_built_as_its_bytes_are(module: Double, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(trt_graphs.conv())
    assert build(module, file).io == build(module).io


def test_every_option_reaches_the_version_by_name(module: Double) -> None:
    captured: list[Any] = []
    original = module.Builder.build_serialized_network
    module.Builder.build_serialized_network = lambda self, network, config: (
        captured.append(config),
        original(self, network, config),
    )[1]
    build(
        module,
        memory_pools={"WORKSPACE": 1 << 20, "TACTIC_SHARED_MEMORY": 1 << 14},
        optimization_level=4,
        tactic_sources=("JIT_CONVOLUTIONS", "EDGE_MASK_CONVOLUTIONS"),
        flags=("DEBUG",),
        clear_flags=("TF32",),
        sparsity=True,
        version_compatible=True,
        hardware_compatibility="AMPERE_PLUS",
        strip_weights=True,
        refit=True,
        max_aux_streams=2,
    )
    config = captured[0]
    # 10.3 has two names for one value, WEIGHTLESS and STRIP_PLAN: compare values.
    assert config._flag_set == {
        module.BuilderFlag[name] for name in ("DEBUG", "SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT")
    }
    assert config._sources == (1 << module.TacticSource.JIT_CONVOLUTIONS) | (
        1 << module.TacticSource.EDGE_MASK_CONVOLUTIONS
    )
    assert config._pools == {
        module.MemoryPoolType.WORKSPACE: 1 << 20,
        module.MemoryPoolType.TACTIC_SHARED_MEMORY: 1 << 14,
    }
    assert config.builder_optimization_level == 4
    assert config.max_aux_streams == 2
    assert config.hardware_compatibility_level == module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiling_verbosity == module.ProfilingVerbosity.DETAILED


def test_options_change_the_key(jetson: Double) -> None:
    keys = {
        build(jetson, **options).key.id
        for options in (
            {},
            {"sparsity": True},
            {"optimization_level": 1},
            {"version_compatible": True},
            {"refit": True},
        )
    }
    assert len(keys) == 5
    assert build(jetson, version_compatible=True, hardware_compatibility="AMPERE_PLUS").key.compatibility == (
        "version+AMPERE_PLUS"
    )


@pytest.mark.parametrize(
    ("version", "option", "words"),
    [
        ("11.4", {"flags": ("FP16",)}, "TensorRT 11.4.0 has no BuilderFlag FP16; it has: DEBUG"),
        ("rtx", {"tactic_sources": ("CUBLAS",)}, "TensorRT for RTX 1.7.1 has no TacticSource CUBLAS"),
        ("10.3", {"hardware_compatibility": "SAME_COMPUTE_CAPABILITY"}, "has no HardwareCompatibilityLevel SAME_"),
        ("10.3", {"memory_pools": {"POOL": 1}}, "has no MemoryPoolType POOL; it has: DLA_GLOBAL_DRAM"),
    ],
)
def test_a_name_that_the_version_lacks_is_an_error_with_those_it_has(
    version: str, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        build(double(version), **option)


def test_no_tactic_source_is_refused(jetson: Double) -> None:
    with pytest.raises(EngineError, match="refused the tactic sources"):
        build(jetson, tactic_sources=())


def test_several_profiles(module: Double) -> None:
    large = {"x": ((4, 3, 8, 8), (8, 3, 8, 8), (16, 3, 8, 8))}
    plan = build(module, profiles=(trt_graphs.CONV_PROFILE, large))
    assert plan.io[0].profiles == (trt_graphs.CONV_PROFILE["x"], large["x"])


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ((), r'"x" has the dynamic shape \[-1, 3, 8, 8\] and no range was given'),
        (({},), 'profile 0 has no range for the input "x"'),
        (({"x": ((4, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8))},), "refused optimization profile 0"),
    ],
)
def test_a_dynamic_input_needs_a_range(module: Double, profiles: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        build(module, profiles=profiles)


def test_an_input_whose_values_are_shapes_is_refused(module: Double) -> None:
    module._shape_inputs = ("x",)
    with pytest.raises(EngineError, match='values of the input "x" decide shapes'):
        build(module)


def test_what_the_parser_refuses_has_node_op_reason_and_remedy(module: Double) -> None:
    module._fail_parse = ("quantize_1", "QuantizeLinear", "Assertion failed: shiftIsAllZeros(zeroPoint)")
    with pytest.raises(TensorRTRefused) as caught:
        build(module)
    (problem,) = caught.value.problems
    assert (problem.stage, problem.node, problem.op) == ("parse", "quantize_1", "QuantizeLinear")
    assert 'node "quantize_1" (QuantizeLinear): its zero point is not 0' in str(caught.value)
    assert "Quantize again with edgemm" in str(caught.value)


def test_what_the_builder_refuses_has_layer_and_kind(module: Double) -> None:
    module._fail_build = "Error Code 1: Myelin (Cannot compile operation 'conv' for Turing (SM75): FP32 GEMM is not"
    with pytest.raises(
        TensorRTRefused, match=r'node "conv" \(CONVOLUTION\): its matrix product has no kernel for SM75'
    ):
        build(module)


def test_a_dla_takes_what_it_can_and_the_plan_says_what_not(jetson: Double) -> None:
    jetson._dla_cores, jetson._dla_refuses = 2, ("Relu",)
    plan = build(jetson, dla_core=1)
    assert [(layer.name, layer.device) for layer in plan.layers] == [("conv", "DLA"), ("relu", "GPU")]
    assert plan.warnings[0] == "1 of 2 layers run on the GPU, not on the DLA: relu"
    assert plan.key.dla == "1"


@pytest.mark.parametrize(("version", "flags"), [("10.3", []), ("10.13", []), ("11.4", ["ADJUST_FOR_DLA"])])
def test_the_parser_is_told_of_the_dla_where_it_listens(version: str, flags: list[str]) -> None:
    module = double(version)
    module._dla_cores = 1
    build(module)
    assert module._parser_flags == []
    build(module, dla_core=0)
    assert module._parser_flags == flags


def test_a_strict_dla_refuses_what_it_cannot_run(jetson: Double) -> None:
    jetson._dla_cores, jetson._dla_refuses = 2, ("Relu",)
    with pytest.raises(EngineError, match=r"1 of 2 layers cannot run on the DLA: relu \(ACTIVATION\)"):
        build(jetson, dla_core=0, dla_strict=True)
    jetson._dla_refuses = ()
    assert {layer.device for layer in build(jetson, dla_core=0, dla_strict=True).layers} == {"DLA"}


def test_a_dla_core_that_is_not_there(module: Double) -> None:
    with pytest.raises(EngineError, match=r"DLA core 0 was asked for, and TensorRT .*finds 0 DLA cores here"):
        build(module, dla_core=0)


def test_progress_is_told(module: Double) -> None:
    seen: list[Progress] = []
    build(module, progress=seen.append)
    assert seen[0] == Progress("Building engine", "", 0, 3)
    assert [step.step for step in seen] == [0, 1, 2, 3, 3]


def test_an_error_of_the_progress_callback_ends_the_build_and_comes_out(module: Double) -> None:
    def fail(step: Progress) -> None:
        raise ValueError("the bar broke")

    with pytest.raises(ValueError, match="the bar broke"):
        build(module, progress=fail)


def test_ctrl_c_cancels_the_build(jetson: Double) -> None:
    steps: list[int] = []

    def slowly(step: Progress) -> None:
        steps.append(step.step)
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)

    jetson._build_steps = 1000
    with pytest.raises(KeyboardInterrupt):
        build(jetson, progress=slowly)
    assert len(steps) < 100
    assert not any(thread.name == "edgemm-trt-build" for thread in threading.enumerate())


def test_tensorrt_needs_the_gpu_it_compiles_for(jetson: Double) -> None:
    with pytest.raises(EngineError, match="compiles plans only for the GPU in the machine, and none was found"):
        build(jetson, gpu=None)
    with pytest.raises(EngineError, match=r"\(RTX 3090, compute capability 8.6\); Jetson Orin Nano 8GB has 8.7"):
        build(jetson, gpu=Gpu("RTX 3090", "8.6"))


def test_rtx_compiles_for_what_it_knows() -> None:
    module = double("rtx")
    flavour = flavour_of(module)
    options = BuildOptions(profiles=PROFILES)
    arguments = {"flavour": flavour, "graph": "g", "precision": "fp32"}
    with pytest.raises(EngineError, match=r"\(SM87\); it knows SM75, SM80.*compiled on the board itself"):
        build_plan(trt_graphs.conv(), options, targets.get("orin-nano"), **arguments)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"H100 SXM \(SM90\).*pip install"):
        build_plan(trt_graphs.conv(), options, targets.get("h100"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logged", "words"),
    [
        ("CUDA initialization failure with error: 35", "the CUDA driver cannot be used here"),
        ("silently", "factory function returned nullptr"),
    ],
)
def test_a_builder_that_cannot_start_says_why(module: Double, logged: str, words: str) -> None:
    module._cuda_fails = logged
    with pytest.raises(EngineError, match=f"cannot start: .*{re.escape(words)}"):
        build(module)


def test_timings_are_kept_by_version_and_device_and_merged(jetson: Double, tmp_path: Path) -> None:
    build(jetson, timing_cache=tmp_path / "timings")
    (file,) = (tmp_path / "timings").glob("*.timing")
    assert file.name.startswith("tensorrt-10.3.0-sm87-")
    assert file.read_bytes() == b"timed here"
    file.write_bytes(b"timed before")
    build(jetson, timing_cache=tmp_path / "timings")
    assert file.read_bytes() == b"timed before\ntimed here"
    build(jetson, timing_cache=tmp_path / "timings", gpu=replace(ORIN, name="Orin NX"))
    assert len(list((tmp_path / "timings").glob("*.timing"))) == 2


def test_a_damaged_timing_cache_is_begun_again(jetson: Double, tmp_path: Path) -> None:
    build(jetson, timing_cache=tmp_path)
    (file,) = tmp_path.glob("*.timing")
    file.write_bytes(b"damaged")
    build(jetson, timing_cache=tmp_path)
    assert file.read_bytes() == b"timed here"


def test_a_timing_cache_that_cannot_be_kept_is_an_error(jetson: Double, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="Cannot make the folder"):
        build(jetson, timing_cache=tmp_path / "file" / "timings")


def test_plugins_are_registered_and_in_the_key(module: Double) -> None:
    class Known:
        digest = "d1g35t"
        ahead_of_time = True
        flavour: Flavour | None = None

        def register(self, flavour: Flavour) -> None:
            self.flavour = flavour

    plugins = Known()
    plan = build(module, plugins=plugins)
    assert plan.key.plugins == "d1g35t"
    assert plugins.flavour == flavour_of(module)
