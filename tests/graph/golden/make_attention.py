"""Writes the attention_*.onnx files beside it: small attention blocks as PyTorch's two exporters write them.

    python tests/graph/golden/make_attention.py

Needs torch (2.13 wrote the files that are here) and onnxscript; the tests need neither. The weights are random: what
matters is the shape of the graph.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
WIDTH, HEADS, LENGTH = 32, 1, 6
"""Small enough for a file of some kilobytes: one head of 32, the least that the kernel takes."""


def split(x: Tensor) -> Tensor:
    """[batch, length, width] -> [batch, heads, length, head_dim]"""
    return x.unflatten(2, (2, 32)).transpose(1, 2)


class Sdpa(nn.Module):
    """scaled_dot_product_attention of three inputs that have their heads side by side."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = functional.scaled_dot_product_attention(
            split(q), split(k), split(v), attn_mask=mask, is_causal=self.causal
        )
        return out.transpose(1, 2).flatten(2)


class MultiHead(nn.Module):
    """nn.MultiheadAttention, its weights not asked for."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]


class WithWeights(nn.Module):
    """nn.MultiheadAttention that also returns its weights: not to be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x)


class BertLike(nn.Module):
    """Attention as Hugging Face's eager implementations spell it: scores divided, a mask made of zeros and ones."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        extended = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        weights = functional.dropout(torch.softmax(scores + extended, dim=-1), 0.1, self.training)
        out = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return out.view(out.shape[0], out.shape[1], WIDTH)


class LlamaLike(nn.Module):
    """Causal attention in Hugging Face's newer manner: keys repeated for groups, softmax in float32, scale by Mul."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, groups = 4, 2
        q = q.unflatten(2, (heads, 32)).transpose(1, 2)
        k, v = (y.unflatten(2, (heads // groups, 32)).transpose(1, 2) for y in (k, v))
        k, v = (
            y[:, :, None].expand(y.shape[0], y.shape[1], groups, y.shape[2], y.shape[3]).reshape(
                y.shape[0], heads, y.shape[2], y.shape[3]
            )
            for y in (k, v)
        )  # fmt: skip
        length = q.shape[2]
        causal = torch.full((length, length), torch.finfo(q.dtype).min).triu(1)[None, None]
        scores = torch.matmul(q, k.transpose(2, 3)) * 32**-0.5 + causal
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(weights, v).transpose(1, 2).contiguous().flatten(2)


def export(name: str, module: nn.Module, args: tuple[Tensor, ...], inputs: list[str], *, dynamic: bool = False) -> None:
    """Write attention_<name>_{script,dynamo}.onnx; with `dynamic`, batch and length are free."""
    module.eval()
    axes = {key: {0: "batch", 1: "length"} if value.dim() > 1 else {} for key, value in zip(inputs, args, strict=True)}
    for exporter, opset in (("script", 17), ("dynamo", 18)):
        shapes = None
        if dynamic:
            dims = {"batch": torch.export.Dim("batch"), "length": torch.export.Dim("length", min=2)}
            shapes = tuple({axis: dims[label] for axis, label in axes[key].items()} for key in inputs)
        target = HERE / f"attention_{name}_{exporter}.onnx"
        torch.onnx.export(
            module,
            args,
            target,
            input_names=inputs,
            opset_version=opset,
            dynamo=exporter == "dynamo",
            external_data=False,
            **({"dynamic_shapes": shapes} if exporter == "dynamo" else {"dynamic_axes": axes if dynamic else None}),
        )
        slim(target)


def slim(target: Path) -> None:
    """Drop what no test reads, which is two thirds of the file: stack traces, descriptions, names of nodes."""
    model = onnx.load(target)
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, target)
    print(target.name, target.stat().st_size)  # noqa: T201


def main() -> None:
    """Export every block with both exporters, and SDPA once more as ONNX's own Attention operator."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, WIDTH)
    qkv = tuple(torch.randn(2, LENGTH, 64) for _ in range(3))
    export("sdpa", Sdpa(), qkv, ["q", "k", "v"], dynamic=True)
    export("sdpa_static", Sdpa(), qkv, ["q", "k", "v"])
    export("sdpa_causal", Sdpa(causal=True), qkv, ["q", "k", "v"])
    export("sdpa_mask", Sdpa(), (*qkv, torch.randn(2, 1, LENGTH, LENGTH)), ["q", "k", "v", "mask"])
    export("sdpa_bool", Sdpa(), (*qkv, torch.rand(2, 2, LENGTH, LENGTH) < 0.7), ["q", "k", "v", "mask"])
    export("mha", MultiHead(True), (x,), ["x"])
    export("mha_plain", MultiHead(False), (x,), ["x"])
    export("mha_padding", MultiHead(True), (x, torch.rand(2, LENGTH) < 0.3), ["x", "padding"])
    export("mha_weights", WithWeights(), (x,), ["x"])
    export("bert", BertLike(), (x, (torch.rand(2, LENGTH) < 0.8).long()), ["x", "attention_mask"], dynamic=True)
    wide = torch.randn(2, LENGTH, 128)
    export("llama", LlamaLike(), (wide, *qkv[1:]), ["q", "k", "v"])
    target = HERE / "attention_operator_dynamo.onnx"
    torch.onnx.export(
        Sdpa(causal=True), qkv, target, input_names=["q", "k", "v"], opset_version=23, dynamo=True, external_data=False
    )
    slim(target)


if __name__ == "__main__":
    main()
