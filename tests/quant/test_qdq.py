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
