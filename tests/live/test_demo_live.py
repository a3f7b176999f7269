"""The demo model on a live microphone and camera, before which its clip is played, against the clip as a file."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sound_server import require_sound, sound_server

import edgemm
from edgemm.stream.clock import Clock
from edgemm.stream.decode import Label, Score
from edgemm.stream.frames import AudioChunk, Event
from edgemm.stream.results import Result
from edgemm.stream.sources.camera import open_camera
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.microphone import MicrophoneSource
from edgemm.stream.sources.protocol import AudioWant, VideoWant

require_sound()

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "calibration" / "av_digits"
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


def decisions(results: Sequence[Result], begin_ns: int, segments: Sequence[dict[str, float]]) -> list[tuple[int, bool]]:
    """Digit and match of each segment: of the first result whose window lies within it."""
    made = []
    for segment in segments:
        first_ns = begin_ns + round(segment["decide_at_s"] * 1e9)
        result = next(r for r in results if r.time_ns >= first_ns)
        assert result.time_ns < begin_ns + round(segment["end_s"] * 1e9), "no result in time for a segment"
        digit, match = result.outputs["digit"], result.outputs["match"]
        assert isinstance(digit, Label)
        assert isinstance(match, Score)
        made.append((digit.index, bool(match.above)))
    return made


def delay_ns(heard: Sequence[AudioChunk], clip: Path) -> int:
    """When, on the session's clock, the sound of the clip began, by correlation."""
    with MediaSource(clip, [AudioWant("mic")]) as source:
        sound = np.concatenate([e.samples for e in source if isinstance(e, AudioChunk) and e.end_ns < SECONDS * 1e9])
    samples = np.concatenate([chunk.samples for chunk in heard])
    size = len(samples) + len(sound)
    product = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(sound, size))
    shift = int(np.argmax(np.fft.irfft(product, size)[: len(samples)]))
    return heard[0].capture_ns + shift * 10**9 // 16000


class Late(MediaSource):
    """The clip, of which a session sees only what comes after `skip_ns`: its steps fall otherwise on the clip."""

    skip_ns = 0

    def __iter__(self) -> Iterator[Event]:
        first = None
        for event in super().__iter__():
            if isinstance(event, AudioChunk) and event.capture_ns >= self.skip_ns:
                first = event.capture_ns if first is None else first
            if first is not None and event.end_ns >= first:
                yield event


def file_decisions(bundle: Path, segments: Sequence[dict[str, float]]) -> list[set[tuple[int, bool]]]:
    """What the clip as a file decides on each segment, wherever in a hop its steps fall."""
    found: list[set[tuple[int, bool]]] = [set() for _ in segments]
    for skip_ms in range(0, 100, 10):
        source = Late(DEMO / "clip.mkv", [AudioWant("mic"), VideoWant("camera", "gray")])
        source.skip_ns = skip_ms * 10**6
        results = edgemm.run(bundle, input=source, duration_s=SECONDS).results
        for known, made in zip(found, decisions(results, 0, segments), strict=True):
            known.add(made)
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_live_decides_as_the_file_does(tmp_path: Path) -> None:
    bundle = tmp_path / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", bundle, precision="fp32")
    truth = json.loads((DEMO / "clip.truth.json").read_text())
    segments = [segment for segment in truth["segments"] if segment["end_s"] <= SECONDS]
    from_file = file_decisions(bundle, segments)
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
    made = decisions(live.results, begin_ns, segments)
    # Few segments are so close that it matters where in a hop the steps fall, which live is chance.
    sure = [len(known) == 1 for known in from_file]
    assert sum(sure) >= 7
    assert len(made) == 10
    for segment, live_decision, known in zip(segments, made, from_file, strict=True):
        assert live_decision in known, segment
