"""Cameras on HTTP (JPEG after JPEG, without timestamps) and on UDP (MPEG-TS), from real servers on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import AudioChunk, End, Event, VideoFrame
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, VideoWant

pytestmark = pytest.mark.real_time

PICTURE = VideoWant("camera", "gray")
RATE = 10


def jpeg(level: int) -> bytes:
    context = av.CodecContext.create("mjpeg", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = 160, 120, "yuvj420p"
    context.time_base = 1  # type: ignore[assignment]
    frame = av.VideoFrame.from_ndarray(np.full((120, 160), level, np.uint8), "gray").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


class Camera(BaseHTTPRequestHandler):
    """Ten pictures a second, each a little brighter; the sixth to ninth are not sent."""

    pictures = tuple(jpeg(level) for level in range(40, 240, 5))
    sent_ns: dict[int, int]

    def do_GET(self) -> None:
        if self.path != "/live":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        self.end_headers()
        begin = time.monotonic()
        for number, picture in enumerate(self.pictures):
            time.sleep(max(0, begin + number / RATE - time.monotonic()))
            if 6 <= number < 10:
                continue
            head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + picture + b"\r\n")
            except OSError:
                return
            self.sent_ns[40 + 5 * number] = time.monotonic_ns()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def http_camera() -> Iterator[tuple[str, dict[int, int]]]:
    sent_ns: dict[int, int] = {}
    handler = type("Handler", (Camera,), {"sent_ns": sent_ns})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", sent_ns
        finally:
            server.shutdown()
            thread.join()


def events_of(source: NetworkSource, seconds: float) -> list[Event]:
    timer = threading.Timer(seconds, source.stop)
    timer.start()
    try:
        return list(source)
    finally:
        timer.cancel()


def test_pictures_over_http_are_as_old_as_their_arrival() -> None:
    with http_camera() as (url, sent_ns), NetworkSource(f"{url}/live", [PICTURE]) as source:
        source.start(WallClock())
        found = []
        for event in source:
            if isinstance(event, End):
                break  # the server has sent them all
            assert isinstance(event, VideoFrame)
            found.append(event)
        report = source.report()
    levels = [int(event.picture.mean()) for event in found]
    # Every fifth level is a picture; the last comes when the connection closes.
    numbers = [round((level - 40) / 5) for level in levels]
    assert len(numbers) >= 25
    assert numbers == sorted(set(numbers))
    # Ten a second, with a hole: not 25 a second, as FFmpeg counts them.
    sent = [sent_ns[40 + 5 * number] for number in numbers]
    late_ns = np.array([event.capture_ns for event in found]) - np.array(sent)
    assert np.ptp(late_ns) < 60e6
    assert found[0].time_base * 10**9 == 1
    assert report.drift_ppm is None
    assert source.streams[0].interval_ns is None


def test_a_page_that_is_not_there_is_one_sentence() -> None:
    with http_camera() as (url, _), pytest.raises(SourceError, match=r"/other cannot be read: .*404"):
        NetworkSource(f"{url}/other", [PICTURE]).__enter__()


SENDER = """
import sys, time
from fractions import Fraction
import av, numpy as np
output = av.open(sys.argv[1], "w", format="mpegts", options={"flush_packets": "1"})
video = output.add_stream("mpeg2video", rate=25)
video.width, video.height, video.pix_fmt, video.gop_size, video.max_b_frames = 160, 120, "yuv420p", 5, 0
audio = output.add_stream("mp2", rate=48000, layout="mono")
begin, count = time.monotonic(), 0
for number in range(25 * 20):
    time.sleep(max(0, begin + number / 25 - time.monotonic()))
    # Every second the picture is bright and the sound is loud for a fifth of it.
    is_on = number % 25 < 5
    frame = av.VideoFrame.from_ndarray(np.full((120, 160), 200 if is_on else 40, np.uint8), "gray")
    frame = frame.reformat(format="yuv420p")
    frame.pts, frame.time_base = number, Fraction(1, 25)
    output.mux(video.encode(frame))
    while count < (number + 1) * 1920:
        time_s = (count + np.arange(1152)) / 48000
        wave = np.where(time_s % 1 < 0.2, np.sin(2 * np.pi * 1000 * time_s), 0) * 20000
        sound = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
        sound.sample_rate, sound.pts, sound.time_base = 48000, count, Fraction(1, 48000)
        output.mux(audio.encode(sound))
        count += 1152
"""


def test_sound_and_pictures_over_udp_stay_together() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sender = subprocess.Popen([sys.executable, "-c", SENDER, f"udp://127.0.0.1:{port}?pkt_size=1316"])
    try:
        with NetworkSource(f"udp://127.0.0.1:{port}", [AudioWant("mic", 16000), PICTURE]) as source:
            source.start(WallClock())
            events = events_of(source, 5)
    finally:
        sender.kill()
        sender.wait()
    pictures = [event for event in events if isinstance(event, VideoFrame)]
    sounds = [event for event in events if isinstance(event, AudioChunk)]
    assert len(pictures) > 80
    bright = [event.capture_ns for event in pictures if event.picture.mean() > 120]
    flashes = [now for before, now in zip([0, *bright], bright, strict=False) if now - before > 500e6][1:]
    loud = [event.capture_ns for event in sounds if np.abs(event.samples).max() > 0.2]
    beeps = [now for before, now in zip([0, *loud], loud, strict=False) if now - before > 500e6]
    assert len(flashes) >= 3
    for flash_ns in flashes:
        # Sound is cut every 10 ms, and the codec's transform rings ahead of a beginning.
        assert min(abs(flash_ns - beep_ns) for beep_ns in beeps) < 25e6
