"""Measuring a rig: what a microphone and a camera made up here hear and see, stored and forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from typer.testing import CliRunner

from edgemm import calibrate_sync, rig
from edgemm.cli.main import app
from edgemm.errors import SourceError
from edgemm.stream import flash_beep
from edgemm.stream.clock import Clock
from edgemm.stream.drift import ClockReport
from edgemm.stream.frames import AudioChunk, Event, StreamInfo, VideoFrame
from edgemm.stream.sources.protocol import RigSource

pytestmark = pytest.mark.real_time

SECONDS = 12.0


class Played:
    """A live source that gives its events faster than they would come, and ends."""

    live = True

    def __init__(self, identity: str, kind: str, events: list[Event]) -> None:
        self.identity = identity
        self.delays_ns: dict[str, int] = {}
        self.streams = (StreamInfo(events[0].stream, "audio" if kind == "audio" else "video"),)
        self._events = events

    def __enter__(self) -> Played:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Event]:
        for number, event in enumerate(self._events):
            if number % 10 == 0:
                time.sleep(0.01)
            yield event

    def start(self, clock: Clock) -> None:
        pass

    def stop(self) -> None:
        pass

    def report(self) -> ClockReport:
        return ClockReport(None, 0.0)


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A camera that stamps 35 ms late, a microphone that loses a second of sound."""
    monkeypatch.setenv("EDGEMM_RIGS", str(tmp_path / "rigs.json"))
    samples = flash_beep.sound(SECONDS, 16000)
    sounds: list[Event] = [
        AudioChunk("mic", at, Fraction(1, 16000), at * 62500, samples[at : at + 1600], 16000, at == 80000)
        for at in range(0, len(samples), 1600)
        if not 64000 <= at < 80000
    ]
    shown: list[Event] = [
        VideoFrame("camera", n, Fraction(1, 60), n * 10**9 // 60 + 35_000_000, picture, "gray")
        for n, picture in enumerate(flash_beep.pictures(SECONDS, 16, 8))
    ]

    def opens(*_: object) -> list[RigSource]:
        found: list[RigSource] = [Played("a mic", "audio", sounds), Played("a camera", "video", shown)]
        return found

    monkeypatch.setattr(calibrate_sync, "_open", opens)


def test_a_rig_is_measured_and_stored() -> None:
    report = calibrate_sync.measure_rig(seconds=30)
    assert report.skew.offset_ms == pytest.approx(35, abs=0.2)
    assert (report.microphone, report.camera) == ("a mic", "a camera")
    assert report.stored == rig.path()
    known = rig.find("a mic", "a camera")
    assert known is not None
    assert known.offset_ms == report.skew.offset_ms
    assert np.datetime64(known.measured.replace(" ", "T")) > np.datetime64("2025-01-01")


def test_the_command_measures_stores_and_forgets() -> None:
    run = CliRunner().invoke
    done = run(app, ["calibrate-sync", "--mic", "--camera", "--no-store"])
    assert "Pictures are stamped 35.0 ms later than sound" in done.output
    assert rig.find("a mic", "a camera") is None
    done = run(app, ["calibrate-sync"])
    assert "Stored in" in done.output
    assert run(app, ["calibrate-sync", "--forget"]).output == "Forgotten.\n"
    assert run(app, ["calibrate-sync", "--forget"]).output == "Nothing is known of this microphone and camera.\n"


def test_nothing_is_measured_in_too_little_time() -> None:
    begin = time.monotonic()
    with pytest.raises(SourceError, match="is the clip playing"):
        calibrate_sync.measure_rig(seconds=0.05, store=False)
    assert time.monotonic() - begin < 10
