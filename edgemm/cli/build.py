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
    fp8 = "fp8"
    int4 = "int4"


class Calibrator(str, Enum):
    """How calibration turns what it saw into ranges."""

    min_max = "min-max"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


@app.command()
def engine(
    source: Annotated[
        Path,
        typer.Argument(
            help="An ONNX model or a recipe; or on the board a bundle, whose plans are then compiled into the cache.",
            metavar="MODEL.onnx|RECIPE.toml|BUNDLE",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The bundle to write.", metavar="OUT.edgemm")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="auto keeps int8 only where it is accurate enough and faster here. fp8 (SM89 and newer) and int4 "
            "weights (SM80 and newer) are for TensorRT."
        ),
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
    target: Annotated[
        str, typer.Option(help="The device to build for, a name that `edgemm targets` lists.", metavar="NAME")
    ] = "cpu",
    dla: Annotated[
        list[str] | None,
        typer.Option(
            help="A DLA core's number: layers that it cannot run go to the GPU, and the report names them. With "
            "another --dla strict they are an error.",
            metavar="CORE|strict",
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(min=1, help="Memory that TensorRT's kernels may use, in MB.", metavar="MB")
    ] = None,
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

      edgemm build engine recipe.toml -o out.edgemm --target orin-nano

      edgemm build engine recipe.toml -o out.edgemm --target agx-orin --precision fp16 --dla 0 --dla strict

      edgemm build engine out.edgemm        (on the board: compile its plans now, not at the first run)
    """
    import edgemm
    from edgemm.bundle import is_bundle
    from edgemm.cli.tables import build_table
    from edgemm.errors import UsageError

    if is_bundle(source) and output is None:
        if dla or workspace:
            raise UsageError(
                f"{source} is a bundle, and DLA and workspace are settings that it was built with. Give them with "
                "-o when it is built, or write them under [tensorrt] in its recipe."
            )
        _compile(source, precision.value if precision else "auto", quiet)
        return
    if output is None:
        raise UsageError("Where to? Name the bundle to write: -o OUT.edgemm")

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
            dla=_dla(dla or []),
            workspace_mb=workspace,
            progress=show,
        )
    if json_out:
        json_out.write_text(report.to_json(), encoding="utf-8")
    if not quiet:
        typer.echo(build_table(report))


def _dla(words: list[str]) -> tuple[int, bool] | None:
    """The DLA core and whether it is strict, from the values of --dla. Raises UsageError."""
    from edgemm.errors import UsageError

    cores = [word for word in words if word.isdigit()]
    wrong = [word for word in words if not word.isdigit() and word != "strict"]
    if wrong or len(cores) > 1 or (words and not cores):
        raise UsageError(
            f"Found --dla {' --dla '.join(words)}; expected one core's number, and perhaps strict: --dla 0 --dla strict"
        )
    return (int(cores[0]), "strict" in words) if cores else None


def _compile(path: Path, precision: str, quiet: bool) -> None:
    """Compile the plans of a bundle for the GPU in this machine, into the cache."""
    from edgemm import bundle
    from edgemm.engine.tensorrt import compiled
    from edgemm.engine.tensorrt.prepared import described
    from edgemm.errors import EngineError

    opened = bundle.open(path)
    flavour = compiled.flavour_for("auto")
    if flavour is None:
        raise EngineError(
            f"{path} is a bundle, and there is no TensorRT here to compile its plans. "
            "See what is missing: edgemm doctor"
        )
    with progress(quiet) as show:
        for name, entry in opened.models.items():
            wanted = entry.precision if precision == "auto" else precision
            found = compiled.plan_for_device(opened, name, wanted, flavour, tell=show)
            if not quiet:
                if found.origin != "built":
                    typer.echo(f"{name}, {wanted}: the plan was in the {found.origin} already")
                for line in (*described(f"{name}, {wanted}", found.plan, flavour), *found.notes):
                    typer.echo(line)


@app.command()
def kernels(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="Architectures: 87 is Orin, 110 is Thor. Several: --arch 87 110, or 87,110.", metavar="ARCH..."
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="ARCH", hidden=True)] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the cubins.")] = Path("cubins"),
) -> None:
    """Compile edgemm's CUDA kernels, with nvcc or NVRTC. Needs no GPU.

    Example:  edgemm build kernels --arch 87 110
    """
    from edgemm.kernels.build import DEFAULT_ARCHES, build_kernels, parse_arches

    # An option takes one word; those after it come as arguments.
    words = [*(arch or ()), *(more or ())]
    for built in build_kernels(parse_arches(words) if words else DEFAULT_ARCHES, output):
        if built.path is None:
            typer.echo(f"{built.source}: left out, sm_{built.arch} lacks what it needs")
        else:
            typer.echo(f"{built.path}  {built.size_bytes} bytes, by {built.compiler}")
