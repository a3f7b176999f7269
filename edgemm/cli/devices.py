"""`edgemm devices`: the microphones and cameras of this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def devices(json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List microphones and cameras, with what they deliver. Opens nothing for capture.

    Example:  edgemm devices
    """
    from dataclasses import asdict

    from edgemm.cli.tables import table
    from edgemm.errors import EdgemmError
    from edgemm.stream.sources.microphone import MicrophoneInfo, microphones
    from edgemm.stream.sources.v4l2 import cameras

    problem = None
    sounds: list[MicrophoneInfo] = []
    try:
        sounds = microphones()
    except EdgemmError as error:
        problem = str(error)
    pictures = cameras()
    if json_out:
        import json

        found = {"microphones": [asdict(info) for info in sounds], "cameras": [asdict(info) for info in pictures]}
        typer.echo(json.dumps(found, indent=1))
        if problem is not None:
            typer.echo(f"edgemm: {problem}", err=True)
        return
    if sounds:
        rows = [
            [
                f"{info.index}{' *' if info.is_default else ''}",
                *(info.name, info.host_api, str(info.channels), str(info.rate_hz)),
            ]
            for info in sounds
        ]
        typer.echo(table(["microphone", "name", "host", "channels", "rate"], rows))
        typer.echo("* the default: --mic takes it; --mic-device NAME|INDEX another")
    else:
        typer.echo(problem or "no microphone found")
    typer.echo("")
    if not pictures:
        typer.echo("no camera found at /dev/video*; a URL, csi:N or gst:PIPELINE works without: --camera-device")
        return
    rows = []
    for camera in pictures:
        if not camera.modes:
            rows.append([camera.path, camera.name, camera.problem or "-", "-", "-"])
        for mode in camera.modes:
            rates = ", ".join(f"{rate:g}" for rate in mode.fps) or "-"
            rows.append([camera.path, camera.name, mode.pixel_format, f"{mode.width}x{mode.height}", rates])
    typer.echo(table(["camera", "name", "format", "size", "fps"], rows))
