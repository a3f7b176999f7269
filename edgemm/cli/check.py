"""`edgemm check`: what will not work on an engine, node by node."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class EngineChoice(str, Enum):
    """Engines that a model can be checked for."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


def check(
    model: Annotated[Path, typer.Argument(help="The ONNX model.", metavar="MODEL.onnx")],
    engine: Annotated[EngineChoice, typer.Option(help="The engine to check for.")] = EngineChoice.onnxruntime,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what in a model will not work on an engine, and what to do about it.

    Exit code 1 if it cannot run there.

    Example:  edgemm check model.onnx --engine tensorrt
    """
    from edgemm.graph.check import check as check_graph
    from edgemm.graph.model import load

    report = check_graph(load(model), engine=engine.value)
    typer.echo(report.to_json() if json_out else report.to_text())
    if not report.ok:
        raise typer.Exit(1)
