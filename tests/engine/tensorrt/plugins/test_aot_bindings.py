"""The ahead-of-time plugin in the hands of NVIDIA's own `tensorrt.plugin`, the Python half of its bindings.

`EDGEMM_TRT_BINDINGS` names folders with unpacked wheels of them, separated by ":". They install without TensorRT:

    pip install --no-deps --target DIR tensorrt_cu12_bindings==10.13.3.9

What decides there whether a plugin is taken, which attributes it gets, how it is launched and what goes into the plan
is Python. Under it are the strict double of that version and, here, its expressions of dimensions. What it does not
prove is what libnvinfer makes of the answers.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from require import required
from trt_double import Double, double

from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plugins import aot
from edgemm.kernels.attention import AttentionOptions, tile_shared_bytes

FOLDERS = [Path(folder) for folder in os.environ.get("EDGEMM_TRT_BINDINGS", "").split(":") if folder]
PTX = ".version 8.5 // the kernel"


class Expression:
    """TensorRT's IDimensionExpr, as a number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return False

    def get_constant_value(self) -> int:
        return self.value


class Builder:
    """TensorRT's IExprBuilder."""

    def constant(self, value: int) -> Expression:
        return Expression(value)

    def operation(self, operation: Any, first: Expression, second: Expression) -> Expression:
        compute = {"CEIL_DIV": lambda a, b: -(-a // b), "SUM": lambda a, b: a + b}[operation.name]
        return Expression(compute(first.value, second.value))


def core(version: str) -> Double:
    """The double of a version, with what its plugin package needs of the compiled half."""
    module = double(version)
    parts = {
        "__path__": [],
        "Logger": type("Logger", (), {"WARNING": 1, "log": lambda *_: None, "__init__": lambda *_: None}),
        "IDimensionExpr": Expression,
        "Dims": SimpleNamespace(MAX_DIMS=8),
        "DimsExprs": lambda count: [None] * count,
        "PluginField": lambda name, data, kind: SimpleNamespace(name=name, data=data, type=kind),
        "PluginFieldCollection": list,
        "PluginTensorDesc": type("PluginTensorDesc", (SimpleNamespace,), {}),
        "DynamicPluginTensorDesc": type("DynamicPluginTensorDesc", (SimpleNamespace,), {}),
    }
    for name, value in parts.items():
        assert name.startswith("__") or name in module._api, f"{version} has no {name}"
        object.__setattr__(module, name, value)
    return module


@pytest.fixture(params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "none")
def bindings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Double, Any]]:
    """A version's core and its own `tensorrt.plugin`."""
    if request.param is None:
        words = "no EDGEMM_TRT_BINDINGS: pip install --no-deps --target DIR tensorrt_cu12_bindings==10.13.3.9"
        (pytest.fail if required("bindings") else pytest.skip)(words)
    metadata = next(request.param.glob("tensorrt_cu*_bindings-*.dist-info")).name
    version = ".".join(metadata.split("-")[1].split(".")[:2])
    module = core(version)
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    package = request.param / "tensorrt_bindings" / "plugin"
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    object.__setattr__(module, "plugin", plugin)
    spec.loader.exec_module(plugin)
    yield module, plugin
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        sys.modules.pop(name, None)
    aot._registered.discard("tensorrt")


def fields(module: Double, options: AttentionOptions) -> list[Any]:
    """A node's attributes, as TensorRT's parser hands them to a creator."""
    # 10.13 calls int() on the array, which numpy 2.4 refuses unless it has no dimension; 11.4 takes its first element.
    shape = () if module.__version__.startswith("10.13") else (1,)
    before, after = options.window_limits
    values = {
        "head_dim": options.head_dim,
        "dtype": 10,
        "scale": options.softmax_scale,
        "window_before": before,
        "window_after": after,
        "align_end": 1,
    }
    return [
        SimpleNamespace(name=name, data=np.array(value, np.float32 if name == "scale" else np.int32).reshape(shape))
        for name, value in values.items()
    ]


def described(module: Double, shape: tuple[int, ...]) -> Any:
    half, linear = module.DataType.HALF, module.TensorFormat.LINEAR
    desc = module.PluginTensorDesc(type=half, format=linear, scale=1.0, dims=shape)
    return module.DynamicPluginTensorDesc(desc=desc, min=shape, max=shape, opt=shape)


def test_the_plugin_is_taken_and_its_kernel_goes_into_the_plan(
    bindings: tuple[Double, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, _ = bindings
    asked: list[tuple[str, int, str]] = []

    def compile_kernel(source: Path, arch: int, *, form: str) -> Path:
        asked.append((source.stem, arch, form))
        (tmp_path / "kernel.ptx").write_text(PTX)
        return tmp_path / "kernel.ptx"

    monkeypatch.setattr(aot, "compile_kernel", compile_kernel)
    creators: dict[str, Any] = {}
    registry = SimpleNamespace(
        register_creator=lambda creator, namespace: (
            creators.setdefault(f"{namespace}::{creator.name}", creator) is not None
        ),
        get_creator=lambda name, version, namespace: creators.get(f"{namespace}::{name}"),
    )
    object.__setattr__(module, "get_plugin_registry", lambda: registry)

    # NVIDIA's decorators hold our functions against their rules: names, order and annotations.
    aot.register_attention(Flavour("tensorrt", module.__version__, module), lambda: 87)
    definition = sys.modules["tensorrt.plugin._lib"].QDP_REGISTRY[aot.PLUGIN]  # type: ignore[attr-defined]
    assert definition.input_tensor_names == ["q", "k", "v"]
    assert definition.impl_func is None, "ahead of time only"

    creator = sys.modules["tensorrt.plugin._lib"]._TemplatePluginCreator(  # type: ignore[attr-defined]
        "FusedAttention", "edgemm", {name: (True, kind) for name, kind in definition.input_attrs.items()}
    )
    options = AttentionOptions(64, causal=True)
    request = module.QuickPluginCreationRequest.PREFER_AOT
    built = creator.create_plugin("FusedAttention", "edgemm", fields(module, options), None, request)
    assert type(built).__name__ == "_TemplateAOTPlugin"

    half = module.DataType.HALF
    q, kv = (2, 4, 100, 64), (2, 2, 70, 64)
    assert built.get_output_data_types([half] * 3, [4] * 3) == [half]
    shapes = [[Expression(size) for size in shape] for shape in (q, kv, kv)]
    (out,) = built.get_output_shapes(shapes, [], Builder())
    assert [expression.value for expression in out] == list(q)
    in_out = [described(module, shape) for shape in (q, kv, kv, q)]
    assert [desc.type for desc in built.get_supported_format_combinations(in_out, 3)] == [half] * 4
    built.set_tactic(0)

    launch, numbers = SimpleNamespace(), Numbers()
    built.get_launch_params(shapes, in_out, 3, launch, numbers, Builder())
    sizes = {name: value_of(value) for name, value in vars(launch).items()}
    assert sizes == {
        "grid_x": 2,  # 100 queries in tiles of 64
        "grid_y": 4,
        "grid_z": 2,
        "block_x": 128,
        "block_y": 1,
        "block_z": 1,
        "shared_mem": tile_shared_bytes(64),
    }
    before, after = options.window_limits
    assert numbers.nbSymExprs == 9
    assert [value_of(numbers[index]) for index in range(9)] == [
        *(2, 4, 2, 100, 70, before, after, 1),
        aot.scale_bits(float(np.float32(options.softmax_scale))),
    ]
    descs = [item.desc for item in in_out]
    assert built.get_kernel(descs[:3], descs[3:]) == ("edgemm_attention_aot_f16_d64", PTX.encode())
    assert asked == [("attention_aot_d64", 87, "ptx")]


class Numbers(dict[int, Any]):
    """TensorRT's ISymExprs: where a plugin writes the kernel's arguments."""

    nbSymExprs = 0  # TensorRT's name


def value_of(expression: Any) -> int:
    """The number in one of the bindings' wrappers of an expression."""
    while not isinstance(expression, Expression):
        expression = next(
            value for name, value in vars(expression).items() if "expr" in name.lower() and value is not None
        )
    return expression.value
