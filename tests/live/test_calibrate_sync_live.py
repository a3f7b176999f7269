"""`edgemm calibrate-sync` on clips of known offset: as files, over RTSP, and through PulseAudio and V4L2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_decisions import build
from live_rig import command_line, live_rig, require_rig
from rtsp_fixture import require_rtsp, rtsp_server, write_flashes

from edgemm import rig
from edgemm.calibrate_sync import measure_file
from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.flash_beep import find_beeps, find_flashes, measure
from edgemm.stream.frames import AudioChunk, VideoFrame
from edgemm.stream.sources.flash_beep_clip import write_flash_beep
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, VideoWant

pytestmark = pytest.mark.real_time

SECONDS = 11


@pytest.fixture(autouse=True)
def rigs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMM_RIGS", str(tmp_path / "rigs.json"))
    return tmp_path / "rigs.json"


@pytest.mark.parametrize(
    ("offset_ms", "container"),
    [(-120, "mkv"), (-40, "mp4"), (0, "mp4"), (7.5, "mkv"), (80, "mp4"), (120, "mp4")],
)
def test_clips_of_known_offset_as_files(tmp_path: Path, offset_ms: float, container: str) -> None:
    clip = tmp_path / f"clip.{container}"
    write_flash_beep(clip, 8, offset_ms)
    report = measure_file(clip)
    # In Matroska times are whole milliseconds.
    assert report.skew.offset_ms == pytest.approx(-offset_ms, abs=0.6)
    assert report.skew.events >= 5
    assert report.stored is None


def test_a_recording_that_is_no_clip_is_one_sentence() -> None:
    clip = Path(__file__).parents[2] / "calibration" / "av_digits" / "clip.mkv"
    with pytest.raises(SourceError, match="No beep was found .* is the clip playing") as caught:
        measure_file(clip)
    assert "\n" not in str(caught.value)


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("offset_ms", [-120, 80, 120])
def test_clips_of_known_offset_over_rtsp(tmp_path: Path, rigs: Path, offset_ms: float) -> None:
    require_rtsp()
    write_flashes(tmp_path / "flashes.mjpeg.mkv", offset_ms, SECONDS, lead_s=2.0)
    with rtsp_server(tmp_path / "flashes.mjpeg.mkv") as server:
        arguments = ("--mic-device", server.url, "--camera-device", server.url, "--seconds", str(SECONDS + 1), "--json")
        found = said(
            subprocess.run(
                command_line("calibrate-sync", *arguments), capture_output=True, text=True, timeout=60, check=False
            )
        )
        assert found["skew"]["offset_ms"] == pytest.approx(-offset_ms, abs=10)
        assert found["skew"]["events"] >= 5
        assert found["stored"] == str(rigs)
        if offset_ms == 80:
            assert taken_off(server.url) == pytest.approx(0, abs=10)
            a_run_says_so(tmp_path, server.url)


def taken_off(url: str) -> float:
    """The skew that is left when a run has told the source what was measured of it."""
    times_ns, means, sounds = [], [], []
    with NetworkSource(url, [AudioWant("ear"), VideoWant("eye", "gray")]) as source:
        rig.apply([source])
        source.start(WallClock())
        for event in source:
            if isinstance(event, AudioChunk):
                sounds.append(event)
            elif isinstance(event, VideoFrame):
                times_ns.append(event.capture_ns)
                means.append(float(event.picture.mean()))
            if event.end_ns > (SECONDS + 1) * 1e9:
                source.stop()
    begin_ns = sounds[0].capture_ns
    beeps = find_beeps(np.concatenate([chunk.samples for chunk in sounds]), 16000)
    return measure(find_flashes(times_ns, means), [begin_ns + at * 62500 for at in beeps]).offset_ms


def a_run_says_so(folder: Path, url: str) -> None:
    """What is measured is taken off, unless it is not wanted, or forgotten."""
    bundle = str(build(folder / "demo.edgemm"))
    devices = ("--mic-device", url, "--camera-device", url)

    def edgemm(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command_line(*words, *devices), capture_output=True, text=True, timeout=60, check=True)

    done = edgemm("run", bundle, "--duration", "1")
    assert '"camera" is stamped -80.' in done.stderr or '"camera" is stamped -79.' in done.stderr
    assert "taken off" in done.stderr
    assert "delay ms" in done.stdout
    assert "is stamped" not in edgemm("run", bundle, "--duration", "1", "--no-sync-offset").stderr
    assert edgemm("calibrate-sync", "--forget").stdout == "Forgotten.\n"
    assert edgemm("calibrate-sync", "--forget").stdout == "Nothing is known of this microphone and camera.\n"
    assert "is stamped" not in edgemm("run", bundle, "--duration", "1").stderr


@pytest.mark.slow
@pytest.mark.parametrize("offset_ms", [-120, 0, 120])
def test_clips_of_known_offset_before_a_microphone_and_a_camera(tmp_path: Path, rigs: Path, offset_ms: float) -> None:
    require_rig()
    write_flashes(tmp_path / "flashes.mkv", offset_ms, SECONDS)
    with live_rig(tmp_path / "flashes.mkv", 4.0) as playing:
        arguments = ("--mic", "--camera-device", "/dev/video0", "--seconds", str(SECONDS + 3), "--json")
        found = said(playing.run(*command_line("calibrate-sync", *arguments)))
        assert found["skew"]["offset_ms"] == pytest.approx(-offset_ms, abs=10)
        assert found["skew"]["events"] >= 5
        [stored] = json.loads(rigs.read_text())["rigs"]
        assert stored["microphone"] == found["microphone"]
        assert "at platform:PipeWire" in stored["camera"]
