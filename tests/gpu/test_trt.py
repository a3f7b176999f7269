"""TensorRT on a real device: the same steps that the doubles prove by name, here by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_graphs
from onnx import ModelProto, TensorProto

from edgemm.device import open_device
from edgemm.engine import targets
from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.engine.gpu import find_gpu
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.engine.tensorrt import flavours
from edgemm.engine.tensorrt.build import build_plan
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import BuildOptions, Plan, Profile
from edgemm.engine.tensorrt.plugins import aot
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.engine.tensorrt.run.engine import TensorRTEngine
from edgemm.engine.tensorrt.run.loaded import LoadedPlan
from edgemm.errors import EngineError
from edgemm.graph import load, ops
from edgemm.graph.passes import ToHalf
from edgemm.kernels.attention import AttentionOptions, attention_reference
from edgemm.kernels.log_mel import log_mel_reference
from edgemm.options import LogMelOptions
from edgemm.quant import calibrate, from_folder, insert_qdq
from edgemm.types import StatePair

DEMO = Path(__file__).parents[2] / "calibration" / "av_digits"


def here() -> list[Flavour]:
    """Every TensorRT here that compiles for the GPU at hand."""
    gpu = find_gpu()
    if gpu is None:
        return []
    sm = "SM" + gpu.compute_capability.replace(".", "")
    return [f for f in flavours.installed() if not f.builds_without_gpu or sm in f.members("ComputeCapability")]


@pytest.fixture(params=here() or [None], ids=lambda flavour: flavour.name if flavour else "none")
def flavour(request: pytest.FixtureRequest) -> Flavour:
    if request.param is None:
        pytest.skip('no TensorRT here compiles for this GPU: pip install "edgemm[tensorrt]" or "edgemm[rtx]"')
    return request.param  # type: ignore[no-any-return]


def build(flavour: Flavour, model: bytes, *profiles: Profile, **more: Any) -> Plan:
    gpu = find_gpu()
    assert gpu is not None
    target = targets.of_device(gpu.name, gpu.compute_capability)
    options = BuildOptions(
        profiles=profiles, **{k: more.pop(k) for k in list(more) if k in BuildOptions.__dataclass_fields__}
    )
    return build_plan(model, options, target, flavour=flavour, graph="g", precision="fp32", gpu=gpu, **more)


def on_cpu(model: bytes, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    with OnnxRuntimeEngine(model) as engine:
        return {name: np.array(value) for name, value in engine.run(feeds).items()}


def test_a_convolution_agrees_with_the_cpu_at_every_shape(flavour: Flavour) -> None:
    model = trt_graphs.conv()
    plan = build(flavour, model, trt_graphs.CONV_PROFILE, clear_flags=("TF32",))
    with TensorRTEngine(plan, flavour=flavour) as engine:
        for batch in (1, 2, 2, 2, 4, 1):
            x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
            np.testing.assert_allclose(engine.run({"x": x})["y"], on_cpu(model, x=x)["y"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("graph", [False, True])
def test_state_is_carried_on_the_device(flavour: Flavour, graph: bool) -> None:
    pair = StatePair("s", "s_out")
    with TensorRTEngine(build(flavour, trt_graphs.accumulator()), [pair], flavour=flavour, cuda_graph=graph) as engine:
        one = {"x": np.ones(2, np.float32)}
        assert [float(engine.run(one)["y"][0]) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
        engine.reset()
        assert float(engine.run(one)["y"][0]) == 1


def test_two_contexts_on_one_plan(flavour: Flavour) -> None:
    loaded = LoadedPlan(build(flavour, trt_graphs.accumulator()), flavour=flavour)
    one = {"x": np.ones(2, np.float32)}
    with loaded, TensorRTEngine(loaded, [StatePair("s", "s_out")]) as first, first.sibling() as second:
        first.run(one)
        assert float(second.run(one)["y"][0]) == 1
        assert float(first.run(one)["y"][0]) == 2


def test_an_output_whose_size_depends_on_values(flavour: Flavour) -> None:
    try:
        plan = build(flavour, trt_graphs.nonzero())
    except EngineError as error:
        pytest.skip(f"this TensorRT has no NonZero: {error}")
    with TensorRTEngine(plan, flavour=flavour) as engine:
        assert engine.run({"x": np.array([0, 1, 0, 1], np.float32)})["y"].tolist() == [[1, 3]]
        assert engine.run({"x": np.ones(4, np.float32)})["y"].shape == (1, 4)


def test_arrays_on_the_device_go_in_and_out(flavour: Flavour) -> None:
    model = trt_graphs.conv(1)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    plan = build(flavour, model, clear_flags=("TF32",))
    with TensorRTEngine(plan, flavour=flavour) as engine, open_device() as device:
        y = engine.run_on_device({"x": device.upload(x)})["y"]
        back = np.empty(y.shape, y.dtype)
        device.read(y.address, back)
        np.testing.assert_allclose(back, on_cpu(model, x=x)["y"], atol=1e-4, rtol=1e-4)


def test_layers_are_timed_and_inspected(flavour: Flavour) -> None:
    with TensorRTEngine(build(flavour, trt_graphs.conv(1)), flavour=flavour, profile_layers=True) as engine:
        for _ in range(3):
            engine.run({"x": np.ones((1, 3, 8, 8), np.float32)})
        assert engine.layers()
        assert all(time.calls == 3 and time.total_ns > 0 for time in engine.layer_times())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_demo_decides_as_on_the_cpu(flavour: Flavour, precision: str) -> None:
    model = load(DEMO / "av_digits.onnx")
    samples = list(from_folder(DEMO / "calibration", model.inputs))
    variant = model
    if precision == "fp16":
        variant = ToHalf()(model).model
    elif precision == "int8":
        variant = insert_qdq(model, calibrate(model, samples, OnnxRuntimeExecutor()), "tensorrt").model
    agreed = 0
    plan = build(flavour, variant.to_bytes())
    with TensorRTEngine(plan, flavour=flavour) as engine, OnnxRuntimeEngine(model.to_bytes()) as reference:
        for sample in samples:
            wanted = np.argmax(reference.run(sample.steps[0])["digit"])
            agreed += int(np.argmax(engine.run(sample.steps[0])["digit"]) == wanted)
    assert agreed >= 0.98 * len(samples)


def test_the_log_mel_plugin_runs_the_kernel(flavour: Flavour) -> None:
    options = LogMelOptions()
    node = ops.log_mel_node("x", "y", options, "node")
    proto = ModelProto.FromString(
        trt_graphs.model([node], [("x", TensorProto.FLOAT, [1, 16000])], [("y", TensorProto.FLOAT, [1, 98, 80])])
    )
    ops.add_bodies(proto)
    plugins = OwnPlugins()
    plan = build(flavour, ops.without_bodies(proto).SerializeToString(), plugins=plugins)
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16000)).astype(np.float32)
    with TensorRTEngine(plan, flavour=flavour, plugins=plugins) as engine:
        for _ in range(3):
            np.testing.assert_allclose(engine.run({"x": x})["y"][0], log_mel_reference(x[0], options), atol=5e-3)


@pytest.mark.parametrize("ahead_of_time", [False, True])
def test_the_attention_plugin_runs_the_kernel(flavour: Flavour, ahead_of_time: bool) -> None:
    if ahead_of_time and not aot.is_available(flavour):
        pytest.skip(f"{flavour.title} has no ahead-of-time plugins: TensorRT 10.13 and 11 have them")
    options = AttentionOptions(64, causal=True)
    shape = [1, 4, 32, 64]
    node = ops.attention_node("q", "k", "v", "y", options, name="node")
    half = TensorProto.FLOAT16
    proto = ModelProto.FromString(
        trt_graphs.model([node], [(name, half, shape) for name in "qkv"], [("y", half, shape)])
    )
    ops.add_bodies(proto)
    plugins = OwnPlugins(ahead_of_time=ahead_of_time)
    plan = build(flavour, ops.without_bodies(proto).SerializeToString(), plugins=plugins)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float16) for name in "qkv"}
    expected, _ = attention_reference(feeds["q"], feeds["k"], feeds["v"], options)
    with TensorRTEngine(plan, flavour=flavour, plugins=plugins) as engine:
        for _ in range(3):
            np.testing.assert_allclose(engine.run(feeds)["y"], expected, atol=4e-3, rtol=2e-3)
