"""Lists cameras and their modes by V4L2's own questions (linux/videodev2.h); captures nothing."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import SourceError
from edgemm.stream.sources.v4l2_controls import V4l2Control, controls

_CAPTURE = 1
"""V4L2_BUF_TYPE_VIDEO_CAPTURE and V4L2_CAP_VIDEO_CAPTURE."""

_HAS_DEVICE_CAPS = 0x80000000
_DISCRETE = 1
_MOST_MODES = 256
"""A driver that never says "no more" is not asked for ever."""


class _Capability(ctypes.Structure):
    _fields_ = (
        ("driver", ctypes.c_char * 16),
        ("card", ctypes.c_char * 32),
        ("bus_info", ctypes.c_char * 32),
        ("version", ctypes.c_uint32),
        ("capabilities", ctypes.c_uint32),
        ("device_caps", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
    )


class _Format(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("description", ctypes.c_char * 32),
        ("pixelformat", ctypes.c_uint32),
        ("mbus_code", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
    )


class _Size(ctypes.Structure):
    # The union's larger member (stepwise: six numbers); a discrete size is its first two.
    _fields_ = (
        ("index", ctypes.c_uint32),
        ("pixel_format", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32 * 6),
        ("reserved", ctypes.c_uint32 * 2),
    )


class _Interval(ctypes.Structure):
    # The union's larger member (three fractions); a discrete interval is the first.
    _fields_ = (
        ("index", ctypes.c_uint32),
        ("pixel_format", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("interval", ctypes.c_uint32 * 6),
        ("reserved", ctypes.c_uint32 * 2),
    )


def _request(direction: int, number: int, kind: type[ctypes.Structure]) -> int:
    return direction << 30 | ctypes.sizeof(kind) << 16 | ord("V") << 8 | number


_QUERYCAP = _request(2, 0, _Capability)
_ENUM_FMT = _request(3, 2, _Format)
_ENUM_FRAMESIZES = _request(3, 74, _Size)
_ENUM_FRAMEINTERVALS = _request(3, 75, _Interval)


@dataclass(frozen=True)
class V4l2Mode:
    """A pixel format in a size, and the rates at which it comes."""

    pixel_format: str
    """Its four characters: MJPG, YUYV, NV12."""
    width: int
    height: int
    fps: tuple[float, ...]


@dataclass(frozen=True)
class CameraInfo:
    """A V4L2 device that captures pictures."""

    path: str
    name: str
    modes: tuple[V4l2Mode, ...]
    controls: tuple[V4l2Control, ...] = ()
    """What can be set on it."""
    problem: str | None = None
    """Why its modes could not be asked for, e.g. permission denied."""


def cameras(folder: Path = Path("/dev")) -> list[CameraInfo]:
    """The cameras there are; devices that only output, or carry metadata, are left out."""
    found: list[CameraInfo] = []
    for path in _nodes(folder):
        info = _ask(path)
        if info is not None:
            found.append(info)
    return found


def camera_path(device: str | int | None) -> str:
    """The path of the camera meant: a number, a path, or None for the first. Raises SourceError if there is none."""
    if device is None:
        nodes = _nodes(Path("/dev"))
        if not nodes:
            raise SourceError(
                "No camera was found: there is no /dev/video*. Plug one in, or name one: "
                "--camera-device rtsp://HOST/PATH or csi:0"
            )
        return next((info.path for info in cameras()), str(nodes[0]))
    text = str(device)
    return f"/dev/video{text}" if text.isdecimal() else text


def camera_identity(path: str) -> str:
    """The camera's name and where it is plugged in, which outlive its number; the path where the driver is silent."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return path
    try:
        capability = _Capability()
        fcntl.ioctl(file, _QUERYCAP, capability)
    except OSError:
        return path
    finally:
        os.close(file)
    return f"{capability.card.decode(errors='replace')} at {capability.bus_info.decode(errors='replace')}"


def _nodes(folder: Path) -> list[Path]:
    nodes = [path for path in folder.glob("video*") if re.fullmatch(r"video\d+", path.name)]
    return sorted(nodes, key=lambda path: int(path.name.removeprefix("video")))


def _ask(path: Path) -> CameraInfo | None:
    try:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return CameraInfo(str(path), "?", (), problem=error.strerror)
    try:
        capability = _Capability()
        fcntl.ioctl(file, _QUERYCAP, capability)
        has_own = capability.capabilities & _HAS_DEVICE_CAPS
        if not (capability.device_caps if has_own else capability.capabilities) & _CAPTURE:
            return None
        card = capability.card.decode(errors="replace")
        return CameraInfo(str(path), card, tuple(_modes(file)), tuple(controls(file)))
    except OSError as error:
        return CameraInfo(str(path), "?", (), problem=f"no V4L2 device: {error.strerror}")
    finally:
        os.close(file)


def _modes(file: int) -> Iterator[V4l2Mode]:
    for index in range(_MOST_MODES):
        form = _Format(index=index, type=_CAPTURE)
        if not _more(file, _ENUM_FMT, form):
            return
        name = int(form.pixelformat).to_bytes(4, "little").decode("ascii", errors="replace").strip()
        for at in range(_MOST_MODES):
            size = _Size(index=at, pixel_format=form.pixelformat)
            if not _more(file, _ENUM_FRAMESIZES, size):
                break
            if size.type != _DISCRETE:
                # A range: the largest stands for it.
                yield V4l2Mode(name, size.size[1], size.size[4], ())
                break
            width, height = size.size[0], size.size[1]
            yield V4l2Mode(name, width, height, tuple(_rates(file, form.pixelformat, width, height)))


def _rates(file: int, pixel_format: int, width: int, height: int) -> Iterator[float]:
    for index in range(_MOST_MODES):
        interval = _Interval(index=index, pixel_format=pixel_format, width=width, height=height)
        if not _more(file, _ENUM_FRAMEINTERVALS, interval) or interval.type != _DISCRETE:
            return
        if interval.interval[0]:
            yield interval.interval[1] / interval.interval[0]


def _more(file: int, request: int, answer: ctypes.Structure) -> bool:
    """Ask; False if there are no more."""
    try:
        fcntl.ioctl(file, request, answer)
    except OSError:
        return False
    return True
