"""A session in simulated time, on a device known by its latency profile."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

import edgemm
from edgemm.cli.main import app
from edgemm.cli.tables import simulation_table
from edgemm.engine.fake import FakeEngine
from edgemm.errors import UsageError
from edgemm.inputs import open_sources, stream_wants
from edgemm.profiler.percentiles import Percentiles
from edgemm.profiler.report import ModelProfile, ProfileReport, StreamProfile
from edgemm.recipe import Schedule
from edgemm.runner import live
from edgemm.session import Session, open_engines
from edgemm.simulate import SimulatedClock, SimulatedQueue, Spent, TimedEngine, Times, simulate
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import AudioChunk
from edgemm.stream.scheduler import OVERLOAD
from edgemm.stream.sources.protocol import AudioWant
from edgemm.stream.sources.synthetic import SyntheticSource
from edgemm.types import Tensors

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = DEMO / "clip.mkv"
MS = 10**6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return path


def always(ms: float) -> Percentiles:
    """A stage that always takes the same time."""
    return Percentiles.of([round(ms * MS)] * 1000)


def device(
    inference: Percentiles, *, sound: Percentiles | None = None, other_ms: float = 0.0, model: str = "av"
) -> ProfileReport:
    """A profile of a device, as `edgemm profile` would have written it."""
    stages = {"inference": inference, "front_end": always(other_ms), "window": always(0), "decode": always(0)}
    return ProfileReport(
        bundle="demo.edgemm",
        sha256="0" * 64,
        input="clip.mkv",
        machine="a board",
        warm_up=20,
        peak_memory_bytes=0,
        engine_memory_bytes=0,
        models={model: ModelProfile("trt on Orin", "fp16", 1000, stages, inference, ())},
        streams={"mic": StreamProfile(1000, {"front_end": sound or always(0)})},
        total_ns=1,
        accounted_ns=1,
    )


def test_times_are_drawn_from_the_measured_distribution() -> None:
    measured = np.random.default_rng(1).lognormal(2, 0.6, 20_000) * MS
    found = Percentiles.of(measured.astype(np.int64).tolist())
    drawn = [Times(found, 1.0, (7,)).draw_ns() for _ in range(2)]
    assert drawn[0] == drawn[1]
    times = Times(found, 3.0, (7,))
    many = np.array([times.draw_ns() for _ in range(20_000)])
    assert many[0] == pytest.approx(3 * drawn[0], abs=3)
    for percentile in (50, 90, 99):
        assert np.percentile(many, percentile) == pytest.approx(3 * np.percentile(measured, percentile), rel=0.05)
    assert found.min_ns * 3 <= many.min()
    assert many.max() <= found.max_ns * 3


def test_a_fast_device_skips_nothing_and_its_results_are_as_old_as_its_steps_take(bundle: Path) -> None:
    found = simulate(bundle, device(always(7), other_ms=2), input=CLIP, duration_s=10)
    summary = found.summary
    assert summary.clock == "simulated"
    assert set(summary.models["av"].skipped) <= {"filling"}
    forecast = found.models["av"]
    assert forecast.dropped_share == 0
    assert forecast.busy_share == pytest.approx(0.09 * summary.models["av"].made / 100, rel=0.02)
    for result in summary.results:
        # Ready with the 10 ms of sound that holds its end, and not before a picture of its time is there.
        assert result.made_ns - result.time_ns <= (9 + 10) * MS
        latency = result.latency
        assert latency is not None
        assert (latency.front_end_ns, latency.inference_ns, latency.window_ns) == (2 * MS, 7 * MS, 0)
        assert latency.total_ns == latency.queue_ns + 9 * MS
    # The outputs are those of the models, not of the profile.
    plain = {r.step: r.outputs for r in edgemm.run(bundle, input=CLIP, duration_s=9.5).results}
    assert {r.step: r.outputs["digit"] for r in summary.results if r.step in plain} == {
        step: outputs["digit"] for step, outputs in plain.items()
    }


def test_a_slow_device_drops_what_arithmetic_says(bundle: Path) -> None:
    # 250 ms for a step every 100 ms: while one is made, 2.5 fall due.
    found = simulate(bundle, device(always(250)), input=CLIP, duration_s=40)
    account = found.summary.models["av"]
    due = account.due - account.skipped["filling"]
    assert account.made / due == pytest.approx(0.4, abs=0.02)
    assert found.models["av"].dropped_share == pytest.approx(0.6, abs=0.03)
    assert found.models["av"].busy_share > 0.95
    ages = [(r.made_ns - r.time_ns) / MS for r in found.summary.results]
    assert min(ages) >= 250
    assert max(ages) <= 250 + 100 + 10
    assert account.deadlines_missed == account.made
    # Twice as slow by `scale` is twice as slow.
    scaled = simulate(bundle, device(always(125)), input=CLIP, duration_s=40, scale=2)
    assert scaled.summary.models == found.summary.models
    assert scaled.models == found.models


def test_an_engine_slower_than_the_queue_loses_frames_and_says_which(bundle: Path) -> None:
    found = simulate(bundle, device(always(4000)), input=CLIP, duration_s=30)
    assert found.summary.streams["mic"].dropped["queue_full"] > 0
    assert found.summary.streams["camera"].dropped["queue_full"] > 0
    found.summary.check()


def test_the_front_end_of_the_sound_takes_its_time(bundle: Path) -> None:
    # 5 ms for each 10 ms of sound leave half the processor.
    found = simulate(bundle, device(always(10), sound=always(5)), input=CLIP, duration_s=10)
    assert [r.latency.sound_ns for r in found.summary.results if r.latency][1:] == [50 * MS] * (
        len(found.summary.results) - 1
    )
    ages = [(r.made_ns - r.time_ns) / MS for r in found.summary.results]
    assert min(ages) >= 15


def test_equal_calls_give_equal_bytes_and_another_seed_does_not(bundle: Path) -> None:
    spread = Percentiles.of(np.random.default_rng(0).integers(20 * MS, 180 * MS, 500).tolist())
    one, two, other = (simulate(bundle, device(spread), input=CLIP, duration_s=10, seed=seed) for seed in (0, 0, 1))
    assert one.to_json() == two.to_json()
    assert [r.to_json() for r in one.summary.results] == [r.to_json() for r in two.summary.results]
    assert one.to_json() != replace(other, seed=0).to_json()


def test_every_policy_of_the_recipe_is_simulated(bundle: Path) -> None:
    opened = edgemm.open(bundle)
    results = {}
    for policy in ("latest", "every", "deadline"):
        changed = _with_recipe(opened, schedule=Schedule(policy=policy))  # type: ignore[arg-type]
        results[policy] = simulate(changed, device(always(150)), input=CLIP, duration_s=15)
    assert set(results["latest"].summary.models["av"].skipped) == {"filling", "superseded"}
    assert "late" in results["deadline"].summary.models["av"].skipped
    assert set(results["every"].summary.models["av"].skipped) <= {"filling", "gap", "overrun", "stalled"}
    latest, deadline, every = (results[p].models["av"].age_max_ns for p in ("latest", "deadline", "every"))
    assert deadline is not None
    assert deadline <= (200 + 150 + 40) * MS
    assert every is not None
    assert latest is not None
    assert every > 1000 * MS > latest


def _with_recipe(opened: edgemm.Bundle, **changes: object) -> edgemm.Bundle:
    """The same bundle under another recipe."""
    return replace(opened, recipe=msgspec.structs.replace(opened.recipe, **changes))


class SlowEngine(TimedEngine):
    """Takes, in real time, as long as was drawn."""

    def run(self, feeds: Tensors) -> Tensors:
        begin_ns = time.perf_counter_ns()
        outputs = self._inner.run(feeds)
        wanted_ns = sum(times.draw_ns() for times in self._times.values())
        time.sleep(max(0, wanted_ns - (time.perf_counter_ns() - begin_ns)) / 1e9)
        return outputs


def on_the_wall_clock(bundle: Path, times: Mapping[str, Percentiles], seconds: float) -> tuple[float, float]:
    """Share of the steps dropped for overload, and the 99th percentile of the age in ms, as measured."""
    opened = edgemm.open(bundle)
    with open_engines(opened, engine="onnxruntime") as engines:
        [source] = open_sources(opened.recipe, CLIP)
        with source:
            drawn = {name: Times(t, 1.0, (99,)) for name, t in times.items()}
            slow = SlowEngine(engines["av"], SimulatedClock(), drawn, Spent())
            session = Session(opened.recipe, {"av": slow}, streams=source.streams, clock=WallClock())
            ages = [r.made_ns - (r.capture_ns or 0) for r in live(session, [source], seconds)]
            account = session.summary().models["av"]
    return sum(account.skipped.get(c, 0) for c in OVERLOAD) / account.due, float(np.percentile(ages, 99)) / MS


@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.parametrize("median_ms", [60, 130, 260])
def test_the_wall_clock_agrees(bundle: Path, median_ms: int) -> None:
    # The same distribution, drawn with other seeds: the share of drops and the age must come out alike.
    spread = Percentiles.of((np.random.default_rng(3).lognormal(0, 0.2, 5000) * median_ms * MS).astype(int).tolist())
    simulated = simulate(bundle, device(spread), input=CLIP, duration_s=12, engine="onnxruntime").models["av"]
    assert simulated.age_p99_ns is not None
    dropped, p99_ms = on_the_wall_clock(bundle, {"inference": spread}, 12)
    assert simulated.dropped_share == pytest.approx(dropped, abs=0.08)
    # 30 ms for a machine that does other things, too: hand-off between threads, and sleeping too long.
    assert simulated.age_p99_ns / MS == pytest.approx(p99_ms, rel=0.15, abs=30)


def test_what_cannot_be_simulated_is_said(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r'The profile holds the models other, the bundle runs "av". Profile the bundle'
    ):
        simulate(bundle, device(always(1), model="other"), input=CLIP)
    with pytest.raises(UsageError, match="expected a number above 0, found 0"):
        simulate(bundle, device(always(1)), input=CLIP, scale=0)

    class Camera(SyntheticSource):
        live = True

    wants = stream_wants(edgemm.open(bundle).recipe)
    with pytest.raises(UsageError, match="give it a file or a recording, not a live source"):
        simulate(bundle, device(always(1)), input=Camera(wants))
    with pytest.raises(UsageError, match=r"Cannot read the profile .*none.json: No such file"):
        simulate(bundle, tmp_path / "none.json", input=CLIP)


def test_without_an_input_there_is_a_minute(bundle: Path) -> None:
    found = simulate(bundle, device(always(1)))
    assert found.summary.duration_ns == pytest.approx(60e9, rel=0.01)
    assert simulate(bundle, device(always(1)), duration_s=3).summary.duration_ns == pytest.approx(3e9, rel=0.02)


def test_a_queue_that_waits_no_longer_than_it_is_told() -> None:
    clock = SimulatedClock()
    source = SyntheticSource([], seconds=1)
    queue = SimulatedQueue([source], clock, {}, {})
    assert queue.take(None) is None
    queue = SimulatedQueue([SyntheticSource([AudioWant("mic")], seconds=0.05)], clock, {"mic": 10}, {})
    assert queue.take(0.004) == []
    assert clock.now_ns() == 4 * MS
    taken = queue.take(None)
    assert taken is not None
    [(event, arrived_ns)] = taken
    assert isinstance(event, AudioChunk)
    assert arrived_ns == clock.now_ns() == 10 * MS
    clock.wait_until(10**9)
    taken = queue.take(0.0)
    assert taken is not None
    assert [arrived for _, arrived in taken] == [20 * MS, 30 * MS, 40 * MS, 50 * MS]
    assert queue.take(None) is None
    assert queue.drain() == []


def test_an_engine_under_the_clock_stays_an_engine() -> None:
    clock = SimulatedClock()
    inner = FakeEngine(lambda feeds: {"y": np.ones(1, np.float32)}, (), ())
    spent = Spent()
    with TimedEngine(inner, clock, {"inference": Times(always(3), 1.0, (0,))}, spent) as engine:
        engine.run({})
        engine.reset()
        assert engine.layer_times() == ()
        with pytest.raises(ValueError, match="has a latency"):
            spent.explain(None, {})
    assert (clock.now_ns(), inner.steps, inner.resets, engine.name) == (3 * MS, 1, 1, "fake")


# The command.


@pytest.fixture(scope="module")
def latency(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "latency.json"
    edgemm.profile(bundle, input=CLIP, iterations=100).save(path)
    return path


def test_the_command_prints_a_forecast(bundle: Path, latency: Path, tmp_path: Path) -> None:
    arguments = ["run", str(bundle), "-i", str(CLIP), "--simulate", str(latency), "--duration", "12"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Simulated 12.0 s on: ")
    assert "for overload" in done.output
    assert "another bundle" not in done.output
    done = CliRunner().invoke(
        app,
        [
            *arguments,
            "--scale",
            "400",
            "--json",
            "-o",
            str(tmp_path / "r.jsonl"),
            "--summary",
            str(tmp_path / "s.json"),
        ],
    )
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "s.json").read_text())
    assert report["scale"] == 400
    assert report["clock"] == "simulated"
    assert report["forecast"]["av"]["dropped_share"] > 0.3
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(lines) == report["models"]["av"]["made"]
    oldest = max(line["made_ms"] - line["capture_ms"] for line in lines)
    assert oldest == pytest.approx(report["forecast"]["av"]["age_max_ms"])


def test_a_plain_run_prints_its_summary_as_json_and_nothing_else(bundle: Path) -> None:
    done = CliRunner().invoke(
        app, ["run", str(bundle), "-i", str(CLIP), "--clock", "virtual", "--duration", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["models"]["av"]["made"] > 5


def test_the_table_says_what_is_not_known(bundle: Path) -> None:
    text = simulation_table(simulate(bundle, device(always(1)), input=CLIP, duration_s=0.5, scale=3))
    assert "its engine 3 times as slow" in text
    assert "note: the profile was measured on another bundle than this one" in text
    # Five steps made, none of them on a full window: no age to show.
    assert text.splitlines()[4].split()[-6:] == ["-", "-", "0", "0.0%", "trt", "on", "Orin"][-6:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "5", "-i", "x.mp4"], "--scale slows the engine of a simulation"),
        (["--simulate", "l.json", "--mic"], "A simulation makes its own time: without --mic"),
        (["--simulate", "l.json", "--clock", "wall"], "A simulation makes its own time"),
    ],
)
def test_options_that_do_not_go_together(bundle: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["run", str(bundle), *arguments])
    assert done.exit_code == 1
    assert isinstance(done.exception, UsageError | SystemExit)
    assert said in (done.output + str(done.exception))
