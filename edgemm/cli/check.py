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
    source: Annotated[Path, typer.Argument(help="An ONNX model or a recipe.", metavar="MODEL.onnx|RECIPE.toml")],
    engine: Annotated[EngineChoice, typer.Option(help="The engine to check for.")] = EngineChoice.onnxruntime,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what in a model will not work on an engine, and what to do about it.

    For TensorRT each model of a recipe is checked as the build would compile it: with the recipe's dims and constant
    inputs. Exit code 1 if one cannot run there.

    Examples:

      edgemm check model.onnx --engine tensorrt

      edgemm check recipe.toml --engine tensorrt-rtx
    """
    if source.suffix == ".toml":
        from edgemm.builder import check_recipe

        reports = check_recipe(source, engine.value)
        if json_out:
            import json

            typer.echo(json.dumps({name: json.loads(report.to_json()) for name, report in reports.items()}, indent=2))
        else:
            typer.echo("\n".join(f"{name}: {report.to_text()}" for name, report in reports.items()))
        if not all(report.ok for report in reports.values()):
            raise typer.Exit(1)
        return
    from edgemm.graph.check import check as check_graph
    from edgemm.graph.model import load

    report = check_graph(load(source, any_opset=True), engine=engine.value)
    typer.echo(report.to_json() if json_out else report.to_text())
    if not report.ok:
        raise typer.Exit(1)
