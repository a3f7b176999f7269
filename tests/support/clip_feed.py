"""Plays a clip as if a microphone and a V4L2 camera were before it.

    python clip_feed.py CLIP FIFO LEAD_S

Sound goes as 16 kHz int16 into the FIFO that PulseAudio's module-pipe-source reads, 2.5 ms at a time, each when its
last sample is over; pictures go through GStreamer to PipeWire, which shows them as /dev/video0, each at its time.
Before the clip come LEAD_S of silence and its first picture, after it more of the same. Prints the machine's monotonic
time (ns) at which the clip begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
from pathlib import Path

import gi
import numpy as np
from rtsp_fixture import RATE_HZ, read_clip

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst, GstApp  # noqa: E402, F401 - after the versions are chosen

BLOCK = RATE_HZ // 400
PIPE_BYTES = 4096
TRAIL_S = 30.0


def main() -> None:
    """See the module's description."""
    clip, fifo, lead_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    pictures, sound, fps = read_clip(clip)
    height, width = pictures[0].shape
    Gst.init(None)
    properties = "p,media.class=Video/Source,node.name=cam0,api.v4l2.path=/dev/video0,object.path=v4l2:/dev/video0"
    # Without the sink's own buffers, which another element would have to fill: V4L2 clients could allocate none.
    pipeline = Gst.parse_launch(
        "appsrc name=feed is-live=true format=time do-timestamp=true max-buffers=2 leaky-type=downstream "
        f"caps=video/x-raw,format=NV12,width={width},height={height},framerate={fps}/1 "
        f"! identity drop-allocation=true ! pipewiresink mode=provide stream-properties={properties}"
    )
    pipeline.set_state(Gst.State.PLAYING)
    feed = pipeline.get_by_name("feed")
    begin_ns = time.monotonic_ns() + round(lead_s * 1e9)
    threading.Thread(target=speak, args=(fifo, sound, begin_ns), daemon=True).start()
    sys.stdout.write(f"{begin_ns}\n")
    sys.stdout.flush()
    chroma = np.full(width * height // 2, 128, np.uint8).tobytes()
    first = -round(lead_s * fps)
    for number in range(first, len(pictures) + round(TRAIL_S * fps)):
        wait_until(begin_ns + number * 10**9 // fps)
        picture = pictures[min(max(number, 0), len(pictures) - 1)]
        feed.emit("push-buffer", Gst.Buffer.new_wrapped(picture.tobytes() + chroma))


def speak(fifo: str, sound: np.ndarray, begin_ns: int) -> None:
    """Write the sound in real time; what nobody reads is dropped, so that nothing is ever late."""
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    first = -((begin_ns - time.monotonic_ns()) * RATE_HZ // 10**9 // BLOCK)
    for number in range(first, (len(sound) + round(TRAIL_S * RATE_HZ)) // BLOCK):
        at = number * BLOCK
        block = sound[at : at + BLOCK] if 0 <= at <= len(sound) - BLOCK else np.zeros(BLOCK, np.int16)
        wait_until(begin_ns + (at + BLOCK) * 10**9 // RATE_HZ)
        with contextlib.suppress(BlockingIOError):
            os.write(pipe, block.tobytes())


def wait_until(time_ns: int) -> None:
    """Return when the machine's monotonic clock is there."""
    while (left_ns := time_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)


if __name__ == "__main__":
    main()
