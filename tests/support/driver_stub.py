"""Builds the driver stub, and runs a test file again in a process where it stands for libcuda.so.1.

In a process of its own, as a library that has been loaded cannot be taken back, and other tests want no driver.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.kernels import emulate
from edgemm.kernels.sources import source_dir

ACTIVE = "EDGEMM_STUB_ACTIVE"

on_the_stub = pytest.mark.skipif(ACTIVE not in os.environ, reason="run by test_on_the_driver_stub in its own process")


def build(folder: Path) -> Path:
    """Compile the stub into `folder`, as libcuda.so.1."""
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("driver_stub.cpp")
    command = [emulate.compiler(), "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-cast-function-type", f"-I{source_dir('emulator')}", str(source), "-o", str(library)]
    subprocess.run([*command, f"-Wl,-soname,{library.name}", "-ldl"], check=True)
    return library


def environment(folder: Path, *sources: Path) -> dict[str, str]:
    """The environment of a process for which the stub is the driver, with our kernels and those of `sources`."""
    named = [source_dir() / f"{name}.cu" for name in ("log_mel", "frame_prep")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([str(build(folder).parent), os.environ.get("LD_LIBRARY_PATH", "")]),
        "EDGEMM_STUB_LIBRARIES": ":".join(str(emulate.build(path).path) for path in (*named, *sources)),
    }


def run_again(file: str, folder: Path) -> None:
    """Run the tests of `file` that are marked `on_the_stub`; fail with what they print if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder) | {ACTIVE: "1"}, check=False)
    if done.returncode:
        pytest.fail(done.stdout[-6000:] + done.stderr[-2000:], pytrace=False)
    assert " passed" in done.stdout


def held() -> int:
    """Allocations, streams and events that have not been given back."""
    library = ctypes.CDLL("libcuda.so.1")
    library.edgemm_stub_held.restype = ctypes.c_size_t
    return int(library.edgemm_stub_held())


def contexts() -> int:
    """Contexts that are current."""
    return int(ctypes.CDLL("libcuda.so.1").edgemm_stub_contexts())
