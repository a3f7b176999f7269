"""The V4L2 reader's own part, with a file in the place of FFmpeg's v4l2; the real one is in tests/live."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.stream.sources import camera_v4l2
from edgemm.stream.sources.camera import CameraMode
from edgemm.stream.sources.camera_v4l2 import V4l2Reader
from edgemm.stream.sources.protocol import VideoWant


@pytest.fixture
def node(tmp_path: Path) -> str:
    (tmp_path / "video0").touch()
    return str(tmp_path / "video0")


@pytest.fixture
def film(tmp_path: Path) -> str:
    """Ten pictures, of which one is damaged."""
    path = str(tmp_path / "film.nut")
    with av.open(path, "w", format="nut") as output:
        stream = output.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        output.start_encoding()
        for number in range(10):
            shown = av.VideoFrame.from_ndarray(np.full((48, 64), 20 * number, np.uint8), format="gray")
            shown = shown.reformat(format="yuvj420p")
            shown.pts, shown.time_base = number, Fraction(1, 30)
            for encoded in stream.encode(shown):
                packet = av.Packet(b"\xff\xd8 no picture" if number == 4 else bytes(encoded))
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 30)
                output.mux(packet)
    return path


Opened = dict[str, Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, film: str) -> Opened:
    """What FFmpeg is asked for; it opens the film."""
    seen: Opened = {}
    real = av.open

    def opens(path: str, *, format: str, options: dict[str, str]) -> Any:
        seen.update(path=path, format=format, options=options)
        return real(film)

    monkeypatch.setattr(av, "open", opens)
    return seen


def test_what_is_asked_and_what_comes(asked: Opened, node: str) -> None:
    reader = V4l2Reader(VideoWant("eye", "gray"), node, CameraMode(64, 48, 30000 / 1001, "mjpeg"))
    info = reader.open()
    assert asked == {
        "path": node,
        "format": "v4l2",
        "options": {"video_size": "64x48", "framerate": "30000/1001", "input_format": "mjpeg"},
    }
    assert (info.width, info.height, info.interval_ns) == (64, 48, 33333333)
    assert reader.identity == node
    shots = list(iter(reader.read, None))
    assert [shot.picture is None for shot in shots] == [number == 4 for number in range(10)]
    levels = [round(float(shot.picture.mean())) for shot in shots if shot.picture is not None]
    assert levels == pytest.approx([0, 20, 40, 60, 100, 120, 140, 160, 180], abs=3)
    # Timestamps from the beginning of time are not the machine's clock: pictures have the times of their arrival.
    assert not any(shot.exact for shot in shots)
    reader.close()
    reader.close()


def test_timestamps_of_the_machines_clock_are_believed(
    asked: Opened, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = V4l2Reader(VideoWant("eye"), node, CameraMode())
    reader.open()
    assert asked["options"] == {}
    # As if the machine had been started when the film was.
    monkeypatch.setattr(time, "monotonic_ns", lambda: 10**9)
    shot = reader.read()
    assert shot is not None
    assert shot.exact
    assert shot.host_ns == 0
    reader.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(16, "Device or resource busy"), "is in use by another program: close that"),
        (OSError(22, "Invalid argument"), "does not deliver what was asked .video_size 64x48, input_format nv12."),
        (OSError(25, "Inappropriate ioctl"), "is no camera, or does not deliver"),
        (OSError(19, "No such device"), "cannot be read: No such device. Expected a V4L2 camera"),
        (ValueError("nonsense"), "cannot be read: nonsense"),
    ],
)
def test_what_is_refused_is_one_sentence(
    node: str, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(av, "open", fails)
    with pytest.raises(SourceError, match=said) as caught:
        V4l2Reader(VideoWant("eye"), node, CameraMode(64, 48, None, "nv12")).open()
    assert "\n" not in str(caught.value)


def test_a_camera_that_is_unplugged_is_an_error(asked: Opened, node: str) -> None:
    reader = V4l2Reader(VideoWant("eye"), node, CameraMode())
    reader.open()
    gone: Callable[[], None] = reader.close

    class Gone:
        def __iter__(self) -> Gone:
            return self

        def __next__(self) -> Any:
            raise OSError(19, "No such device")

    reader._packets = Gone()
    with pytest.raises(SourceError, match="No such device"):
        reader.read()
    gone()


def test_access_is_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist. See which cameras there are: edgemm devices"):
        camera_v4l2._check_access(str(tmp_path / "video9"))
    camera_v4l2._check_access(str(tmp_path))  # a folder: FFmpeg says what is wrong with it


def test_a_camera_that_hangs_is_taken_to_be_gone(
    asked: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A FIFO can be waited for as a camera can.
    monkeypatch.setattr(camera_v4l2, "STALL_S", 0.2)
    node = tmp_path / "video1"
    os.mkfifo(node)
    pipe = os.open(node, os.O_RDWR)
    try:
        reader = V4l2Reader(VideoWant("eye"), str(node), CameraMode())
        reader.open()
        with pytest.raises(SourceError, match="video1 has sent nothing for 0.2 s"):
            reader.read()
        os.write(pipe, b"a picture")
        assert reader.read() is not None
        reader.close()
    finally:
        os.close(pipe)
