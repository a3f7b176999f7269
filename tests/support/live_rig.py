"""A microphone and a camera before which a clip plays: PulseAudio, PipeWire's V4L2 and a feed, all a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from require import required
from sound_server import SoundServer, require_sound

FEED = Path(__file__).parent / "clip_feed.py"
PROGRAMS = ("pipewire", "wireplumber", "pw-v4l2", "gst-launch-1.0", "dbus-daemon")
PACKAGES = "pipewire wireplumber pipewire-v4l2 gstreamer1.0-pipewire gstreamer1.0-tools gstreamer1.0-plugins-base dbus"


def require_v4l2() -> None:
    """Skip the module, and say what would unskip it; fail in CI, which installs what is needed."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        why = f"needs {', '.join(missing)}: apt-get install {PACKAGES}"
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why, allow_module_level=True)


def require_rig() -> None:
    """As `require_v4l2`, for a microphone and a camera."""
    require_sound()
    require_v4l2()
    try:
        import gi  # noqa: F401
    except ImportError as error:
        reason = f'needs gi ({error}): pip install "edgemm[gstreamer]"'
        if required("gstreamer"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


@contextmanager
def pipewire(folder: Path) -> Iterator[dict[str, str]]:
    """A PipeWire of the test's own; gives the environment in which `pw-v4l2` finds its cameras."""
    folder.chmod(0o700)
    bus = f"unix:path={folder}/bus"
    environment = os.environ | {
        "XDG_RUNTIME_DIR": str(folder),
        "HOME": str(folder),
        "DBUS_SESSION_BUS_ADDRESS": bus,
    }
    with ExitStack() as stack:

        def start(*command: str, seconds: float) -> None:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            time.sleep(seconds)

        start("dbus-daemon", "--session", "--nofork", f"--address={bus}", seconds=0.3)
        start("pipewire", seconds=1)
        start("wireplumber", seconds=2)
        yield environment


@dataclass
class Rig:
    """A rig that plays: its environment, and when the clip begins by the machine's monotonic clock."""

    environment: dict[str, str]
    begin_ns: int

    def run(self, *command: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        """Run a command that finds the clip's pictures at /dev/video0 and its sound at the default microphone."""
        return subprocess.run(
            ["pw-v4l2", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def command_line(*arguments: str) -> Sequence[str]:
    """edgemm's command line in this Python."""
    return (sys.executable, "-m", "edgemm", *arguments)


@contextmanager
def live_rig(clip: Path, lead_s: float) -> Iterator[Rig]:
    """A rig before which `clip` begins to play `lead_s` from now."""
    folder = Path(tempfile.mkdtemp(prefix="edgemm-rig-"))
    sounds, pictures = folder / "pulse", folder / "pipewire"
    sounds.mkdir()
    pictures.mkdir()
    server = SoundServer(sounds, fifo=True)
    try:
        server.start()
        with pipewire(pictures) as environment:
            # PulseAudio is named by its socket, so that XDG_RUNTIME_DIR is PipeWire's.
            both = environment | {k: v for k, v in server.environment.items() if k != "XDG_RUNTIME_DIR"}
            feed = subprocess.Popen(
                [sys.executable, str(FEED), str(clip), str(sounds / "fifo"), str(lead_s)],
                env=both,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert feed.stdout is not None
                line = feed.stdout.readline()
                assert line, feed.communicate()[1]
                time.sleep(2)  # until WirePlumber has linked the camera
                yield Rig(both, int(line))
            finally:
                feed.kill()
                feed.communicate()
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
