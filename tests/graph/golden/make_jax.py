"""Writes the attention_jax_*.onnx files beside it: attention of JAX and Flax as jax2onnx writes it.

    python tests/graph/golden/make_jax.py

Needs jax2onnx (0.17.1 with jax 0.10.2 and flax wrote the files that are here); the tests do not.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import onnx
from flax import nnx
from jax2onnx import to_onnx

HERE = Path(__file__).parent
Q, KV = (2, 5, 2, 32), (2, 7, 2, 32)
"""[batch, length, heads, head_dim], as JAX has it."""


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """jax.nn's own attention."""
    return jax.nn.dot_product_attention(q, k, v)


def causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """With its causal mask."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def masked(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """With a mask of truth values, [batch, 1, queries, keys]."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def biased(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """With an additive bias."""
    return jax.nn.dot_product_attention(q, k, v, bias=bias)


def spelled(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """As people write it by hand."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)


def main() -> None:
    """Export each."""
    four = [Q, KV, KV]
    flax = nnx.MultiHeadAttention(num_heads=1, in_features=32, decode=False, rngs=nnx.Rngs(0))
    mask = jax.ShapeDtypeStruct((2, 1, 5, 7), jnp.bool_)
    cases = (
        ("plain", plain, four, ["q", "k", "v"]),
        ("causal", causal, four, ["q", "k", "v"]),
        (
            "mask",
            masked,
            [*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in four), mask],
            ["q", "k", "v", "mask"],
        ),
        ("bias", biased, [*four, (1, 2, 5, 7)], ["q", "k", "v", "bias"]),
        ("spelled", spelled, four, ["q", "k", "v"]),
        ("flax", flax, [("batch", 5, 32)], ["x"]),
    )
    for name, function, inputs, names in cases:
        target = HERE / f"attention_jax_{name}.onnx"
        model = to_onnx(function, inputs, input_names=names, opset=21)
        for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
            item.doc_string = ""
            del item.metadata_props[:]
        onnx.save(model, target)
        print(target.name, target.stat().st_size)  # noqa: T201


if __name__ == "__main__":
    main()
