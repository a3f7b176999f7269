"""A URL as a source of sound and pictures: damage, gaps, jumps, silence, returns; over TCP from a sender made here."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from multiprocessing.context import ForkProcess

import av
import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import AudioChunk, End, Event, Lost, VideoFrame
from edgemm.stream.sources import network
from edgemm.stream.sources.network import NetworkSource, without_password
from edgemm.stream.sources.protocol import AudioWant, VideoWant

pytestmark = pytest.mark.real_time

SOUND, PICTURE = AudioWant("mic", 16000), VideoWant("camera", "gray")
FORK = multiprocessing.get_context("fork")
GARBAGE = bytes(np.random.default_rng(9).integers(0, 256, 900, dtype=np.uint8))
Change = Callable[[int, str, bytes, int], list[tuple[bytes, int]]]
"""Number of a packet of its kind ("video", "audio"), its bytes and pts (ms): what is sent instead of it."""


class Sender:
    """Sends 25 pictures and 50 blocks of sound a second as NUT to whoever connects, in real time."""

    def __init__(
        self, seconds: float, *, codec: str = "mjpeg", change: Change | None = None, rate_hz: int = 16000
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{port}"
        self._seconds, self._codec, self._change, self._rate_hz = seconds, codec, change, rate_hz
        self._process: ForkProcess | None = None

    def start(self) -> None:
        """Wait for a viewer, in a process: while it waits, FFmpeg's muxer holds the interpreter."""
        self.kill()
        self._process = FORK.Process(target=self._send, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """End it, wherever it is."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _send(self) -> None:
        # A viewer that leaves ends the sending.
        try:
            self._play()
        except (av.FFmpegError, OSError):
            return

    def _play(self) -> None:
        # Where one stream pauses the muxer does not hold back the other for long.
        options = {"flush_packets": "1", "max_interleave_delta": "50000"}
        output = av.open(f"{self.url}?listen=1", "w", format="nut", options=options)
        video = output.add_stream(self._codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p" if self._codec == "mjpeg" else "yuv420p"
        if self._codec != "mjpeg":
            video.options = {"tune": "zerolatency", "preset": "ultrafast", "x264-params": "sliced-threads=0:keyint=10"}
        audio = output.add_stream("pcm_s16le", rate=self._rate_hz, layout="stereo")
        output.start_encoding()
        begin = time.monotonic()
        count = self._rate_hz // 50
        for number in range(round(self._seconds * 50)):
            time.sleep(max(0, begin + number / 50 - time.monotonic()))
            samples = 9000 * np.sin(2 * np.pi * 440 * (number * count + np.arange(count)) / self._rate_hz)
            block = np.repeat(samples.astype("<i2"), 2).tobytes()
            self._mux(output, audio, "audio", number, block, number * 20)
            if number % 2:
                continue
            picture = np.full((48, 64), (number * 2) % 200, np.uint8)
            shown = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format=video.pix_fmt)
            shown.pts, shown.time_base = number // 2, Fraction(1, 25)
            for packet in video.encode(shown):
                self._mux(output, video, "video", number // 2, bytes(packet), number * 20)
        output.close()

    def _mux(self, output: object, stream: object, kind: str, number: int, data: bytes, pts: int) -> None:
        for sent, at in self._change(number, kind, data, pts) if self._change else [(data, pts)]:
            packet = av.Packet(sent)
            packet.stream = stream
            packet.pts = packet.dts = at
            packet.time_base = Fraction(1, 1000)
            output.mux(packet)  # type: ignore[attr-defined]


@contextmanager
def opened(sender: Sender, *wants: AudioWant | VideoWant) -> Iterator[NetworkSource]:
    """A source on the sender, entered; it may take a moment to listen."""
    sender.start()
    source = NetworkSource(sender.url, wants)
    for attempt in range(200):
        try:
            source.__enter__()
            break
        except SourceError:
            if attempt == 199:
                raise
            time.sleep(0.02)
    try:
        source.start(WallClock())
        yield source
    finally:
        source.__exit__(None, None, None)
        sender.kill()


def until_end(source: NetworkSource, ends: int = 1) -> list[Event]:
    events: list[Event] = []
    timer = threading.Timer(15, source.stop)
    timer.start()
    for event in source:
        events.append(event)
        if sum(isinstance(event, End) for event in events) == ends:
            source.stop()
    timer.cancel()
    return events


def of(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_garbage_among_pictures_is_counted_and_survived() -> None:
    def change(number: int, kind: str, data: bytes, pts: int) -> list[tuple[bytes, int]]:
        return [(GARBAGE if kind == "video" and number % 7 == 3 and number > 20 else data, pts)]

    with opened(Sender(3.0, change=change), SOUND, PICTURE) as source:
        events = until_end(source, 2)
    lost = of(events, Lost)
    assert {(loss.stream, loss.cause) for loss in lost} == {("camera", "corrupt")}
    assert len(lost) == len([number for number in range(21, 75) if number % 7 == 3])
    pictures = of(events, VideoFrame)
    assert 40 <= len(pictures) <= 67
    assert not any(picture.discontinuity for picture in pictures)
    sound = np.concatenate([chunk.samples for chunk in of(events, AudioChunk)])
    assert len(sound) > 2 * 16000
    assert np.abs(sound).max() == pytest.approx(9000 / 32768, abs=0.001), "sound goes on as it was"
    assert [event.stream for event in of(events, End)] == ["mic", "camera"]


def test_garbage_among_h264_is_counted_and_pictures_come_back() -> None:
    def change(number: int, kind: str, data: bytes, pts: int) -> list[tuple[bytes, int]]:
        return [(data[:20] + GARBAGE if kind == "video" and 24 < number < 29 else data, pts)]

    with opened(Sender(3.0, codec="libx264", change=change), PICTURE) as source:
        events = until_end(source)
    pictures = of(events, VideoFrame)
    assert len(of(events, Lost)) >= 1
    assert {loss.cause for loss in of(events, Lost)} == {"corrupt"}
    assert len([picture for picture in pictures if picture.pts * picture.time_base > 1.3]) >= 35


def test_sound_that_the_network_lost_is_counted() -> None:
    def change(number: int, kind: str, data: bytes, pts: int) -> list[tuple[bytes, int]]:
        return [] if kind == "audio" and 50 <= number < 55 else [(data, pts)]

    with opened(Sender(2.0, change=change), SOUND) as source:
        events = until_end(source)
    assert [(loss.cause, loss.count) for loss in of(events, Lost)] == [("network", 10)]
    chunks = of(events, AudioChunk)
    assert sum(chunk.discontinuity for chunk in chunks) == 1
    [broken] = [number for number, chunk in enumerate(chunks) if chunk.discontinuity]
    gap_ms = (chunks[broken].capture_ns - chunks[broken - 1].end_ns) / 1e6
    assert gap_ms == pytest.approx(100, abs=3)


def test_a_clock_that_jumps_begins_a_segment_of_both() -> None:
    def change(number: int, kind: str, data: bytes, pts: int) -> list[tuple[bytes, int]]:
        return [(data, pts + (100_000 if pts >= 1000 else 0))]

    with opened(Sender(2.0, change=change), SOUND, PICTURE) as source:
        events = until_end(source, 2)
    for kind in (AudioChunk, VideoFrame):
        frames = of(events, kind)
        assert sum(frame.discontinuity for frame in frames) == 1
        steps_ms = np.diff([frame.capture_ns for frame in frames]) / 1e6
        assert steps_ms.max() < 150, "by the session's clock nothing jumped"


def test_rates_and_channels_are_converted() -> None:
    with opened(Sender(1.5, rate_hz=44100), SOUND) as source:
        chunks = of(until_end(source), AudioChunk)
    sound = np.concatenate([chunk.samples for chunk in chunks])[2000:10000]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert np.argmax(spectrum) * 16000 / len(sound) == pytest.approx(440, abs=4)
    assert {chunk.rate_hz for chunk in chunks} == {16000}
    assert source.level is not None
    assert source.level.peak_dbfs == pytest.approx(20 * np.log10(9000 / 32768), abs=0.2)


def test_a_stream_that_falls_silent_ends_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network, "STALL_S", 0.5)

    def change(number: int, kind: str, data: bytes, pts: int) -> list[tuple[bytes, int]]:
        return [] if kind == "video" and 25 <= number < 50 else [(data, pts)]

    with caplog.at_level(logging.WARNING), opened(Sender(3.0, change=change), SOUND, PICTURE) as source:
        events = until_end(source, 3)
    ends = of(events, End)
    assert [end.stream for end in ends] == ["camera", "mic", "camera"]
    assert "has sent nothing for 0.5 s as camera" in caplog.text
    pictures = of(events, VideoFrame)
    assert [picture.discontinuity for picture in pictures if picture.capture_ns > ends[0].end_ns][:2] == [True, False]
    sound = of(events, AudioChunk)
    assert not any(chunk.discontinuity for chunk in sound)


def test_a_sender_that_returns_is_taken_up_again() -> None:
    sender = Sender(1.0)
    with opened(sender, SOUND, PICTURE) as source:
        clock = WallClock()
        source.start(clock)
        events: list[Event] = []
        back_ns = before = 0
        for event in source:
            events.append(event)
            if isinstance(event, End) and event.stream == "camera" and not back_ns:
                sender.start()
                back_ns, before = clock.now_ns(), len(events)
            # By their order, not their times: the sender's last sound, sent as it begins, ends some ms in the future.
            returned = [e for e in events[before:] if back_ns and not isinstance(e, End | Lost)]
            if {event.stream for event in returned} == {"mic", "camera"}:
                source.stop()
        assert source.report().reconnects == 1
    assert returned[0].end_ns - back_ns < 2e9
    for kind in (AudioChunk, VideoFrame):
        assert of(returned, kind)[0].discontinuity, [(type(e), e.end_ns, back_ns) for e in returned]


def test_what_is_not_there_is_one_sentence() -> None:
    sender = Sender(0.5)
    with opened(sender, PICTURE) as source:
        source.stop()
        assert list(source) == []
    with pytest.raises(SourceError, match="is not open: use the source in a with statement"):
        next(iter(NetworkSource(sender.url, [PICTURE])))
    with pytest.raises(SourceError, match=r"refused the connection. Check the address") as caught:
        NetworkSource(sender.url, [PICTURE]).__enter__()
    assert "\n" not in str(caught.value)


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://admin:p%40ss@cam:554/x?y=1") == "rtsp://cam:554/x?y=1"
    assert without_password("udp://@239.0.0.1:1234") == "udp://239.0.0.1:1234"
    with pytest.raises(SourceError) as caught:
        NetworkSource("rtsp://admin:secret@127.0.0.1:1/x", [PICTURE]).__enter__()
    assert "secret" not in str(caught.value)
