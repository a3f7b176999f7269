"""`edgemm targets`: the devices that a bundle can be built for."""

from __future__ import annotations

from typing import Annotated

import typer

_SHORT = {"memory_gb": "memory", "bandwidth_gb_s": "bandwidth", "dla_cores": "DLA"}


def targets(json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the devices for --target, with what is known of each and where from.

    Example:  edgemm targets
    """
    from edgemm.engine.targets import TARGETS

    if json_out:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({k: {**asdict(v), "unchecked": v.unchecked} for k, v in TARGETS.items()}, indent=1))
        return
    from edgemm.cli.tables import table

    rows = []
    for name, target in TARGETS.items():
        releases = [f"{release.tensorrt} ({release.name})" for release in target.releases if release.is_supported]
        rows.append(
            [
                name,
                target.title,
                target.sm,
                f"{target.memory_gb:g} GB" if target.memory_gb else "-",
                f"{target.bandwidth_gb_s:g} GB/s" if target.bandwidth_gb_s else "-",
                str(target.dla_cores or "-"),
                ", ".join(releases) or "onnxruntime only",
                ", ".join(_SHORT.get(figure, figure) for figure in target.unchecked) or "-",
            ]
        )
    typer.echo(
        table(["target", "device", "arch", "memory", "bandwidth", "DLA", "TensorRT", "figures found only once"], rows)
    )
    typer.echo(
        "Figures found only once stand on the publication that they were copied from; the others were found again in a "
        "second one.\nPeak rates, every release, and the sources: edgemm targets --json"
    )
