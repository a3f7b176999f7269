"""A microphone through the real PortAudio, ALSA and PulseAudio."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from sound_server import SoundServer, require_sound, sound_server
from typer.testing import CliRunner

from edgemm.cli.main import app
from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import AudioChunk, End, Event, Lost
from edgemm.stream.sources.microphone import MicrophoneSource, microphones
from edgemm.stream.sources.protocol import AudioWant, LiveSource

require_sound()

pytestmark = pytest.mark.real_time

WANT = AudioWant("mic", 16000)


@pytest.fixture
def server() -> Iterator[SoundServer]:
    with sound_server() as running:
        yield running


def record(source: MicrophoneSource, seconds: float) -> list[Event]:
    """What an entered source gives in the first `seconds` of a session."""
    clock = WallClock()
    source.start(clock)
    events: list[Event] = []
    for event in source:
        events.append(event)
        assert event.end_ns <= clock.now_ns() + 20_000_000, "nothing comes from the future"
        if event.end_ns >= seconds * 1e9:
            break
    return events


def test_sound_arrives_bit_for_bit_and_on_time(server: SoundServer) -> None:
    random = np.random.default_rng(5)
    played = random.integers(-30000, 30000, 16000, dtype=np.int16)
    player = server.player()
    assert player.stdin is not None
    player.stdin.write(np.zeros(8000, np.int16).tobytes() + played.tobytes() + np.zeros(8000, np.int16).tobytes())
    player.stdin.close()
    with MicrophoneSource(WANT) as source:
        assert isinstance(source, LiveSource)
        events = record(source, 4.0)
        report = source.report()
    player.wait(10)
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    heard = np.concatenate([chunk.samples for chunk in chunks])
    wanted = played.astype(np.float32) / 32768
    first = int(np.flatnonzero(heard)[0])
    np.testing.assert_array_equal(heard[first : first + len(wanted)], wanted)
    # One segment, whose times are a count of samples.
    assert not [event for event in events if isinstance(event, Lost)]
    assert not any(chunk.discontinuity for chunk in chunks)
    assert all(abs(one.end_ns - two.capture_ns) <= 62_501 for one, two in pairwise(chunks))
    assert chunks[0].capture_ns < 500_000_000
    assert report.jitter_ms < 20


def test_another_rate_is_converted(server: SoundServer) -> None:
    player = server.player()
    assert player.stdin is not None
    tone = (10000 * np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)).astype(np.int16)
    player.stdin.write(tone.tobytes())
    player.stdin.close()
    with MicrophoneSource(AudioWant("mic", 8000), device=0) as source:
        chunks = [event for event in record(source, 1.0) if isinstance(event, AudioChunk)]
    player.wait(10)
    assert {chunk.rate_hz for chunk in chunks} == {8000}
    heard = np.concatenate([chunk.samples for chunk in chunks])[-2000:]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * 8000 / len(heard) == pytest.approx(1000, abs=8)


def test_devices_are_listed_and_checked_before_they_are_opened(server: SoundServer) -> None:
    found = microphones()
    assert found
    assert sum(info.is_default for info in found) == 1
    for wrong in (99, "99", -1, "theremin"):
        with pytest.raises(SourceError, match="is no microphone, there are: "), MicrophoneSource(WANT, wrong):
            pass
    with MicrophoneSource(WANT, found[0].name.upper()[:4]):
        pass


def test_a_killed_server_is_noticed_and_its_return_too(server: SoundServer, caplog: pytest.LogCaptureFixture) -> None:
    clock = WallClock()
    events: list[tuple[int, Event]] = []
    with MicrophoneSource(WANT) as source, caplog.at_level(logging.WARNING):
        source.start(clock)
        reader = threading.Thread(target=lambda: events.extend((clock.now_ns(), event) for event in source))
        reader.start()
        time.sleep(0.7)
        server.kill()
        killed_ns = clock.now_ns()
        time.sleep(1.5)
        server.start()
        back_ns = clock.now_ns()
        time.sleep(2.5)
        source.stop()
        reader.join(5)
        assert not reader.is_alive()
        assert source.report().reconnects == 1
    ends = [now_ns for now_ns, event in events if isinstance(event, End)]
    assert len(ends) == 1
    assert killed_ns <= ends[0] < killed_ns + 1_400_000_000
    after = [(now_ns, event) for now_ns, event in events if isinstance(event, AudioChunk) and now_ns > ends[0]]
    assert after[0][0] < back_ns + 2_000_000_000
    assert [event.discontinuity for _, event in after[:2]] == [True, False]
    assert after[0][1].capture_ns > ends[0]
    assert "fallen silent" in caplog.text
    assert "is back" in caplog.text


@pytest.mark.slow
def test_a_pulled_cable_and_another_device_at_another_rate(server: SoundServer) -> None:
    clock = WallClock()
    events: list[tuple[int, Event]] = []
    with MicrophoneSource(WANT) as source:
        source.start(clock)
        reader = threading.Thread(target=lambda: events.extend((clock.now_ns(), event) for event in source))
        reader.start()
        time.sleep(1.0)
        server.control("unload-module", "module-null-sink")
        pulled_ns = clock.now_ns()
        time.sleep(1.5)
        server.control("load-module", "module-null-sink", "sink_name=other", "rate=44100", "norewinds=1")
        server.control("set-default-source", "other.monitor")
        back_ns = clock.now_ns()
        time.sleep(1.0)
        player = server.player()
        assert player.stdin is not None
        tone = (10000 * np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)).astype(np.int16)
        player.stdin.write(tone.tobytes())
        player.stdin.close()
        time.sleep(2.5)
        source.stop()
        reader.join(5)
        player.wait(10)
        assert not reader.is_alive()
    # What PulseAudio gives between the two devices is its own affair: silence, or nothing.
    after = [(at, event) for at, event in events if at > back_ns and isinstance(event, AudioChunk)]
    assert after[0][0] < back_ns + 2_000_000_000, "back within 2 s of its return"
    heard = np.concatenate([event.samples for _, event in after])
    loud = np.flatnonzero(np.abs(heard) > 0.1)
    tone_heard = heard[loud[0] + 2000 : loud[0] + 18000]
    spectrum = np.abs(np.fft.rfft(tone_heard * np.hanning(len(tone_heard))))
    # Sound that was timed wrongly when the device came back is corrected by up to 6000 ppm (retime.py): 6 Hz of these.
    assert np.argmax(spectrum) * 16000 / len(tone_heard) == pytest.approx(1000, abs=8)
    assert {event.rate_hz for _, event in after} == {16000}
    before = [event for at, event in events if at < pulled_ns]
    assert not any(isinstance(event, End) for event in before)


def test_levels_of_microphones_are_shown(server: SoundServer) -> None:
    player = server.player(latency_ms=100)
    assert player.stdin is not None
    tone = (3276.8 * np.sin(2 * np.pi * 1000 * np.arange(80000) / 16000)).astype(np.int16)
    player.stdin.write(tone.tobytes())
    player.stdin.flush()
    time.sleep(0.5)
    done = CliRunner().invoke(app, ["devices", "--levels", "--json"])
    player.kill()
    player.wait()
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)["microphones"]
    assert found["level"]["peak_dbfs"] == pytest.approx(-20, abs=0.5)
    assert found["level"]["rms_dbfs"] == pytest.approx(-23, abs=0.5)
    shown = CliRunner().invoke(app, ["devices", "--levels"])
    assert "peak dBFS" in shown.stdout
    assert "-120.0" in shown.stdout or "muted" in shown.stdout, "nobody plays any more"


def test_no_microphone_is_one_sentence() -> None:
    with sound_server() as running:
        running.kill()
        assert microphones() == []
        with pytest.raises(SourceError, match="No microphone was found. Plug one in"), MicrophoneSource(WANT):
            pass
