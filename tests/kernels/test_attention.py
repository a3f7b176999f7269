"""Fused attention under the emulator, against float64 within derived bounds (tests/support/attention_cases.py)."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from attention_cases import Problem, make_problem, to_elements, to_numbers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemm.errors import KernelError
from edgemm.kernels import emulate
from edgemm.kernels.attention import (
    HEAD_DIMS,
    AttentionKernel,
    AttentionOptions,
    AttentionParams,
    RingAppendParams,
    SplitPlan,
    append_to_ring,
    attention_reference,
    plan_splits,
    split_shared_bytes,
    tile_shared_bytes,
)
from edgemm.kernels.launch import EmulatorRunner
from edgemm.kernels.sources import source_dir


@pytest.fixture(scope="module")
def runner():
    return EmulatorRunner()


# ---- every option ----------------------------------------------------------------------------------------------------

OPTIONS = [
    pytest.param({}, {}, id="plain"),
    pytest.param({"causal": True}, {}, id="causal"),
    pytest.param({"causal": True, "queries_at": "start"}, {}, id="causal-from-start"),
    pytest.param({"window": (7, 3)}, {}, id="window"),
    pytest.param({"window": (20, None), "causal": True}, {}, id="window-causal"),
    pytest.param({"window": (0, 0)}, {}, id="window-of-one"),
    pytest.param({"scale": 0.4}, {}, id="scale"),
    pytest.param({}, {"keys": "lengths"}, id="lengths"),
    pytest.param({"causal": True}, {"keys": "lengths"}, id="causal-lengths"),
    pytest.param({}, {"keys": "ring"}, id="ring"),
    pytest.param({"causal": True, "window": (30, None)}, {"keys": "ring"}, id="ring-window-causal"),
    pytest.param({}, {"additive": (1, 1, 1)}, id="bias"),
    pytest.param({}, {"additive": (0, 0, 1)}, id="bias-of-all-heads"),
    pytest.param({"causal": True}, {"additive": (1, 0, 0), "keys": "lengths"}, id="bias-of-keys"),
    pytest.param({"causal": True}, {"alibi": True}, id="alibi"),
    pytest.param({}, {"relative_span": 4}, id="relative"),
    pytest.param(
        {"window": (50, 20)},
        {"relative_span": 100, "alibi": True, "additive": (0, 1, 1), "keys": "ring"},
        id="all-biases",
    ),
    pytest.param({}, {"transposed": True}, id="length-before-heads"),
]


@pytest.mark.parametrize(("options", "shape"), OPTIONS)
@pytest.mark.parametrize(("q_len", "kv_len"), [(70, 150), (5, 150), (100, 40)])
@pytest.mark.parametrize("head_dim", [32, 80])
def test_every_option(runner, head_dim, q_len, kv_len, options, shape):
    problem = make_problem(
        AttentionOptions(head_dim, **options), batch=2, heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, seed=1, **shape
    )
    problem.check(*problem.solve(runner))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dimension_and_type(runner, head_dim, dtype):
    options = AttentionOptions(head_dim, dtype, causal=True)
    for q_len, kv_len, shape in (
        (67, 131, {}),
        (40, 70, {"alibi": True}),
        (3, 131, {}),
        (9, 50, {"additive": (1, 1, 1)}),
    ):
        problem = make_problem(options, batch=1, heads=2, q_len=q_len, kv_len=kv_len, seed=head_dim, **shape)
        problem.check(*problem.solve(runner))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 6), (6, 2), (6, 1)])
@pytest.mark.parametrize("q_len", [1, 4, 16, 17, 64, 65])
def test_grouped_query_heads(runner, heads, kv_heads, q_len):
    problem = make_problem(
        AttentionOptions(32, causal=True), batch=2, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=70, alibi=True
    )
    problem.check(*problem.solve(runner))


@pytest.mark.parametrize("splits", [2, 3, 7, 40])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_split_keys_are_joined(runner, splits, dtype):
    for head_dim, shape in ((32, {}), (96, {"keys": "ring"}), (32, {"keys": "lengths", "additive": (1, 1, 1)})):
        options = AttentionOptions(head_dim, dtype, window=(200, None))
        problem = make_problem(options, batch=3, heads=4, kv_heads=2, q_len=5, kv_len=333, seed=splits, **shape)
        problem.check(*problem.solve(runner, splits=splits))


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 5), (5, 0), (1, 1), (70, 0), (17, 1), (1, 64), (64, 64), (65, 65)])
@pytest.mark.parametrize("shape", [{}, {"alibi": True}], ids=["plain", "alibi"])
def test_empty_one_and_whole_tiles(runner, q_len, kv_len, shape):
    problem = make_problem(AttentionOptions(64), batch=2, heads=2, q_len=q_len, kv_len=kv_len, **shape)
    problem.check(*problem.solve(runner))


@pytest.mark.parametrize("length", [63, 64, 65, 128, 129])
def test_causal_rows_at_the_edges_of_tiles(runner, length):
    problem = make_problem(AttentionOptions(32, causal=True), q_len=length, kv_len=length)
    problem.check(*problem.solve(runner))


def test_no_batch_is_no_launch(runner):
    problem = make_problem(AttentionOptions(32), batch=2, q_len=3, kv_len=3)
    out = np.zeros((0, 1, 3, 32), np.float16)
    AttentionKernel(problem.options, runner)(problem.q[:0], problem.k[:0], problem.v[:0], out)


@settings(max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_combination(runner, data):
    draw = data.draw
    dtype = draw(st.sampled_from(["float16", "bfloat16"]))
    side = st.one_of(st.none(), st.integers(0, 90))
    options = AttentionOptions(
        draw(st.sampled_from([32, 80])),
        dtype,
        causal=draw(st.booleans()),
        window=(draw(side), draw(side)),
        queries_at=draw(st.sampled_from(["start", "end"])),
        scale=draw(st.sampled_from([None, 0.01, 1.0])),
    )
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    q_len = draw(st.one_of(st.integers(0, 20), st.integers(21, 140)))
    problem = make_problem(
        options,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=draw(st.integers(0, 140)),
        seed=draw(st.integers(0, 2**32)),
        keys=draw(st.sampled_from(["all", "lengths", "ring"])),
        additive=draw(st.one_of(st.none(), st.tuples(*[st.integers(0, 1)] * 3))),
        alibi=draw(st.booleans()),
        relative_span=draw(st.one_of(st.none(), st.integers(0, 30))),
        transposed=draw(st.booleans()),
    )
    problem.check(*problem.solve(runner, splits=draw(st.integers(1, 4)) if q_len <= 16 else 1))


# ---- extreme values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q_len", [3, 40])
def test_the_largest_values_do_not_overflow(runner, q_len):
    problem = make_problem(AttentionOptions(64), q_len=q_len, kv_len=100)
    sign = np.where(np.random.default_rng(0).random(problem.v.shape) < 0.5, -1, 1)
    problem.v = (sign * 65504).astype(np.float16)
    problem.check(*problem.solve(runner))
    problem.v = np.full_like(problem.v, 65504)
    assert (problem.solve(runner)[0] == 65504).all(), "a constant v comes out exactly: numerator and sum round alike"


@pytest.mark.parametrize("q_len", [3, 40])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_scores_do_not_overflow(runner, q_len, sign):
    problem = make_problem(AttentionOptions(128), q_len=q_len, kv_len=50)
    problem.q = np.full_like(problem.q, 65504)
    problem.k = np.full_like(problem.k, sign * 65504)
    out, lse = problem.solve(runner)
    # all scores are the same huge number, so all weights are 1 / 50, whatever its last bits
    mean = to_numbers(problem.v).mean(axis=2, keepdims=True)
    assert (np.abs(out - mean) <= 2.0**-11 * np.abs(mean) + 82 * 2.0**-23 * 3 + 2.0**-25).all()
    assert np.allclose(lse, sign * 65504.0**2 * 128 / np.sqrt(128), rtol=1e-5)


def test_the_winner_takes_all(runner):
    problem = make_problem(AttentionOptions(32), q_len=40, kv_len=60)
    problem.q[:] = 0
    problem.k[:] = 0
    problem.q[..., 0] = 65504
    winner = 37
    problem.k[:, :, :, 0] = -65504
    problem.k[:, :, winner, 0] = 65504
    out, _ = problem.solve(runner)
    assert np.array_equal(out, np.broadcast_to(problem.v[:, :, winner : winner + 1], out.shape))


@pytest.mark.parametrize("q_len", [3, 40])
def test_subnormal_numbers_count(runner, q_len):
    problem = make_problem(AttentionOptions(32), q_len=q_len, kv_len=70)
    rng = np.random.default_rng(2)
    problem.q, problem.k, problem.v = (
        rng.integers(1, 0x3FF, x.shape).astype(np.uint16).view(np.float16) for x in (problem.q, problem.k, problem.v)
    )
    out, lse = problem.solve(runner)
    problem.check(out, lse)
    assert (out > 0).all()


@pytest.mark.parametrize("q_len", [3, 40])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_without_keys_give_zeros(runner, q_len, dtype):
    options = AttentionOptions(64, dtype)
    problem = make_problem(options, q_len=q_len, kv_len=50)
    bias = np.zeros((1, 1, q_len, 50))
    bias[:, :, ::2] = -np.inf
    problem.extras["bias"] = to_elements(bias, dtype)
    out, lse = problem.solve(runner)
    assert not out[:, :, ::2].any()
    assert np.isneginf(lse[:, :, ::2]).all()
    assert np.isfinite(lse[:, :, 1::2]).all()
    problem.check(out, lse)
    # a window that ends before the first key: queries at the end of more queries than keys
    problem = make_problem(AttentionOptions(64, dtype, causal=True), q_len=q_len, kv_len=2)
    problem.check(*problem.solve(runner))
    if q_len <= 16:
        problem.check(*problem.solve(runner, splits=3))


@pytest.mark.parametrize("q_len", [3, 40])
def test_nan_stays_visible(runner, q_len):
    problem = make_problem(AttentionOptions(32), heads=2, kv_heads=2, q_len=q_len, kv_len=20)
    problem.v[0, 1, 7, 5] = np.nan
    out, _ = problem.solve(runner)
    assert np.isnan(out[0, 1, :, 5]).all()
    assert np.isnan(out).sum() == q_len


# ---- schedules and layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q_len", [5, 70])
def test_the_schedule_does_not_change_a_bit(runner, q_len):
    options = AttentionOptions(64, causal=True)
    problem = make_problem(options, batch=2, heads=2, q_len=q_len, kv_len=150, keys="ring", alibi=True)
    splits = 3 if q_len <= 16 else 1
    out, lse = problem.solve(runner, splits=splits)
    problem.check(out, lse)
    for seed, order in ((0, "reversed"), (1, "forward"), (2, "reversed"), (3, "shuffled")):
        again = problem.solve(EmulatorRunner(seed=seed, block_order=order), splits=splits)
        assert np.array_equal(out, again[0])
        assert np.array_equal(lse, again[1])


def test_the_layout_does_not_change_a_bit(runner):
    problem = make_problem(AttentionOptions(64), batch=2, heads=2, kv_heads=2, q_len=40, kv_len=70, transposed=True)
    packed = Problem(problem.options, *(np.ascontiguousarray(x) for x in (problem.q, problem.k, problem.v)))
    assert np.array_equal(problem.solve(runner)[0], packed.solve(runner)[0])


def test_a_ring_equals_the_same_keys_in_a_row(runner):
    options = AttentionOptions(64, causal=True)
    row = make_problem(options, batch=1, heads=2, kv_heads=2, q_len=20, kv_len=90)
    written = 1000
    ring = Problem(options, row.q, np.empty_like(row.k), np.empty_like(row.v), {"ring_position": np.array([written])})
    slots = (written - 90 + np.arange(90)) % 90
    ring.k[:, :, slots], ring.v[:, :, slots] = row.k, row.v
    for a, b in zip(ring.solve(runner), row.solve(runner), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_stream_over_a_ring_equals_attention_over_its_history(runner, dtype):
    """Chunks of keys are appended, each then attended: the position lives in memory and is never set by the host."""
    capacity, options = 24, AttentionOptions(32, dtype, causal=True, window=(15, None))
    rng = np.random.default_rng(4)
    history = [to_elements(rng.standard_normal((2, 2, 60, 32)), dtype) for _ in range(3)]  # q, k, v
    rings = [
        np.full((2, 2, capacity, 32), np.nan if dtype == "float16" else 0x7FFF).astype(history[0].dtype)
        for _ in range(2)
    ]
    position = np.zeros(2, np.int64)
    at = 0
    for chunk in (3, 1, 7, 1, 1, 9, 5, 8, 1, 9, 4, 11):
        q, k, v = (np.ascontiguousarray(x[:, :, at : at + chunk]) for x in history)
        append_to_ring(runner, k, v, *rings, position)
        at += chunk
        assert position.tolist() == [at, at]
        problem = Problem(options, q, *rings, {"ring_position": position})
        out, lse = problem.solve(runner)
        problem.check(out, lse)
        kept = max(0, at - capacity)
        whole = attention_reference(*(to_numbers(x) for x in (q, *(y[:, :, kept:at] for y in history[1:]))), options)
        assert np.allclose(whole[0], problem.reference()[0], rtol=0, atol=1e-12)
    assert at == 60


def test_more_new_keys_than_slots_keep_the_newest(runner):
    new = np.arange(2 * 1 * 30 * 8, dtype=np.float16).reshape(2, 1, 30, 8)
    rings, position = [np.zeros((2, 1, 16, 8), np.float16) for _ in range(2)], np.array([5, 16], np.int64)
    append_to_ring(runner, new, -new, *rings, position)
    assert position.tolist() == [35, 46]
    for b, first in ((0, 5), (1, 16)):
        for n in range(14, 30):
            assert np.array_equal(rings[0][b, 0, (first + n) % 16], new[b, 0, n])
    assert np.array_equal(rings[1], -rings[0])


# ---- the Python side of the interface --------------------------------------------------------------------------------


def test_structures_and_sizes_mirror_the_header(tmp_path):
    fields = {"AttentionParams": AttentionParams, "RingAppendParams": RingAppendParams}
    values = [f"offsetof(edgemm::{name}, {entry[0]})" for name, kind in fields.items() for entry in kind._fields_]
    values += [f"sizeof(edgemm::{name})" for name in fields]
    values += [f"edgemm::{kind}<{d}>::kSharedBytes" for d in HEAD_DIMS for kind in ("Tile", "Split")]
    body = "\n".join(f"  p.out[{i}] = {value};" for i, value in enumerate(values))
    source = tmp_path / "layout.cu"
    source.write_text(
        '#include <cstddef>\n#include "attention.cuh"\nstruct P { int* out; };\n'
        f"EDGEMM_KERNEL(layout, P, 1) {{\n{body}\n}}\n"
    )

    class P(ctypes.Structure):
        _fields_ = (("out", ctypes.c_void_p),)

    out = np.zeros(len(values), np.int32)
    emulate.launch(
        emulate.build(source, cache_dir=tmp_path), "layout", P(out.ctypes.data), grid=(1,), block=(1,), buffers=[out]
    )
    want = [getattr(kind, entry[0]).offset for kind in fields.values() for entry in kind._fields_]
    want += [ctypes.sizeof(kind) for kind in fields.values()]
    want += [size(d) for d in HEAD_DIMS for size in (tile_shared_bytes, split_shared_bytes)]
    assert out.tolist() == want


class Counter(EmulatorRunner):
    """An emulator that keeps what each launch counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[emulate.Statistics] = []

    def launch(self, source, kernel, params, *, stream=None, **options):
        module = emulate.build(source_dir() / f"{source}.cu")
        self.counted.append(emulate.launch(module, kernel, params, buffers=list(self._memory.values()), **options))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("q_len", [5, 70])
def test_ldmatrix_meets_no_bank_conflict(head_dim, q_len):
    counter = Counter()
    make_problem(AttentionOptions(head_dim), q_len=q_len, kv_len=150).solve(counter)
    (counted,) = counter.counted
    assert counted.ldmatrix > 0
    assert counted.bank_conflicts == 0


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        ((1, 8, 8, 17, 4096, 64, 16), SplitPlan(1, 0)),
        ((1, 8, 8, 0, 4096, 64, 16), SplitPlan(1, 0)),
        ((1, 8, 8, 1, 4096, 64, 16), SplitPlan(4, 8 * 4 * 65)),
        ((1, 8, 1, 1, 4096, 64, 16), SplitPlan(32, 8 * 32 * 65)),
        ((1, 8, 8, 1, 200, 64, 132), SplitPlan(1, 0)),
        ((64, 8, 8, 1, 4096, 64, 16), SplitPlan(1, 0)),
        ((1, 1, 1, 1, 1 << 20, 64, 132), SplitPlan(64, 64 * 65)),
    ],
)
def test_splits_fill_the_device_and_no_more(arguments, plan):
    *shape, multiprocessors = arguments
    assert plan_splits(*shape, multiprocessors=multiprocessors) == plan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_dim": 48}, "No attention kernel has head dimension 48; expected one of 32, 64, 80, 96, 128"),
        ({"dtype": "float32"}, "No attention kernel takes float32; expected float16 or bfloat16"),
        ({"scale": 0.0}, "Found scale 0.0; expected a positive, finite number"),
        ({"scale": float("inf")}, "Found scale inf"),
        ({"window": (-1, None)}, r"Found window \(-1, None\)"),
        ({"window": (None, 1 << 29)}, "Found window"),
        ({"queries_at": "middle"}, "Found queries_at 'middle'"),
    ],
)
def test_options_that_no_kernel_has(options, words):
    with pytest.raises(KernelError, match=words):
        AttentionOptions(**{"head_dim": 64, **options})


def half(*shape):
    return np.zeros(shape, np.float16)


def misaligned(*shape):
    return np.zeros(int(np.prod(shape)) + 1, np.float16)[1:].reshape(shape)


def read_only(*shape):
    array = half(*shape)
    array.setflags(write=False)
    return array


WRONG_CALLS = [
    ({"q": np.zeros((1, 2, 4, 64), np.float32)}, "q is float32; expected float16"),
    ({"q": half(2, 4, 64)}, r"q has shape \[2, 4, 64\]; expected \[any, any, any, 64\]"),
    ({"q": half(1, 2, 4, 32)}, r"q has shape \[1, 2, 4, 32\]; expected"),
    ({"k": half(2, 2, 8, 64)}, r"k has shape \[2, 2, 8, 64\]; expected \[1, any, any, 64\]"),
    ({"v": half(1, 2, 9, 64)}, r"v has shape \[1, 2, 9, 64\]; expected \[1, 2, 8, 64\]"),
    ({"k": half(1, 3, 8, 64), "v": half(1, 3, 8, 64)}, "q has 2 heads and k has 3; expected a multiple"),
    ({"k": half(1, 0, 8, 64), "v": half(1, 0, 8, 64)}, "q has 2 heads and k has 0"),
    ({"out": half(1, 2, 5, 64)}, r"out has shape \[1, 2, 5, 64\]; expected \[1, 2, 4, 64\]"),
    ({"out": read_only(1, 2, 4, 64)}, "out is read-only"),
    ({"q": misaligned(1, 2, 4, 64)}, "q lies at .*; expected an address that is a multiple of 16"),
    ({"k": half(1, 2, 8, 65)[..., :64]}, "k has strides .*multiples of 16 bytes. Copy it first"),
    ({"k": half(1, 2, 8, 128)[..., ::2]}, "k has strides .*the last dimension contiguous"),
    (
        {"k": np.lib.stride_tricks.as_strided(half(1, 2, 8, 64), (1, 2, 8, 64), (0, 0, 1 << 32, 2))},
        "k has rows 4294967296 bytes apart; expected less than 4 GiB. Copy it first.",
    ),
    ({"q": [1.0]}, "q is a list; the emulator takes numpy arrays"),
    ({"lse": np.zeros((1, 2, 5), np.float32)}, r"lse has shape \[1, 2, 5\]; expected \[1, 2, 4\]"),
    ({"kv_lengths": np.zeros(1, np.int64)}, "kv_lengths is int64; expected int32"),
    ({"ring_position": np.zeros(1, np.int32)}, "ring_position is int32; expected int64"),
    (
        {"ring_position": np.zeros(1, np.int64), "kv_lengths": np.zeros(1, np.int32)},
        "Found both kv_lengths and ring_position",
    ),
    ({"bias": half(1, 2, 4, 9)}, r"bias has shape \[1, 2, 4, 9\]; expected"),
    ({"bias": half(1, 3, 4, 8)}, r"bias has shape \[1, 3, 4, 8\]; expected \[1, 2, 4, 8\], or 1"),
    ({"bias": np.zeros((1, 2, 4, 8), np.float32)}, "bias is float32; expected float16"),
    ({"bias": half(1, 2, 4, 16)[..., ::2]}, "bias has strides .*the last dimension contiguous"),
    ({"alibi_slopes": np.zeros(3, np.float32)}, r"alibi_slopes has shape \[3\]; expected \[2\]"),
    ({"relative_bias": np.zeros((2, 4), np.float32)}, "relative_bias has 4 columns; expected an odd number"),
    ({"splits": 0}, "Found 0 splits for 4 queries"),
    ({"splits": 2, "q": half(1, 2, 17, 64), "out": half(1, 2, 17, 64)}, "Found 2 splits for 17 queries; .* at most 16"),
    ({"splits": 2}, "2 splits need a workspace of 1040 float32"),
    ({"splits": 2, "workspace": np.zeros(1039, np.float32)}, "The workspace holds 1039 float32; 2 splits need 1040"),
    ({"splits": 2, "workspace": np.zeros(2000)}, "workspace is float64; expected float32"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_CALLS, ids=[words[:40] for _, words in WRONG_CALLS])
def test_wrong_calls_are_refused_before_any_launch(arguments, words):
    class NoLaunch(EmulatorRunner):
        def launch(self, *arguments, **options):
            raise AssertionError("launched")

    call = {
        "q": half(1, 2, 4, 64),
        "k": half(1, 2, 8, 64),
        "v": half(1, 2, 8, 64),
        "out": half(1, 2, 4, 64),
        **arguments,
    }
    with pytest.raises(KernelError, match=words):
        AttentionKernel(AttentionOptions(64), NoLaunch())(**call)


@pytest.mark.parametrize(
    ("arch", "dtype", "words"),
    [
        (75, "bfloat16", "sm_75 do not take bfloat16; attention in bfloat16 needs sm_80 or newer. Use float16."),
        (72, "bfloat16", "sm_72 do not take bfloat16; attention in bfloat16 needs sm_80 or newer. Use another device."),
        (72, "float16", "sm_72 do not take float16; attention in float16 needs sm_75 or newer. Use another device."),
    ],
)
def test_a_device_without_the_tensor_cores_is_refused_before_any_launch(arch, dtype, words):
    class Older(EmulatorRunner):
        @property
        def arch(self):
            return arch

    with pytest.raises(KernelError, match=re.escape(words)):
        AttentionKernel(AttentionOptions(64, dtype), Older())


def test_turing_takes_float16():
    class Turing(EmulatorRunner):
        @property
        def arch(self):
            return 75

    problem = make_problem(AttentionOptions(64), q_len=3, kv_len=5)
    problem.check(*problem.solve(Turing()))


def test_too_many_heads_are_refused(runner):
    many = np.broadcast_to(half(1, 1, 1, 32), (1, 65536, 1, 32))
    with pytest.raises(KernelError, match="at most 65535 heads and batch entries"):
        AttentionKernel(AttentionOptions(32), runner)(many, many, many, np.zeros((1, 65536, 1, 32), np.float16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": half(1, 1, 3, 16)}, "v has shape"),
        ({"v": np.zeros((1, 1, 2, 16), np.uint16)}, "v is uint16; expected float16"),
        ({"k_ring": half(1, 2, 4, 16)}, "k_ring has shape"),
        ({"k_ring": half(1, 1, 0, 16), "v_ring": half(1, 1, 0, 16)}, "a slot at least"),
        ({"position": np.zeros(1, np.int32)}, "position is int32; expected int64"),
        ({"position": np.zeros(2, np.int64)}, r"position has shape \[2\]; expected \[1\]"),
    ],
)
def test_wrong_appends_are_refused(runner, change, words):
    call = {"k": half(1, 1, 2, 16), "v": half(1, 1, 2, 16), "k_ring": half(1, 1, 4, 16), "v_ring": half(1, 1, 4, 16)}
    call = {**call, "position": np.zeros(1, np.int64), **change}
    with pytest.raises(KernelError, match=words):
        append_to_ring(runner, **call)


def test_appending_nothing_is_no_launch(runner):
    position = np.full(1, 7, np.int64)
    append_to_ring(runner, half(1, 1, 0, 16), half(1, 1, 0, 16), half(1, 1, 4, 16), half(1, 1, 4, 16), position)
    assert position[0] == 7


# ---- sanitizers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["address", "undefined", "thread"])
def sanitized(request):
    return EmulatorRunner(sanitizer=request.param, seed=2, block_order="reversed")


def test_sanitizers_find_nothing_with_many_queries(sanitized):
    options = AttentionOptions(80, causal=True, window=(60, None))
    plain = make_problem(options, batch=2, heads=2, kv_heads=1, q_len=70, kv_len=75, keys="lengths")
    biased = make_problem(
        options, batch=1, heads=2, q_len=67, kv_len=75, keys="ring", additive=(1, 1, 1), alibi=True, relative_span=3
    )
    for problem in (plain, biased):
        problem.check(*problem.solve(sanitized))


def test_sanitizers_find_nothing_with_few_queries(sanitized):
    plain = make_problem(AttentionOptions(80), batch=2, heads=4, kv_heads=2, q_len=7, kv_len=141, keys="ring")
    biased = make_problem(AttentionOptions(80, "bfloat16"), heads=2, q_len=3, kv_len=141, additive=(1, 0, 1))
    for problem in (plain, biased):
        for splits in (1, 3):  # with one, a warp fills its stages again
            problem.check(*problem.solve(sanitized, splits=splits))


def test_sanitizers_find_nothing_in_the_ring(sanitized):
    new, rings = half(2, 2, 5, 16) + np.float16(1), [half(2, 2, 7, 16) for _ in range(2)]
    append_to_ring(sanitized, new, new, *rings, np.array([3, 9], np.int64))
    assert rings[0].sum() == new.size
