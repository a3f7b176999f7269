"""Reads what only GStreamer reaches, such as a Jetson's CSI cameras: any pipeline, through an appsink."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import numpy as np

from edgemm.errors import MissingExtraError, SourceError, UsageError
from edgemm.stream.frames import StreamInfo
from edgemm.stream.sources.camera import CameraMode, Shot
from edgemm.stream.sources.protocol import VideoWant

ANSWER_S = 5.0
STALL_S = 2.0

SINK = "edgemm_sink"


def csi_pipeline(sensor: str, mode: CameraMode) -> str:
    """The pipeline of CSI camera number `sensor` on a Jetson: NVIDIA's Argus source, copied out of NVMM memory."""
    if not sensor.isdecimal():
        raise UsageError(f'"csi:{sensor}" names no camera: expected csi: and the number of a sensor, e.g. csi:0')
    size = f", width={mode.width}, height={mode.height}" if mode.width and mode.height else ""
    rate = ""
    if mode.fps:
        fraction = Fraction(mode.fps).limit_denominator(1001)
        rate = f", framerate={fraction.numerator}/{fraction.denominator}"
    caps = f"video/x-raw(memory:NVMM){size}{rate}"
    return f"nvarguscamerasrc sensor-id={sensor} ! {caps} ! nvvidconv ! video/x-raw, format=BGRx"


class GStreamerReader:
    """The pictures of `pipeline`, without its sink, in the color wanted.

    A buffer's PTS is the time of the pipeline's clock, which is the machine's monotonic clock, since the pipeline was
    started: for a live pipeline that is when the picture was captured.
    """

    def __init__(self, want: VideoWant, pipeline: str) -> None:
        self.name = f"gst:{pipeline}"
        self._want = want
        self._description = pipeline
        self._pipeline: Any = None
        self._sink: Any = None
        self._gst: Any = None

    @property
    def identity(self) -> str:
        """The pipeline."""
        return self.name

    def open(self) -> StreamInfo:
        """Start the pipeline; raises SourceError if it cannot be built or gives no picture within 5 s."""
        gst = self._gst = _gstreamer()
        # By way of RGB: straight to GRAY8, videoconvert copies Y, whose white is 235, and every other source gives 255.
        gray = " ! videoconvert ! video/x-raw,format=GRAY8" if self._want.color == "gray" else ""
        packed = "BGR" if self._want.color == "bgr" else "RGB"
        text = (
            f"{self._description} ! videoconvert ! video/x-raw,format={packed}{gray} "
            f"! appsink name={SINK} max-buffers=4 drop=true sync=false emit-signals=false"
        )
        try:
            pipeline = gst.parse_launch(text)
        except Exception as error:
            raise SourceError(f"GStreamer cannot build the pipeline: {error}. Try it first: gst-launch-1.0") from error
        pipeline.use_clock(gst.SystemClock.obtain())
        self._pipeline, self._sink = pipeline, pipeline.get_by_name(SINK)
        pipeline.set_state(gst.State.PLAYING)
        sample = self._sink.try_pull_sample(int(ANSWER_S * gst.SECOND))
        if sample is None:
            why = self._failure() or f"no picture came within {ANSWER_S:g} s"
            self.close()
            raise SourceError(f"The pipeline gives nothing: {why}. Try it first: gst-launch-1.0")
        shape = sample.get_caps().get_structure(0)
        known, numerator, denominator = shape.get_fraction("framerate")
        interval_ns = 10**9 * denominator // numerator if known and numerator else None
        width, height = shape.get_value("width"), shape.get_value("height")
        return StreamInfo(self._want.name, "video", interval_ns=interval_ns, width=width, height=height)

    def read(self) -> Shot | None:
        """Wait for the next picture; None at the end. Raises SourceError if the pipeline fails or falls silent."""
        gst = self._gst
        sample = self._sink.try_pull_sample(int(STALL_S * gst.SECOND))
        if sample is None:
            # A pipeline that failed has ended, too.
            why = self._failure()
            if why is None and self._sink.is_eos():
                return None
            raise SourceError(f"{self.name}: {why or f'no picture for {STALL_S:g} s'}.")
        arrived_ns = time.monotonic_ns()
        buffer = sample.get_buffer()
        shape = sample.get_caps().get_structure(0)
        width, height = shape.get_value("width"), shape.get_value("height")
        planes = 1 if self._want.color == "gray" else 3
        mapped, data = buffer.map(gst.MapFlags.READ)
        if not mapped:
            return Shot(None, None, Fraction(1, 10**9), arrived_ns)
        try:
            # GStreamer pads rows to multiples of four bytes.
            stride = -(-width * planes // 4) * 4
            rows = np.frombuffer(data.data, np.uint8, stride * height).reshape(height, stride)
            picture = rows[:, : width * planes].copy()
        finally:
            buffer.unmap(data)
        if planes == 3:
            picture = picture.reshape(height, width, 3)
        if buffer.pts == gst.CLOCK_TIME_NONE:
            return Shot(picture, None, Fraction(1, 10**9), arrived_ns)
        captured_ns = self._pipeline.get_base_time() + buffer.pts
        exact = 0 <= arrived_ns - captured_ns < 10**10
        return Shot(picture, buffer.pts, Fraction(1, 10**9), captured_ns if exact else arrived_ns, exact)

    def close(self) -> None:
        """Stop the pipeline."""
        if self._pipeline is not None:
            self._pipeline.set_state(self._gst.State.NULL)
        self._pipeline = self._sink = None

    def _failure(self) -> str | None:
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        return None if message is None else str(message.parse_error()[0].message).rstrip(".")


def _gstreamer() -> Any:
    try:
        import gi
    except ImportError as error:
        raise MissingExtraError("A GStreamer camera", "gstreamer", "gi") from error
    try:
        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401 - GstApp gives appsink its methods
    except (ImportError, ValueError) as error:
        raise SourceError(
            f"GStreamer cannot be used from Python: {error}. "
            "Install it: apt-get install gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good"
        ) from error
    Gst.init(None)
    return Gst
