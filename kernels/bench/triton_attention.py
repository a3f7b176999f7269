"""Attention as the Triton tutorial teaches it (online softmax over tiles of keys), for comparison only."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

TILE_QUERIES, TILE_KEYS = 64, 64


@triton.jit
def _kernel(
    q,
    k,
    v,
    out,
    lengths,
    scale,
    q_len,
    kv_len,
    heads,
    HEAD_DIM: tl.constexpr,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    head = tl.program_id(1)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, HEAD_DIM)
    q_at = head * q_len * HEAD_DIM + rows[:, None] * HEAD_DIM + columns[None, :]
    queries = tl.load(q + q_at, mask=rows[:, None] < q_len, other=0.0)
    count = tl.load(lengths + head // heads) if PADDED else kv_len
    last = tl.minimum(count, (tl.program_id(0) + 1) * QUERIES) if CAUSAL else count
    largest = tl.full((QUERIES,), -1.0e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    result = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    for first in range(0, last, KEYS):
        keys = first + tl.arange(0, KEYS)
        kv_at = head * kv_len * HEAD_DIM + keys[:, None] * HEAD_DIM + columns[None, :]
        inside = keys[:, None] < count
        scores = tl.dot(queries, tl.trans(tl.load(k + kv_at, mask=inside, other=0.0))) * scale
        seen = (keys[None, :] < count) & (rows[:, None] >= 0)
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, -1.0e30)
        now = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - now[:, None])
        shrink = tl.exp(largest - now)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(v + kv_at, mask=inside, other=0.0)
        result = result * shrink[:, None] + tl.dot(weights.to(tl.float16), values)
        largest = now
    tl.store(out + q_at, (result / total[:, None]).to(tl.float16), mask=rows[:, None] < q_len)


def attention(q: Any, k: Any, v: Any, out: Any, lengths: Any, *, causal: bool, padded: bool) -> None:
    """Contiguous fp16 `[batch, heads, length, head_dim]`; causal for equal lengths; `lengths` int32 `[batch]`."""
    batch, heads, q_len, head_dim = q.shape
    grid = (triton.cdiv(q_len, TILE_QUERIES), batch * heads)
    _kernel[grid](
        q,
        k,
        v,
        out,
        lengths,
        head_dim**-0.5,
        q_len,
        k.shape[2],
        heads,
        HEAD_DIM=head_dim,
        CAUSAL=causal,
        PADDED=padded,
        QUERIES=TILE_QUERIES,
        KEYS=TILE_KEYS,
    )
