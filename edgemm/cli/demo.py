"""`edgemm demo`: the whole path on the model that ships with edgemm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgemm.demo import DemoReport


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to keep the bundle.", metavar="OUT.edgemm")
    ] = Path("demo.edgemm"),
    seconds: Annotated[
        float | None, typer.Option(min=5, help="Stream only so much of the clip live (it has 56 s).", metavar="S")
    ] = None,
) -> None:
    """Calibrate, quantize, build, score and stream the audio-visual model that ships with edgemm.

    A spoken and a handwritten digit: which one, and are they the same? Takes about two minutes on two CPU cores.

    Example:  edgemm demo
    """
    import sys

    from edgemm.cli.progress import progress
    from edgemm.cli.tables import build_table, summary_table
    from edgemm.demo import demo as run_demo
    from edgemm.stream.sinks.console import ConsoleSink
    from edgemm.stream.sinks.protocol import Sink

    sinks: list[Sink] = [ConsoleSink()] if sys.stdout.isatty() else []
    with progress(moving=not sinks) as show:
        report = run_demo(output, live_seconds=seconds, sinks=sinks, progress=show)
    typer.echo("\n" + build_table(report.build))
    typer.echo("\n" + _accuracy(report))
    typer.echo("\n" + _latency(report))
    typer.echo("\n" + summary_table(report.live))
    typer.echo(
        f"\nThe bundle is {output}. Look inside: edgemm inspect {output}. Your own model: edgemm recipe MODEL.onnx"
    )


def _accuracy(report: DemoReport) -> str:
    from edgemm.cli.tables import table

    rows = []
    for precision, conditions in report.test.items():
        for condition, found in conditions.items():
            rows.append([f"test set, {condition}", precision, f"{found.digit:.3f}", f"{found.match:.3f}"])
    for precision, found in report.clip.items():
        rows.append(["clip, streamed", precision, f"{found.digit:.3f}", f"{found.match:.3f}"])
    live = report.live_accuracy
    chosen = report.build.models[0].precision
    rows.append(["clip, live", chosen, f"{live.digit:.3f}", f"{live.match:.3f}"])
    return table(["accuracy", "precision", "digit", "match"], sorted(rows, key=lambda row: row[0], reverse=True))


def _latency(report: DemoReport) -> str:
    from edgemm.cli.tables import table

    rows = [
        [
            name.replace("_", " "),
            *(f"{ns / 1e6:.2f}" for ns in (found.p50_ns, found.p90_ns, found.p99_ns, found.max_ns)),
        ]
        for name, found in (*report.latency.items(), *report.ages.items())
    ]
    return table(["ms, live", "p50", "p90", "p99", "max"], rows)
