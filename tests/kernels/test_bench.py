"""The GPU run: that it says what is missing, and that it goes through on the driver stub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import driver_stub
import pytest

from edgemm.kernels.compile import compilers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "kernels" / "bench" / "run.py"


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": "-1"}
    done = run("--small", "--output", str(tmp_path), environment=environment)
    assert done.returncode == 1 or done.returncode == 2  # no driver, or no Python module for it
    assert done.stderr.startswith("Nothing measured: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_goes_through_on_the_stub(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason='pip install "edgemm[kernels]"')
    if not compilers():
        pytest.skip("needs a CUDA compiler: nvcc on PATH, or pip install nvidia-cuda-nvrtc-cu12")
    sources = (SCRIPT.parent / "floor.cu", ROOT / "tests" / "kernels" / "emulator_kernels.cu")
    parts = ("conformance", "front_end", "frames")
    done = run(
        "--small",
        *("--only", *parts),
        *("--output", str(tmp_path / "results")),
        environment=driver_stub.environment(tmp_path, *sources),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "results" / "emulated-gpu.json").read_text())
    assert set(report["proofs"].values()) == {"same"}
    assert len(report["proofs"]) == 12
    assert {row["case"] for row in report["rows"]} >= {"log-mel 1 x 1 s", "log-mel, a hop of 10 ms"}
    assert not [line for line in report["missing"] if "agreement" in line]
    assert "| log-mel, a hop of 10 ms | edgemm stream |" in (tmp_path / "results" / "emulated-gpu.md").read_text()


@pytest.mark.slow
def test_the_kernel_tests_run_on_a_device(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason='pip install "edgemm[kernels]"')
    if not compilers():
        pytest.skip("needs a CUDA compiler: nvcc on PATH, or pip install nvidia-cuda-nvrtc-cu12")
    environment = driver_stub.environment(tmp_path) | {"EDGEMM_TEST_RUNNER": "device"}
    tests = [str(ROOT / "tests" / "kernels" / name) for name in ("test_log_mel_cuda.py", "test_frame_prep.py")]
    command = [sys.executable, "-m", "pytest", "-q", *tests, "-m", "not slow"]
    command += ["-k", "cepstra or reset or real_size or faces or fit or order"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "is about the emulator" in done.stdout  # the thread orders, which a device does not take
