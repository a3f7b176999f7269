"""Attention problems, and how far a kernel's answer to one may be from float64: derived, not fitted.

With u the unit roundoff of the elements (2^-11 for fp16, 2^-8 for bfloat16), e = 2^-24 that of float, and T the
largest sum of magnitudes in a row of scores (scale * sum |q| |k|, and the biases):

- a score is a sum of D exact products and a few terms, wrong by at most (2 D + 16) e T (2: tensor cores truncate), and
  ex2 adds 2 ulp: a probability is relatively wrong by at most d = u + (2 D + 16) e T + 2^-21, with its rounding to the
  elements' type;
- the weights are divided by the sum of the same rounded probabilities, so their error moves the output by at most
  sum_j w_j d |v_j - out|, to first order (the factor 1.1 covers the second); as the weights add up to 1, the sum is at
  most the root of sum_j w_j (v_j - out)^2, the spread of v;
- fp16 probabilities below 2^-14 lose at most 2^-25 of the row's largest, which is 1, each;
- n keys are added in float: (n + 32) 2 e sum_j w_j |v_j|; the result is rounded to the elements' type.

The log-sum-exp is that of the same rounded probabilities: wrong by at most d, the lost small ones, and a few float
roundings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgemm.kernels.attention import AttentionKernel, AttentionOptions, attention_reference
from edgemm.types import Array

FLOAT_UNIT = 2.0**-24


def to_elements(values: Array, dtype: str) -> Array:
    """float16, or the bits of bfloat16 as uint16, rounded to nearest even."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_numbers(elements: Array) -> Array:
    """What the elements mean, in float64."""
    if elements.dtype == np.uint16:
        return (elements.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return elements.astype(np.float64)


@dataclass
class Problem:
    """Options and tensors, as a kernel takes them."""

    options: AttentionOptions
    q: Array
    k: Array
    v: Array
    extras: dict[str, Any] = field(default_factory=dict)
    """kv_lengths, ring_position, bias, alibi_slopes, relative_bias."""

    def solve(self, runner: Any, *, splits: int = 1) -> tuple[Array, Array]:
        """The kernel's output and log-sum-exp; whatever it does not write is NaN."""
        batch, heads, q_len, head_dim = self.q.shape
        out = np.full_like(self.q, np.nan if self.q.dtype == np.float16 else 0x7FFF)
        lse = np.full((batch, heads, q_len), np.nan, np.float32)
        floats = batch * heads * q_len * splits * (head_dim + 1) if splits > 1 else 0
        workspace = np.full(floats, np.nan, np.float32) if splits > 1 else None
        AttentionKernel(self.options, runner)(
            self.q, self.k, self.v, out, lse=lse, splits=splits, workspace=workspace, **self.extras
        )
        return out, lse

    def reference(self, values: Array | None = None) -> tuple[Array, Array]:
        """In float64; `values` takes the place of v."""
        extras = dict(self.extras)
        if "bias" in extras:
            extras["bias"] = to_numbers(extras["bias"])
        values = to_numbers(self.v) if values is None else values
        return attention_reference(to_numbers(self.q), to_numbers(self.k), values, self.options, **extras)

    def check(self, out: Array, lse: Array) -> None:
        """Raise AssertionError if an element is farther from the reference than the derivation allows."""
        want, want_lse = self.reference()
        bound, lse_bound = self.bounds(want, want_lse)
        got = to_numbers(out)
        dead = np.isneginf(want_lse)
        assert (got[dead] == 0).all(), "a query that sees no key gives zeros"
        assert np.isneginf(lse[dead]).all(), "and a log-sum-exp of minus infinity"
        error = np.abs(got - want)
        bad = ~(error <= bound)  # NaN is bad
        assert not bad.any(), (
            f"{bad.sum()} of {bad.size} outputs are beyond the bound, first at {np.argwhere(bad)[0].tolist()}: "
            f"got {got[bad][0]}, want {want[bad][0]} +- {bound[bad][0]}"
        )
        bad = ~dead & ~(np.abs(lse - np.where(dead, 0, want_lse)) <= lse_bound)
        assert not bad.any(), (
            f"log-sum-exp at {np.argwhere(bad)[0].tolist()}: got {lse[bad][0]}, want {want_lse[bad][0]}"
        )

    def bounds(self, want: Array, want_lse: Array) -> tuple[Array, Array]:
        """The largest error allowed of each output and of each log-sum-exp."""
        half = self.options.dtype == "float16"
        unit = 2.0**-11 if half else 2.0**-8
        q, k, v = (np.nan_to_num(to_numbers(x)) for x in (self.q, self.k, self.v))
        heads, kv_heads, kv_len, head_dim = q.shape[1], k.shape[1], k.shape[2], q.shape[3]
        k, v = (np.repeat(x, heads // kv_heads, axis=1) for x in (k, v))
        weights, _ = self.reference(np.broadcast_to(np.eye(kv_len), (len(q), kv_heads, kv_len, kv_len)))

        size = self.options.softmax_scale * (np.abs(q) @ np.abs(k).swapaxes(2, 3))
        if "bias" in self.extras:
            bias = np.abs(to_numbers(self.extras["bias"]))
            size = size + np.where(np.isfinite(bias), bias, 0)
        if "alibi_slopes" in self.extras:
            size = size + np.abs(self.extras["alibi_slopes"])[:, None, None] * (kv_len + q.shape[2])
        if "relative_bias" in self.extras:
            size = size + np.abs(self.extras["relative_bias"]).max(axis=1)[:, None, None]
        largest = size.max(axis=3, initial=0)  # [batch, heads, q_len]
        relative = unit + (2 * head_dim + 16) * FLOAT_UNIT * largest + 2.0**-21
        lost = 2.0**-24 if half else 0.0

        spread = np.sqrt(np.maximum(weights @ v**2 - want**2, 0) + 2.0**-40 * (weights @ v**2))
        visible = (weights > 0).astype(np.float64)
        small = lost * (visible @ np.abs(v) + visible.sum(axis=3)[..., None] * np.abs(want))
        summed = (kv_len + 32) * 2 * FLOAT_UNIT * (weights @ np.abs(v))
        rounded = unit * np.abs(want) * 1.01 + (2.0**-25 if half else 2.0**-134)
        bound = 1.1 * relative[..., None] * spread + small + summed + rounded
        finite_lse = np.where(np.isneginf(want_lse), 0, want_lse)
        return bound, 1.1 * relative + kv_len * lost + 8 * FLOAT_UNIT * np.abs(finite_lse) + 2.0**-20


def make_problem(
    options: AttentionOptions,
    *,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int = 1,
    q_len: int,
    kv_len: int,
    seed: int = 0,
    keys: str = "all",
    additive: tuple[int, int, int] | None = None,
    alibi: bool = False,
    relative_span: int | None = None,
    transposed: bool = False,
) -> Problem:
    """Draw a problem. `keys`: "all", "lengths" or "ring"; slots that hold no key are NaN, so that reading one shows.

    `additive` says which of batch, heads and q_len the bias has (1) or is broadcast over (0); a quarter of it is minus
    infinity. `transposed` lays the tensors out as [batch, length, heads, head_dim].
    """
    rng = np.random.default_rng(seed)

    def tensor(heads: int, length: int) -> Array:
        shape = (batch, length, heads, options.head_dim) if transposed else (batch, heads, length, options.head_dim)
        drawn = to_elements(rng.standard_normal(shape), options.dtype)
        return drawn.swapaxes(1, 2) if transposed else drawn

    q, k, v = tensor(heads, q_len), tensor(kv_heads, kv_len), tensor(kv_heads, kv_len)
    extras: dict[str, Any] = {}
    valid = np.full(batch, kv_len)
    if keys == "lengths":
        valid = rng.integers(0, kv_len + 1, batch)
        valid[rng.integers(batch)] = rng.choice([0, kv_len])
        extras["kv_lengths"] = valid.astype(np.int32)
    elif keys == "ring":
        written = rng.integers(0, 3 * kv_len + 1, batch)
        valid = np.minimum(written, kv_len)
        extras["ring_position"] = written.astype(np.int64)
    for b in range(batch):
        for x in (k, v):
            x[b, :, valid[b] :] = np.nan if options.dtype == "float16" else 0x7FFF
    if additive is not None:
        shape = tuple(size if has else 1 for size, has in zip((batch, heads, q_len), additive, strict=True))
        bias = 2 * rng.standard_normal((*shape, kv_len))
        bias[rng.random(bias.shape) < 0.25] = -np.inf
        extras["bias"] = to_elements(bias, options.dtype)
    if alibi:
        extras["alibi_slopes"] = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32)
    if relative_span is not None:
        extras["relative_bias"] = rng.standard_normal((heads, 2 * relative_span + 1)).astype(np.float32)
    return Problem(options, q, k, v, extras)
