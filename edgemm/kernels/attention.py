"""Fused attention: options, the float64 reference, and the launches of `kernels/csrc/attention*.cu`.

    attention = AttentionKernel(AttentionOptions(head_dim=64, causal=True), runner)
    attention(q, k, v, out)                      # [batch, heads, length, head_dim]

For query i and key j of one head the score is `scale * q[i] . k[j] + bias[i, j]`, the keys that a query may not see
have the score minus infinity, and the output is the softmax of the scores times v. **A query that sees no key gives
zeros and a log-sum-exp of minus infinity** (PyTorch gives NaN for it).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgemm.errors import KernelError
from edgemm.kernels.launch import Runner, View, expect
from edgemm.types import Array

HEAD_DIMS = (32, 64, 80, 96, 128)
SPLIT_MAX_QUERIES = 16
"""Up to this many queries the keys are divided among blocks."""

_UNLIMITED = 1 << 29
"""A window as wide as any sequence; twice it still fits an int."""
_FARTHEST_ROW = 1 << 31
"""Rows are addressed by 32-bit strides, in elements."""
_TILE_QUERIES = 64
_SPLIT_ROWS = 16
_COMBINE_ROWS = 4
_APPEND_THREADS = 256
_MIN_KEYS_PER_SPLIT = 128
_MAX_SPLITS = 64
_MAX_GRID_YZ = 65535
# As the kernels' Tile and Split structures work them out; a test compares the two.
_ROW_BYTES_EXTRA = 16
_DTYPE_NAMES = {"float16": ("float16",), "bfloat16": ("bfloat16", "uint16")}
"""What arrays of each option's dtype may call themselves: numpy alone has no bfloat16, its bits come as uint16."""
_TYPE_TAGS = {"float16": "f16", "bfloat16": "bf16"}
_OLDEST_ARCH = {"float16": 75, "bfloat16": 80}

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AttentionOptions:
    """What an attention computes, apart from its tensors. Raises KernelError for what no kernel does."""

    head_dim: int
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Of q, k, v, out and bias. bfloat16 may come as arrays of that dtype, or as its bits in uint16."""
    scale: float | None = None
    """None: 1 / sqrt(head_dim)."""
    causal: bool = False
    """A query does not see the keys after its own position."""
    window: tuple[int | None, int | None] = (None, None)
    """How many keys before and after its own position a query sees; None: all. `causal` makes the second at most 0."""
    queries_at: Literal["start", "end"] = "end"
    """The position of query i among n keys: i, or n - q_len + i (after a cache of past keys). Equal lengths: the
    same."""

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS:
            raise KernelError(
                f"No attention kernel has head dimension {self.head_dim}; "
                f"expected one of {', '.join(map(str, HEAD_DIMS))}. "
                "Pad the heads with zeros to the next one, and give `scale`."
            )
        if self.dtype not in _TYPE_TAGS:
            raise KernelError(
                f"No attention kernel takes {self.dtype}; expected {' or '.join(_TYPE_TAGS)}. Convert it first."
            )
        if not (self.softmax_scale > 0 and math.isfinite(self.softmax_scale)):
            raise KernelError(f"Found scale {self.scale}; expected a positive, finite number.")
        if any(side is not None and not 0 <= side < _UNLIMITED for side in self.window):
            raise KernelError(
                f"Found window {self.window}; expected on each side None or a number from 0 to {_UNLIMITED - 1}."
            )
        if self.queries_at not in ("start", "end"):
            raise KernelError(f"Found queries_at {self.queries_at!r}; expected 'start' or 'end'.")

    @property
    def softmax_scale(self) -> float:
        """The factor on the dot products."""
        return 1.0 / math.sqrt(self.head_dim) if self.scale is None else self.scale

    @property
    def window_limits(self) -> tuple[int, int]:
        """The keys seen before and after a query's own position, as plain numbers."""
        before, after = (_UNLIMITED if side is None else side for side in self.window)
        return before, 0 if self.causal else after


def attention_reference(
    q: Array,
    k: Array,
    v: Array,
    options: AttentionOptions,
    *,
    kv_lengths: Array | None = None,
    ring_position: Array | None = None,
    bias: Array | None = None,
    alibi_slopes: Array | None = None,
    relative_bias: Array | None = None,
) -> tuple[Float64, Float64]:
    """The attention in float64: output `[batch, heads, q_len, head_dim]` and log-sum-exp `[batch, heads, q_len]`.

    Arguments as for `AttentionKernel`, as numbers (not the bits of bfloat16). Keys beyond a length are not read.
    """
    queries, keys, values = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, heads, q_len, _ = queries.shape
    kv_heads, capacity = keys.shape[1:3]
    out = np.zeros((batch, heads, q_len, values.shape[3]))
    lse = np.full((batch, heads, q_len), -np.inf)
    before, after = options.window_limits
    for b in range(batch):
        count, start = capacity, 0
        if ring_position is not None:
            written = max(int(ring_position[b]), 0)
            count, start = min(written, capacity), written % capacity if written > capacity else 0
        elif kv_lengths is not None:
            count = min(max(int(kv_lengths[b]), 0), capacity)
        if count == 0:
            continue
        slots = (start + np.arange(count)) % capacity
        offset = count - q_len if options.queries_at == "end" else 0
        distance = np.arange(count)[None, :] - (np.arange(q_len)[:, None] + offset)  # [q_len, count], key - query
        seen = (distance >= -before) & (distance <= after)
        for h in range(heads):
            kv = h // (heads // kv_heads)
            scores = options.softmax_scale * (queries[b, h] @ keys[b, kv, slots].T)
            if bias is not None:
                whole = np.broadcast_to(np.asarray(bias, np.float64), (batch, heads, q_len, capacity))
                scores = scores + whole[b, h, :, :count]
            if alibi_slopes is not None:
                scores = scores - float(alibi_slopes[h]) * np.abs(distance)
            if relative_bias is not None:
                span = relative_bias.shape[1] // 2
                scores = scores + np.asarray(relative_bias[h], np.float64)[np.clip(distance, -span, span) + span]
            scores = np.where(seen, scores, -np.inf)
            largest = scores.max(axis=1, initial=-np.inf)
            alive = largest > -np.inf
            weights = np.exp(scores - np.where(alive, largest, 0.0)[:, None])
            total = weights.sum(axis=1)
            out[b, h, alive] = (weights[alive] / total[alive, None]) @ values[b, kv, slots]
            lse[b, h, alive] = largest[alive] + np.log(total[alive])
    return out, lse


_Strides = ctypes.c_int64 * 3


class AttentionParams(ctypes.Structure):
    """Mirrors `edgemm::AttentionParams` of kernels/csrc/attention.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse", "kv_lengths", "ring_position", "bias")),
        *((name, ctypes.c_void_p) for name in ("alibi_slopes", "relative_bias", "partial_out", "partial_lse")),
        *((f"{name}_strides", _Strides) for name in ("q", "k", "v", "out", "bias")),
        *(
            (name, ctypes.c_int)
            for name in ("batch", "heads", "kv_heads", "q_len", "kv_len", "relative_span", "splits")
        ),
        *((name, ctypes.c_int) for name in ("align_end", "window_before", "window_after", "head_dim")),
        ("scale_log2", ctypes.c_float),
    )


class RingAppendParams(ctypes.Structure):
    """Mirrors `edgemm::RingAppendParams` of kernels/csrc/attention.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("k", "v", "k_ring", "v_ring", "position")),
        *((f"{name}_strides", _Strides) for name in ("k", "v", "k_ring", "v_ring")),
        *((name, ctypes.c_int) for name in ("kv_heads", "new_len", "capacity", "head_dim")),
    )


@dataclass(frozen=True)
class SplitPlan:
    """How the keys of a short-query attention are divided: `splits` parts, joined through scratch memory."""

    splits: int
    workspace_floats: int
    """float32 elements that the caller provides; 0 if there is one part only."""


def plan_splits(
    batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, *, multiprocessors: int
) -> SplitPlan:
    """Choose how many blocks share the keys of one head, so that every multiprocessor of a device has two blocks.

    More than 16 queries are not split. A part has at least 128 keys: below that, joining costs more than it brings.
    """
    if q_len > SPLIT_MAX_QUERIES or q_len == 0:
        return SplitPlan(1, 0)
    tiles = batch * kv_heads * _ceil(q_len * heads // kv_heads, _SPLIT_ROWS)
    wanted = _ceil(2 * multiprocessors, max(tiles, 1))
    splits = max(1, min(wanted, kv_len // _MIN_KEYS_PER_SPLIT, _MAX_SPLITS))
    return SplitPlan(splits, batch * heads * q_len * splits * (head_dim + 1) if splits > 1 else 0)


class AttentionKernel:
    """Launches fused attention with the same options again and again.

    A launch allocates nothing, does not wait, and can be captured in a CUDA graph; lengths and ring positions are read
    on the device, so that a captured graph follows them.
    """

    def __init__(self, options: AttentionOptions, runner: Runner) -> None:
        """Raises KernelError if the runner's device lacks what the options need."""
        needed = _OLDEST_ARCH[options.dtype]
        if runner.arch is not None and runner.arch < needed:
            remedy = "float16" if runner.arch >= _OLDEST_ARCH["float16"] else "another device"
            raise KernelError(
                f"The tensor cores of sm_{runner.arch} do not take {options.dtype}; attention in {options.dtype} needs "
                f"sm_{needed} or newer. Use {remedy}."
            )
        self.options = options
        self._runner = runner

    def __call__(
        self,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        *,
        lse: Any = None,
        kv_lengths: Any = None,
        ring_position: Any = None,
        bias: Any = None,
        alibi_slopes: Any = None,
        relative_bias: Any = None,
        splits: int = 1,
        workspace: Any = None,
        stream: Any = None,
    ) -> None:
        """Write the attention of `q` over `k` and `v` to `out`.

        `q` and `out` are `[batch, heads, q_len, head_dim]`, `k` and `v` `[batch, kv_heads, kv_len, head_dim]`.
        `heads` is a multiple of `kv_heads` (grouped queries). The first three dimensions may have any strides that are
        multiples of 16 bytes. `lse` `[batch, heads, q_len]` float32 receives the natural logarithm of the sums.

        `kv_lengths` int32 `[batch]`: keys that count, clamped to kv_len. `ring_position` int64 `[batch]`: k and v are
        rings to which so many keys have been written; the last kv_len of them count, oldest first (see
        `append_to_ring`). `bias`: added to the scaled scores, of q's dtype, `[batch or 1, heads or 1, q_len or 1,
        kv_len]`, minus infinity hides a key; in a ring its last index is the age order. `alibi_slopes` float32
        `[heads]`: adds `-slope * |key - query|`. `relative_bias` float32 `[heads, 2 * span + 1]`: adds the entry
        `clip(key - query, -span, span) + span`.

        `splits` above 1 divides the keys among blocks (`plan_splits`), for at most 16 queries; it needs `workspace`,
        float32. Raises KernelError before any launch if an argument does not fit.
        """
        runner, options = self._runner, self.options
        types = _DTYPE_NAMES[options.dtype]
        views = {what: runner.view(array, what) for what, array in (("q", q), ("k", k), ("v", v), ("out", out))}
        batch, heads, kv_heads, q_len, kv_len = self._shapes(views)
        params = AttentionParams(
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            q_len=q_len,
            kv_len=kv_len,
            splits=splits,
            align_end=options.queries_at == "end",
            head_dim=options.head_dim,
            scale_log2=options.softmax_scale / math.log(2.0),
        )
        params.window_before, params.window_after = options.window_limits
        for what, view in views.items():
            setattr(params, what, view.pointer if view.size else None)
            setattr(params, f"{what}_strides", _Strides(*_rows_of_16_bytes(view)))
        optional: tuple[tuple[str, Any, Sequence[str], tuple[int | None, ...], bool], ...] = (
            ("lse", lse, ("float32",), (batch, heads, q_len), True),
            ("kv_lengths", kv_lengths, ("int32",), (batch,), False),
            ("ring_position", ring_position, ("int64",), (batch,), False),
            ("alibi_slopes", alibi_slopes, ("float32",), (heads,), False),
            ("relative_bias", relative_bias, ("float32",), (heads, None), False),
        )
        for what, array, dtypes, shape, written in optional:
            if array is None:
                continue
            view = runner.view(array, what)
            expect(view, dtypes=dtypes, shape=shape, written=written)
            setattr(params, what, view.pointer if view.size else None)
            if what == "relative_bias":
                if view.shape[1] % 2 == 0:
                    raise KernelError(
                        f"relative_bias has {view.shape[1]} columns; expected an odd number, 2 * span + 1."
                    )
                params.relative_span = view.shape[1] // 2
        if kv_lengths is not None and ring_position is not None:
            raise KernelError(
                "Found both kv_lengths and ring_position; a ring's length follows from its position. Give one."
            )
        if bias is not None:
            view = runner.view(bias, "bias")
            params.bias = view.pointer if view.size else None
            params.bias_strides = _Strides(*_bias_strides(view, types, (batch, heads, q_len, kv_len)))
        self._place_workspace(params, workspace)
        if batch * heads * q_len == 0:
            return
        self._launch(params, biased=any(x is not None for x in (bias, alibi_slopes, relative_bias)), stream=stream)

    def _shapes(self, views: dict[str, View]) -> tuple[int, int, int, int, int]:
        types, head_dim = _DTYPE_NAMES[self.options.dtype], self.options.head_dim
        for what in ("q", "k"):
            expect(views[what], dtypes=types, shape=(None, None, None, head_dim), contiguous=False, alignment=16)
        batch, heads, q_len, _ = views["q"].shape
        _, kv_heads, kv_len, _ = views["k"].shape
        expect(views["k"], dtypes=types, shape=(batch, None, None, head_dim), contiguous=False, alignment=16)
        expect(views["v"], dtypes=types, shape=views["k"].shape, contiguous=False, alignment=16)
        expect(views["out"], dtypes=types, shape=views["q"].shape, contiguous=False, alignment=16, written=True)
        if kv_heads == 0 or heads % kv_heads:
            raise KernelError(
                f"q has {heads} heads and k has {kv_heads}; expected a multiple: every kv head serves as many of q's."
            )
        if max(q_len, kv_len) >= _UNLIMITED or max(heads, batch) > _MAX_GRID_YZ:
            raise KernelError(
                f"Found q {list(views['q'].shape)} and k {list(views['k'].shape)}; expected lengths below {_UNLIMITED} "
                f"and at most {_MAX_GRID_YZ} heads and batch entries. Divide the batch."
            )
        return batch, heads, kv_heads, q_len, kv_len

    def _place_workspace(self, params: AttentionParams, workspace: Any) -> None:
        if params.splits == 1:
            return
        if params.splits < 1 or params.q_len > SPLIT_MAX_QUERIES:
            raise KernelError(
                f"Found {params.splits} splits for {params.q_len} queries; "
                f"expected 1, or more with at most {SPLIT_MAX_QUERIES} queries."
            )
        rows = params.batch * params.heads * params.q_len * params.splits
        needed = rows * (params.head_dim + 1)
        if workspace is None:
            raise KernelError(
                f"{params.splits} splits need a workspace of {needed} float32. Allocate it once, see plan_splits."
            )
        view = self._runner.view(workspace, "workspace")
        expect(view, dtypes=("float32",), shape=(None,), alignment=8, written=True)
        if view.size < needed:
            raise KernelError(
                f"The workspace holds {view.size} float32; {params.splits} splits need {needed}. Make it larger."
            )
        params.partial_out = view.pointer
        params.partial_lse = view.pointer + rows * params.head_dim * 4

    def _launch(self, params: AttentionParams, *, biased: bool, stream: Any) -> None:
        tag, head_dim = _TYPE_TAGS[self.options.dtype], self.options.head_dim
        name = f"{'_biased' if biased else ''}_{tag}_d{head_dim}"
        source = f"attention_d{head_dim}"
        if params.q_len > SPLIT_MAX_QUERIES:
            self._runner.launch(
                source,
                f"edgemm_attention{name}",
                params,
                grid=(_ceil(params.q_len, _TILE_QUERIES), params.heads, params.batch),
                block=(128,),
                shared_bytes=tile_shared_bytes(head_dim),
                stream=stream,
            )
            return
        tiles = params.kv_heads * _ceil(params.q_len * (params.heads // params.kv_heads), _SPLIT_ROWS)
        self._runner.launch(
            source,
            f"edgemm_attention_split{name}",
            params,
            grid=(params.splits, tiles, params.batch),
            block=(32 * _split_warps(head_dim),),
            shared_bytes=split_shared_bytes(head_dim),
            stream=stream,
        )
        if params.splits > 1:
            self._runner.launch(
                "attention",
                f"edgemm_attention_combine_{tag}",
                params,
                grid=(_ceil(params.batch * params.heads * params.q_len, _COMBINE_ROWS),),
                block=(32 * _COMBINE_ROWS,),
                stream=stream,
            )


def append_to_ring(
    runner: Runner, k: Any, v: Any, k_ring: Any, v_ring: Any, position: Any, *, stream: Any = None
) -> None:
    """Write new keys and values to their slots of two rings, and advance the position.

    `k` and `v` are `[batch, kv_heads, new_len, head_dim]`, the rings `[batch, kv_heads, capacity, head_dim]`.
    `position` int64 `[batch]` counts the keys ever written; it lives on the device and is advanced there, so that a
    captured graph moves on by itself. Key number n lies in slot n mod capacity. Elements are 16 bits of any format.
    Raises KernelError before the launch if an argument does not fit.
    """
    views = {what: runner.view(a, what) for what, a in (("k", k), ("v", v), ("k_ring", k_ring), ("v_ring", v_ring))}
    types = tuple(name for names in _DTYPE_NAMES.values() for name in names)
    expect(views["k"], dtypes=types, shape=(None, None, None, None), contiguous=False, alignment=16)
    batch, kv_heads, new_len, head_dim = views["k"].shape
    own = (views["k"].dtype.name,)
    expect(views["v"], dtypes=own, shape=views["k"].shape, contiguous=False, alignment=16)
    ring_shape = (batch, kv_heads, None, head_dim)
    expect(views["k_ring"], dtypes=own, shape=ring_shape, contiguous=False, alignment=16, written=True)
    expect(views["v_ring"], dtypes=own, shape=views["k_ring"].shape, contiguous=False, alignment=16, written=True)
    capacity = views["k_ring"].shape[2]
    if head_dim % 8 or capacity == 0:
        raise KernelError(
            f"k_ring has shape {list(views['k_ring'].shape)}; "
            "expected a head dimension in steps of 8 and a slot at least."
        )
    at = runner.view(position, "position")
    expect(at, dtypes=("int64",), shape=(batch,), written=True)
    params = RingAppendParams(
        position=at.pointer, kv_heads=kv_heads, new_len=new_len, capacity=capacity, head_dim=head_dim
    )
    for what, view in views.items():
        setattr(params, what, view.pointer)
        setattr(params, f"{what}_strides", _Strides(*_rows_of_16_bytes(view)))
    if batch * kv_heads * new_len:
        runner.launch(
            "attention", "edgemm_attention_ring_append", params, grid=(batch,), block=(_APPEND_THREADS,), stream=stream
        )


def tile_shared_bytes(head_dim: int) -> int:
    """Dynamic shared memory of the kernels for many queries (`Tile<D>::kSharedBytes`)."""
    keys = 64 if head_dim <= 64 else 32
    return 2 * 2 * keys * (2 * head_dim + _ROW_BYTES_EXTRA)


def split_shared_bytes(head_dim: int) -> int:
    """Dynamic shared memory of the kernels for few queries (`Split<D>::kSharedBytes`)."""
    return _split_warps(head_dim) * 2 * 2 * 16 * (2 * head_dim + _ROW_BYTES_EXTRA)


def _split_warps(head_dim: int) -> int:
    return 4 if head_dim <= 80 else 2


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _rows_of_16_bytes(view: View) -> tuple[int, int, int]:
    """Strides of the first three dimensions in elements; raise KernelError unless rows are contiguous and aligned."""
    if view.size == 0:
        return 0, 0, 0
    itemsize = view.dtype.itemsize
    # the stride of a dimension of length 1 is never used, and arrays may hold anything there
    steps = [step if length > 1 else 0 for length, step in zip(view.shape, view.strides, strict=True)]
    if steps[3] != itemsize or any(step % 16 for step in steps[:3]):
        raise KernelError(
            f"{view.what} has strides {list(view.strides)}; "
            "expected the last dimension contiguous and the others in multiples of 16 bytes. Copy it first."
        )
    if not abs(steps[2]) < _FARTHEST_ROW * itemsize:
        raise KernelError(f"{view.what} has rows {steps[2]} bytes apart; expected less than 4 GiB. Copy it first.")
    return steps[0] // itemsize, steps[1] // itemsize, steps[2] // itemsize


def _bias_strides(view: View, dtypes: Sequence[str], shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """Strides of the bias's first three dimensions in elements, 0 where it is broadcast."""
    expect(view, dtypes=dtypes, shape=(None, None, None, shape[3]), contiguous=False)
    if any(have not in (1, want) for have, want in zip(view.shape[:3], shape[:3], strict=True)):
        raise KernelError(
            f"bias has shape {list(view.shape)}; expected {list(shape)}, or 1 in any of the first three places."
        )
    if view.size == 0:
        return 0, 0, 0
    if view.shape[3] > 1 and view.strides[3] != view.dtype.itemsize:
        raise KernelError(
            f"bias has strides {list(view.strides)}; expected the last dimension contiguous. Copy it first."
        )
    steps = [step if length > 1 else 0 for length, step in zip(view.shape[:3], view.strides, strict=False)]
    return steps[0] // view.dtype.itemsize, steps[1] // view.dtype.itemsize, steps[2] // view.dtype.itemsize
