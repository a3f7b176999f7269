"""Passes change how a graph is written, not what it computes."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import graph_text
import numpy as np
import pytest
import random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.errors import ModelError
from edgemm.graph import Model, from_bytes, from_proto, load
from edgemm.graph.passes import (
    FixDims,
    FoldConstants,
    InferShapes,
    InlineFunctions,
    NameDims,
    Pass,
    RemoveDead,
    ToHalf,
    run,
)

EXACT: tuple[Pass, ...] = (InlineFunctions(), InferShapes(), NameDims(), RemoveDead(), InferShapes())
FOLD: tuple[Pass, ...] = (*EXACT, FoldConstants(), RemoveDead(), InferShapes())

# float16 has 11 bits; a dozen layers of sums of some dozen terms may lose three or four of them.
HALF_TOLERANCE = 0.02


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got - want), initial=0.0) / (np.max(np.abs(want), initial=0.0) + 1e-3))


def compare(model: Model, feeds: dict[str, np.ndarray]) -> None:
    """Hold the passes against the original on one input."""
    want = graph_text.run(model, feeds)
    for got, expected in zip(graph_text.run(run(model, EXACT).model, feeds), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    folded = run(model, FOLD).model
    for got, expected in zip(graph_text.run(folded, feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    half = run(folded, [ToHalf(), RemoveDead(), InferShapes()]).model
    assert [spec.dtype for spec in half.outputs] == [spec.dtype for spec in model.outputs]
    for got, expected in zip(graph_text.run(half, feeds), want, strict=True):
        assert relative(got, expected) < HALF_TOLERANCE
    again = from_bytes(half.to_bytes())
    assert again.digest == half.digest


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n_steps=st.integers(1, 14))
def test_random_graphs_compute_the_same_after_the_passes(seed: int, n_steps: int) -> None:
    graph = random_graphs.random_graph(seed, n_steps=n_steps)
    compare(from_proto(graph.model), graph.feeds)


@pytest.mark.parametrize("step", random_graphs.STEPS)
def test_each_kind_of_step_survives_the_passes(step: str) -> None:
    graph = random_graphs.random_graph(7, n_steps=4, steps=(step, "flatten") if step == "recurrent" else (step, "gemm"))
    compare(from_proto(graph.model), graph.feeds)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21, 23])
def test_every_opset_survives_the_passes(opset: int) -> None:
    graph = random_graphs.random_graph(3, opset=opset, n_steps=10)
    compare(from_proto(graph.model), graph.feeds)


def zoo() -> list[str]:
    folder = os.environ.get("EDGEMM_MODEL_ZOO", "")
    return sorted(glob.glob(f"{folder}/**/*.onnx", recursive=True)) if folder else []


@pytest.mark.slow
@pytest.mark.skipif(not zoo(), reason="set EDGEMM_MODEL_ZOO to a folder of .onnx files to hold the passes against them")
@pytest.mark.parametrize("path", zoo(), ids=lambda path: Path(path).stem)
def test_real_models_compute_the_same_after_the_passes(path: str) -> None:
    """Feeds are noise: enough for equality, not for accuracy. Dynamic sizes are tried until the model runs."""
    model = load(path)
    for size in (48, 96, 576, 32):
        rng = np.random.default_rng(0)
        feeds = {}
        for spec in model.inputs:
            shape = [
                dim if isinstance(dim, int) else 1 if axis == 0 or spec.name == "state" else size
                for axis, dim in enumerate(spec.shape)
            ]
            if np.dtype(spec.dtype).kind == "f":
                feeds[spec.name] = (0.3 * rng.standard_normal(shape)).astype(spec.dtype)
            else:
                # An audio model's sampling rate is the only scalar integer among the inputs of the models known.
                feeds[spec.name] = (
                    np.full(shape, 16000, spec.dtype) if not shape else rng.integers(0, 200, shape).astype(spec.dtype)
                )
        try:
            graph_text.run(model, feeds)
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no base class of their own
            reason = error
            continue
        compare(model, feeds)
        named = run(model, [NameDims()]).model
        sizes = {
            dim: feeds[spec.name].shape[axis]
            for spec in named.inputs
            for axis, dim in enumerate(spec.shape)
            if isinstance(dim, str)
        }
        if sizes:
            compare(run(named, [FixDims(sizes)]).model, feeds)
        return
    raise ModelError(f"no size tried fits {path}: {reason}")
