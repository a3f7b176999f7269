"""Fused attention on the device against the backends of torch's scaled_dot_product_attention and a Triton kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from front_end import torch_graph
from measure import Bench, Work

from edgemm.kernels.attention import AttentionKernel, AttentionOptions, plan_splits
from edgemm.kernels.launch import CudaRunner

AIM_SHORT, AIM_LONG = 1.2, 0.9
HEADS, BATCH = 8, 4
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def shapes() -> Iterator[tuple[int, int, int, bool]]:
    """(queries, keys, head dimension, causal): self attention, short queries on a cache, cross attention."""
    for head_dim in (32, 64, 128):
        for length in (64, 128, 256, 512, 1024, 2048, 4096):
            yield length, length, head_dim, False
            yield length, length, head_dim, True
        for queries in (1, 4, 16):
            for keys in (64, 512, 4096):
                yield queries, keys, head_dim, False
        yield 100, 50, head_dim, False


def run(bench: Bench, *, small: bool = False) -> None:
    """Measure every shape, or a few."""
    torch = bench.optional("torch", "pip install torch: attention is measured on its tensors and against it")
    if torch is None:
        return
    runner = CudaRunner(bench.device)
    for queries, keys, head_dim, causal in list(shapes())[:: 9 if small else 1]:
        q = torch.randn(BATCH, HEADS, queries, head_dim, device="cuda", dtype=torch.float16)
        k, v = (torch.randn(BATCH, HEADS, keys, head_dim, device="cuda", dtype=torch.float16) for _ in range(2))
        out = torch.empty_like(q)
        options = AttentionOptions(head_dim, causal=causal, queries_at="end")
        kernel = AttentionKernel(options, runner)
        plan = plan_splits(
            BATCH, HEADS, HEADS, queries, keys, head_dim, multiprocessors=bench.device.info.multiprocessors
        )
        scratch = torch.empty(max(plan.workspace_floats, 1), device="cuda") if plan.splits > 1 else None

        def ours(
            stream: Any,
            kernel: Any = kernel,
            tensors: Any = (q, k, v, out),
            splits: int = plan.splits,
            scratch: Any = scratch,
        ) -> None:
            kernel(*tensors, splits=splits, workspace=scratch, stream=stream)

        seen = 0.5 if causal else 1.0
        cost = {
            "moved_bytes": 2.0 * BATCH * HEADS * head_dim * (2 * queries + 2 * keys),
            # tensor cores do 16 times as much as the float lanes that the floor counts
            "flops": 4.0 * BATCH * HEADS * queries * keys * head_dim * seen / 16,
        }
        case = f"attention {queries} x {keys}, D {head_dim}{', causal' if causal else ''}"
        bench.add(case, "edgemm", ours, **cost)
        exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
        agrees(bench, f"edgemm for {case}", out, exact)
        for name, work, graph, result in peers(bench, torch, q, k, v, causal):
            bench.add(case, name, work, graph=graph, **cost)
            agrees(bench, f"{name} for {case}", result(), exact)


def agrees(bench: Bench, name: str, found: Any, exact: Any) -> None:
    """Note a candidate that computes something else."""
    worst = float((found.double() - exact).abs().max())
    if not worst < 1e-2:
        bench.lacks(f"agreement of {name} with float64: {worst:.2e} off")


def peers(
    bench: Bench, torch: Any, q: Any, k: Any, v: Any, causal: bool
) -> Iterator[tuple[str, Work, Work | None, Any]]:
    """torch's backends, one at a time, and the Triton kernel."""
    attention = torch.nn.attention
    held: dict[str, Any] = {}
    for name in BACKENDS:
        backend = getattr(attention.SDPBackend, name, None)
        if backend is None:
            bench.lacks(f"torch's {name}: needs a newer torch")
            continue

        def function(backend: Any = backend) -> Any:
            with attention.sdpa_kernel([backend]):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        def work(stream: Any, function: Any = function) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)), torch.no_grad():
                held["out"] = function()

        try:
            function()
        except RuntimeError as error:
            bench.lacks(f"torch's {name} for D {q.shape[3]}: {str(error).splitlines()[0]}")
            continue
        yield f"torch {name.split('_')[0].lower()}", work, torch_graph(torch, function), lambda: held["out"]
    if bench.optional("triton", "pip install triton") is None:
        return
    from triton_attention import attention as triton_attention

    out = torch.empty_like(q)

    def triton(stream: Any) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
            triton_attention(q, k, v, out, causal)

    yield "Triton", triton, None, lambda: out


def figures(bench: Bench) -> list[str]:
    """How the fastest peer compares, for each case that has one: in the stream."""
    lines = []
    for case in bench.cases("attention"):
        rows = bench.times(case)
        others = {name: time.median_us for name, time in rows.items() if name != "edgemm"}
        if others and "edgemm" in rows:
            best = min(others, key=lambda name: others[name])
            queries, keys = (int(word.rstrip(",")) for word in case.split()[1:4:2])
            aim = AIM_SHORT if queries <= 64 or keys <= 512 else AIM_LONG
            ratio = others[best] / rows["edgemm"].median_us
            lines.append(f"{case}: {ratio:.2f}x the best peer ({best}); aim {aim}x")
    return lines
