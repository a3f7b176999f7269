"""Everything that only a GPU can show about the kernels, in one run: conformance, sanitizers, figures.

    pip install -e . cuda-bindings pytest hypothesis kaldi-native-fbank        # and nvcc or NVRTC
    pip install torch torchaudio triton cupy-cuda13x                           # the peers, as far as wanted
    python kernels/bench/run.py [--only conformance tests sanitizers front_end frames attention] [--output DIR]

What is missing is named and left out; what fails makes the exit code 1. Results go to DIR/<device>.json and .md.
Nothing here changes the device's settings: clocks are as they are, and the 99th percentile stands beside the median.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import attention  # noqa: E402
import conformance  # noqa: E402
import frames  # noqa: E402
import front_end  # noqa: E402
from measure import Bench, table  # noqa: E402

from edgemm.device import open_device  # noqa: E402
from edgemm.errors import EdgemmError  # noqa: E402

PARTS = ("conformance", "tests", "sanitizers", "front_end", "frames", "attention")
TESTS = ("test_log_mel_cuda.py", "test_frame_prep.py", "test_attention.py")
SANITIZED = "every_size or cepstra or real_size or every_option"
"""The tests that go once over every path, without hypothesis."""


def kernel_tests(tool: str | None = None) -> tuple[bool, str]:
    """Run the kernel tests on the device, under a tool of compute-sanitizer if one is named: (passed, last lines)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow"]
    command += [str(ROOT / "tests" / "kernels" / name) for name in TESTS]
    if tool:
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        command = [program, "--tool", tool, "--error-exitcode", "9", *command, "-k", SANITIZED]
    environment = {**os.environ, "EDGEMM_TEST_RUNNER": "device"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    return done.returncode == 0, "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])


def main() -> int:
    """Run the parts that were asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--small", action="store_true", help="small shapes, 3 rounds: to see that everything runs")
    parser.add_argument("--device", type=int, default=0)
    arguments = parser.parse_args()
    try:
        with open_device(arguments.device) as device:
            print(f"{device.info.name}, sm_{device.arch}, through {device.backend}", flush=True)
            failed, report = run(device, arguments)
    except EdgemmError as error:
        print(f"Nothing measured: {error}", file=sys.stderr)
        return error.exit_code
    name = re.sub(r"\W+", "-", report["device"]["name"]).strip("-").lower()
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.output / f"{name}.md").write_text(report["text"])
    print(f"\nwritten: {arguments.output / name}.json and .md")
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return 1 if failed else 0


def run(device: Any, arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """(what failed, the report)."""
    bench = Bench(device, small=arguments.small)
    failed: list[str] = []
    proofs: dict[str, str] = {}
    if "conformance" in arguments.only:
        for name, result in conformance.run(device):
            proofs[f"primitive: {name}"] = result
            if result != "same":
                failed.append(f"{name}: {result}")
    if "tests" in arguments.only:
        passed, words = kernel_tests()
        proofs["kernel tests on the device"] = words.splitlines()[-1]
        if not passed:
            failed.append(f"kernel tests on the device:\n{words}")
    if "sanitizers" in arguments.only:
        for tool in ("memcheck", "racecheck"):
            if not (shutil.which("compute-sanitizer") or os.path.exists("/usr/local/cuda/bin/compute-sanitizer")):
                bench.lacks("compute-sanitizer: comes with the CUDA toolkit (cuda-sanitizer)")
                break
            passed, words = kernel_tests(tool)
            proofs[f"compute-sanitizer {tool}"] = "clean" if passed else "not clean"
            if not passed:
                failed.append(f"compute-sanitizer {tool}:\n{words}")
    for name, part in (("front_end", front_end), ("frames", frames), ("attention", attention)):
        if name in arguments.only:
            part.run(bench, small=arguments.small)
    for name, result in proofs.items():
        print(f"{name}: {result}")
    text = [
        f"# {device.info.name}, sm_{device.arch}",
        f"Warm-up {bench.warm_up}, {bench.rounds} rounds, device events. "
        f"An empty launch takes {bench.launch_us:.1f} us, a copy moves {bench.bytes_per_us / 1e3:.0f} GB/s.",
        "\n".join(f"- {name}: {result}" for name, result in proofs.items()),
        table(bench.rows),
        "\n".join(f"- {line}" for part in (front_end, frames, attention) for line in part.figures(bench)),
        "Missing:\n" + "\n".join(f"- {line}" for line in bench.missing) if bench.missing else "",
    ]
    report = {**bench.report(), "proofs": proofs, "failed": failed}
    report["text"] = "\n\n".join(part for part in text if part) + "\n"
    return failed, report


if __name__ == "__main__":
    sys.exit(main())
