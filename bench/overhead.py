"""What edgemm's run loop adds to a bare `session.run` of onnxruntime, on the demo model.

    python bench/overhead.py [--output bench/results/overhead.md]

The demo clip is decoded once; then its frames go through a Session as a live run would push them, and every step is
timed. In every second step a bare `session.run` takes the place of edgemm's engine, on the same tensors and after the
same work, so that it meets the same caches. What the loop adds to a step is the step's time, less its front ends, less
the median of the bare runs. By stage:

    window    copying rows and pictures into the input tensors
    binding   edgemm's engine against the bare run, as the difference of two medians; below zero, as the engine binds
              its tensors once, and `session.run` at every call
    outputs   decoding the two outputs: softmax with labels, threshold
    the rest  choosing the step and its frames; gates, ages, latencies, accounts, the Result

"arrivals" is what it takes between two steps to enter the frames that come: books, rings, stores. Decoding the clip and
the front ends (log-mel, resizing) are not the loop's, and are not counted.

Other work on the machine shows in the figures twofold: it takes the processor away, and it empties the caches. "calm"
is over those steps only whose inference took at most a fifth longer than the fastest tenth's.
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
from edgemm.types import Tensors

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


class EverySecondBare(OnnxRuntimeEngine):
    """edgemm's engine, which every second time gives way to a bare `session.run`."""

    is_bare = False

    def __enter__(self) -> EverySecondBare:
        super().__enter__()
        self._bare = ort.InferenceSession(str(self._model), one_thread(), ["CPUExecutionProvider"])
        return self

    def run(self, feeds: Tensors) -> Tensors:
        self.is_bare = not self.is_bare
        if not self.is_bare:
            return super().run(feeds)
        first, second = self._names
        one, two = self._bare.run(self._names, feeds)
        return {first: one, second: two}


def one_thread() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def measure(events: list[Event], rounds: int, warm_up: int) -> dict[str, np.ndarray]:
    """Microseconds of every step of `rounds` runs over the clip, by what was measured; "is_bare" tells which kind."""
    recipe = recipes.load(HOME / "recipe.toml")
    (name, model), *_ = recipe.models.items()
    rows: list[list[float]] = []
    now = time.perf_counter_ns
    with EverySecondBare(HOME / model.file) as engine:
        for number in range(rounds + warm_up):
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
                inside_ns = latency.front_end_ns + latency.window_ns + latency.inference_ns + latency.decode_ns
                if number >= warm_up:
                    stages = (
                        latency.window_ns,
                        latency.inference_ns,
                        latency.decode_ns,
                        end - begin - inside_ns,
                        arrivals_ns,
                    )
                    rows.append([engine.is_bare, *(ns / 1e3 for ns in stages)])
                arrivals_ns = 0
            session.summary()
    return dict(zip(("is_bare", "window", "run", "outputs", "the rest", "arrivals"), np.array(rows).T, strict=True))


def added(figures: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """What the loop adds, by stage, over the `chosen` steps; "binding" is one figure, as its steps have no pairs."""
    is_bare = figures["is_bare"] == 1
    bare, bound = figures["run"][is_bare & chosen], figures["run"][~is_bare & chosen]
    binding = np.array([np.median(bound) - np.median(bare)])
    parts = {name: figures[name][chosen] for name in ("window", "outputs", "the rest")}
    return {
        "bare run": bare,
        "window": parts["window"],
        "binding": binding,
        "outputs": parts["outputs"],
        "the rest": parts["the rest"],
        "added": sum(parts.values()) + binding,
        "arrivals": figures["arrivals"][chosen],
    }


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
    run = figures["run"]
    calm = run <= 1.2 * np.percentile(run, 10)
    over_all, over_calm = added(figures, np.full(len(run), True)), added(figures, calm)
    lines = [
        "# What the run loop adds",
        "",
        f"Demo model, {len(run)} steps ({calm.sum()} calm), "
        f"{len(events) * args.rounds / len(run):.1f} frames a step; "
        f"onnxruntime {ort.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} with this program's own; one thread.",
        "",
        "| us | p50 | p90 | p99 | calm p50 | calm p90 | calm p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, values in over_all.items():
        cells = [f"{v:.1f}" for each in (values, over_calm[label]) for v in np.percentile(each, [50, 90, 99])]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    p50 = float(np.median(over_all["added"]))
    verdict = "within" if p50 <= LIMIT_US else "NOT within"
    lines += ["", f"Added at p50, over all steps: {p50:.1f} us, {verdict} the budget of {LIMIT_US} us."]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
