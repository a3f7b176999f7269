"""What edgemm's run loop adds to a bare `session.run` of onnxruntime, on the demo model.

    python bench/overhead.py [--output bench/results/overhead.md]

The demo clip is decoded once; then its frames go through a Session as a live run would push them. Every step is timed,
and so is the call of onnxruntime's own `session.run` inside it. What the loop adds to a step is the step's time, less
its front ends, less that bare run:

    on the step      choosing the frames, assembling the windows, binding, decoding the outputs, making the result
    with arrivals    the same, and taking the frames that came since the last step into books, rings and stores

Decoding the clip and the front ends (log-mel, resizing) are not the loop's, and are not counted. Log-mel and resizing
are measured by the session's own spans, whose cost is in the figures. One thread; the first rounds are warm-up.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgemm import recipe as recipes
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.runner import Session, open_sources
from edgemm.stream.frames import Event
from edgemm.stream.spans import Stage

HOME = Path(__file__).parents[1] / "calibration" / "av_digits"
LIMIT_US = 60


class Told:
    """A clock that shows what it was told, and is not virtual: results carry latencies, as they do live."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        return self.time_ns

    def wait_until(self, time_ns: int) -> None:
        self.time_ns = max(self.time_ns, time_ns)


class TimedSession:
    """An onnxruntime session whose `run` is timed."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.last_ns = 0

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        begin = time.perf_counter_ns()
        results: list[np.ndarray] = self._session.run(names, feeds)
        self.last_ns = time.perf_counter_ns() - begin
        return results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class FrontEndTime:
    """Sums the time of the front ends."""

    def __init__(self) -> None:
        self.total_ns = 0

    def span(self, stage: Stage, model: str, step: int, begin_ns: int, end_ns: int) -> None:
        if stage == "front_end":
            self.total_ns += end_ns - begin_ns


def measure(events: list[Event], rounds: int, warm_up: int) -> dict[str, np.ndarray]:
    """Microseconds of every step of `rounds` runs over the clip, by what was measured."""
    recipe = recipes.load(HOME / "recipe.toml")
    (name, model), *_ = recipe.models.items()
    rows: list[tuple[float, float, float, float]] = []
    now = time.perf_counter_ns
    for number in range(rounds + warm_up):
        with OnnxRuntimeEngine(HOME / model.file) as engine:
            timed = engine._session = TimedSession(engine._session)
            clock, front_ends = Told(), FrontEndTime()
            session = Session(recipe, {name: engine}, clock=clock, recorder=front_ends)
            arrivals_ns = 0
            for event in events:
                clock.time_ns = event.end_ns
                front_ends.total_ns = 0
                begin = now()
                session.ingest(event, event.end_ns)
                arrivals_ns += now() - begin - front_ends.total_ns

                front_ends.total_ns = 0
                begin = now()
                session.tick(event.end_ns)
                made = list(session.steps())
                step_ns = now() - begin - front_ends.total_ns
                if not made:
                    arrivals_ns += step_ns
                    continue
                added_ns = step_ns - timed.last_ns
                if number >= warm_up:
                    rows.append((timed.last_ns / 1e3, step_ns / 1e3, added_ns / 1e3, (added_ns + arrivals_ns) / 1e3))
                arrivals_ns = 0
            session.summary()
    columns = np.array(rows).T
    return dict(zip(("bare run", "step", "added on the step", "added with arrivals"), columns, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="runs over the clip (default: 10)")
    parser.add_argument("--output", type=Path, help="write the table as Markdown, too")
    args = parser.parse_args()
    recipe = recipes.load(HOME / "recipe.toml")
    [source] = open_sources(recipe, HOME / "clip.mkv")
    with source:
        events = list(source)
    figures = measure(events, args.rounds, warm_up=1)
    steps = len(figures["step"])
    lines = [
        "# What the run loop adds",
        "",
        f"Demo model, {steps} steps, {len(events) * args.rounds / steps:.1f} frames a step; onnxruntime "
        f"{ort.__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} from other work; one thread.",
        "",
        "| us | p50 | p90 | p99 |",
        "|---|---|---|---|",
    ]
    for label, values in figures.items():
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        lines.append(f"| {label} | {p50:.1f} | {p90:.1f} | {p99:.1f} |")
    p50 = float(np.median(figures["added on the step"]))
    verdict = "within" if p50 <= LIMIT_US else "NOT within"
    lines += ["", f"Added on the step at p50: {p50:.1f} us, {verdict} the budget of {LIMIT_US} us."]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
