"""`edgemm calibrate-sync`: the constant offset between a microphone and a camera."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate_sync(
    mic: Annotated[bool, typer.Option("--mic", help="The default microphone (the default).")] = False,
    camera: Annotated[bool, typer.Option("--camera", help="The first camera (the default).")] = False,
    mic_device: Annotated[
        str | None, typer.Option(help="Another microphone, as for `edgemm run`.", metavar="NAME|INDEX|URL")
    ] = None,
    camera_device: Annotated[
        str | None, typer.Option(help="Another camera, as for `edgemm run`.", metavar="CAMERA")
    ] = None,
    pixel_format: Annotated[
        str | None, typer.Option(help="What a V4L2 camera sends: mjpeg, yuyv422, nv12.", metavar="FORMAT")
    ] = None,
    camera_option: Annotated[
        list[str] | None, typer.Option(help="Set a V4L2 control; can be repeated.", metavar="NAME=VALUE")
    ] = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long to watch and listen; how long a clip is.")] = 30.0,
    make: Annotated[
        Path | None, typer.Option(help="Write the clip to play, .mp4 or .mkv, and do nothing else.", metavar="FILE")
    ] = None,
    offset: Annotated[float, typer.Option(help="With --make: let the beep come so much later.", metavar="MS")] = 0.0,
    input_: Annotated[
        str | None, typer.Option("--input", "-i", help="Measure a recorded clip instead; stores nothing.")
    ] = None,
    store: Annotated[bool, typer.Option(help="Remember the offset; edgemm run takes it off.")] = True,
    forget: Annotated[bool, typer.Option("--forget", help="Forget what was measured of this pair.")] = False,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how much later a camera stamps its pictures than a microphone its sound, and remember it.

    Make the clip, play it full-screen on a phone or a screen before camera and microphone, and measure:

      edgemm calibrate-sync --make flash_and_beep.mp4

      edgemm calibrate-sync --mic --camera

      edgemm calibrate-sync --mic-device USB --camera-device rtsp://192.168.1.7/live

    The offset of the screen that plays it is part of what is measured: most phones are within 20 ms.
    """
    from edgemm import calibrate_sync as sync
    from edgemm.cli.run import camera_options
    from edgemm.errors import UsageError
    from edgemm.stream.sources.camera import CameraMode
    from edgemm.stream.sources.flash_beep_clip import write_flash_beep

    if make is not None:
        write_flash_beep(make, seconds, offset)
        typer.echo(f"Wrote {make}, {seconds:g} s. Play it full-screen, then: edgemm calibrate-sync --mic --camera")
        return
    if offset:
        raise UsageError("--offset is for the clip: give --make FILE, too.")
    live = mic or camera or mic_device is not None or camera_device is not None
    if input_ is not None and (live or forget):
        raise UsageError("--input measures a file: leave out microphone, camera and --forget.")
    if input_ is not None:
        report = sync.measure_file(input_)
    else:
        mode = CameraMode(pixel_format=pixel_format, controls=tuple(camera_options(camera_option).items()))
        if forget:
            known = sync.forget_rig(mic_device, camera_device, mode=mode)
            typer.echo("Forgotten." if known else "Nothing is known of this microphone and camera.")
            return
        report = sync.measure_rig(mic_device, camera_device, mode=mode, seconds=seconds, store=store)
    if json_out:
        import json
        from dataclasses import asdict

        found = asdict(report)
        found["stored"] = None if report.stored is None else str(report.stored)
        typer.echo(json.dumps(found, indent=1))
        return
    for line in sync.describe(report):
        typer.echo(line)
