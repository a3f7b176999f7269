"""What the view costs a run: processor time and age of results, without it, with it, and with somebody looking.

    python bench/view.py [--seconds 20] [--rounds 3]

The demo runs on the wall clock in a process of its own; who looks is another process, which takes every message as a
browser would and draws nothing. Rounds alternate between the three, and medians are given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import edgemm

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
LOOK = """
import sys
from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed
url = sys.argv[1]
count = size = 0
with connect(url.replace("http", "ws"), origin=url.rstrip("/"), max_size=None) as client:
    try:
        while True:
            size += len(client.recv())
            count += 1
    except ConnectionClosed:
        print(count, size)
"""
KINDS = ("without", "nobody looks", "one looks")


def one(kind: str, bundle: Path, folder: Path, seconds: float) -> dict[str, float]:
    """One run: processor seconds for each second, and percentiles of the latency, in ms."""
    lines = folder / "results.jsonl"
    words = [sys.executable, "-m", "edgemm", "run", str(bundle), "-i", str(DEMO / "clip.mkv"), "-o", str(lines)]
    words += ["--duration", str(seconds)] + ([] if kind == "without" else ["--view", ":0"])
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    looking = None
    if kind != "without":
        url = run.stderr.readline().split()[1]
        if kind == "one looks":
            looking = subprocess.Popen([sys.executable, "-c", LOOK, url], stdout=subprocess.PIPE, text=True)
    _, status, used = os.wait4(run.pid, 0)
    run.stderr.close()
    if status:
        raise SystemExit(f"the run failed: {status}")
    found = {"cpu": (used.ru_utime + used.ru_stime) / seconds}
    if looking is not None:
        count, size = map(int, looking.communicate(timeout=30)[0].split())
        found |= {"messages": count / seconds, "kB": size / seconds / 1e3}
    totals = sorted(json.loads(line)["latency_ms"]["total"] for line in lines.read_text().splitlines())
    return found | {"p50": totals[len(totals) // 2], "p99": totals[int(len(totals) * 0.99)]}


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "demo.edgemm"
        edgemm.build(DEMO / "recipe.toml", bundle, precision="fp32")
        rounds = [{kind: one(kind, bundle, folder, options.seconds) for kind in KINDS} for _ in range(options.rounds)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.rounds} rounds of {options.seconds:g} s, medians")
    print("| view | processor, cores | latency p50 ms | p99 ms | messages a second | kB a second |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        cells = []
        for key, digits in (("cpu", 3), ("p50", 2), ("p99", 2), ("messages", 1), ("kB", 0)):
            values = [found[kind][key] for found in rounds if key in found[kind]]
            cells.append(f"{statistics.median(values):.{digits}f}" if values else "-")
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
