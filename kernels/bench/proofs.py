"""The kernel tests on the device, plain and under compute-sanitizer, one file at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from results import Part

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_log_mel_cuda.py", "test_frame_prep.py", "test_attention.py", "test_attention_torch.py")
SANITIZED = "every_size or cepstra or real_size or every_option"
"""The tests that go once over every path, without hypothesis."""
TOOLS = ("memcheck", "racecheck")
TOOLKIT_SANITIZER = "/usr/local/cuda/bin/compute-sanitizer"


def sanitizer() -> str | None:
    """compute-sanitizer, if it is installed."""
    found = shutil.which("compute-sanitizer")
    return found or (TOOLKIT_SANITIZER if os.access(TOOLKIT_SANITIZER, os.X_OK) else None)


def command(test: str, tool: str | None = None) -> list[str]:
    """What runs a file of kernel tests on the device, under a tool of compute-sanitizer if one is named."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    words.append(str(ROOT / "tests" / "kernels" / test))
    if tool is None:
        return words
    return [str(sanitizer()), "--tool", tool, "--error-exitcode", "9", *words, "-k", SANITIZED]


def run_tests(part: Part, deadline: float) -> None:
    """Every kernel test on the device."""
    for test in TESTS:
        _run(part, f"{test} on the device", command(test), deadline)


def run_sanitizers(part: Part, deadline: float) -> None:
    """The tests of every path under memcheck and racecheck."""
    if sanitizer() is None:
        part.lacks("compute-sanitizer: comes with the CUDA toolkit (cuda-sanitizer)")
        return
    for tool in TOOLS:
        for test in TESTS[:3]:
            _run(part, f"{test} under {tool}", command(test, tool), deadline)


def _run(part: Part, name: str, words: list[str], deadline: float) -> None:
    started = time.monotonic()
    limit = deadline - started
    if limit <= 0 and name not in part.done:
        part.left.append(name)
        return
    if not part.begin(name):
        return
    print(f"{name} ...", flush=True)
    environment = {**os.environ, "EDGEMM_TEST_RUNNER": "device"}
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=None if limit == float("inf") else limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        part.left.append(name)
        print(f"{name}: not finished in {limit:.0f} s", flush=True)
        return
    output = (done.stdout + done.stderr).strip().splitlines() or [""]
    # pytest counts; the sanitizer has the last word
    counted = next(
        (line for line in reversed(output) if " passed" in line or " failed" in line or "error" in line), output[-1]
    )
    part.proofs[name] = counted.strip("= ")
    nothing_there = 5  # pytest's exit code where all of a file was skipped
    if done.returncode not in (0, nothing_there):
        part.failed.append(f"{name}:\n" + "\n".join(output[-12:]))
    print(f"{name}: {part.proofs[name]}", flush=True)
    part.finish(name, time.monotonic() - started)
