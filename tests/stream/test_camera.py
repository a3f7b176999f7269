"""Cameras without a camera: the live source on a reader made up here, and what is said of bad ones."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edgemm.errors import MissingExtraError, SourceError, UsageError
from edgemm.stream.capture import Capture
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import End, Event, Lost, StreamInfo, VideoFrame
from edgemm.stream.sources import camera_gstreamer, camera_v4l2, network
from edgemm.stream.sources.camera import CameraMode, CameraSource, Shot, open_camera
from edgemm.stream.sources.protocol import LiveSource, VideoWant
from edgemm.stream.sources.v4l2 import cameras

pytestmark = pytest.mark.real_time

WANT = VideoWant("camera", "gray")
MS = 10**6
PICTURE = np.zeros((2, 2), np.uint8)
MILLISECONDS = Fraction(1, 1000)
FEED = Path(__file__).parents[1] / "support" / "camera_feed.py"
CLIP = Path(__file__).parents[2] / "calibration" / "av_digits" / "clip.mkv"


class Scripted:
    """A reader whose every `open` takes the next of the scripts, each a function that gives shots."""

    name = identity = "the test's camera"

    def __init__(self, *scripts: Callable[[], Iterator[Shot]] | SourceError) -> None:
        self.scripts = list(scripts)
        self.closed = 0

    def open(self) -> StreamInfo:
        script = self.scripts.pop(0)
        if isinstance(script, SourceError):
            raise script
        self.shots = script()
        return StreamInfo("camera", "video", 10 * MS, 2, 2)

    def read(self) -> Shot | None:
        return next(self.shots, None)

    def close(self) -> None:
        self.closed += 1


def paced(count: int, *, first_pts: int = 0, delay_ms: float = 1.0, corrupt: int = -1) -> Callable[[], Iterator[Shot]]:
    """Shots 10 ms apart by a clock of their own, that arrive `delay_ms` late."""

    def shots() -> Iterator[Shot]:
        begin_ns = time.monotonic_ns()
        for number in range(count):
            due_ns = begin_ns + number * 10 * MS + round(delay_ms * MS)
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            picture = None if number == corrupt else PICTURE
            yield Shot(picture, first_pts + number * 10, MILLISECONDS, time.monotonic_ns())

    return shots


def collect(source: CameraSource, until: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    with source:
        clock = WallClock()
        source.start(clock)
        for event in source:
            assert event.end_ns <= clock.now_ns()
            events.append(event)
            if until(events):
                source.stop()
    return events


def test_pictures_keep_their_order_and_their_spacing() -> None:
    reader = Scripted(paced(100, first_pts=10**9, corrupt=80))
    source = CameraSource(WANT, reader)
    assert isinstance(source, LiveSource)
    events = collect(source, lambda events: isinstance(events[-1], End))
    frames = [event for event in events if isinstance(event, VideoFrame)]
    assert [event.cause for event in events if isinstance(event, Lost)] == ["corrupt"]
    assert 60 <= len(frames) <= 72, "the first 300 ms are thrown away"
    times = np.diff([frame.capture_ns for frame in frames])
    steps = np.diff([frame.pts for frame in frames])
    assert (times > 0).all()
    assert np.median(np.abs(times / MS - steps)) < 1.0
    assert not any(frame.discontinuity for frame in frames)
    assert reader.closed == 1
    assert source.report().reconnects == 0


def test_a_camera_that_goes_away_is_taken_up_again(caplog: pytest.LogCaptureFixture) -> None:
    reader = Scripted(paced(60), SourceError("not yet"), paced(10**6))
    source = CameraSource(WANT, reader)
    with caplog.at_level(logging.WARNING):
        events = collect(source, lambda events: isinstance(events[-1], VideoFrame) and events[-1].discontinuity)
    kinds = [type(event).__name__ for event in events]
    assert kinds[0] == "VideoFrame"
    assert kinds.count("End") == 1
    assert kinds[-2:] == ["End", "VideoFrame"]
    assert events[-1].end_ns - events[-2].end_ns < 2_000 * MS
    assert source.report().reconnects == 1
    assert "the test's camera has ended: trying to open it again." in caplog.text
    assert reader.closed == 2


def test_timestamps_that_jump_begin_a_new_segment() -> None:
    def shots() -> Iterator[Shot]:
        yield from paced(50)()
        yield from paced(10, first_pts=5)()

    events = collect(CameraSource(WANT, Scripted(shots)), lambda events: isinstance(events[-1], End))
    flags = [event.discontinuity for event in events if isinstance(event, VideoFrame)]
    assert flags.count(True) == 1
    assert flags[-10]


def test_times_of_capture_are_believed_and_missing_ones_are_arrivals() -> None:
    def shots() -> Iterator[Shot]:
        time.sleep(0.35)
        for _ in range(20):
            time.sleep(0.005)
            captured_ns = time.monotonic_ns() - 3 * MS
            yield Shot(PICTURE, captured_ns, Fraction(1, 10**9), captured_ns, exact=True)
            yield Shot(PICTURE, None, MILLISECONDS, time.monotonic_ns())

    source = CameraSource(WANT, Scripted(shots))
    arrivals: list[int] = []
    with source:
        clock = WallClock()
        source.start(clock)
        for event in source:
            arrivals.append(clock.now_ns() - event.end_ns)
            if isinstance(event, End):
                source.stop()
    exact, arrived = arrivals[0:40:2], arrivals[1:40:2]
    assert 3 * MS <= np.median(exact) < 20 * MS
    assert np.median(arrived) < 3 * MS


def test_leaving_a_camera_that_is_being_read_waits_for_its_thread() -> None:
    reader = Scripted(paced(10**6))
    with CameraSource(WANT, reader) as source, Capture([source], WallClock(), {"camera": 9}) as capture:
        time.sleep(0.5)
        assert capture.queue.take(1.0)
    assert reader.closed == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("capture-")]
    with pytest.raises(SourceError, match="is not open: use the source in a with statement"):
        next(iter(CameraSource(WANT, reader)))


def test_who_reads_which_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device, name in (
        (3, "/dev/video3"),
        ("7", "/dev/video7"),
        ("/dev/v4l/by-id/x", "/dev/v4l/by-id/x"),
        ("rtsp://host/live", "rtsp://host/live"),
        ("gst:videotestsrc", "gst:videotestsrc"),
    ):
        assert open_camera(device, WANT).name == name
    csi = open_camera("csi:1", WANT, CameraMode(1280, 720, 30.0)).name
    assert "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM), width=1280, height=720, framerate=30/1 !" in csi
    with pytest.raises(UsageError, match='"csi:x" names no camera'):
        open_camera("csi:x", WANT)


@pytest.mark.skipif(bool(list(Path("/dev").glob("video*"))), reason="this machine has a camera; it needs one without")
def test_no_camera() -> None:
    assert cameras() == []
    with pytest.raises(SourceError, match="No camera was found: there is no /dev/video"):
        open_camera(None, WANT)


def said(device: str, mode: CameraMode | None = None) -> str:
    with pytest.raises(SourceError) as caught, open_camera(device, WANT, mode):
        pass
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def refuse(path: object, flags: int) -> int:
    raise PermissionError(13, "Permission denied", path)


def test_bad_cameras_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 0.5)
    assert "/dev/video99 does not exist" in said("99")
    assert "is no camera, or does not deliver what was asked (video_size 64x48" in said("/dev/null", CameraMode(64, 48))
    locked = tmp_path / "video0"
    locked.touch()
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root may do everything
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            assert "permission denied. Add yourself to its group" in said(str(locked))
    else:
        assert "permission denied. Add yourself to its group" in said(str(locked))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        for scheme in ("tcp", "http", "rtsp"):
            begin = time.monotonic()
            assert "did not answer within 0.5 s" in said(f"{scheme}://127.0.0.1:{port}/x")
            assert time.monotonic() - begin < 5
    assert "refused the connection" in said(f"rtsp://127.0.0.1:{port}/x")
    assert "cannot be read: Protocol not found" in said("nonsense://x")


def test_busy_is_said() -> None:
    reader = camera_v4l2.V4l2Reader(WANT, "/dev/video0", CameraMode())
    assert reader._refused(OSError(16, "Device or resource busy")).startswith("/dev/video0 is in use by another")


def test_devices_that_are_no_cameras_are_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    (tmp_path / "video10").symlink_to("nowhere")
    (tmp_path / "video-none").touch()
    found = cameras(tmp_path)
    assert [(Path(info.path).name, info.problem is not None) for info in found] == [("video0", True), ("video10", True)]


def test_gstreamer_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"edgemm\[gstreamer\]\""):
        camera_gstreamer.GStreamerReader(WANT, "videotestsrc").open()


def test_pictures_over_the_network_arrive_with_their_times() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    feed = subprocess.Popen(
        [sys.executable, str(FEED), str(CLIP), str(port), "1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        source = open_camera(f"tcp://127.0.0.1:{port}", WANT)
        for _ in range(100):
            try:
                source.__enter__()
                break
            except SourceError:
                time.sleep(0.1)
        clock = WallClock()
        source.start(clock)
        session_ns = time.monotonic_ns() - clock.now_ns()
        assert feed.stderr is not None
        begin_ns = int(feed.stderr.readline()) - session_ns
        frames: list[VideoFrame] = []
        for event in source:
            if isinstance(event, End):
                break
            assert isinstance(event, VideoFrame)
            frames.append(event)
        source.stop()
        source.__exit__(None, None, None)
    finally:
        feed.kill()
        feed.wait()
    assert frames[-1].picture.shape == (240, 320)
    assert frames[-1].picture.any()
    # Sent at begin + (pts - 3 s): what is on top is the transport.
    delays = [(f.capture_ns - begin_ns) / MS - (float(f.pts * f.time_base) - 3.0) * 1e3 for f in frames[-25:]]
    assert -1 < np.median(delays) < 40
