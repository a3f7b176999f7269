"""`edgemm build`: `engine` makes a bundle, `kernels` compiles the CUDA kernels."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgemm.cli.progress import progress

app = typer.Typer(help="Build a bundle from a model, or the CUDA kernels.", no_args_is_help=True)


class Precision(str, Enum):
    """Precisions of a bundle."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Calibrator(str, Enum):
    """How calibration turns what it saw into ranges."""

    min_max = "min-max"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


@app.command()
def engine(
    source: Annotated[Path, typer.Argument(help="An ONNX model or a recipe.", metavar="MODEL.onnx|RECIPE.toml")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.", metavar="OUT.edgemm")],
    precision: Annotated[
        Precision | None, typer.Option(help="auto keeps int8 only where it is accurate enough and faster here.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A folder of .npz samples, or a recording to run through the front ends.")
    ] = None,
    calibrator: Annotated[Calibrator | None, typer.Option(help="How ranges are chosen.")] = None,
    max_drop: Annotated[float | None, typer.Option(min=0, help="Largest loss of agreement with float, 0 to 1.")] = None,
    ranges: Annotated[
        Path | None, typer.Option(help="Calibration ranges from --export-ranges, perhaps edited, instead of data.")
    ] = None,
    export_ranges: Annotated[Path | None, typer.Option(help="Write the calibration ranges here, as JSON.")] = None,
    target: Annotated[str, typer.Option(help="The device to build for.", metavar="NAME")] = "cpu",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write a report of the build.", metavar="FILE")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Check, calibrate, quantize and bundle a model.

    The bundle appears only when all went well; an older one at the same place is kept until then.

    Examples:

      edgemm build engine recipe.toml -o out.edgemm

      edgemm build engine model.onnx -o out.edgemm --precision int8 --calibration samples/
    """
    import edgemm
    from edgemm.cli.tables import build_table

    with progress(quiet) as show:
        report = edgemm.build(
            source,
            output,
            precision=precision.value if precision else None,
            calibration=calibration,
            observer=calibrator.value if calibrator else None,
            max_drop=max_drop,
            ranges=ranges,
            export_ranges=export_ranges,
            target=target,
            progress=show,
        )
    if json_out:
        json_out.write_text(report.to_json(), encoding="utf-8")
    if not quiet:
        typer.echo(build_table(report))
