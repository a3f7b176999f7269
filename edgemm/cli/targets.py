"""`edgemm targets`: the devices that a bundle can be built for."""

from __future__ import annotations

from typing import Annotated

import typer


def targets(json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the devices for --target, with what is known of each and where from.

    Example:  edgemm targets
    """
    from edgemm.engine.targets import TARGETS

    if json_out:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({name: asdict(target) for name, target in TARGETS.items()}, indent=1))
        return
    from edgemm.cli.tables import table

    rows = []
    for name, target in TARGETS.items():
        release = target.release
        rows.append(
            [
                name,
                target.title,
                target.sm,
                f"{target.memory_gb:g} GB" if target.memory_gb else "-",
                f"{target.bandwidth_gb_s:g} GB/s" if target.bandwidth_gb_s else "-",
                str(target.dla_cores or "-"),
                f"{release.tensorrt} ({release.name})" if release else "onnxruntime only",
            ]
        )
    typer.echo(table(["target", "device", "arch", "memory", "bandwidth", "DLA", "TensorRT"], rows))
    typer.echo("Peak rates and the source of every figure: edgemm targets --json")
