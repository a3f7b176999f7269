"""A camera through V4L2's own system calls: PipeWire's pw-v4l2 answers them, GStreamer draws the picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from demo_decisions import DEMO, assert_same, build, file_decisions
from live_rig import live_rig, pipewire, require_rig, require_v4l2

require_v4l2()

pytestmark = pytest.mark.real_time

WATCH = """
import json, sys
from pathlib import Path
from edgemm.stream.clock import WallClock
from edgemm.stream.sources import v4l2
from edgemm.stream.sources.camera import CameraMode, open_camera
from edgemm.stream.sources.protocol import VideoWant

node, pixel_format = sys.argv[1:]
info = v4l2._ask(Path(node))
ages, pictures = [], set()
with open_camera(node, VideoWant("camera", "rgb"), CameraMode(320, 240, 30.0, pixel_format)) as source:
    clock = WallClock()
    source.start(clock)
    for event in source:
        ages.append((clock.now_ns() - event.capture_ns) / 1e6)
        pictures.add(event.picture.tobytes())
        shape = event.picture.shape
        if len(ages) == 40:
            source.stop()
print(json.dumps({"modes": [[m.pixel_format, m.width, m.height] for m in info.modes], "shape": shape,
                  "age_ms": sorted(ages)[20], "pictures": len(pictures)}))
"""


@contextmanager
def ball(folder: Path, caps: str) -> Iterator[dict[str, str]]:
    """A /dev/video0 of these GStreamer caps, on which a ball moves; gives the environment in which it is found."""
    properties = "p,media.class=Video/Source,node.name=cam0,api.v4l2.path=/dev/video0,object.path=v4l2:/dev/video0"
    with pipewire(folder) as environment:
        source = subprocess.Popen(
            [
                *("gst-launch-1.0", "-q", "videotestsrc", "is-live=true", "pattern=ball", "!"),
                *(f"{caps},width=320,height=240,framerate=30/1", "!"),
                *("pipewiresink", "mode=provide", f"stream-properties={properties}"),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(2)
            yield environment
        finally:
            source.kill()
            source.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("caps", "asked", "name"), [("YUY2", "yuyv422", "YUYV"), ("NV12", "nv12", "NV12")])
def test_v4l2_in_its_formats(tmp_path: Path, caps: str, asked: str, name: str) -> None:
    with ball(tmp_path, f"video/x-raw,format={caps}") as environment:
        done, refused = (
            subprocess.run(
                ["pw-v4l2", sys.executable, "-c", WATCH, "/dev/video0", wanted],
                env=environment,
                capture_output=True,
                text=True,
                timeout=40,
                check=False,
            )
            for wanted in (asked, "mjpeg")
        )
    assert "SourceError: /dev/video0" in refused.stderr, "it has no MJPEG"
    assert "does not deliver what was asked (video_size 320x240" in refused.stderr
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [name, 320, 240] in seen["modes"]
    assert seen["shape"] == [240, 320, 3]
    assert seen["pictures"] > 20, "the ball moves"
    # By the picture's own timestamp, which is the machine's monotonic clock.
    assert 0 <= seen["age_ms"] < 30


SECONDS, LEAD_S = 11.2, 9.0

RUN = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import edgemm
from demo_decisions import made
from edgemm.stream.sources.microphone import MicrophoneSource

begun = {}

def start(source, clock):
    begun["ns"] = time.monotonic_ns() - clock.now_ns()
    started(source, clock)

started = MicrophoneSource.start
MicrophoneSource.start = start
live = edgemm.run(sys.argv[2], mic=True, camera="/dev/video0", duration_s=float(sys.argv[3]))
live.check()
print(json.dumps({"session_ns": begun["ns"], "clocks": sorted(live.clocks), "made": made(live.results)}))
"""


@pytest.mark.slow
def test_the_demo_decides_on_a_microphone_and_a_v4l2_camera_as_on_the_file(tmp_path: Path) -> None:
    require_rig()
    bundle = build(tmp_path / "demo.edgemm")
    with live_rig(DEMO / "clip.mkv", LEAD_S) as rig:
        seconds = str(SECONDS + LEAD_S)
        support = str(Path(__file__).parents[1] / "support")
        done = rig.run(sys.executable, "-c", RUN, support, str(bundle), seconds)
    assert done.returncode == 0, done.stderr
    live = json.loads(done.stdout)
    assert live["clocks"] == ["camera", "mic"]
    results = [(time_ns, digit, match) for time_ns, digit, match in live["made"]]
    assert_same(results, rig.begin_ns - live["session_ns"], SECONDS, file_decisions(bundle, SECONDS))
