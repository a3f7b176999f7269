"""A session recorded in wall time, and the same once more from its file."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgemm
from edgemm.errors import SinkError, SourceError, UsageError
from edgemm.inputs import stream_wants
from edgemm.recipe import Degrade
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo, VideoFrame
from edgemm.stream.results import Summary
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.protocol import Want
from edgemm.stream.sources.recording import Recording, RecordingWriter
from edgemm.types import Tensors

pytestmark = pytest.mark.real_time

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = DEMO / "clip.mkv"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return path


def lines(summary: Summary) -> list[bytes]:
    return [result.with_latency(None).to_json() for result in summary.results]


def recorded(bundle: Path, path: Path, *, seconds: float, seed: int) -> Summary:
    """A run on the wall clock whose inference takes as long as chance will have it, and whose source stumbles."""
    chance = random.Random(seed)
    wants = stream_wants(edgemm.open(bundle).recipe)

    def slow(model: str, feeds: Tensors) -> None:
        time.sleep(chance.choice([0, 0, 0.02, 0.15, 0.3]))

    return edgemm.run(
        bundle, input=Stumbling(wants, seed), clock="wall", duration_s=seconds, record=path, on_feeds=slow
    )


class Stumbling(MediaSource):
    """The clip from a thread that sleeps now and then, so that frames come late and in heaps."""

    def __init__(self, wants: Sequence[Want], seed: int) -> None:
        super().__init__(CLIP, wants)
        self._chance = random.Random(seed + 1000)

    def __iter__(self) -> Iterator[Event]:
        for event in super().__iter__():
            if self._chance.random() < 0.02:
                time.sleep(self._chance.choice([0.01, 0.06, 0.25]))
            yield event


def same(bundle: Path, path: Path, first: Summary) -> None:
    again = edgemm.run(bundle, recording=path)
    assert [result.to_json() for result in again.results] == lines(first)
    assert again.streams == first.streams
    assert again.models == first.models
    assert again.duration_ns == first.duration_ns
    assert again.interrupted == first.interrupted


def test_a_replay_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    first = recorded(bundle, tmp_path / "s.mkv", seconds=3.5, seed=0)
    assert sum(first.models["av"].skipped.values()) > 10, "an engine this slow skips steps"
    assert len(first.results) > 3
    same(bundle, tmp_path / "s.mkv", first)
    same(bundle, tmp_path / "s.mkv", first)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_sessions(bundle: Path, tmp_path: Path, seed: int) -> None:
    same(bundle, tmp_path / "s.mkv", recorded(bundle, tmp_path / "s.mkv", seconds=2.0, seed=seed))


def test_a_session_that_ends_by_itself(bundle: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.mkv"
    subprocess.run(
        [sys.executable, "-c", CUT, str(CLIP), str(short), "1.6"], check=True, capture_output=True, timeout=60
    )
    first = edgemm.run(bundle, input=short, record=tmp_path / "s.mkv")
    assert first.clock == "wall"
    assert first.results
    same(bundle, tmp_path / "s.mkv", first)


CUT = """
import av, sys
with av.open(sys.argv[1]) as source, av.open(sys.argv[2], "w") as target:
    streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
    for packet in source.demux():
        if packet.dts is not None and packet.pts * packet.time_base < float(sys.argv[3]):
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
"""


def test_a_killed_run_leaves_what_it_had(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.mkv"
    run = subprocess.Popen(
        [sys.executable, "-m", "edgemm", "run", str(bundle), "-i", str(CLIP), "--record", str(path), "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout is not None
    seen = [run.stdout.readline() for _ in range(30)]
    run.send_signal(signal.SIGKILL)
    seen += run.stdout.readlines()
    run.wait()
    again = edgemm.run(bundle, recording=path)
    assert again.interrupted
    # All but the last second: ten results.
    assert len(seen) - 10 <= len(again.results) <= len(seen)


def test_a_recording_cut_in_half_gives_its_half(bundle: Path, tmp_path: Path) -> None:
    first = edgemm.run(bundle, input=CLIP, clock="wall", duration_s=3.0, record=tmp_path / "s.mkv")
    data = (tmp_path / "s.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(data[: len(data) * 6 // 10])
    half = edgemm.run(bundle, recording=tmp_path / "half.mkv")
    assert half.interrupted
    count = len(half.results)
    assert 0 < count < len(first.results)
    assert [result.to_json() for result in half.results] == lines(first)[:count]


def test_what_is_no_recording_is_said(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no recording of --record: to run on it, give it as --input"):
        edgemm.run(bundle, recording=CLIP)
    with pytest.raises(SourceError, match="Cannot open .*: No such file or directory. Expected a recording"):
        edgemm.run(bundle, recording=tmp_path / "none.mkv")
    with pytest.raises(UsageError, match="A recording is replayed by itself"):
        edgemm.run(bundle, recording=CLIP, input=CLIP)
    with pytest.raises(UsageError, match="--record needs --clock wall"):
        edgemm.run(bundle, input=CLIP, clock="virtual", record=tmp_path / "s.mkv")
    with pytest.raises(SinkError, match="Cannot record to .*: No such file or directory"):
        edgemm.run(bundle, input=CLIP, record=tmp_path / "none" / "s.mkv")
    with RecordingWriter(tmp_path / "other.mkv", [StreamInfo("ears", "audio", 16000)]):
        pass
    with pytest.raises(UsageError, match="holds the streams ears, the recipe's models read: camera, mic"):
        edgemm.run(bundle, recording=tmp_path / "other.mkv")


def events(color: str) -> Iterator[Event]:
    chance = np.random.default_rng(3)
    for number in range(30):
        samples = chance.standard_normal(int(chance.integers(1, 200))).astype(np.float32)
        yield AudioChunk("mic", number * 7, Fraction(1, 16000), number * 10_000_003, samples, 16000, number == 4)
        if number % 3 == 0:
            shape = (21, 33) if color == "gray" else (21, 33, 3)
            picture = chance.integers(0, 256, shape, dtype=np.uint8)
            yield VideoFrame("eye", number, Fraction(1, 90000), number * 10_000_001, picture, color, number == 9)  # type: ignore[arg-type]
    yield Lost("eye", "corrupt", 310_000_000, 3)
    yield End("mic", 320_000_000)


@pytest.mark.parametrize("color", ["gray", "rgb", "bgr"])
def test_frames_come_back_as_they_were(tmp_path: Path, color: str) -> None:
    infos = (StreamInfo("mic", "audio", 16000), StreamInfo("eye", "video", 40_000_000, 33, 21))
    with RecordingWriter(tmp_path / "s.mkv", infos) as writer:
        for event in events(color):
            writer.event(event, event.end_ns + 1)
        writer.note(["s", False])
    with Recording(tmp_path / "s.mkv") as recording:
        assert recording.streams == infos
        found = list(recording)
    assert found[-1] == (["s", False], None)
    for (entry, have), want in itertools.zip_longest(found[:-1], events(color)):
        assert entry[2] == want.end_ns + 1
        assert type(have) is type(want)
        if isinstance(have, AudioChunk):
            np.testing.assert_array_equal(have.samples, want.samples)
        if isinstance(have, VideoFrame):
            np.testing.assert_array_equal(have.picture, want.picture)
            assert have.color == color
        if isinstance(have, AudioChunk | VideoFrame):
            fields = ("stream", "pts", "time_base", "capture_ns", "discontinuity")
            assert [getattr(have, name) for name in fields] == [getattr(want, name) for name in fields]
        else:
            assert have == want


def test_recording_gives_up_before_the_run_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        RecordingWriter(tmp_path / "s.mkv", [StreamInfo("eye", "video")]) as writer,
    ):
        for side in (16, 32, 64):
            writer.event(VideoFrame("eye", side, Fraction(1, 25), side, np.zeros((side, side), np.uint8), "gray"), side)
    assert "was given up: the pictures of eye changed their size. The run goes on." in caplog.text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device of Linux that is always full")
def test_a_full_disk_ends_the_recording_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), RecordingWriter("/dev/full", [StreamInfo("mic", "audio", 16000)]) as writer:
        for number in range(2000):
            samples = np.ones(160, np.float32)
            writer.event(AudioChunk("mic", 0, Fraction(1, 16000), number * 10**7, samples, 16000), number * 10**7)
    assert caplog.text


def test_degraded_modes_come_again_in_a_replay(bundle: Path, tmp_path: Path) -> None:
    opened = edgemm.open(bundle)
    model = msgspec.structs.replace(opened.recipe.models["av"], degrade=[Degrade(every=3)])
    degrading = replace(opened, recipe=msgspec.structs.replace(opened.recipe, models={"av": model}))

    def slow(model: str, feeds: Tensors) -> None:
        time.sleep(0.15)

    first = edgemm.run(degrading, input=CLIP, clock="wall", duration_s=6.0, record=tmp_path / "s.mkv", on_feeds=slow)
    assert first.models["av"].degraded["every 3"] > 5
    again = edgemm.run(degrading, recording=tmp_path / "s.mkv")
    assert [result.to_json() for result in again.results] == lines(first)
    assert again.models == first.models
