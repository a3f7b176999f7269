"""TensorRT on a real device: the same steps that the doubles prove by name, here by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_graphs
from onnx import ModelProto, TensorProto
from typer.testing import CliRunner

import edgemm
from edgemm.cli.main import app
from edgemm.device import open_device
from edgemm.engine import targets
from edgemm.engine.executor import OnnxRuntimeExecutor
from edgemm.engine.gpu import find_gpu
from edgemm.engine.load import choose
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.engine.tensorrt import flavours
from edgemm.engine.tensorrt.build import build_plan, dla_cores
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import BuildOptions, Plan, Profile
from edgemm.engine.tensorrt.plugins import aot
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.engine.tensorrt.run.engine import TensorRTEngine
from edgemm.engine.tensorrt.run.loaded import LoadedPlan
from edgemm.errors import EngineError
from edgemm.graph import from_bytes, load, ops
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


def test_outputs_go_out_as_dlpack(flavour: Flavour) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    model = trt_graphs.conv(1)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    plan = build(flavour, model, clear_flags=("TF32",))
    with TensorRTEngine(plan, flavour=flavour) as engine:
        y = torch.from_dlpack(engine.run_on_device({"x": torch.from_numpy(x).cuda()})["y"])
        np.testing.assert_allclose(y.cpu().numpy(), on_cpu(model, x=x)["y"], atol=1e-4, rtol=1e-4)


def test_stripped_weights_come_back_and_others_take_their_place(flavour: Flavour) -> None:
    """TensorRT for RTX compiles such plans only where there is a GPU: here it must."""
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    model, other = trt_graphs.conv(1), trt_graphs.conv(1, seed=5)
    whole = build(flavour, model, clear_flags=("TF32",))
    stripped = build(flavour, model, clear_flags=("TF32",), strip_weights=True, refit=True)
    assert len(stripped.data) <= len(whole.data)
    loaded = LoadedPlan(stripped, flavour=flavour, weights=model)
    with loaded, TensorRTEngine(loaded) as engine:
        np.testing.assert_allclose(engine.run({"x": x})["y"], on_cpu(model, x=x)["y"], atol=1e-4, rtol=1e-4)
        loaded.refit(other)
        np.testing.assert_allclose(engine.run({"x": x})["y"], on_cpu(other, x=x)["y"], atol=1e-4, rtol=1e-4)


def test_timings_are_kept_and_taken(flavour: Flavour, tmp_path: Path) -> None:
    if flavour.builds_without_gpu:
        pytest.skip(f"{flavour.title} times nothing when it compiles")
    first = build(flavour, trt_graphs.conv(1), timing_cache=tmp_path)
    (file,) = tmp_path.glob("*.timing")
    assert file.stat().st_size > 0
    assert build(flavour, trt_graphs.conv(1), timing_cache=tmp_path).seconds <= first.seconds * 1.5 + 0.5


def test_a_dla_runs_what_it_can(flavour: Flavour) -> None:
    cores = dla_cores(flavour)
    if not cores:
        pytest.skip("there is no DLA here: AGX Orin, Orin NX and Xavier have them")
    model = ToHalf()(from_bytes(trt_graphs.conv(1))).model.to_bytes()
    plan = build(flavour, model, dla_core=0)
    assert any(layer.device == "DLA" for layer in plan.layers)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with TensorRTEngine(plan, flavour=flavour) as engine:
        np.testing.assert_allclose(engine.run({"x": x})["y"], on_cpu(model, x=x)["y"], atol=2e-2, rtol=2e-2)


def test_a_bundle_runs_edgemms_kernels_and_says_so(flavour: Flavour, tmp_path: Path) -> None:
    """The whole way: build, choose, compile on first run, load with the plugins, run; then the inspector."""
    text = (DEMO / "recipe.toml").read_text().replace("time_axis = 1\n", "time_axis = 1\nin_graph = true\n")
    (tmp_path / "recipe.toml").write_text(text + "\n[tensorrt]\nfuse_attention = true\n")
    (tmp_path / "av_digits.onnx").write_bytes((DEMO / "av_digits.onnx").read_bytes())
    (tmp_path / "calibration").symlink_to(DEMO / "calibration")
    edgemm.build(tmp_path / "recipe.toml", tmp_path / "demo.edgemm", precision="fp16")
    opened = edgemm.open(tmp_path / "demo.edgemm")
    choice = choose(opened, "av", engine=flavour.name)
    assert choice.notes == ()
    rng = np.random.default_rng(0)
    with choice.engine as engine, choose(opened, "av", engine="onnxruntime").engine as reference:
        for _ in range(20):
            feeds = {
                "audio": rng.uniform(-0.3, 0.3, (1, 16240)).astype(np.float32),
                "video": rng.random((1, 8, 32, 32)).astype(np.float32),
            }
            expected, got = (np.array(e.run(feeds)["digit"]) for e in (reference, engine))
            np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    listed = CliRunner().invoke(app, ["inspect", str(tmp_path / "demo.edgemm"), "--layers", "--json"])
    (plan,) = json.loads(listed.output)["plans"]
    assert plan["layers before fusion"]["PLUGIN_V3"] == 2
    assert plan["inspector"]
    assert isinstance(plan["inspector"], list)
