"""The profile: percentiles, accounts that add up, the trace, the report and its baseline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgemm
from edgemm.cli.tables import profile_table
from edgemm.demo import folder
from edgemm.errors import SinkError, UsageError
from edgemm.profiler import report as reports
from edgemm.profiler import trace
from edgemm.profiler.percentiles import Percentiles, trusted
from edgemm.stream.spans import Span


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(folder() / "recipe.toml", path, precision="fp32")
    return path


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
def test_percentiles_are_ordered_and_bounded(times: list[int]) -> None:
    found = Percentiles.of(times)
    assert found.count == len(times)
    assert (
        min(times)
        == found.min_ns
        <= found.p50_ns
        <= found.p90_ns
        <= found.p99_ns
        <= found.p999_ns
        <= found.max_ns
        == max(times)
    )


def test_percentiles_by_hand() -> None:
    found = Percentiles.of(range(1001))
    values = (found.mean_ns, found.p50_ns, found.p90_ns, found.p99_ns, found.p999_ns)
    assert values == pytest.approx((500, 500, 900, 990, 999))


def test_a_percentile_needs_samples_beyond_it() -> None:
    assert trusted(99, 100)
    assert not trusted(99, 99)
    assert trusted(99.9, 1000)
    assert not trusted(99.9, 999)


def test_the_profile_of_the_demo_adds_up(demo_bundle: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = edgemm.profile(
        demo_bundle,
        input=folder() / "clip.mkv",
        iterations=30,
        warm_up=5,
        trace=tmp_path / "trace.json",
        progress=said.append,
    )
    av = found.models["av"]
    assert av.steps == 30
    assert set(av.stages) == {"front_end", "window", "inference", "decode"}
    assert all(stage.count == 30 for stage in av.stages.values())
    assert av.step.mean_ns == pytest.approx(sum(stage.mean_ns for stage in av.stages.values()))
    assert set(found.streams) == {"mic", "camera"}
    assert set(found.streams["mic"].stages) == {"source", "front_end"}
    assert 0 < found.accounted_ns <= found.total_ns
    assert found.peak_memory_bytes > 10_000_000
    assert {layer.op for layer in av.layers} >= {"Conv", "MatMul"} or {layer.op for layer in av.layers} >= {"FusedConv"}
    assert all(layer.calls == 50 for layer in av.layers)
    assert len(said) == 2
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    inference = [event for event in events if event["ph"] == "X" and event["name"] == "inference"]
    assert len(inference) == 30
    assert sum(event["dur"] for event in inference) * 1000 == pytest.approx(av.stages["inference"].mean_ns * 30)


def test_under_the_wall_clock_steps_queue(demo_bundle: Path) -> None:
    found = edgemm.profile(demo_bundle, iterations=5, warm_up=1, clock="wall")
    assert "queue" in found.models["av"].stages
    assert found.models["av"].steps >= 5
    assert found.accounted_ns < found.total_ns


def test_a_short_recording_is_run_again(demo_bundle: Path) -> None:
    found = edgemm.profile(demo_bundle, iterations=130, warm_up=10)
    assert found.input == "synthetic"
    assert found.models["av"].steps == 130


def test_a_model_without_streams_is_fed_noise(tmp_path: Path) -> None:
    edgemm.build(folder() / "av_digits.onnx", tmp_path / "plain.edgemm")
    found = edgemm.profile(tmp_path / "plain.edgemm", iterations=7, warm_up=1)
    assert found.input == "noise"
    (model,) = found.models.values()
    assert set(model.stages) == {"inference"}
    assert model.steps == 7


def test_reports_are_saved_compared_and_checked(demo_bundle: Path, tmp_path: Path) -> None:
    found = edgemm.profile(demo_bundle, iterations=5, warm_up=0)
    found.save(tmp_path / "p.json")
    again = reports.load(tmp_path / "p.json")
    assert again == found
    text = profile_table(found, again)
    assert "p50 / baseline" in text
    assert text.count("1.00") >= 6
    for content, words in (
        (b"{", "is not a profile"),
        (b'{"schema": 9}', "no profile of schema 2"),
        (b'{"schema": 2}', "is not"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UsageError, match=words):
            reports.load(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="Cannot read"):
        reports.load(tmp_path / "none.json")
    with pytest.raises(SinkError, match="Cannot write the profile"):
        found.save(tmp_path / "no" / "p.json")
    with pytest.raises(SinkError, match="Cannot write the trace"):
        trace.write(tmp_path / "no" / "t.json", [])


def test_wrong_calls(demo_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 iteration"):
        edgemm.profile(demo_bundle, iterations=0)
    short = tmp_path / "images"
    short.mkdir()
    with pytest.raises(edgemm.errors.EdgemmError):
        edgemm.profile(demo_bundle, input=short, iterations=1)


def test_an_empty_trace_is_a_trace() -> None:
    assert [event["ph"] for event in trace.to_events([])] == ["M"]


def test_trace_events_start_at_zero_and_keep_their_length() -> None:
    spans = [Span("window", "m", 1, 5_000, 6_500), Span("queue", "m", 1, 4_000, 5_000)]
    events = [event for event in trace.to_events(spans) if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in events] == [("queue", 0, 1), ("window", 1, 1.5)]
    assert np.unique([event["tid"] for event in events]).size == 2
