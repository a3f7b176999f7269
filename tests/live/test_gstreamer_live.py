"""A GStreamer pipeline as a camera, through the real appsink."""

from __future__ import annotations

from itertools import pairwise

import pytest
from require import require

from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import VideoFrame
from edgemm.stream.sources import camera_gstreamer
from edgemm.stream.sources.camera import open_camera
from edgemm.stream.sources.protocol import VideoWant

require("gi", "gstreamer")


@pytest.mark.parametrize(("color", "shape"), [("rgb", (60, 81, 3)), ("gray", (60, 81))])
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
        ("videotestsrc num-buffers=0", "no picture came within 0.5 s"),
        ("filesrc location=/nowhere ! decodebin", "The pipeline gives nothing: Resource not found"),
    ):
        with pytest.raises(SourceError, match=said), open_camera(f"gst:{pipeline}", VideoWant("eye")):
            pass
