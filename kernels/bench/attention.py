"""Fused attention on the device against the backends of torch's scaled_dot_product_attention and a Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from front_end import Peer, on, torch_graph
from measure import Bench, first_line
from results import Row, cases, times

from edgemm.kernels.attention import AttentionKernel, AttentionOptions, plan_splits
from edgemm.kernels.launch import CudaRunner

AIM_SHORT, AIM_LONG = 1.2, 0.9
TOLERANCE = 1e-2
"""fp16 of outputs that are averages of numbers of variance 1."""
HEADS, BATCH = 8, 4
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
CROSS = ((100, 50), (40, 400), (64, 1500))
"""Queries of one modality on keys of another: pictures on sound, and sound on pictures."""


@dataclass(frozen=True)
class Shape:
    """One attention to measure."""

    queries: int
    keys: int
    head_dim: int
    causal: bool = False
    padded: bool = False
    """Every batch entry has keys of its own number."""

    def __str__(self) -> str:
        kinds = [kind for kind, has in (("causal", self.causal), ("padded", self.padded)) if has]
        return ", ".join([f"attention {self.queries} x {self.keys}", f"D {self.head_dim}", *kinds])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Keys that count, of each batch entry: all, or from all of them down to a quarter."""
        if not self.padded:
            return (self.keys,) * BATCH
        return tuple(max(1, self.keys * (BATCH - at) // BATCH) for at in range(BATCH))

    @property
    def aim(self) -> float:
        """How many times as fast as the best peer the kernel is to be."""
        return AIM_SHORT if self.queries <= 64 or self.keys <= 512 else AIM_LONG

    @property
    def moved_bytes(self) -> float:
        """q and out once, and of k and v what counts."""
        return 2.0 * HEADS * self.head_dim * (2 * BATCH * self.queries + 2 * sum(self.lengths))

    @property
    def flops(self) -> float:
        """Operations; the tensor cores do 16 times as many as the float lanes that the floor counts."""
        seen = 0.5 if self.causal else 1.0
        return 4.0 * HEADS * self.queries * sum(self.lengths) * self.head_dim * seen / 16


def shapes() -> Iterator[Shape]:
    """Self attention plain, causal and padded; short queries on a cache; cross attention."""
    for head_dim in (32, 64, 128):
        for length in LENGTHS:
            yield Shape(length, length, head_dim)
            yield Shape(length, length, head_dim, causal=True)
        for length in (256, 2048):
            yield Shape(length, length, head_dim, padded=True)
        for queries in (1, 4, 16):
            for keys in (64, 512, 4096):
                yield Shape(queries, keys, head_dim)
        for queries, keys in CROSS:
            yield Shape(queries, keys, head_dim)


def run(bench: Bench, *, small: bool = False) -> None:
    """Measure every shape, or a few."""
    torch = bench.optional("torch", "pip install torch: attention is measured on its tensors and against it")
    if torch is None:
        return
    runner = CudaRunner(bench.device)
    for shape in list(shapes())[:: 9 if small else 1]:
        bench.case(str(shape), lambda shape=shape: measure(bench, torch, runner, shape))


def measure(bench: Bench, torch: Any, runner: CudaRunner, shape: Shape) -> None:
    """Ours and the peers on the same tensors, each compared with float64."""
    case = str(shape)
    q = torch.randn(BATCH, HEADS, shape.queries, shape.head_dim, device="cuda", dtype=torch.float16)
    k, v = (torch.randn(BATCH, HEADS, shape.keys, shape.head_dim, device="cuda", dtype=torch.float16) for _ in range(2))
    lengths = torch.tensor(shape.lengths, device="cuda", dtype=torch.int32)
    # [batch, 1, 1, keys]: True where a key counts
    mask = (
        (torch.arange(shape.keys, device="cuda")[None, :] < lengths[:, None])[:, None, None] if shape.padded else None
    )
    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = torch.stack(
        [
            sdpa(
                q[b : b + 1].double(),
                k[b : b + 1].double(),
                v[b : b + 1].double(),
                attn_mask=None if mask is None else mask[b : b + 1],
                is_causal=shape.causal,
            )[0]
            for b in range(BATCH)
        ]
    ).cpu()
    out = torch.empty_like(q)
    kernel = AttentionKernel(AttentionOptions(shape.head_dim, causal=shape.causal, queries_at="end"), runner)
    plan = plan_splits(
        BATCH,
        HEADS,
        HEADS,
        shape.queries,
        shape.keys,
        shape.head_dim,
        multiprocessors=bench.device.info.multiprocessors,
    )
    scratch = torch.empty(plan.workspace_floats, device="cuda", dtype=torch.float32) if plan.splits > 1 else None
    # Without padding the kernel is told nothing of lengths, as the peers are not.
    kv_lengths = lengths if shape.padded else None
    torch.cuda.synchronize()

    def ours(stream: Any) -> None:
        kernel(q, k, v, out, kv_lengths=kv_lengths, splits=plan.splits, workspace=scratch, stream=stream)

    cost = {"moved_bytes": shape.moved_bytes, "flops": shape.flops}
    if bench.add(case, "edgemm", ours, **cost):
        bench.agrees(f"edgemm for {case}", out.cpu().numpy(), exact.numpy(), TOLERANCE)
    for peer in peers(bench, torch, q, k, v, lengths, mask, shape):
        if bench.add(case, peer.name, peer.work, graph=peer.graph, **cost):
            bench.agrees(f"{peer.name} for {case}", peer.result(), exact.numpy(), TOLERANCE)


def peers(bench: Bench, torch: Any, q: Any, k: Any, v: Any, lengths: Any, mask: Any, shape: Shape) -> Iterator[Peer]:
    """torch's backends, one at a time, and the Triton kernel."""
    for name in BACKENDS:
        backend = getattr(torch.nn.attention.SDPBackend, name, None)
        if backend is None:
            bench.part.lacks(f"torch's {name}: needs a newer torch")
            continue
        peer = backend_peer(torch, name, backend, q, k, v, mask, shape.causal)
        try:
            peer.work(bench.stream)
        except Exception as error:  # noqa: BLE001 - a backend that refuses a shape is a line of the report
            kind = "padded" if shape.padded else "not padded"
            bench.part.lacks(f"torch's {name} for D {shape.head_dim}, {kind}: {first_line(error)}")
            continue
        yield peer
    if bench.optional("triton", "pip install triton") is None:
        return
    from triton_attention import attention as triton_attention

    out = torch.empty_like(q)

    def work(stream: Any) -> None:
        with on(torch, stream):
            triton_attention(q, k, v, out, lengths, causal=shape.causal, padded=shape.padded)

    yield Peer("Triton", work, None, lambda: out.cpu().numpy())


def backend_peer(torch: Any, name: str, backend: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool) -> Peer:
    """One backend of torch, and nothing but it: it raises where it cannot."""
    held: dict[str, Any] = {}

    def function() -> Any:
        with torch.nn.attention.sdpa_kernel([backend]):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    def work(stream: Any) -> None:
        with on(torch, stream), torch.no_grad():
            held["out"] = function()

    graph: Callable[[], Any] = lambda: torch_graph(torch, function)  # noqa: E731 - a name for its type
    return Peer(f"torch {name.split('_')[0].lower()}", work, graph, lambda: held["out"].cpu().numpy())


def figures(rows: Sequence[Row], bytes_per_us: float) -> list[str]:
    """How the fastest peer compares, for each case that has one: in the stream, and in a graph."""
    aims = {str(shape): shape.aim for shape in shapes()}
    lines = []
    for case in cases(rows, "attention"):
        found = times(rows, case)
        others = {name: time.median_us for name, time in found.items() if name != "edgemm"}
        if others and "edgemm" in found:
            best = min(others, key=lambda name: others[name])
            ratio = others[best] / found["edgemm"].median_us
            graphs = {row.candidate: row.graph.median_us for row in rows if row.case == case and row.graph}
            ours = graphs.pop("edgemm", None)
            replayed = f", {min(graphs.values()) / ours:.2f}x in a graph" if ours and graphs else ""
            lines.append(f"{case}: {ratio:.2f}x the best peer ({best}){replayed}; aim {aims[case]}x")
    return lines
