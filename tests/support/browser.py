"""A headless Chromium of a test's own, driven by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from websockets.sync.client import connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")


def require_browser() -> str:
    """The program, or a skip that says what would unskip it; a failure in CI, which installs it.

    `EDGEMM_CHROMIUM` names one that is not on the path.
    """
    named = os.environ.get("EDGEMM_CHROMIUM")
    program = named or next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        reason = "needs Chromium: apt-get install chromium, or set EDGEMM_CHROMIUM to a Chromium or Chrome"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    return program


class Browser:
    """Runs while it is entered; `open` gives a page."""

    def __init__(self) -> None:
        self._program = require_browser()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Browser:
        log = Path(self._folder.name) / "log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    self._program,
                    "--headless=new",
                    "--no-sandbox",  # it does not run as root otherwise
                    "--disable-gpu",
                    "--disable-dev-shm-usage",  # containers have little
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--remote-debugging-port=0",
                    f"--user-data-dir={self._folder.name}",
                    "about:blank",
                ],
                stdout=out,
                stderr=out,
            )
        told = Path(self._folder.name) / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (told.exists() and "\n" in told.read_text()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self._program} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        self._port = int(told.read_text().splitlines()[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()

    def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
        """A new page, at `url`; the caller closes it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            target = json.load(answer)
        page = Page(target["webSocketDebuggerUrl"])
        page.size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        return page


class Page:
    """One page; `errors` is what went wrong in it: exceptions, refused loads, violated policies."""

    def __init__(self, url: str) -> None:
        self._socket = connect(url, max_size=None, open_timeout=20, close_timeout=0.2).__enter__()
        self._number = 0
        self.errors: list[str] = []
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call("Page.close")
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=30))
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                result: dict[str, Any] = said["result"]
                return result

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{code}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def text(self, selector: str) -> str | None:
        """The text of the first element that `selector` finds; None if it finds none."""
        value: str | None = self.evaluate(f"document.querySelector({json.dumps(selector)})?.textContent ?? null")
        return value

    def wait_for(self, code: str, seconds: float = 15) -> None:
        """Wait until an expression is true; one that throws is not yet."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"(() => {{ try {{ return Boolean({code}) }} catch {{ return false }} }})()"):
            if time.monotonic() > end:
                raise AssertionError(f"in vain for {code}; the page says: {self.evaluate('document.body.innerText')}")
            time.sleep(0.05)

    def size(self, width: int, height: int) -> None:
        """The window's size; below 600 a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )

    def screenshot(self, path: Path) -> None:
        """The page as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
