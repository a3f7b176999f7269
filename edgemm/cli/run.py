"""`edgemm run`: a bundle over a recording or a live stream."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from edgemm.stream.sinks.protocol import Sink

VIEW = ":8080"
"""Where --view shows its page if it is not told."""


class ClockChoice(str, Enum):
    """How time passes."""

    wall = "wall"
    virtual = "virtual"


class EngineChoice(str, Enum):
    """Which engine runs the models."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class PrecisionChoice(str, Enum):
    """Which of the bundle's precisions runs."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    fp8 = "fp8"
    int4 = "int4"


class RunCommand(TyperCommand):
    """`--view` without an address, which typer's own options cannot be."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare --view its address."""
        return super().parse_args(ctx, list(_with_address(args)))


def _with_address(args: list[str]) -> Iterator[str]:
    for i, word in enumerate(args):
        yield word
        if word == "--view" and (i + 1 == len(args) or not re.fullmatch(r".*:\d+|\d+", args[i + 1])):
            yield VIEW


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `edgemm build engine` made.", metavar="BUNDLE")],
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", help="A media file or URL, a folder of images, or synthetic.", metavar="FILE|URL"
        ),
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Listen to a microphone.")] = False,
    camera: Annotated[bool, typer.Option("--camera", help="Watch a camera.")] = False,
    mic_device: Annotated[
        str | None, typer.Option(help="Which microphone, as `edgemm devices` lists them.", metavar="NAME|INDEX")
    ] = None,
    camera_device: Annotated[
        list[str] | None,
        typer.Option(
            help="Which camera: a number, /dev/videoN, a URL, csi:N, gst:PIPELINE. STREAM=CAMERA, once for each of "
            "several.",
            metavar="CAMERA",
        ),
    ] = None,
    pixel_format: Annotated[
        str | None, typer.Option(help="What a V4L2 camera sends: mjpeg, yuyv422, nv12.", metavar="FORMAT")
    ] = None,
    camera_option: Annotated[
        list[str] | None,
        typer.Option(help="Set a V4L2 control, as `edgemm devices` lists them; can be repeated.", metavar="NAME=VALUE"),
    ] = None,
    sync_offset: Annotated[
        bool, typer.Option(help="Take off what `edgemm calibrate-sync` measured of the microphone and the camera.")
    ] = True,
    clock: Annotated[
        ClockChoice | None,
        typer.Option(help="wall (the default): as if live. virtual: as fast as possible, the same every time."),
    ] = None,
    record: Annotated[
        str | None, typer.Option(help="Record sound, pictures and decisions as Matroska.", metavar="FILE")
    ] = None,
    replay: Annotated[str | None, typer.Option(help="Replay a recording.", metavar="FILE")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Write results as JSON Lines; - is standard output.")
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            help=f"Show pictures, sound and results on a web page, at {VIEW} if not told where.",
            metavar="[[HOST]:PORT]",
        ),
    ] = None,
    websocket: Annotated[
        str | None, typer.Option(help="Send results to WebSocket clients, as JSON.", metavar="[HOST]:PORT")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(help="Publish results to an MQTT broker: mqtt[s]://HOST[:PORT]/TOPIC[?qos=0].", metavar="URL"),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Serve figures to Prometheus, at /metrics.", metavar="[HOST]:PORT")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.", metavar="S")] = None,
    engine: Annotated[EngineChoice, typer.Option(help="The engine.")] = EngineChoice.auto,
    precision: Annotated[PrecisionChoice, typer.Option(help="auto is what the build chose.")] = PrecisionChoice.auto,
    threads: Annotated[int, typer.Option(min=1, help="Threads inside an operator.")] = 1,
    fps: Annotated[float, typer.Option(min=0.001, help="Rate of a folder of images.")] = 25.0,
    summary: Annotated[Path | None, typer.Option(help="Write the closing summary as JSON.", metavar="FILE")] = None,
    simulate: Annotated[
        Path | None,
        typer.Option(
            help="Run in simulated time as fast as this profile's device: `edgemm profile --json`.",
            metavar="LATENCY.json",
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(min=0.001, help="With --simulate: an engine so many times as slow.")
    ] = None,
    json_out: Annotated[
        bool, typer.Option("--json", help="Print the closing summary as JSON, and nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run a bundle and give results with the age of what they rest on.

    Without --output the results are shown on the terminal. Ctrl-C ends the run in order; the summary is printed.
    --view, --websocket and --metrics listen on 127.0.0.1 unless a host is named; page and results then need the token
    that is printed.

    Examples:

      edgemm run out.edgemm --input clip.mp4

      edgemm run out.edgemm --input clip.mp4 --clock virtual --output results.jsonl

      edgemm run out.edgemm --mic --camera

      edgemm run out.edgemm --mic --camera --record session.mkv

      edgemm run out.edgemm --replay session.mkv

      edgemm run out.edgemm --mic-device "USB" --camera-device rtsp://192.168.1.7/live

      edgemm run out.edgemm --input clip.mp4 --simulate orin_nano.json

      edgemm run out.edgemm --mic --camera --view

      edgemm run out.edgemm --mic --camera --view 0.0.0.0:8080 --metrics :9090

      edgemm run out.edgemm --mic --camera --mqtt mqtt://broker.local/door
    """
    import edgemm
    from edgemm.cli.tables import simulation_table, summary_table
    from edgemm.errors import UsageError
    from edgemm.stream.sinks.console import ConsoleSink
    from edgemm.stream.sinks.jsonl import JsonLinesSink

    mic, camera = mic or mic_device is not None, camera or bool(camera_device)
    if simulate is None and scale is not None:
        raise UsageError("--scale slows the engine of a simulation: give --simulate LATENCY.json, too.")
    if simulate is not None and (mic or camera or clock or record or replay):
        raise UsageError("A simulation makes its own time: without --mic, --camera, --clock, --record and --replay.")
    if replay is None and clock is None:
        clock = ClockChoice.wall
    if input_ is None and not mic and not camera and replay is None and simulate is None:
        raise UsageError("Nothing to run on. Give a recording: --input FILE, --input synthetic, or --mic and --camera")
    if simulate is not None and (view or websocket or mqtt or metrics):
        raise UsageError("A simulation is over before anybody looks: without --view, --websocket, --mqtt, --metrics.")
    if not quiet:
        # What sources learn and what is taken off their times; warnings are shown in any case.
        logging.basicConfig(format="%(message)s")
        logging.getLogger("edgemm").setLevel(logging.INFO)
    # As Ctrl-C: sources and sinks are closed in order, and what was recorded is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sinks: list[Sink] = []
    if output is not None:
        sinks.append(JsonLinesSink(output))
    elif not quiet and not json_out and simulate is None:
        sinks.append(ConsoleSink())
    sinks += _asked_for(view, websocket, mqtt, metrics, quiet=quiet)
    if simulate is not None:
        from edgemm import simulate as simulations

        forecast = simulations.simulate(
            bundle,
            simulate,
            input=input_,
            duration_s=duration,
            scale=1.0 if scale is None else scale,
            sinks=sinks,
            engine=engine.value,
            precision=precision.value,
            threads=threads,
            fps=fps,
        )
        if summary is not None:
            summary.write_bytes(forecast.to_json())
        if not quiet:
            text = forecast.to_json().decode() if json_out else simulation_table(forecast)
            typer.echo(text, err=output == "-")
        return
    done = edgemm.run(
        bundle,
        input=input_,
        mic=mic_device or mic,
        camera=_cameras(camera_device) if camera_device else camera,
        pixel_format=pixel_format,
        camera_options=camera_options(camera_option),
        sync_offset=sync_offset,
        clock=None if clock is None else clock.value,
        record=record,
        recording=replay,
        sinks=sinks,
        duration_s=duration,
        engine=engine.value,
        precision=precision.value,
        threads=threads,
        fps=fps,
    )
    if summary is not None:
        summary.write_bytes(done.to_json())
    if not quiet:
        typer.echo(done.to_json().decode() if json_out else summary_table(done), err=output == "-")


def _asked_for(
    view: str | None, websocket: str | None, mqtt: str | None, metrics: str | None, *, quiet: bool
) -> list[Sink]:
    """The sinks that others can reach, or that reach others; the address of each is printed once it listens."""
    sinks: list[Sink] = []

    def announce(what: str) -> Callable[[str], None] | None:
        return None if quiet else lambda url: typer.echo(f"{what}: {url}", err=True)

    if view is not None:
        from edgemm.view.view import View

        sinks.append(View(view, announce=announce("view")))
    if websocket is not None:
        from edgemm.stream.sinks.websocket import WebSocketSink

        sinks.append(WebSocketSink(websocket, announce=announce("websocket")))
    if mqtt is not None:
        from edgemm.stream.sinks.mqtt import MqttSink

        sinks.append(MqttSink(mqtt))
    if metrics is not None:
        from edgemm.stream.sinks.metrics import MetricsSink

        sinks.append(MetricsSink(metrics, announce=announce("metrics")))
    return sinks


def _cameras(devices: list[str]) -> str | dict[str, str]:
    """One camera, or several by stream: STREAM=CAMERA, where a URL or a pipeline may hold an "=", too."""
    from edgemm.errors import UsageError

    named = [re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_-]*)=(.+)", device) for device in devices]
    if len(devices) == 1 and named[0] is None:
        return devices[0]
    if not all(named):
        raise UsageError(
            f"Several cameras need the names of their streams, found {', '.join(devices)}: "
            "expected --camera-device STREAM=CAMERA for each."
        )
    return {found[1]: found[2] for found in named if found is not None}


def camera_options(given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs as a table. Raises UsageError."""
    from edgemm.errors import UsageError

    options: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f'--camera-option "{text}": expected NAME=VALUE, e.g. exposure_time_absolute=200')
        options[name.strip()] = value.strip()
    return options
