"""What edgemm's run loop adds to a bare `session.run` of onnxruntime, on the demo model.

    python bench/overhead.py [--output bench/results/overhead.md]

The demo clip is decoded once; then its frames go through a Session as a live run would push them. Every step is timed,
and so is the call of onnxruntime's own `session.run` inside it. What the loop adds to a step is the step's time, less
its front ends, less that bare run. By stage:

    window    copying rows and pictures into the input tensors
    binding   the engine's own work around `session.run`
    outputs   decoding the two outputs: softmax with labels, threshold
    the rest  choosing the step and its frames; gates, ages, latencies, accounts, the Result

"arrivals" is what it takes between two steps to enter the frames that come: books, rings, stores. Decoding the clip and
the front ends (log-mel, resizing) are not the loop's, and are not counted.

Other work on the machine shows in the figures twofold: it takes the processor away, and it empties the caches. "calm"
is over those steps only whose bare run took at most a fifth longer than the fastest tenth's.
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
from edgemm.inputs import open_sources
from edgemm.session import Session
from edgemm.stream.frames import Event

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


def measure(events: list[Event], rounds: int, warm_up: int) -> dict[str, np.ndarray]:
    """Microseconds of every step of `rounds` runs over the clip, by what was measured."""
    recipe = recipes.load(HOME / "recipe.toml")
    (name, model), *_ = recipe.models.items()
    rows: list[list[int]] = []
    now = time.perf_counter_ns
    for number in range(rounds + warm_up):
        with OnnxRuntimeEngine(HOME / model.file) as engine:
            timed = engine._session = TimedSession(engine._session)
            clock = Told()
            session = Session(recipe, {name: engine}, clock=clock)
            [sound] = session._sounds._tracks.values()
            arrivals_ns = 0
            for event in events:
                clock.time_ns = event.end_ns
                before_ns = sound.spent_ns
                begin = now()
                session.ingest(event, event.end_ns)
                arrivals_ns += now() - begin - (sound.spent_ns - before_ns)

                begin = now()
                session.tick(event.end_ns)
                made = list(session.steps())
                end = now()
                if not made:
                    arrivals_ns += end - begin
                    continue
                latency = made[0].latency
                added_ns = end - begin - latency.front_end_ns - timed.last_ns
                stages = [latency.window_ns, latency.inference_ns - timed.last_ns, latency.decode_ns]
                stages.append(added_ns - sum(stages))
                if number >= warm_up:
                    rows.append([timed.last_ns, *stages, added_ns, arrivals_ns])
                arrivals_ns = 0
            session.summary()
    columns = np.array(rows).T / 1e3
    names = ("bare run", "window", "binding", "outputs", "the rest", "added", "arrivals")
    return dict(zip(names, columns, strict=True))


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
    bare = figures["bare run"]
    calm = bare <= 1.2 * np.percentile(bare, 10)
    lines = [
        "# What the run loop adds",
        "",
        f"Demo model, {len(bare)} steps ({calm.sum()} calm), "
        f"{len(events) * args.rounds / len(bare):.1f} frames a step; "
        f"onnxruntime {ort.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} from other work; one thread.",
        "",
        "| us | p50 | p90 | p99 | calm p50 | calm p90 | calm p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, values in figures.items():
        cells = [f"{v:.1f}" for v in (*np.percentile(values, [50, 90, 99]), *np.percentile(values[calm], [50, 90, 99]))]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    p50 = float(np.median(figures["added"]))
    verdict = "within" if p50 <= LIMIT_US else "NOT within"
    lines += ["", f"Added at p50, over all steps: {p50:.1f} us, {verdict} the budget of {LIMIT_US} us."]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
