"""Q/DQ in hand-built graphs: where it goes, that engines fuse it, and that the numbers stay right."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.errors import CalibrationError, ModelError, UsageError
from edgemm.graph import from_proto
from edgemm.quant import Reference, calibrate, insert_qdq, quantizable_nodes

FORMS = ["tensorrt", "onnxruntime"]


def ops(model):
    return Counter(node.op_type for node in model.proto.graph.node)


def node(model, name):
    return next(n for n in model.proto.graph.node if n.name == name)


def producer(model, tensor):
    return next((n for n in model.proto.graph.node if tensor in n.output), None)


def reads_quantized(model, name, index=0):
    made = producer(model, node(model, name).input[index])
    return made is not None and made.op_type == "DequantizeLinear"


def value(model, name):
    stored = next(t for t in model.proto.graph.initializer if t.name == name)
    return numpy_helper.to_array(stored)


def scale(model, name, index=0):
    """Scale of the DQ in front of an input."""
    return value(model, producer(model, node(model, name).input[index]).input[1])


def quantize(model, executor, samples, form, exclude=(), observer="min-max"):
    data = samples(model)
    ranges = calibrate(model, data, executor, observer)
    done = insert_qdq(model, ranges, form, exclude)
    return done, Reference(model, data, executor).compare(done.model)


def residual_net(g):
    x = g.input("x", 1, 8, 8, 8)
    a = g.op("Relu", g.conv(x, 8, 8, name="first"))
    b = g.op("Relu", g.conv(a, 8, 8, name="second"))
    c = g.conv(b, 8, 8, name="third")
    d = g.op("Relu", g.op("Add", c, a, name="add"))
    e = g.conv(d, 8, 8, name="fourth")
    g.output(e)
    return g.model()


@pytest.mark.parametrize("form", FORMS)
def test_a_residual_network_is_int8_throughout(graph, executor, samples, fused_ops, form):
    done, agreement = quantize(residual_net(graph), executor, samples, form)
    assert list(done.quantized) == ["first", "second", "third", "fourth"]
    assert done.int8_share == 1.0
    assert agreement.sqnr_db > 25
    if form == "onnxruntime":
        fused = fused_ops(done.model)
        assert fused.count("QLinearConv") == 4
        assert fused.count("QLinearAdd") == 1
        assert not {"Conv", "FusedConv", "Add", "Relu"} & set(fused)
    else:
        # The convolution's own branch stays bare, the other one shares the scale of the tensor it is.
        assert not reads_quantized(done.model, "add", 0)
        assert reads_quantized(done.model, "add", 1)
        assert scale(done.model, "add", 1) == scale(done.model, "second")


@pytest.mark.parametrize("form", FORMS)
def test_convolution_with_relu(graph, executor, samples, fused_ops, form):
    x = graph.input("x", 1, 3, 8, 8)
    y = graph.op("Relu", graph.conv(x, 3, 8, name="one"))
    graph.output(graph.conv(y, 8, 4, name="two"))
    done, agreement = quantize(graph.model(), executor, samples, form)
    assert agreement.sqnr_db > 28
    if form == "tensorrt":
        # One Q in front of each convolution, none between it and its ReLU, none behind the last.
        assert ops(done.model)["QuantizeLinear"] == 2
        assert producer(done.model, node(done.model, "relu_1").input[0]).op_type == "Conv"
    else:
        assert Counter(fused_ops(done.model))["QLinearConv"] == 2
        assert "Relu" not in fused_ops(done.model)


def test_clip_from_zero_is_absorbed_like_relu(graph, executor, samples, fused_ops):
    x = graph.input("x", 1, 3, 8, 8)
    y = graph.conv(x, 3, 8, name="one")
    y = graph.op("Clip", y, graph.const(np.float32(0)), graph.const(np.float32(6)))
    graph.output(graph.conv(y, 8, 4, name="two"))
    done, _ = quantize(graph.model(), executor, samples, "onnxruntime")
    assert Counter(fused_ops(done.model))["QLinearConv"] == 2
    assert "Clip" not in fused_ops(done.model)


def test_a_clip_that_passes_negative_values_stays(graph, executor, samples):
    x = graph.input("x", 1, 3, 8, 8)
    y = graph.conv(x, 3, 8, name="one")
    y = graph.op("Clip", y, graph.const(np.float32(-1)), graph.const(np.float32(1)), name="clip")
    graph.output(graph.conv(y, 8, 4, name="two"))
    done, agreement = quantize(graph.model(), executor, samples, "onnxruntime")
    assert reads_quantized(done.model, "clip")
    assert agreement.sqnr_db > 25


@pytest.mark.parametrize("form", FORMS)
def test_batch_norm_is_folded_before_anything_is_measured(graph, executor, samples, form):
    x = graph.input("x", 1, 3, 8, 8)
    y = graph.conv(x, 3, 8, name="conv", bias=False)
    stats = [graph.const(graph.rng.uniform(0.5, 2, 8).astype(np.float32)) for _ in range(4)]
    y = graph.op("Relu", graph.op("BatchNormalization", y, *stats))
    graph.output(graph.conv(y, 8, 4, name="two"))
    done, agreement = quantize(graph.model(), executor, samples, form)
    assert ops(done.model)["BatchNormalization"] == 0
    assert agreement.sqnr_db > 25


def test_batch_norm_stays_where_folding_would_change_another_reader(graph, executor, samples):
    x = graph.input("x", 1, 3, 8, 8)
    y = graph.conv(x, 3, 4, name="conv")
    stats = [graph.const(graph.rng.uniform(0.5, 2, 4).astype(np.float32)) for _ in range(4)]
    graph.output(graph.op("Add", graph.op("BatchNormalization", y, *stats), y))
    done, agreement = quantize(graph.model(), executor, samples, "tensorrt")
    assert ops(done.model)["BatchNormalization"] == 1
    assert agreement.sqnr_db > 25


def test_concat_shares_one_scale(graph, executor, samples, fused_ops, new_graph):
    def build(g):
        x = g.input("x", 1, 4, 8, 8)
        a = g.op("Relu", g.conv(x, 4, 8, name="a"))
        b = g.op("MaxPool", g.op("Relu", g.conv(x, 4, 8, name="b")), kernel_shape=[3, 3], pads=[1] * 4)
        g.output(g.conv(g.op("Concat", a, b, name="concat", axis=1), 16, 4, name="last"))
        return g.model()

    done, agreement = quantize(build(graph), executor, samples, "onnxruntime")
    assert agreement.sqnr_db > 25
    assert scale(done.model, "concat", 0) == scale(done.model, "concat", 1) == scale(done.model, "last")
    fused = Counter(fused_ops(done.model))
    assert fused["QLinearConv"] == 3
    assert fused["QLinearConcat"] == 1
    assert not {"Conv", "FusedConv", "Concat"} & set(fused)
    # For TensorRT one Q behind the concat, which it moves in front by itself.
    done, _ = quantize(build(new_graph()), executor, samples, "tensorrt")
    assert not reads_quantized(done.model, "concat")


def test_a_branch_that_two_convolutions_read_has_the_scale_of_its_concat_for_tensorrt(graph, executor, samples):
    x = graph.input("x", 1, 4, 8, 8)
    a = graph.op("Relu", graph.conv(x, 4, 4, name="a"))
    b = graph.op("Relu", graph.conv(a, 4, 4, name="b"))
    graph.output(graph.conv(graph.op("Concat", a, b, axis=1), 8, 4, name="last"))
    done, _ = quantize(graph.model(), executor, samples, "tensorrt")
    assert scale(done.model, "b") == scale(done.model, "last")


def test_a_relu_in_a_signed_concat_is_quantized_on_both_sides(graph, executor, samples, fused_ops):
    x = graph.input("x", 1, 4, 8, 8)
    a = graph.op("Relu", graph.conv(x, 4, 4, name="a"))
    b = graph.conv(x, 4, 4, name="b")
    graph.output(graph.conv(graph.op("Concat", a, b, axis=1), 8, 4, name="last"))
    done, agreement = quantize(graph.model(), executor, samples, "onnxruntime")
    assert agreement.sqnr_db > 25
    fused = Counter(fused_ops(done.model))
    assert fused["QLinearConv"] == 3
    assert fused["QLinearConcat"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_concat_of_float_results_forces_no_scale_on_them(graph, executor, samples, form):
    x = graph.input("x", 4, 8)
    small = graph.op("Tanh", x)
    large = graph.op("Mul", x, graph.const(np.float32(1000)))
    graph.output(graph.op("MatMul", small, graph.weight(8, 4), name="reads_small"))
    graph.output(
        graph.op("MatMul", graph.op("Concat", small, large, axis=1, name="concat"), graph.weight(16, 4), name="both")
    )
    done, agreement = quantize(graph.model(), executor, samples, form)
    assert scale(done.model, "both") > 500 * scale(done.model, "reads_small")
    assert not reads_quantized(done.model, "concat")
    assert agreement.sqnr_db > 30


@pytest.mark.parametrize("form", FORMS)
def test_moves_keep_the_scale(graph, executor, samples, fused_ops, form):
    x = graph.input("x", 2, 4, 8, 8)
    y = graph.op("Relu", graph.conv(x, 4, 4, name="conv"))
    y = graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], name="pool")
    y = graph.op("Reshape", y, graph.const(np.array([2, 64])), name="reshape")
    graph.output(graph.op("Gemm", y, graph.weight(5, 64), graph.weight(5), transB=1, name="gemm"))
    done, agreement = quantize(graph.model(), executor, samples, form)
    assert agreement.sqnr_db > 25
    if form == "onnxruntime":
        assert scale(done.model, "pool") == scale(done.model, "reshape") == scale(done.model, "gemm")
        assert not {"Conv", "Gemm", "FusedConv"} & set(fused_ops(done.model))
    else:
        assert ops(done.model)["QuantizeLinear"] == 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("trans", "axis"), [(1, 0), (0, 1)])
def test_gemm_is_per_column(graph, executor, samples, fused_ops, form, trans, axis):
    x = graph.input("x", 3, 16)
    weight = graph.weight(*((8, 16) if trans else (16, 8)), name="w")
    graph.output(graph.op("Gemm", x, weight, graph.weight(8), transB=trans, name="gemm"))
    done, agreement = quantize(graph.model(), executor, samples, form)
    made = producer(done.model, node(done.model, "gemm").input[1])
    assert helper.get_node_attr_value(made, "axis") == axis
    assert value(done.model, made.input[1]).shape == (8,)
    assert value(done.model, made.input[0]).dtype == np.int8
    assert agreement.sqnr_db > 30
    bias = producer(done.model, node(done.model, "gemm").input[2])
    if form == "tensorrt":
        assert bias is None, "TensorRT takes the bias in float"
    else:
        assert value(done.model, bias.input[0]).dtype == np.int32
        assert "QGemm" in fused_ops(done.model)


@pytest.mark.parametrize("form", FORMS)
def test_matmul_with_bias_and_attention(graph, executor, samples, fused_ops, form):
    x = graph.input("x", 1, 6, 16)
    parts = []
    for name in "qkv":
        y = graph.op("MatMul", x, graph.weight(16, 16), name=name)
        parts.append(graph.op("Add", y, graph.weight(16)))
    q, k, v = parts
    k = graph.op("Transpose", k, perm=[0, 2, 1])
    scores = graph.op("Softmax", graph.op("MatMul", q, k, name="scores"), name="softmax")
    graph.output(graph.op("MatMul", scores, v, name="mix"))
    done, agreement = quantize(graph.model(), executor, samples, form)
    assert list(done.quantized) == ["q", "k", "v", "scores", "mix"]
    assert agreement.sqnr_db > 25
    for name in ("scores", "mix"):
        assert reads_quantized(done.model, name, 0)
        assert reads_quantized(done.model, name, 1)
    assert not reads_quantized(done.model, "softmax"), "softmax stays in float"
    if form == "onnxruntime":
        assert not {"MatMul", "Gemm"} & set(fused_ops(done.model))


@pytest.mark.parametrize("shape", [("n", 16), (3, 16), ("n", 5, 16), (2, 5, 16)])
def test_a_bias_behind_a_matrix_product_keeps_it_int8(graph, executor, samples, fused_ops, shape):
    x = graph.input("x", *shape)
    y = graph.op("Add", graph.op("MatMul", x, graph.weight(16, 8)), graph.weight(8))
    graph.output(graph.op("Sigmoid", y))
    done, agreement = quantize(graph.model(), executor, samples, "onnxruntime")
    fused = set(fused_ops(done.model))
    assert fused & {"QGemm", "MatMulIntegerToFloat"}
    assert not {"MatMul", "Gemm"} & fused
    assert agreement.sqnr_db > 25


def test_the_sum_of_two_matrix_products_stays_int8_in_onnxruntime(graph, executor, samples, fused_ops):
    # A recurrent cell, unrolled. onnxruntime would make one of them a Gemm with a float addend.
    x = graph.input("x", 1, 16)
    h = graph.input("h", 1, 16)
    y = graph.op("Add", graph.op("MatMul", x, graph.weight(16, 8)), graph.op("MatMul", h, graph.weight(16, 8)))
    bias = graph.const(graph.rng.normal(size=(1, 8)).astype(np.float32))
    z = graph.op("Add", graph.op("MatMul", x, graph.weight(16, 8)), bias)
    graph.output(graph.op("Tanh", graph.op("Add", y, z)))
    done, agreement = quantize(graph.model(), executor, samples, "onnxruntime")
    fused = Counter(fused_ops(done.model))
    assert fused["QLinearMatMul"] == 2
    assert fused["QGemm"] == 1
    assert not {"MatMul", "Gemm"} & set(fused)
    assert agreement.sqnr_db > 25


@pytest.mark.parametrize(("group", "axis"), [(1, 1), (2, None)])
def test_transposed_convolution(graph, executor, samples, group, axis):
    x = graph.input("x", 1, 4, 5, 5)
    y = graph.op("ConvTranspose", x, graph.weight(4, 6 // group, 2, 2), name="up", strides=[2, 2], group=group)
    graph.output(y)
    model = graph.model()
    data = samples(model)
    ranges = calibrate(model, data, executor, "min-max")
    done = insert_qdq(model, ranges, "tensorrt")
    made = producer(done.model, node(done.model, "up").input[1])
    assert value(done.model, made.input[1]).shape == (() if axis is None else (6,))
    assert Reference(model, data, executor).compare(done.model).sqnr_db > 30
    refused = insert_qdq(model, ranges, "onnxruntime")
    assert refused.left_in_float == {"up": "onnxruntime has no int8 kernel for ConvTranspose"}
    assert refused.int8_share == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_depthwise_and_one_dimensional_convolutions(graph, executor, samples, fused_ops, form):
    x = graph.input("x", 1, 8, 20)
    y = graph.op("Conv", x, graph.weight(8, 1, 3), graph.weight(8), group=8, pads=[1, 1], name="depthwise")
    graph.output(graph.op("Conv", graph.op("Relu", y), graph.weight(4, 8, 1), name="pointwise"))
    done, agreement = quantize(graph.model(), executor, samples, form)
    assert agreement.sqnr_db > 25
    assert done.total_macs == 8 * 20 * 3 + 4 * 20 * 8
    if form == "onnxruntime":
        assert Counter(fused_ops(done.model))["QLinearConv"] == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_two_nodes_share_is_stored_once(graph, executor, samples, form):
    x = graph.input("x", 2, 8)
    w = graph.weight(8, 8, name="w")
    y = graph.op("Relu", graph.op("MatMul", x, w, name="one"))
    graph.output(graph.op("MatMul", y, w, name="two"))
    done, _ = quantize(graph.model(), executor, samples, form)
    assert [t.name for t in done.model.proto.graph.initializer if t.dims == [8, 8]] == ["w_int8"]


def test_a_shared_weight_stays_in_float_for_the_node_left_in_float(graph, executor, samples):
    x = graph.input("x", 2, 8)
    w = graph.weight(8, 8, name="w")
    y = graph.op("Relu", graph.op("MatMul", x, w, name="one"))
    graph.output(graph.op("MatMul", y, w, name="two"))
    done, _ = quantize(graph.model(), executor, samples, "tensorrt", exclude=["one"])
    assert node(done.model, "one").input[1] == "w"
    assert done.left_in_float == {"one": "left in float on request"}
    assert done.int8_share == 0.5


@pytest.mark.parametrize("form", FORMS)
def test_every_graph_output_keeps_its_name_and_may_be_read_inside(graph, executor, samples, form):
    x = graph.input("x", 1, 4, 6, 6)
    y = graph.conv(x, 4, 4, name="first")
    graph.output(y)
    graph.output(graph.conv(y, 4, 4, name="second"))
    model = graph.model()
    done, agreement = quantize(model, executor, samples, form)
    assert [o.name for o in done.model.outputs] == [o.name for o in model.outputs]
    assert set(agreement.by_output) == {"first_out", "second_out"}
    assert agreement.sqnr_db > 25


def test_subgraphs_and_recurrent_layers_are_left_alone_and_named(graph, executor, samples):
    x = graph.input("x", 5, 1, 8)
    y = graph.op("MatMul", x, graph.weight(8, 8), name="project")
    y = graph.op("LSTM", y, graph.weight(1, 16, 8), graph.weight(1, 16, 4), name="lstm", outputs=["h"], hidden_size=4)
    w = graph.weight(4, 4)
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["h", w], [f"{kind}_out"], f"{kind}_matmul")],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, [5, 1, 1, 4])],
        )
        for kind in ("then", "else")
    ]
    condition = graph.const(np.array(True))
    y = graph.op("If", condition, name="if", then_branch=branches[0], else_branch=branches[1])
    graph.output(y)
    done, agreement = quantize(graph.model(), executor, samples, "tensorrt")
    assert list(done.quantized) == ["project"]
    assert done.left_in_float["lstm"] == "LSTM runs in float on every engine"
    assert done.left_in_float["if/then_matmul"] == "inside a subgraph of If"
    assert done.total_macs == 5 * 8 * 8 + 5 * 16 * (8 + 4)
    assert agreement.sqnr_db > 20


def test_old_opsets_are_raised(new_graph, executor, samples):
    graph = new_graph(opset=11)
    x = graph.input("x", 1, 3, 8, 8)
    graph.output(graph.op("Softmax", graph.conv(x, 3, 4), axis=1))
    done, agreement = quantize(graph.model(), executor, samples, "tensorrt")
    assert done.model.opset == 17
    assert agreement.sqnr_db > 25


@pytest.mark.parametrize("form", FORMS)
def test_a_dead_channel_and_a_tensor_of_zeros_are_no_trouble(graph, executor, form):
    x = graph.input("x", 1, 4, 4, 4)
    weight = graph.rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    weight[1] = 0
    bias = np.array([0, 5, 1e-30, -3], np.float32)
    graph.output(graph.op("Conv", x, graph.const(weight), graph.const(bias), name="conv"))
    model = graph.model()
    data = [{"x": np.zeros((1, 4, 4, 4), np.float32)}] * 2
    done = insert_qdq(model, calibrate(model, data, executor, "mse"), form)
    with executor.open(done.model) as runner:
        out = runner.run(data[0])["conv_out"]
    np.testing.assert_allclose(out[0, :, 0, 0], bias, atol=0.03)


def test_a_bias_far_above_its_weights_still_fits_int32(graph, executor, samples):
    x = graph.input("x", 2, 4)
    weight = np.full((4, 2), 1e-9, np.float32)
    weight[:, 1] = 1
    bias = graph.const(np.array([1e4, 1], np.float32))
    graph.output(graph.op("Gemm", x, graph.const(weight), bias, name="gemm"))
    model = graph.model()
    data = samples(model)
    done = insert_qdq(model, calibrate(model, data, executor, "min-max"), "onnxruntime")
    with executor.open(done.model) as runner:
        out = runner.run(data[0])["gemm_out"]
    np.testing.assert_allclose(out[:, 0], 1e4, rtol=1e-3)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g, x: g.op("MatMul", g.weight(3, 4), x, name="n"), "constant left factor"),
        (
            lambda g, x: g.op("Gemm", x, g.weight(6, 2), g.weight(4, 2), name="n"),
            "bias of one value a column",
        ),
        (lambda g, x: g.op("Gemm", x, g.weight(6, 2), g.weight(2), beta=2.0, name="n"), "with beta 1"),
        (
            lambda g, x: g.op("Gemm", x, g.weight(6, 6), g.op("ReduceSum", x, keepdims=0), name="n"),
            "bias is not a constant",
        ),
        (lambda g, x: g.op("Gemm", g.weight(2, 4), x, name="n"), "weight is not a constant"),
    ],
)
def test_what_onnxruntime_would_not_fuse_stays_in_float_with_the_reason(graph, executor, samples, build, reason):
    x = graph.input("x", 4, 6)
    graph.output(build(graph, x))
    graph.output(graph.op("MatMul", x, graph.weight(6, 3), name="other"))
    done, _ = quantize(graph.model(), executor, samples, "onnxruntime")
    assert list(done.quantized) == ["other"]
    assert reason in done.left_in_float["n"]


def test_a_constant_left_factor_gets_one_scale_for_tensorrt(graph, executor, samples):
    x = graph.input("x", 4, 6)
    graph.output(graph.op("MatMul", graph.weight(3, 4), x, name="n"))
    done, agreement = quantize(graph.model(), executor, samples, "tensorrt")
    assert value(done.model, producer(done.model, node(done.model, "n").input[0]).input[1]).shape == ()
    assert agreement.sqnr_db > 30


def test_constant_products_and_other_dtypes_are_left_with_a_reason(graph, executor, samples):
    x = graph.input("x", 4, 6)
    folded = graph.op("MatMul", graph.weight(6, 6), graph.weight(6, 3), name="constant")
    y = graph.op("Add", graph.op("MatMul", x, graph.weight(6, 3), name="real"), graph.const(np.zeros(3, np.float32)))
    graph.output(graph.op("MatMul", graph.op("Transpose", y, perm=[1, 0]), graph.weight(4, 3), name="b"))
    graph.output(folded)
    half = graph.op("Cast", x, to=TensorProto.FLOAT16)
    half = graph.op("MatMul", half, graph.const(np.ones((6, 2), np.float16)), name="half")
    graph.output(half, 4, 2, dtype=TensorProto.FLOAT16)
    graph.output(graph.op("Gemm", graph.weight(2, 3), graph.weight(3, 3), name="gemm"))
    done, _ = quantize(graph.model(), executor, samples, "tensorrt")
    assert done.left_in_float == {
        "constant": "both inputs are constants",
        "half": "works in float16, and int8 is placed in float32 graphs only",
        "gemm": "its input is a constant",
    }


def test_unnamed_nodes_get_names_to_speak_of(graph):
    x = graph.input("x", 4, 6)
    graph.output(graph.op("MatMul", x, graph.weight(6, 3), name=None, output="y"))
    model = graph.model()
    proto = model.copy_proto()
    proto.graph.node[0].name = ""
    assert quantizable_nodes(from_proto(proto), "tensorrt") == {"MatMul_y": "MatMul"}


def test_errors_say_what_is_wrong(graph, executor, samples):
    x = graph.input("x", 4, 6)
    graph.output(graph.op("MatMul", x, graph.weight(6, 3), name="one"))
    model = graph.model()
    ranges = calibrate(model, samples(model), executor)
    with pytest.raises(UsageError, match=r'no node "two" to leave in float\. Nodes that can be int8: one'):
        insert_qdq(model, ranges, "tensorrt", exclude=["two"])
    proto = model.copy_proto()
    bad = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    bad[0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(bad, proto.graph.initializer[0].name))
    other = from_proto(proto)
    with pytest.raises(CalibrationError, match="Calibrate again"):
        insert_qdq(other, ranges, "tensorrt")
    renamed = type(ranges)(other.digest, "entropy", 8, ranges.tensors, ranges.shapes)
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        insert_qdq(other, renamed, "tensorrt")
    empty = type(ranges)(model.digest, "entropy", 8, {}, {})
    with pytest.raises(CalibrationError, match='say nothing of "x"'):
        insert_qdq(model, empty, "tensorrt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_random_convolutional_networks_agree_with_float(new_graph, executor, samples, fused_ops, form, seed):
    g = new_graph(seed)
    rng = np.random.default_rng(100 + seed)
    x = g.input("x", 1, 4, 12, 12)
    live = [(x, 4)]
    for _ in range(7):
        source, channels = live[rng.integers(len(live))]
        kind = rng.choice(["conv", "relu-conv", "residual", "concat", "pool", "sigmoid"])
        if kind == "conv":
            live.append((g.conv(source, channels, 8), 8))
        elif kind == "relu-conv":
            live.append((g.op("Relu", g.conv(source, channels, 6)), 6))
        elif kind == "residual":
            live.append((g.op("Relu", g.op("Add", g.conv(source, channels, channels), source)), channels))
        elif kind == "concat":
            other, more = live[rng.integers(len(live))]
            live.append((g.op("Concat", source, other, axis=1), channels + more))
        elif kind == "pool":
            live.append((g.op("MaxPool", source, kernel_shape=[3, 3], pads=[1] * 4), channels))
        else:
            live.append((g.op("Mul", source, g.op("Sigmoid", source)), channels))
    tail, channels = live[-1]
    g.output(g.op("GlobalAveragePool", g.conv(tail, channels, 8, name="tail")))
    done, agreement = quantize(g.model(), executor, samples, form)
    assert done.int8_share == 1.0
    assert agreement.sqnr_db > 15
    if form == "onnxruntime":
        assert not {"Conv", "FusedConv"} & set(fused_ops(done.model))
