"""Everything that only a GPU can show about the kernels, in one command: conformance, sanitizers, figures.

    pip install -e . cuda-bindings pytest hypothesis kaldi-native-fbank        # and nvcc or NVRTC
    pip install torch torchaudio triton cupy-cuda13x                           # the peers, as far as wanted
    python kernels/bench/run.py [--only PART ...] [--seconds N] [--resume] [--output DIR]

What is missing is named and left out; what fails makes the exit code 1. Each part runs in a process of its own and
saves DIR/<part>.json after every case, so that a kernel that hangs or crashes loses one case. With --seconds it stops
in time, says what is left (exit code 3), and goes on from there with --resume. DIR/<device>.json and .md are all parts
together.
Nothing here changes the device's settings: clocks are as they are, and the 99th percentile stands beside the median.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import attention  # noqa: E402
import conformance  # noqa: E402
import frames  # noqa: E402
import front_end  # noqa: E402
import proofs  # noqa: E402
from measure import Bench, first_line  # noqa: E402
from results import Part, Row, table  # noqa: E402

from edgemm.device import open_device  # noqa: E402
from edgemm.errors import EdgemmError  # noqa: E402

FIGURES = {"front_end": front_end, "frames": frames, "attention": attention}
# The short ones first, so that a cut run has something of each.
PARTS = ("conformance", "front_end", "frames", "tests", "attention", "sanitizers")
LEFT = 3
"""Exit code where time did not suffice."""
GRACE_S = 20.0
"""What a part gets beyond its time to end by itself."""
LEAST_S = 5.0
"""A part is not begun with less time than this: to open the device and calibrate takes as long."""


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop by then, and say what is left")
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "kernels", metavar="DIR")
    parser.add_argument("--small", action="store_true", help="small shapes, 3 rounds: to see that everything runs")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for; return the exit code."""
    arguments = arguments_of(words)
    try:
        if arguments.part:
            return run_part(arguments)
        with open_device(arguments.device) as device:  # before anything else: is there one
            print(f"{device.info.name}, sm_{device.arch}, through {device.backend}", flush=True)
    except EdgemmError as error:
        print(f"Nothing measured: {error}", file=sys.stderr)
        return error.exit_code
    deadline = time.monotonic() + arguments.seconds
    crashed, left = [], []
    for name in arguments.only:
        if deadline - time.monotonic() < LEAST_S:
            left.append(f"all that is not done of {name}")
        elif line := spawn(name, arguments, deadline):
            crashed.append(line)
    paths = {name: arguments.output / f"{name}.json" for name in PARTS}
    parts = {name: Part.load(path) for name, path in paths.items() if path.is_file()}
    failed = [*crashed, *(line for part in parts.values() for line in part.failed)]
    write(parts, crashed, arguments.output)
    left += [case for part in parts.values() for case in part.left]
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    if left:
        print(f"{len(left)} cases are left; the same command with --resume goes on: {left[0]} ...", file=sys.stderr)
    return 1 if failed else LEFT if left else 0


def spawn(name: str, arguments: argparse.Namespace, deadline: float) -> str | None:
    """Run a part in its own process; return what to say if it ended otherwise than by itself."""
    seconds = deadline - time.monotonic()
    command = [sys.executable, str(HERE / "run.py"), "--part", name, "--output", str(arguments.output)]
    command += ["--device", str(arguments.device), "--seconds", str(max(seconds, 0.0))]
    command += ["--small"] * arguments.small + ["--resume"] * arguments.resume
    try:
        limit = None if seconds == float("inf") else max(seconds, 0.0) + GRACE_S
        done = subprocess.run(command, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"{name} did not end by itself: it was stopped {GRACE_S:.0f} s after its time"
    return None if done.returncode in (0, 1, LEFT) else f"{name} ended with exit code {done.returncode}"


def run_part(arguments: argparse.Namespace) -> int:
    """The work of one part, in this process."""
    name, deadline = arguments.part, time.monotonic() + arguments.seconds
    path = arguments.output / f"{name}.json"
    part = Part.load(path) if arguments.resume and path.is_file() else Part(path)
    part.left = []
    with open_device(arguments.device) as device:
        part.device = {**asdict(device.info), "arch": device.arch, "backend": device.backend}
        part.save()
        if name == "conformance" and part.begin(name):
            started = time.monotonic()
            conformance.run(device, part)
            part.finish(name, time.monotonic() - started)
        elif name in FIGURES:
            FIGURES[name].run(Bench(device, part, deadline=deadline, small=arguments.small), small=arguments.small)
    # They open the device themselves.
    if name == "tests":
        proofs.run_tests(part, deadline)
    elif name == "sanitizers":
        proofs.run_sanitizers(part, deadline)
    part.save()
    return 1 if part.failed else LEFT if part.left else 0


def write(parts: dict[str, Part], crashed: Sequence[str], folder: Path) -> None:
    """All parts as DIR/<device>.json and .md."""
    device = next((part.device for part in parts.values() if part.device), None)
    if device is None:
        return
    name = re.sub(r"\W+", "-", device["name"]).strip("-").lower()
    whole = {key: {k: v for k, v in asdict(part).items() if k != "path"} for key, part in parts.items()}
    (folder / f"{name}.json").write_text(json.dumps({"device": device, "crashed": crashed, **whole}, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text_of(device, parts, crashed))
    print(f"\nwritten: {folder / name}.json and .md")


def text_of(device: dict[str, Any], parts: dict[str, Part], crashed: Sequence[str]) -> str:
    """The report in Markdown."""
    rows: list[Row] = [row for part in parts.values() for row in part.rows]
    measured = [part.calibration for part in parts.values() if part.calibration]
    text = [f"# {device['name']}, sm_{device['arch']}"]
    if measured:
        first = measured[0]
        text.append(
            f"Warm-up {first['warm_up']:.0f}, {first['rounds']:.0f} rounds, device events, the stream filled ahead. "
            f"An empty launch takes {first['launch_us']:.1f} us, a copy moves {first['bytes_per_us'] / 1e3:.0f} GB/s."
        )
    for title, lines in (
        ("", [f"{name}: {result}" for part in parts.values() for name, result in part.proofs.items()]),
        (
            "Against the aims:",
            [
                line
                for name, module in FIGURES.items()
                if name in parts and parts[name].calibration
                for line in module.figures(parts[name].rows, parts[name].calibration["bytes_per_us"])
            ],
        ),
        ("Failed:", [*crashed, *(line for part in parts.values() for line in part.failed)]),
        ("Missing:", list(dict.fromkeys(line for part in parts.values() for line in part.missing))),
        ("Left for want of time:", [line for part in parts.values() for line in part.left]),
    ):
        if lines:
            text.append("\n".join([*([title] if title else []), *(f"- {line}" for line in lines)]))
    if rows:
        text.append(table(rows))
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemmError as error:
        print(f"{first_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
