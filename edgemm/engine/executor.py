"""Runs float and quantized graphs while a bundle is being built, before there is a bundle."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.errors import ModelError
from edgemm.graph.model import Model
from edgemm.quant.narrow import has_fp8


@contextlib.contextmanager
def open_graph(
    model: Model, outputs: Sequence[str] | None = None, *, threads: int = 1, optimize: bool = True
) -> Iterator[OnnxRuntimeEngine]:
    """Open a graph on onnxruntime for the length of a with block; state is fed and read like any other tensor.

    `outputs` names what `run` returns (all outputs if None). `optimize=False` switches onnxruntime's graph
    rewriting off, so that every tensor of the graph exists. Raises EngineError.
    """
    with contextlib.ExitStack() as stack:
        try:
            content: bytes | Path = model.to_bytes()
        except ModelError:  # over 2 GB: onnxruntime reads it from disk
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemm-graph-"))
            content = model.save(Path(folder) / "model.onnx")[0]
        engine = OnnxRuntimeEngine(content, threads=threads, outputs=outputs, optimize=optimize, fp8=has_fp8(model))
        yield stack.enter_context(engine)


class OnnxRuntimeExecutor:
    """`edgemm.quant.executor.Executor` on onnxruntime."""

    def open(
        self, model: Model, outputs: Sequence[str] | None = None
    ) -> contextlib.AbstractContextManager[OnnxRuntimeEngine]:
        """See the protocol."""
        return open_graph(model, outputs)
