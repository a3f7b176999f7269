"""Planted bugs: a copy of the CUDA sources with one text replaced, and the test that must notice.

A bug counts as caught only if the named test fails, for the reason given by `words`; a copy that does not compile, or
a test that fails for another reason, does not count. The same tests must pass on a copy without a bug.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgemm.kernels.sources import source_dir

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Planted:
    """One bug: in `file` ("csrc/x.cu") the one place that reads `old` becomes `new`; `test` must fail with `words`."""

    name: str
    file: str
    old: str
    new: str
    test: str
    """As pytest names it, below tests/kernels: "test_attention.py::test_every_option[32-70-150-plain]"."""
    words: str
    """A regular expression that the failure's text holds."""


def copy_sources(folder: Path, bug: Planted | None = None) -> Path:
    """Copy the CUDA sources to `folder`, with `bug`; raise ValueError if its `old` is not there exactly once."""
    for name in ("csrc", "emulator"):
        shutil.copytree(source_dir(name), folder / name)
    if bug is not None:
        check_place(bug)
        path = folder / bug.file
        path.write_text(path.read_text().replace(bug.old, bug.new))
    return folder


def check_place(bug: Planted) -> None:
    """Raise ValueError if the text that `bug` replaces is not in its file exactly once."""
    folder, name = bug.file.split("/", 1)
    text = (source_dir(folder) / name).read_text()
    if text.count(bug.old) != 1:
        raise ValueError(
            f"{bug.name}: found {text.count(bug.old)} places in {bug.file} that read {bug.old!r}, expected 1."
        )


def run_tests(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of tests/kernels in a process of their own, with the CUDA sources of `folder`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += [f"--basetemp={folder / 'pytest'}", *(f"tests/kernels/{test}" for test in tests)]
    environment = {**os.environ, "EDGEMM_TEST_PLANTED": str(folder)}
    return subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )


def check_caught(bug: Planted, folder: Path) -> None:
    """Plant `bug` in a copy of the sources in `folder`, and fail unless its test notices."""
    done = run_tests(copy_sources(folder, bug), [bug.test])
    if done.returncode == 0:
        pytest.fail(f"{bug.name}: {bug.test} passes with the bug", pytrace=False)
    if done.returncode != 1 or "cannot compile" in done.stdout or not re.search(bug.words, done.stdout):
        pytest.fail(f"{bug.name}: {bug.test} failed, but not with {bug.words!r}:\n{done.stdout[-3000:]}", pytrace=False)


def check_sound(bugs: Sequence[Planted], folder: Path) -> None:
    """Fail unless every test that is to catch a bug passes without one."""
    done = run_tests(copy_sources(folder), sorted({bug.test for bug in bugs}))
    if done.returncode:
        pytest.fail(f"without a bug:\n{(done.stdout + done.stderr)[-3000:]}", pytrace=False)
