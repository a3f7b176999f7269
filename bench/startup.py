"""How long `edgemm --help` takes, beside a bare interpreter: `python bench/startup.py`. The aim is 200 ms, warm."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def milliseconds(command: list[str], runs: int) -> list[float]:
    """Wall time of each run, after two that warm the file cache."""
    times = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - began) * 1e3)
    return sorted(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--runs", type=int, default=20)
    runs = parser.parse_args().runs
    for name, command in (
        ("python -c pass", [sys.executable, "-c", "pass"]),
        ("python -c 'import edgemm'", [sys.executable, "-c", "import edgemm"]),
        ("edgemm --help", [sys.executable, "-m", "edgemm", "--help"]),
        ("edgemm run --help", [sys.executable, "-m", "edgemm", "run", "--help"]),
    ):
        times = milliseconds(command, runs)
        print(f"{name:28} min {times[0]:6.1f} ms  median {statistics.median(times):6.1f} ms  max {times[-1]:6.1f} ms")


if __name__ == "__main__":
    main()
