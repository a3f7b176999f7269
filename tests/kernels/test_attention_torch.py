"""An independent peer: PyTorch's scaled_dot_product_attention in float64, with masks that this file works out."""

from __future__ import annotations

import numpy as np
import pytest
from attention_cases import make_problem, to_numbers
from require import require

from edgemm.kernels.attention import AttentionOptions
from edgemm.kernels.launch import EmulatorRunner

torch = require("torch", "peers", "pip install torch")


def peer(problem):
    """The same problem for PyTorch: every mask and bias becomes one float mask, every ring is unrolled."""
    options, extras = problem.options, problem.extras
    q, k, v = (torch.from_numpy(np.ascontiguousarray(to_numbers(x))) for x in (problem.q, problem.k, problem.v))
    group = q.shape[1] // k.shape[1]
    outputs = []
    for b in range(q.shape[0]):
        capacity = count = k.shape[2]
        keys, values = k[b], v[b]
        if "ring_position" in extras:
            written = int(extras["ring_position"][b])
            count = min(written, capacity)
            keys, values = (
                torch.roll(x, -(written % capacity) if written > capacity else 0, dims=1) for x in (keys, values)
            )
        if "kv_lengths" in extras:
            count = int(extras["kv_lengths"][b])
        if count == 0:
            outputs.append(torch.zeros_like(q[b]))
            continue
        i = torch.arange(q.shape[2])[:, None] + (count - q.shape[2] if options.queries_at == "end" else 0)
        j = torch.arange(count)[None, :]
        mask = torch.zeros(q.shape[1], q.shape[2], count, dtype=torch.float64)
        before, after = options.window
        if options.causal:
            mask = mask.masked_fill(j > i, -torch.inf)
        if before is not None:
            mask = mask.masked_fill(j < i - before, -torch.inf)
        if after is not None:
            mask = mask.masked_fill(j > i + after, -torch.inf)
        if "bias" in extras:
            bias = torch.from_numpy(to_numbers(extras["bias"]))[..., :count]
            mask = mask + bias[b if bias.shape[0] > 1 else 0]
        if "alibi_slopes" in extras:
            mask = mask - torch.from_numpy(extras["alibi_slopes"]).double()[:, None, None] * (i - j).abs()
        if "relative_bias" in extras:
            table = torch.from_numpy(extras["relative_bias"]).double()
            span = table.shape[1] // 2
            mask = mask + table[:, (j - i).clamp(-span, span) + span]
        got = torch.nn.functional.scaled_dot_product_attention(
            q[b],
            keys[:, :count].repeat_interleave(group, dim=0),
            values[:, :count].repeat_interleave(group, dim=0),
            attn_mask=mask,
            scale=options.scale,
        )
        outputs.append(torch.where((mask == -torch.inf).all(dim=-1, keepdim=True), 0.0, got))
    return torch.stack(outputs).numpy()


CASES = [
    ({}, {}),
    ({"causal": True}, {"keys": "lengths"}),
    ({"window": (9, 4), "scale": 0.3}, {"keys": "ring"}),
    ({"causal": True, "queries_at": "start"}, {"additive": (1, 0, 1)}),
    ({"window": (40, None)}, {"alibi": True, "relative_span": 5}),
    (
        {"causal": True, "window": (25, None)},
        {"additive": (0, 1, 0), "alibi": True, "relative_span": 60, "keys": "ring"},
    ),
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("q_len", [3, 50])
@pytest.mark.parametrize(("options", "shape"), CASES)
def test_pytorch_agrees(options, shape, q_len, dtype):
    problem = make_problem(
        AttentionOptions(32, dtype, **options), batch=2, heads=4, kv_heads=2, q_len=q_len, kv_len=70, seed=7, **shape
    )
    want = peer(problem)
    reference, lse = problem.reference()
    assert np.allclose(reference, want, rtol=1e-12, atol=1e-12), "the reference, float64 against float64"
    out, _ = problem.solve(EmulatorRunner())
    bound, _ = problem.bounds(want, lse)
    assert (np.abs(to_numbers(out) - want) <= bound).all(), "the kernel, within its derived bound"
