"""`edgemm devices` and the live options of `edgemm run`: what they say where there is no device, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgemm

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = str(DEMO / "clip.mkv")

needs_no_device = pytest.mark.skipif(
    bool(list(Path("/dev").glob("video*")) or list(Path("/dev").glob("snd/pcm*c")) or "PULSE_SERVER" in os.environ),
    reason="this machine has a microphone or a camera; it needs one without",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return str(path)


def edgemm_cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgemm", *words], capture_output=True, text=True, timeout=60, check=False
    )


@needs_no_device
def test_no_devices_are_listed() -> None:
    done = edgemm_cli("devices")
    assert done.returncode == 0
    assert "no camera found at /dev/video*" in done.stdout
    found = json.loads(edgemm_cli("devices", "--json").stdout)
    assert found == {"microphones": [], "cameras": []}


@needs_no_device
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--camera", "--input", CLIP], 1, "No camera was found"),
        (["--camera-device", "/dev/video7", "--input", CLIP], 1, "/dev/video7 does not exist"),
        (["--camera-device", "tcp://127.0.0.1:9", "--input", CLIP], 1, "refused the connection"),
        (["--camera-device", "csi:first", "--input", CLIP], 2, '"csi:first" names no camera'),
        (["--mic"], 2, "Nothing was given for camera: give --input FILE"),
        (["--mic", "--camera-device", "tcp://127.0.0.1:9", "--clock", "virtual"], 2, "on the wall clock"),
        (["--mic", "--camera-device", "tcp://127.0.0.1:9", "--input", CLIP], 2, "leave out --input"),
        ([], 2, "Nothing to run on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_one_sentence(bundle: str, words: list[str], code: int, said: str) -> None:
    done = edgemm_cli("run", bundle, *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@needs_no_device
def test_no_microphone_is_one_sentence(bundle: str) -> None:
    pytest.importorskip("pyaudio", reason='needs pyaudio: pip install "edgemm[live]"')
    done = edgemm_cli("run", bundle, "--mic", "--input", CLIP)
    assert done.returncode == 1
    assert done.stderr.startswith("edgemm: No microphone was found. Plug one in")
    assert done.stderr.count("\n") == 1


def test_a_file_serves_as_a_camera(bundle: str, tmp_path: Path) -> None:
    summary = edgemm.run(bundle, camera=CLIP, input={"mic": CLIP}, duration_s=1.5)
    assert summary.streams["camera"].captured > 30
    assert summary.results


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_in_order_and_keeps_the_recording(bundle: str, tmp_path: Path, end: signal.Signals) -> None:
    path = tmp_path / "s.mkv"
    run = subprocess.Popen(
        [sys.executable, "-m", "edgemm", "run", bundle, "-i", CLIP, "--record", str(path), "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    lines = [run.stdout.readline() for _ in range(8)]
    run.send_signal(end)
    rest, said = run.communicate(timeout=30)
    assert run.returncode == 0, said
    assert said.startswith("Interrupted after")
    lines += rest.splitlines(keepends=True)
    done = edgemm_cli("run", bundle, "--replay", str(path), "-o", "-")
    assert done.returncode == 0, done.stderr
    replayed = [json.loads(line) for line in done.stdout.splitlines()]
    played = [json.loads(line) for line in lines]
    for line in played:
        del line["latency_ms"]
    assert replayed == played
