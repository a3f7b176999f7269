"""Compile on first run: from a bundle to a plan for the device at hand, with the double of a Jetson's TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from host_driver import HostDriver
from trt_double import Double, double

import edgemm
from edgemm import bundle
from edgemm.bundle import Bundle
from edgemm.demo import folder
from edgemm.engine import load
from edgemm.engine.gpu import Gpu
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.engine.tensorrt import compiled, flavours
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.run.engine import TensorRTEngine
from edgemm.errors import EngineError

ORIN = Gpu("Orin", "8.7", integrated=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("compiled") / "demo.edgemm"
    edgemm.build(folder() / "recipe.toml", path, precision="int8", target="orin-nano")
    return bundle.open(path)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))


def jetpack(version: str = "10.3.0") -> Flavour:
    module = double("10.3")
    return Flavour("tensorrt", version, module)


def test_a_plan_is_compiled_on_the_first_run_and_kept(demo: Bundle) -> None:
    said: list[str] = []
    first = compiled.plan_for_device(demo, "av", "int8", jetpack(), gpu=ORIN, tell=said.append)
    second = compiled.plan_for_device(demo, "av", "int8", jetpack(), gpu=ORIN, tell=said.append)
    assert (first.origin, second.origin) == ("built", "cache")
    assert said == [
        "av: compiling the int8 plan for Orin; this is done once",
        "TensorRT 10.3.0: Building engine",
    ]
    assert first.plan.key.precision == "int8"
    assert compiled.plan_for_device(demo, "av", "fp32", jetpack(), gpu=ORIN).origin == "built"


def test_a_jetpack_update_compiles_again_and_says_so(demo: Bundle) -> None:
    compiled.plan_for_device(demo, "av", "int8", jetpack(), gpu=ORIN)
    updated = compiled.plan_for_device(demo, "av", "int8", jetpack("10.7.0"), gpu=ORIN)
    assert updated.origin == "built"
    assert updated.notes == (
        "The cached plan was compiled for the TensorRT version 10.3.0, here it is 10.7.0: compiling again.",
    )


def test_without_a_gpu_nothing_is_compiled(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_gpu", lambda: None)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU with its driver, and none was found"):
        compiled.plan_for_device(demo, "av", "int8", jetpack())


def test_what_tensorrt_refuses_is_not_kept(demo: Bundle, tmp_path: Path) -> None:
    flavour = jetpack()
    module = flavour.module
    assert isinstance(module, Double)
    module._fail_build = "Error Code 2: no kernel"
    with pytest.raises(EngineError, match="no kernel"):
        compiled.plan_for_device(demo, "av", "int8", flavour, gpu=ORIN)
    assert list((tmp_path / "cache" / "plans").glob("*.plan")) == []


@pytest.mark.parametrize(("engine", "precision"), [("tensorrt", "int8"), ("auto", "fp32")])
def test_a_bundle_runs_on_a_jetsons_tensorrt(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, engine: str, precision: str
) -> None:
    """The whole way: choose, compile, load, run; the steps are onnxruntime's work behind TensorRT's names."""
    flavour = jetpack()
    driver = HostDriver(device="Orin", arch=87, integrated=True)
    flavour.module._driver = driver  # type: ignore[attr-defined]
    monkeypatch.setattr(flavours, "get", lambda name: flavour)
    monkeypatch.setattr(flavours, "installed", lambda: (flavour,))
    monkeypatch.setattr("edgemm.engine.gpu.find_gpu", lambda index=0: ORIN)
    monkeypatch.setitem(TensorRTEngine.__init__.__kwdefaults__, "open_device", driver.open)
    choice = load.choose(demo, "av", engine=engine, precision=precision)  # type: ignore[arg-type]
    assert choice.engine.name == "tensorrt"
    member, _, _ = compiled.graph_member(demo.models["av"].variants[precision])
    rng = np.random.default_rng(0)
    with choice.engine as on_gpu, OnnxRuntimeEngine(demo.read(member)) as on_cpu:
        for _ in range(3):
            feeds = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in on_cpu.inputs}  # type: ignore[arg-type]
            got, expected = on_gpu.run(feeds), on_cpu.run(feeds)
            np.testing.assert_allclose(got["digit"], expected["digit"], rtol=1e-4, atol=1e-5)
    assert not driver.memory


def test_a_stripped_plan_is_filled_from_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "recipe.toml"
    source.write_text((folder() / "recipe.toml").read_text() + "\n[tensorrt]\nstrip_weights = true\n")
    (tmp_path / "av_digits.onnx").write_bytes((folder() / "av_digits.onnx").read_bytes())
    edgemm.build(source, tmp_path / "o.edgemm", precision="fp32")
    opened = bundle.open(tmp_path / "o.edgemm")
    found = compiled.plan_for_device(opened, "av", "fp32", jetpack(), gpu=ORIN)
    assert found.weights == opened.read("models/av/fp32.onnx")
