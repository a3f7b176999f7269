"""A camera through V4L2's own system calls: PipeWire's pw-v4l2 answers them, GStreamer draws the picture."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("pipewire", "wireplumber", "pw-v4l2", "gst-launch-1.0", "dbus-daemon")
PACKAGES = "pipewire wireplumber pipewire-v4l2 gstreamer1.0-pipewire gstreamer1.0-tools gstreamer1.0-plugins-base dbus"

if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
    why = f"needs {', '.join(missing)}: apt-get install {PACKAGES}"
    if os.environ.get("CI"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)

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
def pipewire(folder: Path, caps: str) -> Iterator[dict[str, str]]:
    """A PipeWire of the test's own with a /dev/video0 of these GStreamer caps; gives the environment to use."""
    folder.chmod(0o700)
    bus = f"unix:path={folder}/bus"
    environment = os.environ | {
        "XDG_RUNTIME_DIR": str(folder),
        "HOME": str(folder),
        "DBUS_SESSION_BUS_ADDRESS": bus,
    }
    with ExitStack() as stack:

        def start(*command: str) -> None:
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)

        start("dbus-daemon", "--session", "--nofork", f"--address={bus}")
        start("pipewire")
        time.sleep(1)
        start("wireplumber")
        time.sleep(2)
        properties = "p,media.class=Video/Source,node.name=cam0,api.v4l2.path=/dev/video0,object.path=v4l2:/dev/video0"
        start(
            *("gst-launch-1.0", "-q", "videotestsrc", "is-live=true", "pattern=ball", "!"),
            *(f"{caps},width=320,height=240,framerate=30/1", "!"),
            *("pipewiresink", "mode=provide", f"stream-properties={properties}"),
        )
        time.sleep(2)
        yield environment


@pytest.mark.slow
@pytest.mark.parametrize(("caps", "asked", "name"), [("YUY2", "yuyv422", "YUYV"), ("NV12", "nv12", "NV12")])
def test_v4l2_in_its_formats(tmp_path: Path, caps: str, asked: str, name: str) -> None:
    with pipewire(tmp_path, f"video/x-raw,format={caps}") as environment:
        done = subprocess.run(
            ["pw-v4l2", sys.executable, "-c", WATCH, "/dev/video0", asked],
            env=environment,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [name, 320, 240] in seen["modes"]
    assert seen["shape"] == [240, 320, 3]
    assert seen["pictures"] > 20, "the ball moves"
    # By the picture's own timestamp, which is the machine's monotonic clock.
    assert 0 <= seen["age_ms"] < 30
