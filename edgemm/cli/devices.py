"""`edgemm devices`: the microphones and cameras of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgemm.stream.sources.level import Level


LEVEL_S = 1.5
"""How long each microphone is listened to."""


def devices(
    levels: Annotated[
        bool, typer.Option("--levels", help="Listen to each microphone, and show how loud it is: speak meanwhile.")
    ] = False,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List microphones and cameras, with what they deliver and what can be set. Without --levels nothing is opened.

    Examples:

      edgemm devices

      edgemm devices --levels
    """
    from dataclasses import asdict

    from edgemm.cli.tables import table
    from edgemm.errors import EdgemmError
    from edgemm.stream.sources.microphone import MicrophoneInfo, listen, microphones
    from edgemm.stream.sources.v4l2 import cameras

    problem = None
    sounds: list[MicrophoneInfo] = []
    try:
        sounds = microphones()
    except EdgemmError as error:
        problem = str(error)
    heard: dict[int, Level | str] = {}
    for info in sounds if levels else ():
        try:
            heard[info.index] = listen(info.index, LEVEL_S)
        except EdgemmError as error:
            heard[info.index] = str(error)
    pictures = cameras()
    if json_out:
        import json

        found = {"microphones": [asdict(info) for info in sounds], "cameras": [asdict(info) for info in pictures]}
        for entry in found["microphones"] if levels else ():
            level = heard[entry["index"]]
            entry["level"] = {"problem": level} if isinstance(level, str) else level._asdict()
        typer.echo(json.dumps(found, indent=1))
        if problem is not None:
            typer.echo(f"edgemm: {problem}", err=True)
        return
    if sounds:
        rows = [
            [
                f"{info.index}{' *' if info.is_default else ''}",
                *(info.name, info.host_api, str(info.channels), str(info.rate_hz)),
                *(_level(heard[info.index]) if levels else ()),
            ]
            for info in sounds
        ]
        header = ["microphone", "name", "host", "channels", "rate"]
        typer.echo(table([*header, "peak dBFS", "rms dBFS", "note"] if levels else header, rows))
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
    for camera in pictures:
        for control in camera.controls:
            value = "?" if control.value is None else str(control.value)
            fixed = ", read only" if control.is_read_only else ""
            typer.echo(f"  {camera.path} {control.name}={value}: {control.range}; default {control.default}{fixed}")
    if any(camera.controls for camera in pictures):
        typer.echo("set with --camera-option NAME=VALUE")


def _level(level: Level | str) -> tuple[str, str, str]:
    if isinstance(level, str):
        return "-", "-", level
    note = "clips" if level.clipped else "exact zeros: muted?" if level.zeros_s else ""
    return f"{level.peak_dbfs:.1f}", f"{level.rms_dbfs:.1f}", note
