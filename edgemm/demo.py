"""The demo: the whole path on the audio-visual model that ships with edgemm.

A spoken digit and a moving handwritten digit: which digit, and do the two match? `export/av_digits/` trained the
model; its data is disjoint from what is scored here (PROVENANCE.md beside the files says how).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemm import builder, runner
from edgemm import bundle as bundles
from edgemm.builder import BuildReport
from edgemm.bundle import Bundle
from edgemm.engine.load import choose
from edgemm.errors import UsageError
from edgemm.profiler.percentiles import Percentiles
from edgemm.stream.decode import Label, Score
from edgemm.stream.results import Latency, Result, Summary
from edgemm.stream.sinks.memory import MemorySink
from edgemm.stream.sinks.protocol import Sink

_MODEL = "av"

CONDITIONS = {
    "clean": ("clean", "clean"),
    "noise at -5 dB": ("snr-5", "clean"),
    "occluded picture": ("clean", "occluded"),
}
"""Condition, and the parts of the test set that it takes: sound, picture."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers: the digit where sound and picture match, and whether they match everywhere."""

    digit: float
    digits: int
    match: float
    matches: int


@dataclass(frozen=True)
class DemoReport:
    """What the demo did and measured."""

    build: BuildReport
    test: dict[str, dict[str, Accuracy]]
    """By precision and condition, on the test set."""
    clip: dict[str, Accuracy]
    """By precision, on the clip, streamed under the virtual clock."""
    live: Summary
    """The clip streamed against the wall clock in the chosen precision."""
    live_accuracy: Accuracy
    latency: dict[str, Percentiles]
    """By stage of the live run."""
    ages: dict[str, Percentiles]
    """Age of sound and picture when each live result was made, and their skew."""


def folder() -> Path:
    """Where the demo's files are: in the package, or in the checkout. Raises UsageError."""
    here = Path(__file__).resolve().parent
    for place in (here / "demo_data", here.parent / "calibration" / "av_digits"):
        if (place / "recipe.toml").is_file():
            return place
    raise UsageError("The demo's files are not in this installation. Install edgemm from its wheel or a checkout.")


def demo(
    output: Path,
    *,
    live_seconds: float | None = None,
    sinks: Sequence[Sink] = (),
    progress: Callable[[str], None] | None = None,
) -> DemoReport:
    """Build fp32 and int8 of the demo model into `output`, score both, and stream the clip against the wall clock.

    `live_seconds` cuts the live run short; `sinks` see its results. Raises what build and run raise.
    """
    tell = progress or (lambda message: None)
    data = folder()
    report = builder.build(data / "recipe.toml", output, progress=tell)
    opened = bundles.open(output)
    precisions = list(opened.models[_MODEL].variants)
    test = {}
    for precision in precisions:
        tell(f"scoring {precision} on the test set")
        test[precision] = score_test(opened, precision, data / "test.npz")
    truth = json.loads((data / "clip.truth.json").read_text())
    clip = data / "clip.mkv"
    scores = {}
    for precision in precisions:
        tell(f"streaming the clip in {precision} under the virtual clock")
        done = runner.run(opened, input=clip, clock="virtual", precision=precision)
        scores[precision] = score_clip(done.results, truth)
    seconds = truth["duration_s"] if live_seconds is None else min(live_seconds, truth["duration_s"])
    tell(f"streaming the clip against the wall clock in {opened.models[_MODEL].precision}: {seconds:.0f} s")
    memory = MemorySink()
    live = runner.run(opened, input=clip, clock="wall", duration_s=live_seconds, sinks=[memory, *sinks])
    return DemoReport(
        build=report,
        test=test,
        clip=scores,
        live=live,
        live_accuracy=score_clip(memory.results, truth, until_s=seconds),
        latency=_latencies(memory.results),
        ages=_ages(memory.results),
    )


def score_test(opened: Bundle, precision: str, path: Path) -> dict[str, Accuracy]:
    """Score one precision on the test set `path`, condition by condition."""
    with np.load(path) as stored:
        data = {name: stored[name] for name in stored.files}
    found = {}
    with choose(opened, _MODEL, precision=precision).engine as engine:
        for condition, (sound, picture) in CONDITIONS.items():
            sounds = data[f"audio_{sound}"].astype(np.float32) * data["sound_step"] + data["sound_offset"]
            pictures = data[f"video_{picture}"].astype(np.float32) / np.float32(255)
            digits: list[bool] = []
            matches: list[bool] = []
            for i, j in data["pairs"]:
                outputs = engine.run({"audio": sounds[i][None], "video": pictures[j][None]})
                same = data["spoken"][i] == data["shown"][j]
                matches.append(bool((outputs["match"].item() > 0.5) == same))
                if same:
                    digits.append(bool(outputs["digit"].argmax() == data["spoken"][i]))
            found[condition] = _accuracy(digits, matches)
    return found


def score_clip(results: Sequence[Result], truth: dict[str, Any], until_s: float = float("inf")) -> Accuracy:
    """Score a run over the clip by the rule in its truth file: one result a segment, none is wrong on both counts.

    Segments that are not over at `until_s` are not counted.
    """
    digits: list[bool] = []
    matches: list[bool] = []
    for segment in truth["segments"]:
        if segment["end_s"] > until_s:
            continue
        begin_ns, end_ns = segment["decide_at_s"] * 1e9, segment["end_s"] * 1e9
        result = next((r for r in results if begin_ns <= r.time_ns <= end_ns), None)
        digit = result.outputs["digit"] if result else None
        match = result.outputs["match"] if result else None
        matches.append(isinstance(match, Score) and match.above == segment["match"])
        if segment["match"]:
            digits.append(isinstance(digit, Label) and digit.index == segment["spoken"])
    return _accuracy(digits, matches)


def _accuracy(digits: Sequence[bool], matches: Sequence[bool]) -> Accuracy:
    def share(right: Sequence[bool]) -> float:
        return sum(right) / len(right) if right else 0.0

    return Accuracy(share(digits), len(digits), share(matches), len(matches))


def _latencies(results: Sequence[Result]) -> dict[str, Percentiles]:
    latencies = [result.latency for result in results if result.latency is not None]
    return {
        name.removesuffix("_ns"): Percentiles.of([getattr(latency, name) for latency in latencies])
        for name in Latency.__struct_fields__
        if latencies
    }


def _ages(results: Sequence[Result]) -> dict[str, Percentiles]:
    found = {}
    for label, name in (
        ("age of the sound", "audio_age_ns"),
        ("age of the picture", "video_age_ns"),
        ("skew", "skew_ns"),
    ):
        values = [abs(value) for result in results if (value := getattr(result, name)) is not None]
        if values:
            found[label] = Percentiles.of(values)
    return found
