"""A camera as a live source: times on the session's clock, reconnection, and the choice of who reads it."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgemm.errors import SourceError, UsageError
from edgemm.stream.drift import ClockFit, ClockReport
from edgemm.stream.frames import Event, Lost, StreamInfo, VideoFrame, ns
from edgemm.stream.sources.protocol import RigSource, VideoWant
from edgemm.stream.sources.reopening import ReopeningSource

PRIME_NS = 300_000_000
"""Pictures this long after opening are thrown away: they come in a burst out of buffers, at times that say nothing."""

JUMP_NS = 10_000_000_000
"""Timestamps that part from their arrival by more have jumped; a network that stalls recovers or breaks sooner."""


class Shot(NamedTuple):
    """One picture as a reader gives it."""

    picture: npt.NDArray[np.uint8] | None
    """uint8 `[height, width, 3]` or `[height, width]`, owned by the taker; None if it cannot be decoded."""
    pts: int | None
    """None where the camera gives none."""
    time_base: Fraction
    host_ns: int
    """By the machine's monotonic clock: when it was captured if `exact`, else when it arrived."""
    exact: bool = False


@dataclass(frozen=True)
class CameraMode:
    """What is asked of a camera; it may give something else, None leaves it to the camera."""

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    pixel_format: str | None = None
    """V4L2's input format as FFmpeg names it: mjpeg, yuyv422, nv12."""
    controls: tuple[tuple[str, str], ...] = ()
    """Names and values of V4L2 controls, set in this order whenever the camera is opened."""


class Reader(Protocol):
    """Opens one camera by one library and reads pictures from it."""

    name: str

    @property
    def identity(self) -> str:
        """What names the camera for good; known once it is open."""

    def open(self) -> StreamInfo:
        """Open the camera; raises SourceError."""

    def read(self) -> Shot | None:
        """Wait for the next picture; None when there are no more. Raises SourceError if the camera fails."""

    def close(self) -> None:
        """Give the camera back; never called while another thread is in `read`."""


class CameraSource(ReopeningSource):
    """A camera as a live Source of one stream of pictures.

    If the camera disappears or stalls, the stream ends, and goes on when the camera is back. Raises SourceError on
    entry if it cannot be opened.
    """

    def __init__(self, want: VideoWant, reader: Reader) -> None:
        super().__init__(reader.name, (StreamInfo(want.name, "video"),))
        self._want = want
        self._reader = reader
        self._fit = ClockFit(late_only=True)

    @property
    def identity(self) -> str:
        """The camera's own name where its driver has one, else how it was named."""
        return self._reader.identity

    def report(self) -> ClockReport:
        """How the camera's timestamps ran against the machine's clock."""
        return ClockReport(self._fit.drift_ppm, self._fit.jitter_ns / 1e6, self._reconnects)

    def _connect(self) -> tuple[StreamInfo, ...]:
        info = self._reader.open()
        self._fit.reset()
        return (info,)

    def _disconnect(self) -> None:
        self._reader.close()

    def _frames(self, *, broken: bool) -> Generator[Event, None, str]:
        name = self._want.name
        offset_ns = self._offset_ns + self.delays_ns.get(name, 0)
        primed_ns = time.monotonic_ns() + PRIME_NS
        last_pts: int | None = None
        last_ns = -1
        while not self._stop.is_set():
            try:
                shot = self._reader.read()
            except SourceError as error:
                return str(error).rstrip(".")
            if shot is None:
                return f"{self._reader.name} has ended"
            if shot.pts is None:
                capture_ns = shot.host_ns - offset_ns
            else:
                source_ns = ns(shot.pts, shot.time_base)
                if last_pts is not None and self._jumped(shot.pts, last_pts, source_ns, shot.host_ns):
                    self._fit.reset()
                    broken = True
                self._fit.observe(source_ns, shot.host_ns)
                # A picture was not captured after it arrived, whatever the fit still has to learn.
                capture_ns = shot.host_ns if shot.exact else min(self._fit.map(source_ns), shot.host_ns)
                capture_ns -= offset_ns
                if last_pts is not None and shot.pts > last_pts:
                    # While the fit finds the earliest arrivals it moves back; pictures in order stay so.
                    capture_ns = max(capture_ns, last_ns + 1)
                last_pts = shot.pts
            if capture_ns < 0 or shot.host_ns < primed_ns:
                continue
            last_ns = max(last_ns, capture_ns)
            if shot.picture is None:
                yield Lost(name, "corrupt", capture_ns)
                continue
            pts = capture_ns if shot.pts is None else shot.pts
            time_base = Fraction(1, 10**9) if shot.pts is None else shot.time_base
            yield VideoFrame(name, pts, time_base, capture_ns, shot.picture, self._want.color, broken)
            broken = False
        return "stopped"

    def _jumped(self, pts: int, last_pts: int, source_ns: int, host_ns: int) -> bool:
        return pts <= last_pts or abs(host_ns - self._fit.map(source_ns)) > JUMP_NS


def open_camera(device: str | int | None, want: VideoWant, mode: CameraMode | None = None) -> RigSource:
    """The camera that `device` names, not yet entered.

    A number or `/dev/videoN` is a V4L2 device, None the first; `scheme://...` is a URL that FFmpeg reads; `csi:N` and
    `gst:PIPELINE` go through GStreamer.
    """
    from edgemm.stream.sources.camera_gstreamer import GStreamerReader, csi_pipeline
    from edgemm.stream.sources.camera_v4l2 import V4l2Reader
    from edgemm.stream.sources.network import NetworkSource
    from edgemm.stream.sources.v4l2 import camera_path

    mode = mode or CameraMode()
    text = "" if device is None else str(device)
    reader: Reader
    if mode.controls and (text.startswith(("gst:", "csi:")) or "://" in text):
        raise UsageError(
            f'"{text}" takes no --camera-option: only V4L2 cameras do. Set it in the camera, or in the pipeline.'
        )
    if text.startswith("gst:"):
        reader = GStreamerReader(want, text.removeprefix("gst:"))
    elif text.startswith("csi:"):
        reader = GStreamerReader(want, csi_pipeline(text.removeprefix("csi:"), mode))
    elif "://" in text:
        return NetworkSource(text, [want])
    else:
        reader = V4l2Reader(want, camera_path(device), mode)
    return CameraSource(want, reader)
