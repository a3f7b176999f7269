"""An RTSP server of a test's own, and the files that it serves."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from require import required

from edgemm.stream.flash_beep import FPS, chirp, schedule

SERVER = Path(__file__).parent / "rtsp_server.py"
RATE_HZ = 16000
PACKAGES = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good libgirepository1.0-dev libcairo2-dev pkg-config"


def require_rtsp() -> None:
    """Skip the module where there is no gst-rtsp-server, and say what would unskip it; fail in CI."""
    try:
        import gi

        gi.require_version("GstRtspServer", "1.0")
    except (ImportError, ValueError) as error:
        reason = f'needs gst-rtsp-server ({error}): apt-get install {PACKAGES} && pip install "edgemm[gstreamer]"'
        if required("gstreamer"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """A server process; `url` is what it serves."""

    def __init__(self, file: Path | str) -> None:
        self._file = file
        self._port = free_port()
        self.url = f"rtsp://127.0.0.1:{self._port}/live"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self._port), str(self._file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def begin_ns(self) -> int:
        """When, by the machine's monotonic clock, the file began for the next client; waits for one."""
        assert self._process is not None
        assert self._process.stdout is not None
        word, value = self._process.stdout.readline().split()
        assert word == "begin"
        return int(value)

    def kill(self) -> None:
        """End it the hard way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextmanager
def rtsp_server(file: Path | str) -> Iterator[RtspServer]:
    """A server that runs."""
    server = RtspServer(file)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def write_clip(
    path: Path, pictures: Iterable[npt.NDArray[np.uint8]], sound: npt.NDArray[np.int16], fps: int = 25
) -> None:
    """A file as the server serves it: gray pictures `[h, w]` as MJPEG, or as H.264 if the name ends in `h264.mkv`."""
    jpeg = not path.name.endswith("h264.mkv")
    with av.open(str(path), "w") as container:
        # The tables that RTP's JPEG payload takes for granted.
        jpeg_options = {"huffman": "default"}
        # Before every slice of a key picture the server repeats the parameter sets: one slice a picture, then.
        h264_options = {"tune": "zerolatency", "preset": "ultrafast", "crf": "12", "x264-params": "sliced-threads=0"}
        video = container.add_stream("mjpeg" if jpeg else "libx264", rate=fps)
        video.options = jpeg_options if jpeg else h264_options
        audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for number, picture in enumerate(pictures):
            if not number:
                video.height, video.width = picture.shape
                video.pix_fmt = "yuvj420p" if jpeg else "yuv420p"
                video.gop_size = fps
                if jpeg:
                    video.codec_context.qmin = video.codec_context.qmax = 2
            shown = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format=video.pix_fmt)
            shown.pts, shown.time_base = number, Fraction(1, fps)
            container.mux(video.encode(shown))
            first, last = number * RATE_HZ // fps, (number + 1) * RATE_HZ // fps
            heard = av.AudioFrame.from_ndarray(sound[None, first:last], format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, first, Fraction(1, RATE_HZ)
            container.mux(audio.encode(heard))
        container.mux(video.encode())
        container.mux(audio.encode())


def read_clip(
    path: Path, seconds: float = float("inf")
) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int16], int]:
    """The gray pictures, the sound (16 kHz) and the pictures per second of the first `seconds` of a file."""
    pictures: list[npt.NDArray[np.uint8]] = []
    parts: list[npt.NDArray[np.int16]] = []
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(str(path)) as container:
        fps = round(container.streams.video[0].average_rate)
        for frame in container.decode(container.streams.video[0], container.streams.audio[0]):
            if frame.time is not None and frame.time >= seconds:
                break
            if isinstance(frame, av.VideoFrame):
                pictures.append(frame.reformat(format="gray").to_ndarray())
            else:
                parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    count = len(pictures) * RATE_HZ // fps
    sound = np.concatenate(parts)[:count]
    return pictures, np.pad(sound, (0, count - len(sound))), fps


def wait_for(condition: object, seconds: float) -> bool:
    """True as soon as the callable `condition` is."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def write_flashes(path: Path, offset_ms: float, seconds: float, lead_s: float = 0.0) -> None:
    """A flash-and-beep clip of 25 pictures a second whose beeps come `offset_ms` after the flashes, as the server
    serves it; before it `lead_s` of darkness and silence."""
    wave = (chirp(RATE_HZ) * 20000).astype(np.int16)
    sound = np.zeros(round((seconds + lead_s) * RATE_HZ), np.int16)
    lit: set[int] = set()
    for at in schedule(seconds):
        first = round((at / FPS + lead_s) * 25)
        lit |= {first, first + 1, first + 2}
        begin = round((first / 25 + offset_ms / 1e3) * RATE_HZ)
        sound[begin : begin + len(wave)] = wave
    count = round((seconds + lead_s) * 25)
    write_clip(path, (np.full((120, 160), 200 if n in lit else 20, np.uint8) for n in range(count)), sound)
