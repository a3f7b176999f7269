"""Weights rounded by what their inputs do: the products come nearer to float, on data that calibration did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgemm.graph import walk
from edgemm.quant import calibrate, from_json, insert_qdq
from edgemm.quant.arithmetic import dequantize
from edgemm.quant.placement import place
from edgemm.quant.prepare import prepare
from edgemm.quant.rounding import MOST_INPUTS, MomentsObserver, as_rows, can_be_observed


def item_of(model, name):
    """The node's plan and its weights."""
    prepared = prepare(model)
    item = place(prepared, "onnxruntime").compute[name]
    weight = walk.link(prepared.proto.graph).constant(item.node.input[item.weight])
    return item, prepared.array(weight)


def correlated(rng, count, *shape):
    """Feeds whose channels go together and have a mean: what a network's activations look like."""
    axis = 1 if len(shape) == 4 else len(shape) - 1
    channels = shape[axis]
    mix = rng.normal(size=(channels, max(1, channels // 8)))
    mean = rng.normal(size=channels)
    others = [size for at, size in enumerate(shape) if at != axis]
    return [
        {"x": np.moveaxis(rng.normal(size=(*others, mix.shape[1])) @ mix.T + mean, -1, axis).astype(np.float32)}
        for _ in range(count)
    ]


def weight_only(model):
    """The int8 graph in float: weights and biases as they dequantize, activations as they are."""
    proto = model.copy_proto()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            axis = walk.attribute(node, "axis")
            value = dequantize(stored[node.input[0]], stored[node.input[1]], axis=axis)
            node.input[0] = f"{node.input[0]}_float"
            proto.graph.initializer.append(numpy_helper.from_array(value, node.input[0]))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return model.with_proto(proto)


def errors(model, candidate, executor, data):
    """Difference of the only output, [samples, ...]."""
    found = []
    for each in (model, candidate):
        with executor.open(each) as runner:
            found.append(np.stack([np.array(next(iter(runner.run(feeds).values()))) for feeds in data]))
    return found[1] - found[0]


GRAPHS = {
    "matmul": (lambda g: g.op("MatMul", g.input("x", 4, 32), g.weight(32, 16), name="n"), (4, 32)),
    "gemm": (
        lambda g: g.op(
            "Gemm", g.input("x", 4, 32), g.weight(16, 32), g.const(np.ones(16, np.float32)), name="n", transB=1
        ),
        (4, 32),
    ),
    "matmul and add": (
        lambda g: g.op(
            "Add", g.op("MatMul", g.input("x", 4, 32), g.weight(32, 16), name="n"), g.const(np.ones(16, np.float32))
        ),
        (4, 32),
    ),
    "conv": (lambda g: g.conv(g.input("x", 1, 4, 6, 6), 4, 8, name="n"), (1, 4, 6, 6)),
    "grouped conv": (lambda g: g.conv(g.input("x", 1, 4, 6, 6), 4, 8, name="n", group=2, bias=False), (1, 4, 6, 6)),
}


@pytest.mark.parametrize("form", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("kind", sorted(GRAPHS))
def test_the_products_come_nearer_to_float_than_with_weights_rounded_to_nearest(graph, executor, kind, form):
    build, shape = GRAPHS[kind]
    graph.output(build(graph))
    model = graph.model()
    rng = np.random.default_rng(1)
    data = correlated(rng, 96, *shape)
    ranges = calibrate(model, data[:64], executor, "min-max")
    ours = weight_only(insert_qdq(model, ranges, form).model)
    nearest = weight_only(insert_qdq(model, replace(ranges, rounding=None), form).model)
    fresh = data[64:]
    error, before = (errors(model, each, executor, fresh) for each in (ours, nearest))
    assert np.mean(error**2) < 0.5 * np.mean(before**2)


def test_what_is_rounded_first_is_made_up_for_by_all_behind_it(graph, executor):
    # Each of 64 channels comes again at half its size: behind all of them, as it weighs less.
    graph.output(graph.op("MatMul", graph.input("x", 4, 128), graph.weight(128, 16), name="n"))
    model = graph.model()
    channels = np.random.default_rng(3).normal(size=(160, 4, 64)).astype(np.float32)
    data = [{"x": np.concatenate([each, each / 2], axis=1)} for each in channels]
    ranges = calibrate(model, data[:128], executor, "min-max")
    ours, nearest = (
        errors(model, weight_only(insert_qdq(model, each, "tensorrt").model), executor, data[128:])
        for each in (ranges, replace(ranges, rounding=None))
    )
    assert np.mean(ours**2) < 0.6 * np.mean(nearest**2)


@pytest.mark.parametrize("form", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("kind", ["gemm", "matmul and add", "conv"])
def test_the_mean_of_the_error_goes_into_the_bias(graph, executor, kind, form):
    build, shape = GRAPHS[kind]
    graph.output(build(graph))
    model = graph.model()
    data = [{"x": feeds["x"] + 20} for feeds in correlated(np.random.default_rng(2), 64, *shape)]
    if kind == "conv":
        # Zeros beyond the edges are no part of this mean.
        for node in model.proto.graph.node:
            next(item for item in node.attribute if item.name == "pads").ints[:] = [0] * 4
        model.proto.graph.output[0].type.Clear()
    ranges = calibrate(model, data, executor, "min-max")
    error = errors(model, weight_only(insert_qdq(model, ranges, form).model), executor, data)
    axis = 1 if kind == "conv" else -1
    mean = np.abs(np.moveaxis(error, axis + (axis >= 0), -1).reshape(-1, error.shape[axis + (axis >= 0)]).mean(axis=0))
    assert mean.max() < 0.2 * np.sqrt(np.mean(error**2)) + 1e-3


@pytest.mark.parametrize(
    ("kernel", "more"),
    [
        (3, {"strides": [2, 2]}),
        (3, {"dilations": [2, 1]}),
        (1, {}),
        (3, {"group": 2}),
        (3, {"group": 4, "strides": [1, 2]}),
    ],
)
def test_a_convolution_sees_the_moments_of_what_its_kernel_covers(graph, executor, kernel, more):
    x = graph.input("x", 1, 4, 7, 8)
    graph.output(graph.conv(x, 4, 4, kernel=kernel, name="n", bias=False, **more))
    model = graph.model()
    item, weights = item_of(model, "n")
    observer = MomentsObserver(item, weights)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, 7, 8)).astype(np.float32)}
    observer.observe(feeds["x"])
    moments = observer.moments()
    with executor.open(model) as runner:
        (made,) = runner.run(feeds).values()
    products = made.reshape(4, -1)  # all of its 56 places are looked at
    assert moments.rows == products.shape[1]
    rows = as_rows(item, weights)
    np.testing.assert_allclose(
        np.einsum("goi,gi->go", rows, moments.mean).reshape(-1), products.mean(axis=1), atol=1e-5
    )
    energy = np.einsum("goi,gij,goj->go", rows, moments.second, rows).reshape(-1)
    np.testing.assert_allclose(energy, (products**2).mean(axis=1), rtol=1e-4)


def test_memory_and_places_do_not_grow_with_the_picture(graph):
    x = graph.input("x", 1, 4, 64, 64)
    graph.output(graph.conv(x, 4, 4, name="n"))
    observer = MomentsObserver(*item_of(graph.model(), "n"))
    for _ in range(3):
        observer.observe(np.ones((1, 4, 64, 64), np.float32))
    assert 3 * 64 <= observer.moments().rows <= 3 * 65
    assert observer.moments().second.shape == (1, 36, 36)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 5),
    rows=st.integers(2, 40),
    dead=st.booleans(),
    seed=st.integers(0, 99),
)
def test_integers_stay_in_range_and_near_the_weights(new_graph, executor, inputs, outputs, rows, dead, seed):
    graph = new_graph(seed)
    graph.output(graph.op("MatMul", graph.input("x", 1, inputs), graph.weight(inputs, outputs), name="n"))
    model = graph.model()
    data = correlated(np.random.default_rng(seed), rows, 1, inputs)
    for feeds in data:
        if dead:
            feeds["x"][:, ::2] = 0
    ranges = calibrate(model, data, executor, "min-max")
    item, weights = item_of(model, "n")
    scale = np.abs(weights).max(axis=0).astype(np.float32) / 127
    found = ranges.rounding.round(item, weights, scale, has_bias=False)
    assert found.integers.shape == weights.shape
    assert found.integers.dtype == np.int8
    assert np.abs(found.integers.astype(int)).max() <= 127
    assert found.shift is None
    assert np.abs(found.integers - weights / scale).max() < 40


def test_a_weight_that_two_nodes_read_is_rounded_to_nearest(graph, executor):
    x = graph.input("x", 4, 8)
    shared = graph.weight(8, 8, name="w")
    y = graph.op("Relu", graph.op("MatMul", x, shared, name="one"))
    graph.output(graph.op("MatMul", y, shared, name="two"))
    model = graph.model()
    ranges = calibrate(model, correlated(np.random.default_rng(0), 16, 4, 8), executor)
    ours, nearest = (insert_qdq(model, r, "tensorrt").model for r in (ranges, replace(ranges, rounding=None)))
    assert ours.digest == nearest.digest


def test_what_has_too_many_inputs_or_is_no_plain_product_is_not_observed(graph):
    x = graph.input("x", 1, MOST_INPUTS + 1)
    y = graph.op("MatMul", x, graph.weight(MOST_INPUTS + 1, 2), name="wide")
    t = graph.input("t", 8, 4)
    z = graph.op("Gemm", t, graph.weight(8, 2), name="turned", transA=1)
    for name in (y, z):
        graph.output(name)
    for name in ("wide", "turned"):
        assert not can_be_observed(*item_of(graph.model(), name))


def test_the_file_of_ranges_holds_no_moments_and_rounds_to_nearest(graph, executor):
    graph.output(graph.op("MatMul", graph.input("x", 4, 32), graph.weight(32, 16), name="n"))
    model = graph.model()
    ranges = calibrate(model, correlated(np.random.default_rng(0), 16, 4, 32), executor)
    again = from_json(ranges.to_json())
    assert again.rounding is None
    assert again == ranges
    nearest = insert_qdq(model, replace(ranges, rounding=None), "tensorrt").model
    assert insert_qdq(model, again, "tensorrt").model.digest == nearest.digest
    assert insert_qdq(model, ranges, "tensorrt").model.digest != nearest.digest
