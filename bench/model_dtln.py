"""Joins the two stages of DTLN and the transforms around them into one graph, which a recipe can stream:

    python bench/model_dtln.py out/models      # writes dtln.onnx beside the package's model_1.onnx and model_2.onnx

The stages stand on either side of a spectrum: the first makes a mask of its magnitudes, the second takes the inverse
transform of the masked spectrum. A recipe has the spectrum's magnitudes as a front end, but no input that multiplies a
stream's spectrum by another model's output. As one graph it needs none:

    block [1, 512]      the last 512 samples, every 128
    state1, state2      the LSTM states of the two stages
    sum [1, 512]        cleaned blocks that overlap, added up so far
    clean [1, 128]      the samples that are done: 384 samples late
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper

BLOCK, SHIFT, BINS = 512, 128, 257
FOLDER = Path("packages/livekit/plugins/dtln/models")


def joined(first: ModelProto, second: ModelProto) -> ModelProto:
    """One model of both stages."""
    stages = [compose.add_prefix(stage, prefix) for stage, prefix in ((first, "one/"), (second, "two/"))]
    angle = 2 * np.pi * np.outer(np.arange(BLOCK), np.arange(BINS)) / BLOCK
    # Of a real signal's spectrum the bins between 0 Hz and Nyquist stand for two.
    twice = np.where((np.arange(BINS) == 0) | (np.arange(BINS) == BINS - 1), 1.0, 2.0)[:, None] / BLOCK
    constants = {
        "cosines": np.cos(angle),
        "sines": -np.sin(angle),
        "inverse": np.concatenate([twice * np.cos(angle).T, -twice * np.sin(angle).T]),
        "nothing": np.zeros((1, SHIFT)),
    }
    sizes = {"as_bins": [1, 1, BINS], "as_row": [1, BINS], "as_block": [1, 1, BLOCK], "as_samples": [1, BLOCK]}
    bounds = {"at_0": [0], "at_shift": [SHIFT], "at_end": [BLOCK], "axis": [1]}
    node = helper.make_node
    before = [
        node("MatMul", ["block", "cosines"], ["real"], "transform/real"),
        node("MatMul", ["block", "sines"], ["imaginary"], "transform/imaginary"),
        node("Mul", ["real", "real"], ["real_2"], "real_2"),
        node("Mul", ["imaginary", "imaginary"], ["imaginary_2"], "imaginary_2"),
        node("Add", ["real_2", "imaginary_2"], ["power"], "power"),
        node("Sqrt", ["power"], ["magnitude"], "magnitude"),
        node("Reshape", ["magnitude", "as_bins"], ["one/input_2"], "bins"),
    ]
    between = [
        node("Reshape", ["one/activation_2", "as_row"], ["mask"], "mask"),
        node("Mul", ["real", "mask"], ["masked_real"], "masked_real"),
        node("Mul", ["imaginary", "mask"], ["masked_imaginary"], "masked_imaginary"),
        node("Concat", ["masked_real", "masked_imaginary"], ["spectrum"], "spectrum", axis=1),
        node("MatMul", ["spectrum", "inverse"], ["masked"], "transform/inverse"),
        node("Reshape", ["masked", "as_block"], ["two/input_4"], "masked_block"),
    ]
    after = [
        node("Reshape", ["two/conv1d_3", "as_samples"], ["cleaned"], "cleaned"),
        node("Slice", ["sum", "at_shift", "at_end", "axis"], ["kept"], "kept"),
        node("Concat", ["kept", "nothing"], ["moved"], "moved", axis=1),
        node("Add", ["moved", "cleaned"], ["next_sum"], "next_sum"),
        node("Slice", ["next_sum", "at_0", "at_shift", "axis"], ["clean"], "clean"),
    ]
    graph = helper.make_graph(
        [*before, *stages[0].graph.node, *between, *stages[1].graph.node, *after],
        "dtln",
        [
            helper.make_tensor_value_info("block", TensorProto.FLOAT, [1, BLOCK]),
            *(value for stage in stages for value in stage.graph.input if value.name not in FED),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, BLOCK]),
        ],
        [
            helper.make_tensor_value_info("clean", TensorProto.FLOAT, [1, SHIFT]),
            *(value for stage in stages for value in stage.graph.output if value.name not in FED),
            helper.make_tensor_value_info("next_sum", TensorProto.FLOAT, [1, BLOCK]),
        ],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()),
            *(numpy_helper.from_array(np.array(value), name) for name, value in (sizes | bounds).items()),
            *(tensor for stage in stages for tensor in stage.graph.initializer),
        ],
    )
    made = helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
    onnx.checker.check_model(made)
    return made


FED = ("one/input_2", "one/activation_2", "two/input_4", "two/conv1d_3")
"""Inputs and outputs of the stages that are tensors inside the whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that bench/models_fetch.sh filled")
    folder = parser.parse_args().data / FOLDER
    first, second = (onnx.load(folder / f"model_{stage}.onnx") for stage in (1, 2))
    onnx.save(joined(first, second), folder / "dtln.onnx")


if __name__ == "__main__":
    main()
