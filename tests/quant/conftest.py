"""Graphs built in code, and a small onnxruntime executor, for the tests of quantization."""

from __future__ import annotations

import contextlib

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgemm.graph import from_proto


class GraphBuilder:
    """Builds a graph operator by operator; every operator returns the name of its output."""

    def __init__(self, seed=0, opset=17):
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes, self.initializers, self.inputs, self.outputs = [], [], [], []

    def input(self, name, *shape, dtype=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, value, name=None):
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape, name=None):
        fan_in = max(1, int(np.prod(shape[1:])))
        value = self.rng.normal(size=shape) / np.sqrt(fan_in)
        return self.const(value.astype(np.float32), name)

    def op(self, kind, *inputs, name=None, output=None, outputs=None, **attributes):
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        made = outputs or [output or f"{name}_out"]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name, **attributes))
        return made[0]

    def conv(self, x, ins, outs, kernel=3, name=None, bias=True, group=1, **attributes):
        inputs = [x, self.weight(outs, ins // group, kernel, kernel)]
        if bias:
            inputs.append(self.const(self.rng.normal(size=outs).astype(np.float32)))
        return self.op("Conv", *inputs, name=name, pads=[kernel // 2] * 4, group=group, **attributes)

    def output(self, name, *shape, dtype=TensorProto.FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape or None))
        return name

    def model(self):
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, self.initializers)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        proto = shape_inference.infer_shapes(proto)
        del proto.graph.value_info[:]
        return from_proto(proto)


class OnnxRuntimeExecutor:
    """The smallest executor there is."""

    @contextlib.contextmanager
    def open(self, model, outputs=None):
        yield _Runner(session(model), outputs)


class _Runner:
    def __init__(self, opened, outputs):
        self._session = opened
        self._outputs = [o.name for o in opened.get_outputs()] if outputs is None else list(outputs)

    def run(self, feeds):
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))


def session(model, optimized=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def graph():
    """A new GraphBuilder."""
    return GraphBuilder()


@pytest.fixture
def new_graph():
    """The class, for tests that need several or a seed."""
    return GraphBuilder


@pytest.fixture
def executor():
    """Runs models on onnxruntime, one thread."""
    return OnnxRuntimeExecutor()


@pytest.fixture
def fused_ops(tmp_path):
    """A function: the operators that onnxruntime really runs for a model, in order."""
    import onnx

    def ops(model):
        path = tmp_path / "optimized.onnx"
        session(model, path)
        return [node.op_type for node in onnx.load(path).graph.node]

    return ops


@pytest.fixture
def samples():
    """A function: n random feeds for a model with static float inputs."""

    def make(model, count=8, seed=1, scale=1.0):
        rng = np.random.default_rng(seed)
        return [
            {
                spec.name: (scale * rng.normal(size=[d if isinstance(d, int) else 2 for d in spec.shape])).astype(
                    spec.dtype
                )
                for spec in model.inputs
            }
            for _ in range(count)
        ]

    return make
