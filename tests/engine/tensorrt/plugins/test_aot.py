"""The ahead-of-time attention plugin: its kernel under the emulator, its PTX, and what it tells TensorRT.

`tensorrt.plugin` is played by a module with the names of NVIDIA's documentation; no real one has taken it yet.
"""

from __future__ import annotations

import ctypes
import re
import sys
import types
from typing import Any

import numpy as np
import pytest
from trt_double import double

from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plugins import aot, own
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.errors import KernelError
from edgemm.kernels.attention import AttentionOptions, attention_reference, tile_shared_bytes
from edgemm.kernels.compile import find_compiler
from edgemm.kernels.launch import EmulatorRunner

NUMBERS = (
    "batch",
    "heads",
    "kv_heads",
    "q_len",
    "kv_len",
    "window_before",
    "window_after",
    "align_end",
    "scale_log2_bits",
)


class AotAttention(ctypes.Structure):
    """Mirrors `edgemm::AotAttention`: the kernel's arguments in their order."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in "qkv"),
        *((name, ctypes.c_int) for name in NUMBERS),
        ("out", ctypes.c_void_p),
    )


class Desc:
    """TensorDesc of a tensor with known dimensions."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape_expr = shape

    def like(self) -> Desc:
        return Desc(self.shape_expr)


def plugin_module() -> Any:
    module = types.ModuleType("tensorrt.plugin")
    module.registered = {}
    module.TensorDesc = Desc
    module.KernelLaunchParams = type("KernelLaunchParams", (), {})
    module.SymExprs = type("SymExprs", (list,), {})
    module.SymIntExprs = lambda count: module.SymExprs([None] * count)
    module.SymInt32 = int
    module.cdiv = lambda a, b: -(-a // b)
    module.register = lambda name: lambda f: module.registered.setdefault(name, f)
    module.aot_impl = lambda name: lambda f: module.registered.setdefault(f"{name} aot", f)
    return module


def arguments_of(options: AttentionOptions) -> tuple[Any, ...]:
    before, after = options.window_limits
    return options.head_dim, 10, options.softmax_scale, before, after, int(options.queries_at == "end")


@pytest.fixture
def with_compiler() -> int:
    try:
        return find_compiler(87).version[0]
    except KernelError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [32, 80])
def test_the_ptx_takes_the_arguments_in_their_order(with_compiler: int, head_dim: int) -> None:
    module = plugin_module()
    options = AttentionOptions(head_dim, causal=True)
    _, implement = aot.make_attention(module, lambda: 87)
    q, k = Desc((2, 4, 100, head_dim)), Desc((2, 2, 70, head_dim))
    name, ptx, launch, extra = implement(q, k, k, *arguments_of(options), (q,), 0)
    entry = re.search(rf"\.entry {name}\((.*?)\)", ptx, re.S)
    assert entry is not None
    kinds = re.findall(r"\.param \.(\w+)", entry[1])
    assert kinds == ["u64"] * 3 + ["u32"] * len(NUMBERS) + ["u64"]
    assert ".target sm_87" in ptx
    assert list(extra) == [2, 4, 2, 100, 70, 1 << 29, 0, 1, aot.scale_bits(options.softmax_scale)]
    assert (launch.grid_x, launch.grid_y, launch.grid_z, launch.block_x) == (2, 4, 2, 128)
    assert launch.shared_mem == tile_shared_bytes(head_dim)


@pytest.mark.slow
@pytest.mark.parametrize("q_len", [3, 70])
def test_the_kernel_agrees_with_the_reference(q_len: int) -> None:
    options = AttentionOptions(32, causal=True, scale=0.2)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 4, q_len, 32)).astype(np.float16)
    k, v = (rng.standard_normal((1, 2, 80, 32)).astype(np.float16) for _ in range(2))
    out = np.full(q.shape, np.nan, np.float16)
    runner = EmulatorRunner(path_of=lambda source: aot.kernel_source(32))
    before, after = options.window_limits
    numbers = (1, 4, 2, q_len, 80, before, after, 1, aot.scale_bits(options.softmax_scale))
    views = [runner.view(array, "it") for array in (q, k, v, out)]
    params = AotAttention(*(view.pointer for view in views[:3]), *numbers, views[3].pointer)
    runner.launch(
        "attention_aot",
        aot.kernel_name(32, 10),
        params,
        grid=(-(-q_len // 64), 4, 1),
        block=(128,),
        shared_bytes=tile_shared_bytes(32),
    )
    expected, _ = attention_reference(q, k, v, options)
    np.testing.assert_allclose(out, expected, atol=4e-3, rtol=2e-3)


def test_the_output_is_like_q() -> None:
    describe, _ = aot.make_attention(plugin_module(), lambda: 87)
    q = Desc((1, 2, 3, 64))
    assert describe(q, q, q, *arguments_of(AttentionOptions(64))).shape_expr == q.shape_expr
    assert list(describe.__annotations__)[:4] == ["q", "k", "v", "head_dim"]


@pytest.mark.parametrize(("version", "has"), [("10.3", False), ("10.13", True), ("11.4", True), ("rtx", False)])
def test_it_is_used_only_where_it_is_asked_for_and_there(
    version: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = double(version)
    flavour = Flavour("tensorrt-rtx" if version == "rtx" else "tensorrt", module.__version__, module)
    played = plugin_module()
    monkeypatch.setitem(sys.modules, f"{module.__name__}.plugin", played)
    monkeypatch.setattr(own, "provide_library", lambda: None)
    monkeypatch.setattr(aot, "_registered", set())
    assert aot.is_available(flavour) is has
    for _ in range(2):
        OwnPlugins(ahead_of_time=True).register(flavour)
    assert set(played.registered) == ({aot.PLUGIN, f"{aot.PLUGIN} aot"} if has else set())
    assert (("FusedAttention", "1", "edgemm") in module._creators) is not has
    assert ("FusedAttentionBias", "1", "edgemm") in module._creators
