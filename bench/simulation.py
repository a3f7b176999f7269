"""How well `--simulate` foretells a run: drop rate and age, simulated and measured, at several speeds of the engine.

    python bench/simulation.py [--seconds 40] [--output bench/results/simulation.md]

The demo is profiled on this machine. Then its clip is run on the wall clock with an engine that is slower by a known
factor: each inference really runs, and then sleeps until `scale` times a time from the profile's distribution has
passed (drawn with another seed than the simulation's). At scale 1 it is the engine itself. The same clip is simulated
from the profile with `--scale`. (An engine that slept `scale - 1` times what its inference just took would multiply
every moment for which the system keeps it from running, too: what is compared would be the machine's other work.)
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import edgemm
from edgemm.inputs import open_sources
from edgemm.profiler.percentiles import Percentiles
from edgemm.runner import live
from edgemm.session import Session, open_engines
from edgemm.simulate import Times, simulate
from edgemm.stream.clock import WallClock
from edgemm.stream.scheduler import OVERLOAD

HOME = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = HOME / "clip.mkv"


class SlowEngine:
    """An engine that takes `scale` times what the profile says of it."""

    def __init__(self, inner, profile: Percentiles, scale: float) -> None:
        self._inner = inner
        self._times = Times(profile, scale, (12345,))

    def run(self, feeds):
        until = time.perf_counter() + self._times.draw_ns() / 1e9
        outputs = self._inner.run(feeds)
        time.sleep(max(0, until - time.perf_counter()))
        return outputs

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


def measured(bundle: Path, profile: Percentiles, scale: float, seconds: float) -> tuple[float, float, float]:
    """Share of steps dropped for overload, and the age's p50 and p99 in ms, of a run on the wall clock."""
    opened = edgemm.open(bundle)
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(opened, engine="onnxruntime"))
        sources = [stack.enter_context(source) for source in open_sources(opened.recipe, CLIP)]
        infos = [info for source in sources for info in source.streams]
        if scale != 1:
            engines = {name: SlowEngine(engine, profile, scale) for name, engine in engines.items()}
        session = Session(opened.recipe, engines, streams=infos, clock=WallClock())
        ages = [result.made_ns - result.capture_ns for result in live(session, sources, seconds)]
        account = session.summary().models["av"]
    dropped = sum(account.skipped.get(cause, 0) for cause in OVERLOAD)
    p50, p99 = np.percentile(ages, (50, 99)) / 1e6
    return dropped / account.due, p50, p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40, help="of the clip, at each speed (default: 40)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 50, 150, 250, 500])
    parser.add_argument("--output", type=Path, help="write the table as Markdown, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "demo.edgemm"
        edgemm.build(HOME / "recipe.toml", bundle, precision="fp32")
        profile = edgemm.profile(bundle, input=CLIP, iterations=500, engine="onnxruntime", clock="wall")
        inference = profile.models["av"].stages["inference"]
        lines = [
            "# A simulated run against the run",
            "",
            f"Demo model and clip, {args.seconds:g} s each; {profile.machine}, load {os.getloadavg()[0]:.1f}. "
            f"Profile: 500 steps on the wall clock, inference p50 "
            f"{inference.p50_ns / 1e6:.2f} ms, p99 {inference.p99_ns / 1e6:.2f} ms, "
            f"max {inference.max_ns / 1e6:.2f} ms. A step is due every 100 ms. `python bench/simulation.py`",
            "",
            "| engine slower by | dropped, simulated | measured | age p50 ms, simulated | measured "
            "| age p99 ms, simulated | measured | p99 off by |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for scale in args.scales:
            found = simulate(bundle, profile, input=CLIP, duration_s=args.seconds, scale=scale, engine="onnxruntime")
            ours = found.models["av"]
            dropped, p50, p99 = measured(bundle, inference, scale, args.seconds)
            lines.append(
                f"| {scale:g} | {ours.dropped_share:.1%} | {dropped:.1%} | {ours.age_p50_ns / 1e6:.1f} | {p50:.1f} "
                f"| {ours.age_p99_ns / 1e6:.1f} | {p99:.1f} | {ours.age_p99_ns / 1e6 / p99 - 1:+.0%} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
