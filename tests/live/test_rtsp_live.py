"""Sound and pictures from a real RTSP server: what is decided, when they were captured, and a server that goes away."""

from __future__ import annotations

import logging
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from demo_decisions import DEMO, assert_same, build, file_decisions, made
from rtsp_fixture import RATE_HZ, read_clip, require_rtsp, rtsp_server, wait_for, write_clip

import edgemm
from edgemm.errors import SourceError
from edgemm.stream.clock import Clock, WallClock
from edgemm.stream.drift import ClockReport
from edgemm.stream.frames import AudioChunk, End, Event, Lost, VideoFrame
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, LiveSource, VideoWant

require_rtsp()

pytestmark = pytest.mark.real_time

SOUND, PICTURE = AudioWant("mic", RATE_HZ), VideoWant("camera", "gray")
SECONDS = 11.2
LEAD_S = 3.0
"""Before the demo's clip begins: a source that is opened throws its first pictures away."""


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["mjpeg", "h264"])
def test_the_demo_decides_over_rtsp_as_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    bundle = build(tmp_path / "demo.edgemm")
    pictures, sound, _ = read_clip(DEMO / "clip.mkv", SECONDS + 0.4)
    lead = [pictures[0]] * round(LEAD_S * 25)
    silence = np.zeros(round(LEAD_S * RATE_HZ), np.int16)
    write_clip(tmp_path / f"clip.{codec}.mkv", [*lead, *pictures], np.concatenate((silence, sound)))
    session_ns = 0

    def start(source: NetworkSource, clock: Clock) -> None:
        nonlocal session_ns
        session_ns = time.monotonic_ns() - clock.now_ns()
        started(source, clock)

    started = NetworkSource.start
    monkeypatch.setattr(NetworkSource, "start", start)
    with rtsp_server(tmp_path / f"clip.{codec}.mkv") as server:
        live = edgemm.run(bundle, mic=server.url, camera=server.url, duration_s=SECONDS + LEAD_S)
        begin_ns = server.begin_ns() + round(LEAD_S * 1e9) - session_ns
    live.check()
    assert live.clock == "wall"
    assert set(live.clocks) == {"mic", "camera"}, "one connection, and a clock for each of its streams"
    for account in live.streams.values():
        assert set(account.dropped) <= {"ended", "not_needed"}
    assert_same(made(live.results), begin_ns, SECONDS, file_decisions(bundle, SECONDS))


def beats(seconds: int) -> tuple[list[np.ndarray], np.ndarray]:
    """A white picture for a fifth of each second, and a tone of full strength as long."""
    time_s = np.arange(seconds * RATE_HZ) / RATE_HZ
    sound = np.where(time_s % 1 < 0.2, 20000 * np.sin(2 * np.pi * 1000 * time_s + 0.5), 0).astype(np.int16)
    pictures = [np.full((120, 160), 255 if number % 25 < 5 else 0, np.uint8) for number in range(seconds * 25)]
    return pictures, sound


def onsets(events: list[Event]) -> tuple[np.ndarray, np.ndarray]:
    """When picture and sound begin, in seconds of the session."""
    frames = [event for event in events if isinstance(event, VideoFrame)]
    white = np.array([frame.picture.mean() > 128 for frame in frames])
    shown = np.array([frame.capture_ns for frame in frames])[1:][white[1:] & ~white[:-1]]
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    loud = np.concatenate([np.abs(chunk.samples) > 0.05 for chunk in chunks])
    times = np.concatenate(
        [chunk.capture_ns + np.arange(len(chunk.samples)) * 10**9 // chunk.rate_hz for chunk in chunks]
    )
    heard = times[loud]
    return shown / 1e9, heard[1:][np.diff(heard) > 0.5e9] / 1e9


@pytest.mark.parametrize("codec", ["mjpeg", "h264"])
def test_sound_and_pictures_of_a_url_share_a_clock(tmp_path: Path, codec: str) -> None:
    write_clip(tmp_path / f"beats.{codec}.mkv", *beats(6))
    events: list[Event] = []
    with rtsp_server(tmp_path / f"beats.{codec}.mkv") as server:
        with NetworkSource(server.url, [SOUND, PICTURE]) as source:
            assert isinstance(source, LiveSource)
            clock = WallClock()
            source.start(clock)
            session_ns = time.monotonic_ns() - clock.now_ns()
            for event in source:
                assert event.end_ns <= clock.now_ns()
                events.append(event)
                if event.end_ns > 4e9:
                    source.stop()
            report = source.report()
        begin_ns = server.begin_ns() - session_ns
    assert not [event for event in events if isinstance(event, Lost | End)]
    shown, heard = onsets(events)
    assert len(shown) >= 2
    assert np.abs(shown[-2:] - heard[-2:]).max() < 0.004
    # The server sends each 10 ms of sound when they begin, which no microphone can: all seems that much older.
    phase = (shown - begin_ns / 1e9 + 0.5) % 1 - 0.5
    assert np.abs(phase + 0.010).max() < 0.015
    assert report.jitter_ms < 15
    assert source.level is not None
    assert -5 < max(source.level.peak_dbfs, -4.3) < 0


def watched(file: Path) -> tuple[list[VideoFrame], list[float], ClockReport]:
    """80 pictures that a server gives of `file`, how old each was when it came (ms), and the sender's clock.

    By RFC 3550 the first report may come 3 s late, which is 75 pictures.
    """
    frames: list[VideoFrame] = []
    ages_ms: list[float] = []
    with rtsp_server(file) as server, NetworkSource(server.url, [PICTURE]) as source:
        clock = WallClock()
        source.start(clock)
        for event in source:
            assert isinstance(event, VideoFrame)
            frames.append(event)
            ages_ms.append((clock.now_ns() - event.end_ns) / 1e6)
            if len(frames) == 80:
                source.stop()
        return frames, ages_ms, source.report()


@pytest.mark.slow
def test_the_wall_clock_that_the_sender_tells_gives_the_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_clip(tmp_path / "beats.mjpeg.mkv", *beats(6))
    real = time.time_ns
    for late_ns, said in ((150_000_000, "ms from capture to arrival"), (30 * 10**9, "s off this machine's")):
        # As if every packet had been on its way for so long.
        monkeypatch.setattr(time, "time_ns", lambda late_ns=late_ns: real() + late_ns)
        with caplog.at_level(logging.INFO):
            _, ages_ms, report = watched(tmp_path / "beats.mjpeg.mkv")
        assert said in caplog.text
        known = late_ns < 10**9
        assert report.delay_ms == pytest.approx(150 if known else 0, abs=10)
        assert np.median(ages_ms[-10:]) == pytest.approx(150 if known else 0, abs=30)


@pytest.mark.slow
def test_packets_that_waited_when_the_wall_clock_was_told_do_not_make_everything_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_clip(tmp_path / "beats.mjpeg.mkv", *beats(6))
    real, told = time.time_ns, []

    def held_up() -> int:
        # As if this machine had stood still for 0.4 s; the source asks once for each packet that tells the wall clock.
        told.append(real())
        return told[-1] + (400_000_000 if len(told) <= 15 else 0)

    monkeypatch.setattr(time, "time_ns", held_up)
    with caplog.at_level(logging.INFO):
        events, ages_ms, report = watched(tmp_path / "beats.mjpeg.mkv")
    assert caplog.text.count("ms from capture to arrival") == 2
    assert report.delay_ms == pytest.approx(0, abs=10)
    assert np.median(ages_ms[-10:]) < 30
    assert max(ages_ms) > 390
    assert 1 <= sum(event.discontinuity for event in events) <= 2, "times that move begin a new segment"
    assert all(two.discontinuity or one.capture_ns < two.capture_ns for one, two in pairwise(events))


@pytest.mark.slow
def test_a_server_that_is_killed_and_returns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clip(tmp_path / "beats.mjpeg.mkv", *beats(12))
    events: list[tuple[int, Event]] = []
    with (
        rtsp_server(tmp_path / "beats.mjpeg.mkv") as server,
        NetworkSource(server.url, [SOUND, PICTURE]) as source,
        caplog.at_level(logging.WARNING),
    ):
        clock = WallClock()
        source.start(clock)
        reader = threading.Thread(target=lambda: events.extend((clock.now_ns(), event) for event in source))
        reader.start()
        assert wait_for(lambda: len(events) > 50, 5)
        server.kill()
        killed_ns = clock.now_ns()
        assert wait_for(lambda: sum(isinstance(event, End) for _, event in events) == 2, 4)
        ended_ns = clock.now_ns()
        assert ended_ns - killed_ns < 2.5e9
        time.sleep(1.5)
        server.start()
        back_ns = clock.now_ns()
        for kind in (AudioChunk, VideoFrame):
            assert wait_for(lambda kind=kind: sum(at > back_ns and isinstance(e, kind) for at, e in events) > 5, 4)
        source.stop()
        reader.join(5)
        assert not reader.is_alive()
        assert source.report().reconnects == 1
    for kind in (AudioChunk, VideoFrame):
        after = [(at, event) for at, event in events if at > back_ns and isinstance(event, kind)]
        assert after[0][0] < back_ns + 2_000_000_000, "back within 2 s of its return"
        assert [event.discontinuity for _, event in after[:2]] == [True, False]
    assert "trying to open it again" in caplog.text
    assert "is back" in caplog.text


@pytest.mark.slow
def test_a_picture_that_changes_its_size(tmp_path: Path) -> None:
    bundle = build(tmp_path / "demo.edgemm")
    shapes: list[tuple[int, ...]] = []
    with rtsp_server("test") as server:
        with NetworkSource(server.url, [PICTURE]) as source:
            source.start(WallClock())
            for event in source:
                assert isinstance(event, VideoFrame)
                shapes.append(event.picture.shape)
                if len(set(shapes)) == 2:
                    source.stop()
        live = edgemm.run(bundle, camera=server.url, input="synthetic", duration_s=6)
    assert set(shapes) < {(240, 320), (120, 160), (363, 641)}
    live.check()
    assert live.models["av"].made >= 40
    assert set(live.streams["camera"].dropped) <= {"ended", "not_needed"}
    assert live.clocks["camera"].reconnects == 0


def test_what_a_url_lacks_is_one_sentence(tmp_path: Path) -> None:
    with rtsp_server("test") as server:
        with (
            pytest.raises(SourceError, match="holds no sound. Give another address"),
            NetworkSource(server.url, [SOUND]),
        ):
            pass
        missing = server.url.replace("live", "none")
        with pytest.raises(SourceError, match="cannot be read: .*404.*") as caught, NetworkSource(missing, [PICTURE]):
            pass
    assert "\n" not in str(caught.value)
