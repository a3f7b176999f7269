"""What the graph package asks of onnxruntime: whether it takes a model, to fold its constants, to compute.

The only file here that imports onnxruntime.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime

from edgemm.errors import ModelError
from edgemm.graph.model import PROTO_LIMIT, Model, load
from edgemm.graph.tensors import inline
from edgemm.types import Array, Tensors

_QUIET = 4  # fatal only: what fails comes back as an exception, and belongs in a report, not on stderr
_EXTERNAL_BYTES = 1 << 16


def refusal(model: Model) -> str | None:
    """Return why onnxruntime cannot make a session of the model on the CPU, or None if it can."""
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        with _on_hand(model) as source:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class but this
        return _first_line(error)
    return None


def compute(model: Model, feeds: Tensors) -> list[Array]:
    """Return what onnxruntime computes, on one CPU thread, without optimisations of its own.

    Raises ModelError if it does not take the model or fails on the way.
    """
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        with _on_hand(model) as source:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            found: list[Array] = session.run(None, dict(feeds))
    except Exception as error:
        raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
    return found


def fold(model: Model) -> Model:
    """Return the model after onnxruntime's basic optimisations, which stay within ONNX's own operators.

    Raises ModelError if onnxruntime does not take the model.
    """
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    with tempfile.TemporaryDirectory(prefix="edgemm-fold-") as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        if model.nbytes > PROTO_LIMIT // 2:
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "folded.onnx.data"
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_BYTES)
            )
        try:
            with _on_hand(model) as source:
                onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(
                f"onnxruntime does not take the model: {_first_line(error)} "
                "`edgemm check MODEL` says what to do, node by node."
            ) from error
        return _read_back(target)


def _read_back(target: Path) -> Model:
    """Load a model whose folder is about to vanish: its external data comes into memory, whatever its size."""
    found = load(target)
    if found.folder is None:
        return Model(found.proto)
    proto = found.copy_proto()
    for tensor in proto.graph.initializer:
        inline(tensor, found.folder)
    return Model(proto)


def _options(level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = 1
    return options


@contextmanager
def _on_hand(model: Model) -> Iterator[bytes | str]:
    """Lend the model in a form that onnxruntime reads: bytes, or a file in a folder of its own if it is too large."""
    if model.nbytes <= PROTO_LIMIT // 2:
        yield model.to_bytes()
        return
    with tempfile.TemporaryDirectory(prefix="edgemm-") as folder:
        file = Path(folder) / "model.onnx"
        model.save(file)
        yield str(file)


def _first_line(error: Exception) -> str:
    """Return onnxruntime's message without its prefix of status codes and source positions."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"/\S+\.(?:cc|h):\d+ \S.*?\) ", "", text).strip()
