"""`edgemm profile`: where the milliseconds go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemm.cli.run import ClockChoice, EngineChoice, PrecisionChoice


def profile(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or an ONNX model.", metavar="BUNDLE")],
    input_: Annotated[
        str | None, typer.Option("--input", "-i", help="A recording; a synthetic one without.", metavar="CLIP")
    ] = None,
    iterations: Annotated[int, typer.Option("--iterations", "-n", min=1, help="Steps to measure.")] = 200,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before, not counted.")] = 20,
    precision: Annotated[PrecisionChoice, typer.Option(help="auto is what the build chose.")] = PrecisionChoice.auto,
    engine: Annotated[EngineChoice, typer.Option(help="The engine.")] = EngineChoice.auto,
    clock: Annotated[
        ClockChoice, typer.Option(help="virtual: as fast as possible. wall: as if live, with queueing.")
    ] = ClockChoice.virtual,
    threads: Annotated[int, typer.Option(min=1, help="Threads inside an operator.")] = 1,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier --json report; prints the ratios to it.", metavar="OTHER.json")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the report.", metavar="FILE")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a trace for ui.perfetto.dev.", metavar="FILE")] = None,
) -> None:
    """Measure every stage from the source to the sink, and every layer.

    Examples:

      edgemm profile out.edgemm --input clip.mp4

      edgemm profile out.edgemm --input clip.mp4 --clock wall --iterations 100

      edgemm profile out.edgemm --json now.json --baseline before.json
    """
    import edgemm
    from edgemm.cli.progress import progress
    from edgemm.cli.tables import profile_table
    from edgemm.profiler.report import load as load_report

    other = load_report(baseline) if baseline else None
    with progress() as show:
        report = edgemm.profile(
            bundle,
            input=input_,
            iterations=iterations,
            warm_up=warm_up,
            precision=precision.value,
            engine=engine.value,
            threads=threads,
            clock=clock.value,
            trace=trace,
            progress=show,
        )
    if json_out:
        report.save(json_out)
    typer.echo(profile_table(report, other))
