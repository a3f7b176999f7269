"""tests/gpu rehearsed on a double of a Jetson: what waits for a GPU must not fail there for a typo."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from host_driver import HostDriver
from trt_double import Double, double

from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.run.engine import TensorRTEngine
from edgemm.engine.tensorrt.run.loaded import LoadedPlan
from edgemm.graph import ops
from edgemm.quant import narrow

FOLDER = Path(__file__).parents[2] / "gpu"
ORIN = Gpu("Orin", "8.7", integrated=True)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Flavour]:
    """The GPU tests as a module, and the double that they run on."""
    module = double("10.3")
    driver = HostDriver(device="Orin", arch=87, integrated=True)
    module._driver = driver
    flavour = Flavour("tensorrt", "10.3.0", module)
    tests = imported("test_trt", monkeypatch)
    monkeypatch.setattr(tests, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(tests, "open_device", driver.open)
    monkeypatch.setattr(tests.flavours, "installed", lambda: (flavour,))
    monkeypatch.setattr(tests.flavours, "get", lambda name: flavour)
    for kind in (TensorRTEngine, LoadedPlan):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "open_device", driver.open)
    return tests, flavour


@pytest.mark.parametrize(
    ("test", "arguments"),
    [
        ("test_a_convolution_agrees_with_the_cpu_at_every_shape", {}),
        ("test_state_is_carried_on_the_device", {"graph": False}),
        ("test_two_contexts_on_one_plan", {}),
        ("test_an_output_whose_size_depends_on_values", {}),
        ("test_the_demo_decides_as_on_the_cpu", {"precision": "fp16"}),
    ],
)
def test_a_test_of_the_gpu_passes_on_the_double(
    device: tuple[Any, Flavour], test: str, arguments: dict[str, object]
) -> None:
    tests, flavour = device
    getattr(tests, test)(flavour, **arguments)


def test_the_dla_is_tried_where_there_is_one(device: tuple[Any, Flavour]) -> None:
    tests, flavour = device
    with pytest.raises(pytest.skip.Exception, match="no DLA here"):
        tests.test_a_dla_runs_what_it_can(flavour)
    assert isinstance(flavour.module, Double)
    flavour.module._dla_cores = 1
    tests.test_a_dla_runs_what_it_can(flavour)


def test_timings(device: tuple[Any, Flavour], tmp_path: Path) -> None:
    tests, flavour = device
    tests.test_timings_are_kept_and_taken(flavour, tmp_path)


def test_everything_is_measured(device: tuple[Any, Flavour], monkeypatch: pytest.MonkeyPatch) -> None:
    script = imported("run", monkeypatch)
    measured: list[str] = []

    def percentiles(engine: Any, feeds: object) -> dict[str, float]:
        measured.append(engine.name)
        return {"p50_us": 1.0, "p99_us": 2.0}

    monkeypatch.setattr(script, "percentiles", percentiles)
    # The double runs what onnxruntime does: bodies, not plugins, and no FP8.
    monkeypatch.setattr(ops, "strip_bodies", lambda model: model)
    monkeypatch.setattr(narrow, "to_fp8", lambda model, ranges: model)
    rows = script.measure()
    assert {row["precision"] for row in rows} == {
        "fp32",
        "fp16",
        "fp16, attention by edgemm's kernel",
        "int8",
        "fp8",
        "int4 weights",
    }
    assert measured == ["onnxruntime", *["tensorrt"] * 12]
