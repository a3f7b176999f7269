"""A hash of what a model computes, blind to how the file happens to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto

from edgemm.graph.tensors import raw_chunks


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(model: ModelProto, folder: Path | None) -> str:
    """Return a sha256, in hex, of the model's semantic content.

    In it: opsets, inputs and outputs with types and shapes, nodes in order with their value names and attributes, the
    bytes of every tensor, functions. Not in it: node names, documentation, metadata, producer, value_info,
    the order of initializers, attributes and functions, initializers listed as inputs, and whether a tensor is
    stored raw, typed or in another file. External data is read from `folder`, in pieces.
    """
    state = hashlib.sha256(b"edgemm graph digest 1")
    _opsets(state, model.opset_import)
    _graph(state, model.graph, folder)
    for function in sorted(model.functions, key=lambda item: (item.domain, item.name)):
        _function(state, function, folder)
    return state.hexdigest()


def _text(state: _Hash, *items: str) -> None:
    # Each string goes in with its length, so that ("ab", "c") and ("a", "bc") differ.
    state.update(len(items).to_bytes(4, "little"))
    for item in items:
        data = item.encode()
        state.update(len(data).to_bytes(4, "little") + data)


def _opsets(state: _Hash, opsets: Iterable[OperatorSetIdProto]) -> None:
    _text(state, *sorted(f"{_domain(item.domain)}:{item.version}" for item in opsets))


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _graph(state: _Hash, graph: GraphProto, folder: Path | None) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    for values in ([v for v in graph.input if v.name not in stored], graph.output):
        for value in values:
            _text(state, value.name)
            state.update(value.type.SerializeToString(deterministic=True))
        _text(state)
    for tensor in sorted(graph.initializer, key=lambda item: item.name):
        _text(state, tensor.name)
        _tensor(state, tensor, folder)
    for sparse in graph.sparse_initializer:
        _text(state, sparse.values.name)
        _tensor(state, sparse.values, folder)
        _tensor(state, sparse.indices, folder)
    _nodes(state, graph.node, folder)


def _function(state: _Hash, function: FunctionProto, folder: Path | None) -> None:
    _text(state, function.domain, function.name)
    _text(state, *function.input)
    _text(state, *function.output)
    _text(state, *function.attribute)
    _opsets(state, function.opset_import)
    _attributes(state, function.attribute_proto, folder)
    _nodes(state, function.node, folder)


def _nodes(state: _Hash, nodes: Iterable[NodeProto], folder: Path | None) -> None:
    for node in nodes:
        _text(state, _domain(node.domain), node.op_type, getattr(node, "overload", ""))
        _text(state, *node.input)
        _text(state, *node.output)
        _attributes(state, node.attribute, folder)
    _text(state)


def _attributes(state: _Hash, attributes: Iterable[AttributeProto], folder: Path | None) -> None:
    for item in sorted(attributes, key=lambda item: item.name):
        _text(state, item.name, str(item.type))
        if item.type == AttributeProto.TENSOR:
            _tensor(state, item.t, folder)
        elif item.type == AttributeProto.TENSORS:
            for tensor in item.tensors:
                _tensor(state, tensor, folder)
        elif item.type == AttributeProto.GRAPH:
            _graph(state, item.g, folder)
        elif item.type == AttributeProto.GRAPHS:
            for graph in item.graphs:
                _graph(state, graph, folder)
        else:
            private = AttributeProto()
            private.CopyFrom(item)
            private.ClearField("doc_string")
            state.update(private.SerializeToString(deterministic=True))
    _text(state)


def _tensor(state: _Hash, tensor: TensorProto, folder: Path | None) -> None:
    _text(state, str(tensor.data_type), *map(str, tensor.dims))
    for chunk in raw_chunks(tensor, folder):
        state.update(chunk)
