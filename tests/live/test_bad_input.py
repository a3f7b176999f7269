"""The command line on live input that is bad: one sentence, exit code 1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo_decisions import DEMO, build

pytestmark = pytest.mark.real_time

CLIP = str(DEMO / "clip.mkv")
NOBODY = 65534


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("demo") / "demo.edgemm"))


def refused(*words: str) -> str:
    """What edgemm says while it fails with exit code 1: one line."""
    done = subprocess.run(
        [sys.executable, "-m", "edgemm", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stderr.startswith("edgemm: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize("device", ["--camera-device", "--mic-device"])
def test_a_url_that_never_answers(bundle: str, device: str) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        begin = time.monotonic()
        said = refused("run", bundle, device, f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/x", "--input", CLIP)
    assert "did not answer within 5 s. Check the address, and that the camera is on." in said
    assert time.monotonic() - begin < 25


def test_a_camera_that_may_not_be_opened(tmp_path: Path) -> None:
    node = tmp_path / "video0"
    node.touch()
    node.chmod(0)
    # Root may open everything: be somebody else, once all is imported.
    code = (
        "import os, sys, av, av.video.reformatter\n"
        "from edgemm.errors import EdgemmError\n"
        "from edgemm.stream.sources import camera_gstreamer, camera_v4l2, network\n"
        "from edgemm.stream.sources.camera import open_camera\n"
        "from edgemm.stream.sources.protocol import VideoWant\n"
        f"os.getuid() or os.setuid({NOBODY})\n"
        "try:\n    open_camera(sys.argv[1], VideoWant('eye')).__enter__()\n"
        "except EdgemmError as error:\n    print(error, error.exit_code)"
    )
    # A folder that everybody may enter, as /dev is.
    public = Path("/tmp") / f"edgemm-dev-{os.getpid()}"
    public.mkdir(mode=0o755)
    try:
        shutil.move(str(node), public / "video0")
        done = subprocess.run(
            [sys.executable, "-c", code, str(public / "video0")], capture_output=True, text=True, check=False
        )
    finally:
        shutil.rmtree(public)
    assert f'{public}/video0 may not be opened: permission denied. Add yourself to its group, e.g. "video". 1' in (
        done.stdout + done.stderr
    )


def test_recordings_that_are_cut(bundle: str, tmp_path: Path) -> None:
    data = Path(CLIP).read_bytes()
    (tmp_path / "stub.mkv").write_bytes(data[:200])
    said = refused("run", bundle, "--input", str(tmp_path / "stub.mkv"))
    assert "stub.mkv" in said
    said = refused("run", bundle, "--replay", str(tmp_path / "stub.mkv"))
    assert "stub.mkv" in said
    # An MP4 keeps what it holds at its end.
    clip = tmp_path / "clip.mp4"
    subprocess.run(
        [sys.executable, "-m", "edgemm", "calibrate-sync", "--make", str(clip), "--seconds", "5"],
        check=True,
        capture_output=True,
    )
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert "Cannot open" in refused("calibrate-sync", "--input", str(clip))


def test_calibrating_without_devices(tmp_path: Path) -> None:
    said = refused("calibrate-sync", "--mic-device", "tcp://127.0.0.1:9", "--camera-device", "tcp://127.0.0.1:9")
    assert "refused the connection" in said
    said = refused("calibrate-sync", "--make", str(tmp_path / "none" / "x.mp4"))
    assert "Cannot write" in said
