"""A camera as a live source: times on the session's clock, reconnection, and the choice of who reads it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgemm.errors import SourceError
from edgemm.stream.clock import Clock
from edgemm.stream.drift import ClockFit, ClockReport
from edgemm.stream.frames import Color, End, Event, Lost, StreamInfo, VideoFrame, ns
from edgemm.stream.sources.protocol import VideoWant

RETRY_S = (0.25, 0.5, 1.0)
"""Pauses before trying to open a camera again; the last repeats. Coming back is so noticed within 2 s."""

PRIME_NS = 300_000_000
"""Pictures this long after opening are thrown away: they come in a burst out of buffers, at times that say nothing."""

JUMP_NS = 10_000_000_000
"""Timestamps that part from their arrival by more have jumped; a network that stalls recovers or breaks sooner."""

_log = logging.getLogger(__name__)


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


class Reader(Protocol):
    """Opens one camera by one library and reads pictures from it."""

    name: str

    def open(self) -> StreamInfo:
        """Open the camera; raises SourceError."""

    def read(self) -> Shot | None:
        """Wait for the next picture; None when there are no more. Raises SourceError if the camera fails."""

    def close(self) -> None:
        """Give the camera back; never called while another thread is in `read`."""


class CameraSource:
    """A camera as a live Source of one stream of pictures.

    If the camera disappears or stalls, the stream ends, and goes on when the camera is back. Raises SourceError on
    entry if it cannot be opened.
    """

    live = True

    def __init__(self, want: VideoWant, reader: Reader) -> None:
        self._want = want
        self._reader = reader
        self._offset_ns = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._reading = False
        self._open = False
        self._fit = ClockFit(late_only=True)
        self._reconnects = 0
        self.streams: tuple[StreamInfo, ...] = (StreamInfo(want.name, "video"),)

    def __enter__(self) -> CameraSource:
        self._stop.clear()
        self.streams = (self._reader.open(),)
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        with self._lock:
            # Closing a camera under a thread that reads from it crashes the process: that thread closes it.
            if not self._reading:
                self._close()

    def start(self, clock: Clock) -> None:
        """Tell times by `clock` from now on."""
        self._offset_ns = time.monotonic_ns() - clock.now_ns()

    def stop(self) -> None:
        """Let iterating end with the next picture, or when the reader gives up waiting for one."""
        self._stop.set()

    def report(self) -> ClockReport:
        """How the camera's timestamps ran against the machine's clock."""
        return ClockReport(self._fit.drift_ppm, self._fit.jitter_ns / 1e6, self._reconnects)

    def __iter__(self) -> Iterator[Event]:
        if not self._open:
            raise SourceError(f"{self._reader.name} is not open: use the source in a with statement.")
        with self._lock:
            self._reading = True
        try:
            returned = False
            while True:
                why = yield from self._pictures(broken=returned)
                if self._stop.is_set():
                    return
                yield End(self._want.name, time.monotonic_ns() - self._offset_ns)
                _log.warning("%s: trying to open it again.", why)
                if not self._reopen():
                    return
                _log.warning("%s is back.", self._reader.name)
                returned = True
        finally:
            with self._lock:
                self._reading = False
                if self._stop.is_set():
                    self._close()

    def _pictures(self, *, broken: bool) -> Generator[Event, None, str]:
        """Pictures until there are no more; returns why."""
        name = self._want.name
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
                capture_ns = shot.host_ns - self._offset_ns
            else:
                source_ns = ns(shot.pts, shot.time_base)
                if last_pts is not None and self._jumped(shot.pts, last_pts, source_ns, shot.host_ns):
                    self._fit.reset()
                    broken = True
                self._fit.observe(source_ns, shot.host_ns)
                # A picture was not captured after it arrived, whatever the fit still has to learn.
                capture_ns = shot.host_ns if shot.exact else min(self._fit.map(source_ns), shot.host_ns)
                capture_ns -= self._offset_ns
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

    def _reopen(self) -> bool:
        """Try until the camera is back; False if iterating is stopped first."""
        self._close()
        attempt = 0
        while not self._stop.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
            attempt += 1
            try:
                self._reader.open()
            except SourceError:
                continue
            self._open = True
            self._fit.reset()
            self._reconnects += 1
            return True
        return False

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._reader.close()


def open_camera(device: str | int | None, want: VideoWant, mode: CameraMode | None = None) -> CameraSource:
    """The camera that `device` names, not yet entered.

    A number or `/dev/videoN` is a V4L2 device, None the first; `scheme://...` is a URL that FFmpeg reads; `csi:N` and
    `gst:PIPELINE` go through GStreamer.
    """
    from edgemm.stream.sources.camera_ffmpeg import FFmpegReader
    from edgemm.stream.sources.camera_gstreamer import GStreamerReader, csi_pipeline
    from edgemm.stream.sources.v4l2 import camera_path

    mode = mode or CameraMode()
    text = "" if device is None else str(device)
    reader: Reader
    if text.startswith("gst:"):
        reader = GStreamerReader(want, text.removeprefix("gst:"))
    elif text.startswith("csi:"):
        reader = GStreamerReader(want, csi_pipeline(text.removeprefix("csi:"), mode))
    elif "://" in text:
        reader = FFmpegReader(want, text, mode)
    else:
        reader = FFmpegReader(want, camera_path(device), mode)
    return CameraSource(want, reader)


def pixel_format(color: Color) -> str:
    """FFmpeg's name of a packed format of this color order."""
    return {"rgb": "rgb24", "bgr": "bgr24", "gray": "gray"}[color]
