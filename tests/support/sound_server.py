"""A PulseAudio of a test's own, with a null sink whose monitor is the microphone: no sound card is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PACKAGES = "portaudio19-dev libportaudio2 pulseaudio pulseaudio-utils libasound2-plugins"
VARIABLES = ("PULSE_SERVER", "ALSA_CONFIG_PATH", "JACK_NO_START_SERVER", "XDG_RUNTIME_DIR", "PULSE_RUNTIME_PATH")


def require_sound() -> None:
    """Skip the module, and say what would unskip it; fail in CI, which installs what is needed."""
    missing = [f"{name} (a program)" for name in ("pulseaudio", "pacat") if shutil.which(name) is None]
    try:
        import pyaudio  # noqa: F401
    except ImportError as error:
        missing.append(f"pyaudio ({error})")
    if missing:
        reason = f'needs {", ".join(missing)}: apt-get install {PACKAGES} && pip install "edgemm[live]"'
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


class SoundServer:
    """A running PulseAudio; what is played to it is heard by the default microphone.

    With `fifo` the microphone hears, instead, what is written to the FIFO of this name in `folder`, when it is written.
    """

    def __init__(self, folder: Path, *, fifo: bool = False) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        pipe = (
            f"load-module module-pipe-source source_name=pipe file={folder}/fifo format=s16le rate=16000 channels=1\n"
            "set-default-source pipe\n"
        )
        (folder / "default.pa").write_text(
            f"load-module module-native-protocol-unix auth-anonymous=1 socket={folder}/native\n"
            # Without norewinds a player's start damages what the monitor has already given.
            "load-module module-null-sink sink_name=feed format=s16le rate=16000 channels=1 channel_map=mono "
            "norewinds=1\n"
            "set-default-sink feed\nset-default-source feed.monitor\n" + (pipe if fifo else "")
        )
        (folder / "asound.conf").write_text('pcm.!default { type pulse hint { show on description "mic" } }\n')
        self.environment = {
            "PULSE_SERVER": f"unix:{folder}/native",
            "ALSA_CONFIG_PATH": f"{folder}/asound.conf",
            "JACK_NO_START_SERVER": "1",
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
        }

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        folder = str(self._folder)
        own = {"XDG_RUNTIME_DIR": folder, "XDG_CONFIG_HOME": folder, "PULSE_STATE_PATH": folder}
        environment = (
            {k: v for k, v in os.environ.items() if k != "PULSE_SERVER"} | own | {"PULSE_RUNTIME_PATH": folder}
        )
        socket = self._folder / "native"
        socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *("pulseaudio", "-n", "-F", f"{folder}/default.pa", "--system=false", "--daemonize=no"),
                *("--use-pid-file=false", "--exit-idle-time=-1", "--disable-shm=true"),
            ],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            if (
                socket.exists()
                and not subprocess.run(
                    ["pactl", "info"], env=os.environ | self.environment, capture_output=True, check=False
                ).returncode
            ):
                return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError("PulseAudio did not come up within 10 s")

    def control(self, *command: str) -> None:
        """Give `pactl` a command."""
        subprocess.run(["pactl", *command], env=os.environ | self.environment, check=True, capture_output=True)

    def kill(self) -> None:
        """End the daemon the hard way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def listener(self) -> subprocess.Popen[bytes]:
        """A recorder whose sound nobody wants: unless somebody listens at low latency, the sink renders 2 s ahead."""
        return subprocess.Popen(
            ["parec", "--raw", "--latency-msec=10"],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def player(self, latency_ms: int = 1000) -> subprocess.Popen[bytes]:
        """A process that plays the int16 samples (16 kHz, one channel) that are written to its `stdin`.

        It buffers `latency_ms`; where the machine keeps it from running for longer, it inserts zeros.
        """
        return subprocess.Popen(
            ["pacat", "--raw", "--format=s16le", "--rate=16000", "--channels=1", f"--latency-msec={latency_ms}"],
            env=os.environ | self.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def sound_server() -> Iterator[SoundServer]:
    """A server that runs, and this process's environment set so that PortAudio finds it."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    folder = Path(tempfile.mkdtemp(prefix="edgemm-pulse-"))
    server = SoundServer(folder)
    try:
        server.start()
        os.environ.update(server.environment)
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
