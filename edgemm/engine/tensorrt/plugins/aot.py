"""Attention as an ahead-of-time plugin: TensorRT puts the kernel's PTX into the plan, which then needs no Python.

For versions that have `tensorrt.plugin` (10.13 and 11). It follows NVIDIA's documentation of `tensorrt.plugin.register`
and `aot_impl`, and the PTX and its arguments are tested, but no plan has been built with it yet: TensorRT for RTX, the
one that builds without a GPU, has no quick plugins. Until then `OwnPlugins` uses it only if asked to.
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Tuple, Union  # noqa: UP035

from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.kernels.attention import tile_shared_bytes
from edgemm.kernels.compile import compile_kernel
from edgemm.kernels.sources import source_dir

PLUGIN = "edgemm::FusedAttention"

_TILE_QUERIES = 64
_THREADS = 128
_BFLOAT16 = 16
_registered: set[str] = set()


def is_available(flavour: Flavour) -> bool:
    """True if this TensorRT has ahead-of-time plugins."""
    return flavour.get("IPluginV3QuickAOTBuild") is not None


def kernel_source(head_dim: int) -> Path:
    """The CUDA source of the flat kernels for one head dimension."""
    return source_dir() / "aot" / f"attention_aot_d{head_dim}.cu"


def kernel_name(head_dim: int, dtype: int) -> str:
    """The entry point for a head dimension and ONNX's number of the type."""
    return f"edgemm_attention_aot_{'bf16' if dtype == _BFLOAT16 else 'f16'}_d{head_dim}"


def scale_bits(scale: float) -> int:
    """The bits of `scale * log2(e)` in float32 as a whole number: plugins hand over whole numbers only."""
    return int(struct.unpack("<i", struct.pack("<f", scale / math.log(2.0)))[0])


def register_attention(flavour: Flavour, arch: Callable[[], int]) -> None:
    """Register the plugin, once, with this TensorRT. `arch` says for which compute capability PTX is made (87)."""
    if flavour.module.__name__ in _registered:
        return
    plugin = importlib.import_module(f"{flavour.module.__name__}.plugin")
    describe, implement = make_attention(plugin, arch)
    plugin.register(PLUGIN)(describe)
    plugin.aot_impl(PLUGIN)(implement)
    _registered.add(flavour.module.__name__)


def make_attention(plugin: Any, arch: Callable[[], int]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what describes the output and what gives kernel, launch and arguments, for a `tensorrt.plugin` module."""

    def describe(
        q: Any,
        k: Any,
        v: Any,
        head_dim: int,
        dtype: int,
        scale: float,
        window_before: int,
        window_after: int,
        align_end: int,
    ) -> Any:
        return q.like()

    def implement(
        q: Any,
        k: Any,
        v: Any,
        head_dim: int,
        dtype: int,
        scale: float,
        window_before: int,
        window_after: int,
        align_end: int,
        outputs: Any,
        tactic: int,
    ) -> Any:
        batch, heads, q_len = (q.shape_expr[axis] for axis in range(3))
        kv_heads, kv_len = k.shape_expr[1], k.shape_expr[2]
        launch = plugin.KernelLaunchParams()
        launch.grid_x = plugin.cdiv(q_len, _TILE_QUERIES)
        launch.grid_y = heads
        launch.grid_z = batch
        launch.block_x = _THREADS
        launch.shared_mem = tile_shared_bytes(int(head_dim))
        # In the order of the kernel's arguments, between the inputs and the output.
        numbers = (batch, heads, kv_heads, q_len, kv_len, int(window_before), int(window_after), int(align_end))
        extra = plugin.SymIntExprs(len(numbers) + 1)
        for index, number in enumerate((*numbers, scale_bits(float(scale)))):
            extra[index] = plugin.SymInt32(number)
        ptx = compile_kernel(kernel_source(int(head_dim)), arch(), form="ptx").read_text()
        return kernel_name(int(head_dim), int(dtype)), ptx, launch, extra

    # TensorRT reads the types of inputs and attributes from the annotations.
    tensor: Any = plugin.TensorDesc
    described: dict[str, Any] = {"q": tensor, "k": tensor, "v": tensor, "head_dim": int, "dtype": int, "scale": float}
    described |= {"window_before": int, "window_after": int, "align_end": int}
    describe.__annotations__ = {**described, "return": tensor}
    # Spelt as in its documentation: it compares them.
    text = Union[str, bytes]  # noqa: UP007
    result: Any = Tuple[text, text, plugin.KernelLaunchParams, plugin.SymExprs]  # noqa: UP006
    implement.__annotations__ = {**described, "outputs": Tuple[tensor], "tactic": int, "return": result}  # noqa: UP006
    return describe, implement
