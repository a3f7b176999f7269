"""Small ONNX models from ONNX's own text form, for tests."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, parser

from edgemm.graph import Model, from_proto


def proto(body: str, *, opset: int = 17, domains: str = "", functions: str = "") -> ModelProto:
    """Return the proto of `(inputs) => (outputs) { nodes }` in ONNX's text form."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}{domains}]> graph {body} {functions}'
    return parser.parse_model(text)


def model(body: str, *, opset: int = 17, domains: str = "", functions: str = "") -> Model:
    """Return the loaded model of `(inputs) => (outputs) { nodes }`."""
    return from_proto(proto(body, opset=opset, domains=domains, functions=functions))


def ops(of: Model | ModelProto) -> list[str]:
    """Return the operators of the main graph, in order."""
    graph = of.proto.graph if isinstance(of, Model) else of.graph
    return [node.op_type for node in graph.node]


def run(source: Model | ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return what onnxruntime computes, without any optimisation of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = source.to_bytes() if isinstance(source, Model) else source.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def weight(name: str, array: np.ndarray) -> onnx.TensorProto:
    """Return an initializer."""
    return onnx.numpy_helper.from_array(array, name)
