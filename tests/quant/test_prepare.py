"""The graph that calibration and quantization share: same numbers, later opset, no batch norms, all nodes named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.errors import ModelError
from edgemm.graph import from_proto, load
from edgemm.graph import model as graph_model
from edgemm.quant import Reference, calibrate, insert_qdq
from edgemm.quant.prepare import prepare


def norm(graph, x, channels, **attributes):
    stats = [graph.const(graph.rng.uniform(0.5, 2, channels).astype(np.float32)) for _ in range(4)]
    return graph.op("BatchNormalization", x, *stats, **attributes)


def kinds(model):
    return [node.op_type for node in model.proto.graph.node]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_folded_batch_norm_computes_the_same(graph, executor, samples, bias, transposed):
    x = graph.input("x", 2, 4, 6, 6)
    inputs = [x, graph.weight(4, 4, 3, 3)] + ([graph.weight(4)] if bias else [])
    y = graph.op("ConvTranspose" if transposed else "Conv", *inputs)
    graph.output(norm(graph, y, 4, epsilon=0.01))
    model = graph.model()
    prepared = prepare(model)
    assert "BatchNormalization" not in kinds(prepared)
    assert Reference(model, samples(model), executor).compare(prepared).sqnr_db > 120


def test_what_cannot_be_folded_stays(graph, executor, samples):
    x = graph.input("x", 2, 4, 6, 6)
    after_input = norm(graph, x, 4)
    grouped = norm(graph, graph.op("ConvTranspose", x, graph.weight(4, 2, 3, 3), group=2), 4)
    dynamic = norm(graph, graph.op("Conv", x, graph.op("Mul", x, x)), 2)
    public = graph.output(graph.conv(x, 4, 4, name="public"))
    for y in (after_input, grouped, dynamic, norm(graph, public, 4)):
        graph.output(y)
    model = graph.model()
    prepared = prepare(model)
    assert kinds(prepared).count("BatchNormalization") == 4
    assert Reference(model, samples(model), executor).compare(prepared).sqnr_db > 120


def test_constants_become_initializers_and_serve_as_weights(graph, executor, samples):
    x = graph.input("x", 2, 4)
    w = graph.op("Constant", value=numpy_helper.from_array(np.eye(4, 3, dtype=np.float32)), output="w")
    graph.output(graph.op("MatMul", x, w))
    model = graph.model()
    assert "Constant" not in kinds(prepare(model))
    data = samples(model)
    done = insert_qdq(model, calibrate(model, data, executor), "tensorrt")
    assert done.int8_share == 1.0


def test_nodes_of_the_same_name_are_told_apart(graph):
    x = graph.input("x", 2, 4)
    graph.output(graph.op("Relu", graph.op("Relu", x, name="same", output="a"), name="same", output="b"))
    names = [node.name for node in prepare(graph.model()).proto.graph.node]
    assert names == ["same", "Relu_b"]


def test_an_opset_that_cannot_be_raised_says_what_to_do(new_graph):
    graph = new_graph(opset=11)
    graph.output(graph.op("Relu", graph.input("x", 2, 4)))
    proto = graph.model().copy_proto()
    proto.graph.node.append(helper.make_node("NoSuchOperator", ["relu_0_out"], ["y"]))
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4]))
    with pytest.raises(
        ModelError, match=r"written for opset 11; int8 needs 13 or later.*Export it again with opset 17"
    ):
        prepare(from_proto(proto))


def test_the_original_is_untouched(graph):
    x = graph.input("x", 2, 4, 6, 6)
    graph.output(norm(graph, graph.conv(x, 4, 4), 4))
    model = graph.model()
    before = model.proto.SerializeToString(deterministic=True)
    prepare(model)
    assert model.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("form", ["tensorrt", "onnxruntime"])
def test_weights_that_stay_in_their_file_are_quantized(tmp_path, monkeypatch, graph, executor, samples, form):
    x = graph.input("x", 1, 256)
    graph.output(graph.op("MatMul", x, graph.weight(256, 256)))
    onnx.save(graph.model().proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    # Models over this limit are not read into memory; this one stands for them.
    monkeypatch.setattr(graph_model, "_INLINE_LIMIT", 0)
    model = load(tmp_path / "m.onnx")
    assert model.folder == tmp_path
    data = samples(model)
    done = insert_qdq(model, calibrate(model, data, executor), form)
    assert Reference(model, data, executor).compare(done.model).sqnr_db > 30
