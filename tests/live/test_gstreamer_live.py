"""A GStreamer pipeline as a camera, through the real appsink."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
from require import require

from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import End, VideoFrame
from edgemm.stream.sources import camera_gstreamer
from edgemm.stream.sources.camera import open_camera
from edgemm.stream.sources.protocol import VideoWant

require("gi", "gstreamer")

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize(("color", "shape"), [("rgb", (60, 81, 3)), ("bgr", (60, 81, 3)), ("gray", (60, 81))])
def test_a_pipeline_gives_pictures_with_their_age(color: str, shape: tuple[int, ...]) -> None:
    # White: a wrong stride would slant the black padding into the picture.
    pipeline = "videotestsrc is-live=true pattern=white ! video/x-raw,format=I420,width=81,height=60,framerate=30/1"
    frames: list[VideoFrame] = []
    ages_ms = []
    with open_camera(f"gst:{pipeline}", VideoWant("eye", color)) as source:  # type: ignore[arg-type]
        assert source.streams[0].interval_ns == 33333333
        clock = WallClock()
        source.start(clock)
        for event in source:
            assert isinstance(event, VideoFrame)
            frames.append(event)
            ages_ms.append((clock.now_ns() - event.capture_ns) / 1e6)
            if len(frames) == 20:
                source.stop()
    assert {frame.picture.shape for frame in frames} == {shape}
    assert min(int(frame.picture.min()) for frame in frames) >= 250
    assert 0 <= sorted(ages_ms)[10] < 30
    assert {round((b.pts - a.pts) / 1e6) for a, b in pairwise(frames)} <= {33, 34, 66, 67, 100}


def test_bad_pipelines_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_gstreamer, "ANSWER_S", 0.5)
    for pipeline, said in (
        ("nosuchelement", "cannot build the pipeline"),
        ("nvarguscamerasrc sensor-id=0 ! nvvidconv", "cannot build the pipeline: .*no element .nvarguscamerasrc."),
        ("videotestsrc num-buffers=0", "no picture came within 0.5 s"),
        ("filesrc location=/nowhere ! decodebin", "The pipeline gives nothing: Resource not found"),
    ):
        with pytest.raises(SourceError, match=said), open_camera(f"gst:{pipeline}", VideoWant("eye")):
            pass


def test_a_camera_on_csi_is_a_pipeline_that_only_a_jetson_has() -> None:
    with pytest.raises(SourceError, match="cannot build the pipeline: .*no element .nvarguscamerasrc.* Try it first"):
        open_camera("csi:0", VideoWant("eye")).__enter__()


def test_a_pipeline_that_ends_comes_back_and_one_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(camera_gstreamer, "STALL_S", 0.5)
    caps = "video/x-raw,width=64,height=48,framerate=30/1"
    stalls = f"videotestsrc is-live=true num-buffers=30 ! {caps} ! valve name=v drop=false"
    for pipeline, said in (
        (f"videotestsrc is-live=true num-buffers=30 ! {caps}", "has ended: trying to open it again"),
        (f"videotestsrc is-live=true ! {caps} ! identity error-after=25", "Failed after iterations as requested"),
        (f"{stalls} ! identity eos-after=20 ! queue", "has ended"),
    ):
        caplog.clear()
        ends = 0
        with open_camera(f"gst:{pipeline}", VideoWant("eye")) as source:
            source.start(WallClock())
            for event in source:
                ends += isinstance(event, End)
                if ends and isinstance(event, VideoFrame):
                    assert event.discontinuity
                    source.stop()
        assert said in caplog.text


def test_a_pipeline_that_falls_silent_is_taken_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_gstreamer, "STALL_S", 0.3)
    reader = camera_gstreamer.GStreamerReader(VideoWant("eye"), "videotestsrc is-live=true ! valve name=v ! identity")
    reader.open()
    assert reader.read() is not None
    reader._pipeline.get_by_name("v").set_property("drop", True)
    with pytest.raises(SourceError, match="no picture for 0.3 s"):
        list(iter(reader.read, None))
    reader.close()
    reader.close()


def test_pictures_without_a_time_have_that_of_their_arrival() -> None:
    reader = camera_gstreamer.GStreamerReader(
        VideoWant("eye", "gray"), "appsrc name=feed caps=video/x-raw,format=GRAY8,width=4,height=2,framerate=0/1"
    )

    from gi.repository import Gst

    def feed() -> None:
        while reader._pipeline is None:
            time.sleep(0.01)
        source = reader._pipeline.get_by_name("feed")
        for _ in range(2):
            source.emit("push-buffer", Gst.Buffer.new_wrapped(bytes(range(8))))

    feeder = threading.Thread(target=feed)
    feeder.start()
    info = reader.open()
    shot = reader.read()
    feeder.join()
    reader.close()
    assert info.interval_ns is None
    assert shot is not None
    assert shot.pts is None
    assert not shot.exact
    assert shot.picture is not None
    assert shot.picture.shape == (2, 4)
