"""`edgemm recipe`: a first recipe from a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recipe(
    model: Annotated[Path, typer.Argument(help="The ONNX model.", metavar="MODEL.onnx")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write here, not to standard output.")] = None,
) -> None:
    """Write a commented first recipe for a model, from its inputs and outputs.

    Example:  edgemm recipe model.onnx -o recipe.toml
    """
    import os

    from edgemm.errors import UsageError
    from edgemm.graph.model import load
    from edgemm.recipe_draft import draft

    loaded = load(model)
    folder = output.parent if output else Path()
    text = draft(Path(os.path.relpath(model, folder)).as_posix(), loaded.inputs, loaded.outputs)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise UsageError(f"{output} exists and was left as it is. Remove it, or choose another name with -o.")
    output.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {output}. Look at the lines marked GUESS, then: edgemm build engine {output} -o out.edgemm")
