"""Degraded modes, batches of cameras and steps with pictures, in sessions and from the command line."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import edgemm
from edgemm import recipe as recipes
from edgemm.cli.main import app
from edgemm.cli.tables import simulation_table, summary_table
from edgemm.engine.fake import FakeEngine
from edgemm.errors import RecipeError, UsageError
from edgemm.inputs import open_sources, stream_wants
from edgemm.profiler.percentiles import Percentiles
from edgemm.profiler.report import ModelProfile, ProfileReport
from edgemm.recipe import Recipe
from edgemm.session import Session
from edgemm.simulate import SimulatedClock, simulate
from edgemm.stream.decode import Score
from edgemm.stream.frames import VideoFrame
from edgemm.stream.results import Result
from edgemm.stream.sources.synthetic import SyntheticSource
from edgemm.types import StatePair, Tensors, TensorSpec

MS = 10**6
PICTURE = TensorSpec("x", "float32", (1, 4, 6))
SCORE = TensorSpec("y", "float32", (1,))

ONE_EYE = """
edgemm = 1
name = "eye"
[streams.camera]
kind = "video"
fps = 25
[models.eye]
file = "eye.onnx"
hop = "40 ms"
inputs.x = { stream = "camera", image = { width = 6, height = 4, color = "gray", layout = "hwc" } }
outputs.y = { decode = "threshold" }
"""
TWO_EYES = ONE_EYE.replace("[streams.camera]", "[streams.left]\nkind = 'video'\n[streams.right]").replace(
    'stream = "camera"', 'streams = ["left", "right"]'
)


def eye(recipe: str, **keys: str) -> Recipe:
    """The recipe with more keys in its model's table."""
    table = {"hop": '"40 ms"', **keys}
    return recipes.parse(recipe.replace('hop = "40 ms"', "\n".join(f"{key} = {value}" for key, value in table.items())))


def frame(stream: str, at_ms: int, level: int = 255) -> VideoFrame:
    return VideoFrame(stream, at_ms, Fraction(1, 1000), at_ms * MS, np.full((8, 12), level, np.uint8), "gray")


def brightness(clock: SimulatedClock, took_ms: float) -> Callable[[Tensors], Tensors]:
    """An engine's function: mean brightness of each of the batch, after some time by the clock."""

    def run(feeds: Tensors) -> Tensors:
        clock.wait_until(clock.now_ns() + round(took_ms * MS))
        x = feeds["x"]
        return {"y": x.reshape(len(x), -1).mean(axis=1)}

    return run


def play(session: Session, clock: SimulatedClock, frames: list[VideoFrame]) -> list[Result]:
    """A live session's loop, by the simulated clock."""
    results: list[Result] = []
    waiting = sorted(frames, key=lambda f: f.end_ns)
    while waiting:
        clock.wait_until(waiting[0].end_ns)
        while waiting and waiting[0].end_ns <= clock.now_ns():
            event = waiting.pop(0)
            session.ingest(event, event.end_ns)
        session.tick(clock.now_ns())
        results.extend(session.steps())
    return results


# Degraded modes.


def test_a_slow_session_takes_the_smaller_model_and_every_result_says_so() -> None:
    recipe = eye(ONE_EYE, degrade='[{ every = 2 }, { every = 2, precision = "int8" }]')
    clock = SimulatedClock()
    slow = FakeEngine(brightness(clock, 100), [PICTURE], [SCORE])
    small = FakeEngine(brightness(clock, 50), [PICTURE], [SCORE])
    session = Session(recipe, {"eye": slow, "eye:int8": small}, clock=clock)
    results = play(session, clock, [frame("camera", at) for at in range(0, 4000, 40)])
    modes = [result.mode for result in results]
    assert list(dict.fromkeys(modes)) == [None, "every 2", "every 2, int8"]
    assert small.steps == modes.count("every 2, int8") > 10
    account = session.summary().models["eye"]
    assert account.degraded == {"every 2": modes.count("every 2"), "every 2, int8": small.steps}
    assert account.skipped["degraded"] > 10
    assert b'"mode":"every 2, int8"' in results[-1].to_json()
    assert b'"mode"' not in results[0].to_json()
    assert f"eye: of the steps made, in degraded mode: {modes.count('every 2')} every 2" in summary_table(
        session.summary()
    )
    # 50 ms for a step every 80: fast enough.
    assert {r.made_ns - r.time_ns for r in results[-5:]} == {50 * MS}


def test_the_state_starts_anew_in_another_engine() -> None:
    recipe = eye(ONE_EYE, degrade='[{ precision = "int8" }]', state='[{ input = "h", output = "hn" }]')
    clock = SimulatedClock()
    pair = [StatePair("h", "hn")]
    slow = FakeEngine(brightness(clock, 100), [PICTURE], [SCORE], pair)
    small = FakeEngine(brightness(clock, 10), [PICTURE], [SCORE], pair)
    session = Session(recipe, {"eye": slow, "eye:int8": small}, clock=clock)
    assert (slow.resets, small.resets) == (1, 1)
    results = play(session, clock, [frame("camera", at) for at in range(0, 2000, 40)])
    assert [r.state_reset for r in results if r.state_reset] == ["mode"]
    assert (slow.resets, small.resets) == (1, 2)


def test_a_mode_without_its_engine_is_left_out_and_one_that_does_not_fit_is_refused() -> None:
    recipe = eye(ONE_EYE, degrade='[{ precision = "int8" }]')
    clock = SimulatedClock()
    slow = FakeEngine(brightness(clock, 100), [PICTURE], [SCORE])
    results = play(
        Session(recipe, {"eye": slow}, clock=clock), clock, [frame("camera", at) for at in range(0, 2000, 40)]
    )
    assert {result.mode for result in results} == {None}
    other = FakeEngine(brightness(clock, 1), [TensorSpec("x", "float32", (1, 8, 8))], [SCORE])
    with pytest.raises(RecipeError, match=r'The degraded mode "int8" of "eye" has the inputs x.*expected those of the'):
        Session(recipe, {"eye": slow, "eye:int8": other}, clock=clock)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"degrade": "[{}]"}, "models.eye.degrade: expected every, precision or model in each mode"),
        ({"degrade": "[{ every = 0 }]"}, "expected int >= 1"),
        ({"degrade": '[{ precision = "int3" }]'}, "degrade"),
        ({"degrade": '[{ model = "small" }]'}, 'no model "small", expected one of: "eye"'),
        ({"degrade": '[{ model = "eye" }]'}, '"eye" takes over the inputs of another model'),
        ({"hop": '"1.5 frames"'}, 'expected a whole number of pictures, found "3/2 frames"'),
    ],
)
def test_modes_that_make_no_sense_are_named(keys: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said.replace("(", r"\(")):
        eye(ONE_EYE, **keys)


# Steps with pictures.


def test_a_hop_of_one_picture_steps_as_the_pictures_come() -> None:
    recipe = eye(ONE_EYE, hop='"1 frames"')
    clock = SimulatedClock()
    engine = FakeEngine(brightness(clock, 3), [PICTURE], [SCORE])
    times_ms = [0, 41, 79, 120, 200, 201, 333]
    results = play(Session(recipe, {"eye": engine}, clock=clock), clock, [frame("camera", at) for at in times_ms])
    assert [r.time_ns // MS for r in results] == times_ms
    assert {r.video_age_ns for r in results} == {3 * MS, 5 * MS}  # the one at 201 ms waits for the one before


# Batches.


def two_eyes(clock: SimulatedClock, batch: int | str = 2, **keys: str) -> Session:
    spec = TensorSpec("x", "float32", (batch, 4, 6))
    engine = FakeEngine(
        brightness(clock, 1), [TensorSpec("x", "float32", (2, 4, 6))], [TensorSpec("y", "float32", (2,))]
    )
    engine.inputs = (spec,) if isinstance(batch, int) else engine.inputs
    return Session(eye(TWO_EYES, **keys), {"eye": engine}, clock=clock)


def test_cameras_are_a_batch_and_each_has_its_own_outputs() -> None:
    clock = SimulatedClock()
    session = two_eyes(clock)
    frames = [frame("left", at, 255) for at in range(0, 400, 40)] + [frame("right", at, 51) for at in range(5, 400, 40)]
    results = play(session, clock, frames)
    assert len(results) >= 8
    late = results[2:]
    for result in late:
        left, right = result.outputs["y.left"], result.outputs["y.right"]
        assert isinstance(left, Score)
        assert isinstance(right, Score)
        assert left.score == pytest.approx(1.0)
        assert right.score == pytest.approx(0.2)
        # As old as the older of its pictures.
        assert result.video_age_ns is not None
        assert result.video_age_ns >= 35 * MS
    summary = session.summary()
    assert summary.streams["left"].used >= 8
    assert summary.streams["right"].used >= 8


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"holds a batch of 3, and 2 cameras are given. Export the model"):
        two_eyes(SimulatedClock(), batch=3)
    text = TWO_EYES + '[models.after]\nfile = "a.onnx"\nhop = "40 ms"\nwhen = "eye.y > 0.5"\n'
    text += 'inputs.x = { stream = "left", image = { width = 6, height = 4, color = "gray" } }\n'
    engine = FakeEngine(
        lambda feeds: feeds, [TensorSpec("x", "float32", (2, 4, 6))], [TensorSpec("y", "float32", (2,))]
    )
    after = FakeEngine(lambda feeds: feeds, [PICTURE], [SCORE])
    with pytest.raises(RecipeError, match="needs a streamed model and an output with a score"):
        Session(recipes.parse(text), {"eye": engine, "after": after})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ('streams = ["left", "left"]', "a camera is named twice"),
        ('streams = ["left", "top"]', 'no stream "top", expected one of: "left", "right"'),
        ('streams = ["left", "right"], stream = "left"', "found stream and streams"),
        ('streams = ["left", "mic"]', '"mic" is sound, expected cameras'),
    ],
)
def test_batches_that_make_no_sense_are_named(found: str, said: str) -> None:
    text = TWO_EYES.replace('streams = ["left", "right"]', found) + '[streams.mic]\nkind = "audio"\n'
    with pytest.raises(RecipeError, match=said):
        recipes.parse(text)


# From a model file to the command line.


def write_model(path: Path, batch: int | str = 1) -> None:
    """Mean brightness of each picture."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)],
        "eye",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def two_cameras(tmp_path: Path) -> Path:
    write_model(tmp_path / "eye.onnx", "n")
    (tmp_path / "recipe.toml").write_text(TWO_EYES)
    edgemm.build(tmp_path / "recipe.toml", tmp_path / "two.edgemm", precision="fp32")
    return tmp_path / "two.edgemm"


def test_two_files_as_two_cameras(two_cameras: Path) -> None:
    wants = stream_wants(edgemm.open(two_cameras).recipe)
    inputs = {want.name: SyntheticSource([want], seconds=1.5) for want in wants}
    summary = edgemm.run(two_cameras, input=inputs)
    assert len(summary.results) >= 35
    assert all(set(result.outputs) == {"y.left", "y.right"} for result in summary.results)
    assert summary.results[5].outputs["y.left"] == summary.results[5].outputs["y.right"]


def test_cameras_are_given_by_name(two_cameras: Path) -> None:
    recipe = edgemm.open(two_cameras).recipe
    sources = open_sources(recipe, None, camera={"right": "rtsp://b/", "left": 0})
    assert [source.streams[0].name for source in sources] == ["right", "left"]
    with pytest.raises(
        UsageError, match=r'A camera was given for "top"; the recipe.s models read the cameras: left, right'
    ):
        open_sources(recipe, None, camera={"top": 0})
    with pytest.raises(UsageError, match="Nothing was given for right"):
        open_sources(recipe, None, camera={"left": 0})


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (["left=/dev/video98", "right=/dev/video99"], "/dev/video98 does not exist"),
        (["left=/dev/video98", "/dev/video99"], "Several cameras need the names of their streams"),
        (["/dev/video98"], "expected one"),
        (["rtsp://host/live?channel=1"], "expected one"),
    ],
)
def test_cameras_on_the_command_line(two_cameras: Path, devices: list[str], said: str) -> None:
    arguments = [word for device in devices for word in ("--camera-device", device)]
    done = CliRunner().invoke(app, ["run", str(two_cameras), *arguments])
    assert done.exit_code == 1
    assert said in done.output + str(done.exception)


def test_a_smaller_model_of_the_recipe_takes_over_in_a_simulation(tmp_path: Path) -> None:
    write_model(tmp_path / "eye.onnx")
    write_model(tmp_path / "small.onnx")
    text = ONE_EYE.replace(
        'hop = "40 ms"', 'hop = "40 ms"\ndegrade = [{ model = "small" }, { precision = "fp32", every = 2 }]'
    )
    (tmp_path / "recipe.toml").write_text(text + '[models.small]\nfile = "small.onnx"\n')
    edgemm.build(tmp_path / "recipe.toml", tmp_path / "m.edgemm", precision="fp32")

    def always(ms: int) -> ModelProfile:
        times = Percentiles.of([ms * MS] * 1000)
        return ModelProfile("trt on Orin", "fp16", 1000, {"inference": times}, times, ())

    board = ProfileReport("m", "", "x", "a board", 1, 0, 0, {"eye": always(100), "small": always(10)}, {}, 1, 1)
    found = simulate(tmp_path / "m.edgemm", board, duration_s=20)
    account = found.summary.models["eye"]
    assert account.degraded["small"] > 0.7 * account.made
    assert {r.latency.inference_ns for r in found.summary.results if r.latency and r.mode == "small"} == {10 * MS}
    assert found.notes == ('eye: the mode "every 2, fp32" is left out, as the profile does not tell its latency',)
    assert 'note: eye: the mode "every 2, fp32" is left out' in simulation_table(found)
    # All modes have their engines in a run.
    assert {r.mode for r in edgemm.run(tmp_path / "m.edgemm", input="synthetic", duration_s=1).results} == {None}
    edgemm.profile(tmp_path / "m.edgemm", iterations=5, warm_up=1)
