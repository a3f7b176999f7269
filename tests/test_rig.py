"""The offsets of rigs: kept, found, forgotten and taken off."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgemm import calibrate_sync, rig
from edgemm.cli.main import app
from edgemm.errors import SinkError, UsageError
from edgemm.rig import Rig
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import StreamInfo
from edgemm.stream.sources.camera import CameraSource, Shot
from edgemm.stream.sources.flash_beep_clip import write_flash_beep
from edgemm.stream.sources.microphone import MicrophoneSource
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, RigSource, VideoWant
from edgemm.stream.sources.synthetic import SyntheticSource


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMM_RIGS", str(tmp_path / "deep" / "rigs.json"))
    return tmp_path / "deep" / "rigs.json"


def known(offset_ms: float, microphone: str = "a mic", camera: str = "a camera") -> Rig:
    return Rig(microphone, camera, offset_ms, 1.0, 12, "2026-01-31 12:00")


class NoReader:
    """A camera that is never opened."""

    def __init__(self, name: str) -> None:
        self.name = self.identity = name

    def open(self) -> StreamInfo:
        raise NotImplementedError

    def read(self) -> Shot | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def devices(*cameras: str) -> list[RigSource]:
    microphone = MicrophoneSource(AudioWant("mic"))
    microphone.identity = "a mic"
    eyes = [CameraSource(VideoWant(name.removeprefix("a ")), NoReader(name)) for name in cameras]
    found: list[RigSource] = [microphone, *eyes]
    assert all(isinstance(source, RigSource) for source in found)
    return found


def test_what_is_stored_is_found_replaced_and_forgotten(file: Path) -> None:
    assert rig.find("a mic", "a camera") is None
    assert rig.store(known(40.0)) == file
    rig.store(known(-7.0, camera="another"))
    rig.store(known(42.5))
    found = rig.find("a mic", "a camera")
    assert found is not None
    assert found.offset_ms == 42.5
    assert len(json.loads(file.read_text())["rigs"]) == 2
    assert rig.forget("a mic", "a camera")
    assert not rig.forget("a mic", "a camera")
    assert rig.find("a mic", "another") == known(-7.0, camera="another")
    assert [path.name for path in file.parent.iterdir()] == ["rigs.json"]


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEMM_RIGS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert rig.path() == tmp_path / "edgemm" / "rigs.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rig.path() == tmp_path / ".config" / "edgemm" / "rigs.json"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2, "rigs": []}', '{"version": 1, "rigs": [{"microphone": "a"}]}']
)
def test_a_damaged_file_is_one_sentence(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UsageError, match="cannot be read .*Delete it, and measure again") as caught:
        rig.find("a mic", "a camera")
    assert "\n" not in str(caught.value)


def test_an_offset_that_is_no_number_is_refused(file: Path) -> None:
    rig.store(known(1.0))
    file.write_text(file.read_text().replace("1.0,", '"late",', 1))
    with pytest.raises(UsageError, match="offset_ms is 'late'"):
        rig.find("a mic", "a camera")


@pytest.mark.parametrize(("offset_ms", "mic_ms", "camera_ms"), [(40.0, 0, 40), (-25.0, 25, 0)])
def test_what_is_late_is_moved(caplog: pytest.LogCaptureFixture, offset_ms: float, mic_ms: int, camera_ms: int) -> None:
    rig.store(known(offset_ms))
    microphone, camera = devices("a camera")
    with caplog.at_level(logging.INFO):
        rig.apply([microphone, camera, SyntheticSource([VideoWant("other")], fps=25)])
    assert microphone.delays_ns == {"mic": mic_ms * 10**6}
    assert camera.delays_ns == {"camera": camera_ms * 10**6}
    assert f'"camera" is stamped {offset_ms:+.1f} ms after "mic", as measured on 2026-01-31 12:00' in caplog.text


def test_several_cameras_are_moved_against_one_microphone() -> None:
    rig.store(known(40.0, camera="a left"))
    rig.store(known(-25.0, camera="a right"))
    microphone, left, right, unknown = devices("a left", "a right", "a third")
    rig.apply([microphone, left, right, unknown])
    assert microphone.delays_ns == {"mic": 25 * 10**6}
    assert left.delays_ns == {"left": 65 * 10**6}
    assert right.delays_ns == {"right": 0}
    assert unknown.delays_ns == {}


def test_nothing_known_or_no_microphone_moves_nothing() -> None:
    microphone, camera = devices("a camera")
    rig.apply([microphone, camera])
    assert camera.delays_ns == {}
    rig.store(known(40.0))
    rig.apply([camera])
    assert camera.delays_ns == {}


def test_both_streams_of_a_url_are_a_rig() -> None:
    url = "rtsp://user:secret@host:554/live"
    source = NetworkSource(url, [AudioWant("mic"), VideoWant("camera")])
    assert source.identity == "rtsp://host:554/live", "no password is stored or shown"
    rig.store(known(30.0, source.identity, source.identity))
    rig.apply([source])
    assert source.delays_ns == {"mic": 0, "camera": 30 * 10**6}


def test_a_delay_is_taken_off_the_times() -> None:
    microphone, _ = devices("a camera")
    assert isinstance(microphone, MicrophoneSource)
    clock = WallClock()
    microphone.start(clock)
    before_ns = microphone._offset_ns
    microphone.delays_ns["mic"] = 10**9
    microphone.start(clock)
    assert microphone._offset_ns - before_ns == pytest.approx(10**9, abs=10**7)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["calibrate-sync", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_makes_and_measures_a_clip(tmp_path: Path) -> None:
    clip = str(tmp_path / "clip.mkv")
    code, text = run("--make", clip, "--seconds", "8", "--offset=-50")
    assert code == 0
    assert f"Wrote {clip}, 8 s. Play it full-screen" in text
    code, text = run("--input", clip)
    assert code == 0
    assert "Pictures are stamped 50.0 ms later than sound: " in text
    assert "Stored" not in text
    code, text = run("--input", clip, "--json")
    assert json.loads(text)["skew"]["offset_ms"] == pytest.approx(50, abs=0.6)


def test_the_command_says_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="--offset is for the clip"):
        run("--offset", "5")
    with pytest.raises(UsageError, match="--input measures a file: leave out microphone"):
        run("--input", "x.mp4", "--mic")


def test_the_clip_cannot_be_written(tmp_path: Path) -> None:
    for name in (tmp_path / "none" / "x.mp4", tmp_path / "x.nonsense"):
        with pytest.raises(SinkError, match="Cannot write .*Name a file that ends in .mp4 or .mkv"):
            write_flash_beep(name, 5)


def test_what_is_said_of_a_rig(tmp_path: Path) -> None:
    skew = calibrate_sync.Skew(-12.34, 0.5, 4.0, 11, 12, 13)
    lines = calibrate_sync.describe(calibrate_sync.SyncReport(skew, "a mic", "a camera", tmp_path))
    assert lines[0].startswith(
        "Pictures are stamped 12.3 ms earlier than sound: 11 events agree (12 flashes, 13 beeps)"
    )
    assert lines[1] == "Microphone: a mic. Camera: a camera."
    assert lines[2].startswith(f"Stored in {tmp_path}: edgemm run takes it off")
