"""An engine five times too slow: results stay as fresh as the deadline says, and the camera does not lag."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import edgemm
from edgemm.profiler.percentiles import Percentiles
from edgemm.profiler.report import ModelProfile, ProfileReport
from edgemm.recipe import Schedule
from edgemm.simulate import simulate
from edgemm.stream.results import Result, Summary
from edgemm.types import Tensors

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = DEMO / "clip.mkv"
MS = 10**6
HOP_MS, DEADLINE_MS, PICTURE_MS, BLOCK_MS = 100, 200, 40, 10
INFERENCE_MS = 5 * HOP_MS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return path


def under(bundle: Path, policy: str) -> edgemm.Bundle:
    opened = edgemm.open(bundle)
    schedule = msgspec.structs.replace(opened.recipe.schedule, policy=policy)
    assert isinstance(schedule, Schedule)
    return replace(opened, recipe=msgspec.structs.replace(opened.recipe, schedule=schedule))


def holds(results: Sequence[Result], summary: Summary, slack_ms: int) -> None:
    """What is promised, give or take `slack_ms` for a machine that does other things, too."""
    assert len(results) > 10
    for result in results:
        assert result.made_ns - result.time_ns <= (DEADLINE_MS + INFERENCE_MS + slack_ms) * MS
        assert result.deadline_missed == (result.made_ns - result.time_ns > DEADLINE_MS * MS)
        # The camera does not lag: the newest picture at the step's time, whatever the engine does.
        assert result.video_age_ns is not None
        assert result.video_age_ns - (result.made_ns - result.time_ns) <= (PICTURE_MS + slack_ms) * MS
        assert result.audio_age_ns is not None
        assert result.audio_age_ns - (result.made_ns - result.time_ns) <= (2 * BLOCK_MS + 15 + slack_ms) * MS
    assert all("queue_full" not in stream.dropped for stream in summary.streams.values())
    summary.check()


@pytest.mark.parametrize("policy", ["latest", "deadline"])
def test_five_times_too_slow_in_simulated_time(bundle: Path, policy: str) -> None:
    always = Percentiles.of([INFERENCE_MS * MS] * 1000)
    model = ModelProfile("an engine", "fp32", 1000, {"inference": always}, always, ())
    board = ProfileReport("demo", "", "a board", "a board", 1, 0, 0, {"av": model}, {}, 1, 1)
    found = simulate(under(bundle, policy), board, input=CLIP)
    holds(found.summary.results, found.summary, 0)
    account = found.summary.models["av"]
    assert account.skipped["superseded" if policy == "latest" else "late"] > 0.7 * account.due
    assert account.made == pytest.approx(account.due / 5, rel=0.15)


@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.parametrize("policy", ["latest", "deadline"])
def test_five_times_too_slow_on_the_wall_clock(bundle: Path, policy: str) -> None:
    def slow(model: str, feeds: Tensors) -> None:
        time.sleep(INFERENCE_MS / 1e3)

    summary = edgemm.run(under(bundle, policy), input=CLIP, clock="wall", duration_s=12, on_feeds=slow)
    holds(summary.results, summary, 150)
    assert summary.models["av"].made == pytest.approx(summary.models["av"].due / 5, rel=0.3)
