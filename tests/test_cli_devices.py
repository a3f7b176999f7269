"""`edgemm devices`: how what was found is shown."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edgemm.cli.main import app
from edgemm.errors import SourceError
from edgemm.stream.sources import microphone, v4l2
from edgemm.stream.sources.level import Level
from edgemm.stream.sources.microphone import MicrophoneInfo
from edgemm.stream.sources.v4l2 import CameraInfo, V4l2Mode
from edgemm.stream.sources.v4l2_controls import V4l2Control

MICROPHONES = [
    MicrophoneInfo(0, "Built-in", "ALSA", 2, 48000, is_default=True),
    MicrophoneInfo(3, "USB", "ALSA", 1, 16000, is_default=False),
    MicrophoneInfo(4, "Muted", "ALSA", 1, 16000, is_default=False),
    MicrophoneInfo(5, "Loud", "ALSA", 1, 16000, is_default=False),
]
CAMERAS = [
    CameraInfo(
        "/dev/video0",
        "Webcam",
        (V4l2Mode("MJPG", 1280, 720, (30.0, 60.0)), V4l2Mode("YUYV", 640, 480, ())),
        (
            V4l2Control("auto_exposure", 1, 0, 3, 1, 3, 3, {1: "Manual Mode", 3: "Aperture Priority Mode"}),
            V4l2Control("temperature", 2, 0, 100, 1, 0, None, {}, is_read_only=True),
        ),
    ),
    CameraInfo("/dev/video1", "?", (), problem="Permission denied"),
]


def listen(device: int, seconds: float) -> Level:
    if device == 3:
        raise SourceError("The microphone is in use.")
    return {0: Level(-12.34, -30.0), 4: Level(zeros_s=1.5), 5: Level(0.0, -3.0, 40)}[device]


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone, "microphones", lambda: MICROPHONES)
    monkeypatch.setattr(microphone, "listen", listen)
    monkeypatch.setattr(v4l2, "cameras", lambda: CAMERAS)


def said(*words: str) -> str:
    done = CliRunner().invoke(app, ["devices", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_devices_with_modes_and_controls() -> None:
    text = said()
    assert "0 *" in text
    assert "dBFS" not in text, "nothing was listened to"
    assert "1280x720" in text
    assert "30, 60" in text
    assert "Permission denied" in text
    assert "/dev/video0 auto_exposure=3: 1 (Manual Mode), 3 (Aperture Priority Mode); default 3" in text
    assert "/dev/video0 temperature=?: 0 to 100; default 0, read only" in text
    assert "set with --camera-option NAME=VALUE" in text


def test_levels() -> None:
    lines = {line.split()[0]: line for line in said("--levels").splitlines() if line.strip()}
    assert lines["0"].split()[-2:] == ["-12.3", "-30.0"]
    assert lines["3"].endswith("The microphone is in use.")
    assert lines["4"].endswith("exact zeros: muted?")
    assert lines["5"].endswith("clips")


def test_json_has_all() -> None:
    whole = json.loads(said("--json", "--levels"))
    assert whole["microphones"][0]["level"]["peak_dbfs"] == -12.34
    assert whole["microphones"][1]["level"] == {"problem": "The microphone is in use."}
    assert whole["cameras"][0]["controls"][0]["name"] == "auto_exposure"
    assert whole["cameras"][1]["problem"] == "Permission denied"
    assert "level" not in json.loads(said("--json"))["microphones"][0]
