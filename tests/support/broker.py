"""A mosquitto of a test's own, on a port of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def require_broker() -> str:
    """The program, or a skip that says what would unskip it; a failure in CI, which installs it."""
    program = shutil.which("mosquitto", path=PATH)
    if program is None:
        reason = "needs mosquitto (a program): apt-get install mosquitto"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    return program


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """Runs while it is entered; `kill` and `start` in between are a broker that crashes and comes back."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self._program = require_broker()
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        # As root it would become the user mosquitto, who cannot read the test's files.
        user = ["user root"] if os.geteuid() == 0 else []
        self._config.write_text("\n".join([*user, f"listener {self.port} 127.0.0.1", *settings]) + "\n")
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; it answers when this returns."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(self._log.read_text()) from None
                time.sleep(0.02)

    def freeze(self) -> None:
        """Let it read nothing more, while its connections stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
