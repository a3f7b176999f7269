"""Choosing an engine for a bundle: precision, TensorRT where it can be, onnxruntime where not, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgemm
from edgemm import bundle
from edgemm.bundle import Bundle
from edgemm.demo import folder
from edgemm.engine import load
from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt import compiled, flavours
from edgemm.errors import EdgemmError, EngineError, UsageError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("load") / "demo.edgemm"
    edgemm.build(folder() / "recipe.toml", path, precision="int8")
    return bundle.open(path)


def test_precision(demo: Bundle) -> None:
    assert load.choose(demo, "av").precision == "int8"
    assert load.choose(demo, "av", precision="fp32").reason == "asked for"
    with pytest.raises(UsageError, match='holds "av" in fp32, int8, not in fp16. Build it so'):
        load.choose(demo, "av", precision="fp16")
    with pytest.raises(UsageError, match='holds no model "b", expected one of: av'):
        load.choose(demo, "b")


def test_engines_by_name(demo: Bundle) -> None:
    assert load.choose(demo, "av", engine="onnxruntime").engine.name == "onnxruntime"
    with pytest.raises(UsageError, match='no engine "tflite"'):
        load.choose(demo, "av", engine="tflite")  # type: ignore[arg-type]
    installed = {flavour.name for flavour in flavours.installed()}
    for name in ("tensorrt", "tensorrt-rtx"):
        words = "needs an NVIDIA GPU|Install it: pip install" if name not in installed else "needs an NVIDIA GPU"
        with pytest.raises(EdgemmError, match=words):
            load.choose(demo, "av", engine=name)  # type: ignore[arg-type]


def test_without_a_gpu_auto_is_onnxruntime_and_no_fallback(demo: Bundle) -> None:
    choice = load.choose(demo, "av")
    assert choice.engine.name == "onnxruntime"
    assert choice.engine.fallback is None


def test_what_tensorrt_refuses_falls_back_and_says_so(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is made here, as it needs a GPU to come about; what is tested is what follows from it."""

    def refuse(*_: object, **__: object) -> None:
        raise EngineError("the plan targets sm_87, this device is sm_110.")

    monkeypatch.setattr(compiled, "flavour_for", lambda engine: flavours.Flavour("tensorrt", "10.3.0", pytest))
    monkeypatch.setattr("edgemm.engine.gpu.find_gpu", lambda index=0: Gpu("Thor", "11.0", True))
    monkeypatch.setattr(compiled, "plan_for_device", refuse)
    said: list[str] = []
    choice = load.choose(demo, "av", tell=said.append)
    assert choice.engine.name == "onnxruntime"
    assert choice.engine.fallback == "not on TensorRT: the plan targets sm_87, this device is sm_110."
    assert said == ["av: runs on onnxruntime, not on TensorRT: the plan targets sm_87, this device is sm_110."]
    with pytest.raises(EngineError, match="sm_87"):
        load.choose(demo, "av", engine="tensorrt")


def test_options_come_from_the_recipe(demo: Bundle, tmp_path: Path) -> None:
    options = compiled.options_for(demo.recipe, "av", demo.models["av"])
    assert options.profiles == ()
    source = tmp_path / "recipe.toml"
    text = (folder() / "recipe.toml").read_text()
    source.write_text(text + "\n[tensorrt]\noptimization_level = 5\nmemory_pools_mb = { WORKSPACE = 64 }\n")
    (tmp_path / "av_digits.onnx").write_bytes((folder() / "av_digits.onnx").read_bytes())
    edgemm.build(source, tmp_path / "o.edgemm", precision="fp32")
    opened = bundle.open(tmp_path / "o.edgemm")
    options = compiled.options_for(opened.recipe, "av", opened.models["av"])
    assert options.optimization_level == 5
    assert options.memory_pools == {"WORKSPACE": 64 << 20}


def test_tensorrt_gets_its_own_form(demo: Bundle) -> None:
    variant = demo.models["av"].variants["int8"]
    member, digest, data = compiled.graph_member(variant)
    assert member == "models/av/int8-tensorrt.onnx"
    assert digest == variant.tensorrt_digest != variant.digest
    assert data is None
    float_member, _, _ = compiled.graph_member(demo.models["av"].variants["fp32"])
    assert float_member == "models/av/fp32.onnx"
