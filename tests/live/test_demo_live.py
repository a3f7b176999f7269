"""The demo model on a live microphone and camera, before which its clip is played, against the clip as a file."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from demo_decisions import DEMO, assert_same, build, file_decisions
from rtsp_fixture import free_port
from sound_server import require_sound, sound_server

import edgemm
from edgemm.stream.clock import Clock
from edgemm.stream.frames import AudioChunk, Event
from edgemm.stream.sources.camera import open_camera
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.microphone import MicrophoneSource
from edgemm.stream.sources.protocol import AudioWant, VideoWant

require_sound()

ROOT = Path(__file__).parents[2]
FEED = ROOT / "tests" / "support" / "camera_feed.py"
SECONDS = 14.0


class Listening(MicrophoneSource):
    """A microphone that remembers what it gave, and when its session began by the machine's clock."""

    def __init__(self, want: AudioWant) -> None:
        super().__init__(want)
        self.session_ns = 0
        self.heard: list[AudioChunk] = []

    def start(self, clock: Clock) -> None:
        super().start(clock)
        self.session_ns = time.monotonic_ns() - clock.now_ns()

    def __iter__(self) -> Iterator[Event]:
        for event in super().__iter__():
            if isinstance(event, AudioChunk):
                self.heard.append(event)
            yield event


def delay_ns(heard: Sequence[AudioChunk], clip: Path) -> int:
    """When, on the session's clock, the sound of the clip began, by correlation."""
    with MediaSource(clip, [AudioWant("mic")]) as source:
        sound = np.concatenate([e.samples for e in source if isinstance(e, AudioChunk) and e.end_ns < SECONDS * 1e9])
    samples = np.concatenate([chunk.samples for chunk in heard])
    size = len(samples) + len(sound)
    product = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(sound, size))
    shift = int(np.argmax(np.fft.irfft(product, size)[: len(samples)]))
    return heard[0].capture_ns + shift * 10**9 // 16000


@pytest.mark.slow
def test_live_decides_as_the_file_does(tmp_path: Path) -> None:
    bundle = build(tmp_path / "demo.edgemm")
    from_file = file_decisions(bundle, SECONDS)
    port = free_port()
    with sound_server() as server:
        listener = server.listener()
        time.sleep(2.5)  # what the sink has rendered in advance must be over
        player = server.player(latency_ms=200)
        feed = subprocess.Popen(
            [sys.executable, str(FEED), str(DEMO / "clip.mkv"), str(port), str(SECONDS + 0.5), "--sound"],
            stdout=player.stdin,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            time.sleep(3)  # it decodes the clip first
            microphone = Listening(AudioWant("mic"))
            camera = open_camera(f"tcp://127.0.0.1:{port}", VideoWant("camera", "gray"))
            live = edgemm.run(bundle, input={"mic": microphone, "camera": camera}, duration_s=SECONDS + 3.0)
            assert feed.stderr is not None
            begin_ns = int(feed.stderr.readline()) - microphone.session_ns
        finally:
            feed.kill()
            player.kill()
            listener.kill()
    live.check()
    assert live.clock == "wall"
    assert set(live.clocks) == {"mic", "camera"}
    offset_ms = (delay_ns(microphone.heard, DEMO / "clip.mkv") - begin_ns) / 1e6
    assert abs(offset_ms) < 100, "the rig itself plays sound and picture apart"
    assert_same(live.results, begin_ns, SECONDS, from_file)
