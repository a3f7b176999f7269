"""Reads V4L2 devices through PyAV."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections import deque
from fractions import Fraction
from typing import Any

from edgemm.errors import SourceError
from edgemm.stream.frames import StreamInfo
from edgemm.stream.sources.camera import CameraMode, Shot
from edgemm.stream.sources.protocol import VideoWant
from edgemm.stream.sources.reformat import PIXEL_FORMATS, Reformatter
from edgemm.stream.sources.v4l2 import camera_identity
from edgemm.stream.sources.v4l2_controls import set_controls

STALL_S = 2.0
"""How long an open camera may be silent before it is taken to be gone."""

MONOTONIC_NS = 10_000_000_000
"""Timestamps of V4L2 this close to the machine's monotonic clock are of that clock (nearly all drivers)."""


class V4l2Reader:
    """A `/dev/videoN`. Pictures are decoded on the thread that reads, without frame threads: each of those would hold
    one picture back."""

    def __init__(self, want: VideoWant, path: str, mode: CameraMode) -> None:
        self.name = path
        self._want = want
        self._mode = mode
        self._identity = path
        self._container: Any = None
        self._packets: Any = None
        self._stream: Any = None
        self._descriptor: int | None = None
        self._reformatter: Any = None
        self._ready: deque[Shot] = deque()

    @property
    def identity(self) -> str:
        """The camera's name and where it is plugged in; its number changes."""
        return self._identity

    def open(self) -> StreamInfo:
        """Open the camera; raises SourceError."""
        import av

        _check_access(self.name)
        self._identity = camera_identity(self.name)
        if self._mode.controls:
            set_controls(self.name, self._mode.controls)
        try:
            container = av.open(self.name, format="v4l2", options=self._device_options())
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(self._refused(error)) from error
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= 0x80000  # AV_CODEC_FLAG_LOW_DELAY
        self._container, self._stream = container, stream
        self._descriptor = _descriptor(self.name)
        self._packets = container.demux(stream)
        self._reformatter = Reformatter(PIXEL_FORMATS[self._want.color])
        rate = stream.average_rate or stream.guessed_rate
        interval_ns = round(10**9 / rate) if rate else None
        context = stream.codec_context
        return StreamInfo(self._want.name, "video", interval_ns=interval_ns, width=context.width, height=context.height)

    def read(self) -> Shot | None:
        """Wait for the next picture; None at the end. Raises SourceError if the camera fails or falls silent."""
        import av

        while not self._ready:
            # FFmpeg would wait for ever for a camera that hangs, and could not be closed meanwhile.
            if self._descriptor is not None and not select.select([self._descriptor], [], [], STALL_S)[0]:
                raise SourceError(f"{self.name} has sent nothing for {STALL_S:g} s.")
            try:
                packet = next(self._packets, None)
            except (av.FFmpegError, OSError) as error:
                raise SourceError(self._refused(error)) from error
            arrived_ns = time.monotonic_ns()
            if packet is None or packet.size == 0:
                return None
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError):
                time_base = packet.time_base or self._stream.time_base
                self._ready.append(Shot(None, packet.pts, time_base, arrived_ns))
                continue
            for frame in frames:
                self._ready.append(self._shot(frame, arrived_ns))
        return self._ready.popleft()

    def close(self) -> None:
        """Give the camera back."""
        if self._container is not None:
            self._container.close()
        self._container = self._packets = self._stream = self._reformatter = self._descriptor = None
        self._ready.clear()

    def _shot(self, frame: Any, arrived_ns: int) -> Shot:
        picture = self._reformatter.picture(frame)
        time_base = frame.time_base or self._stream.time_base
        if frame.pts is not None:
            captured_ns = round(frame.pts * Fraction(time_base) * 10**9)
            if 0 <= arrived_ns - captured_ns < MONOTONIC_NS:
                return Shot(picture, frame.pts, time_base, captured_ns, exact=True)
        return Shot(picture, frame.pts, time_base, arrived_ns)

    def _device_options(self) -> dict[str, str]:
        mode = self._mode
        options: dict[str, str] = {}
        if mode.width and mode.height:
            options["video_size"] = f"{mode.width}x{mode.height}"
        if mode.fps:
            options["framerate"] = str(Fraction(mode.fps).limit_denominator(1001))
        if mode.pixel_format:
            options["input_format"] = mode.pixel_format
        return options

    def _refused(self, error: Exception) -> str:
        code = getattr(error, "errno", None)
        if code == errno.EBUSY:
            return f"{self.name} is in use by another program: close that, and try again."
        if code in (errno.EINVAL, errno.ENOTTY):
            asked = ", ".join(f"{key} {value}" for key, value in self._device_options().items())
            return (
                f"{self.name} is no camera, or does not deliver what was asked ({asked or 'its default'}). "
                "See what there is: edgemm devices"
            )
        detail = getattr(error, "strerror", None) or str(error)
        return f"{self.name} cannot be read: {detail}. Expected a V4L2 camera: edgemm devices"


def _descriptor(path: str) -> int | None:
    """This process's newest open file of the device, which is FFmpeg's: it tells nobody. None where that is unknown."""
    device = os.path.realpath(path)
    for name in sorted(os.listdir("/proc/self/fd"), key=int, reverse=True):
        with contextlib.suppress(OSError):  # it is closed meanwhile
            if os.readlink(f"/proc/self/fd/{name}") == device:
                return int(name)
    return None


def _check_access(path: str) -> None:
    """Open and close the device: FFmpeg's own messages do not tell a missing one from a forbidden one."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist. See which cameras there are: edgemm devices") from error
    except PermissionError as error:
        raise SourceError(
            f'{path} may not be opened: permission denied. Add yourself to its group, e.g. "video".'
        ) from error
    except OSError:
        return  # whatever else it is, FFmpeg meets it, too, and says so
