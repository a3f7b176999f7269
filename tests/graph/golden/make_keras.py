"""Writes the attention_keras_*.onnx files beside it: Keras's attention layers as Keras exports them.

    KERAS_BACKEND=torch python tests/graph/golden/make_keras.py

Needs keras (3.15 wrote the files that are here), torch and onnxscript; the tests need none of them.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx

HERE = Path(__file__).parent
WIDTH = 16


def export(name: str, inputs: list[keras.KerasTensor], output: keras.KerasTensor) -> None:
    """Write attention_keras_<name>.onnx."""
    model = keras.Model(inputs, output)
    model([np.ones((1, *x.shape[1:]), x.dtype) for x in inputs])
    target = HERE / f"attention_keras_{name}.onnx"
    model.export(str(target), format="onnx", verbose=False)
    written = onnx.load(target)
    for item in (written, written.graph, *written.graph.node, *written.graph.value_info, *written.graph.input):
        item.doc_string = ""
        del item.metadata_props[:]
    onnx.save(written, target)
    print(target.name, target.stat().st_size)  # noqa: T201


def main() -> None:
    """Export self-attention, cross attention with a mask, causal attention, and grouped queries."""
    keras.utils.set_random_seed(0)
    x, context = keras.Input((6, WIDTH)), keras.Input((5, WIDTH))
    seen = keras.Input((6, 5), dtype="bool")
    layers = keras.layers
    export("plain", [x], layers.MultiHeadAttention(1, 32, dropout=0.1)(x, x))
    masked = layers.MultiHeadAttention(1, 32)(x, context, attention_mask=seen)
    export("mask", [x, context, seen], masked)
    export("triangle", [x], layers.MultiHeadAttention(1, 32, use_bias=False)(x, x, use_causal_mask=True))
    export("grouped", [x], layers.GroupQueryAttention(32, 2, 1)(x, x))


if __name__ == "__main__":
    main()
