"""Path 2 as a whole: from a clip to results, in virtual and in wall time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from niceness import wants_permission
from onnx import TensorProto, helper, numpy_helper

from edgemm import builder, inputs, runner
from edgemm import bundle as bundles
from edgemm import recipe as recipes
from edgemm import session as sessions
from edgemm.bundle import Bundle, ModelEntry, Variant
from edgemm.engine.fake import FakeEngine
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.engine.protocol import Engine
from edgemm.errors import EngineError, RecipeError, SinkError, UsageError
from edgemm.frontend.log_mel import LogMel, Mfcc
from edgemm.options import LogMelOptions, MfccOptions
from edgemm.recipe import Recipe
from edgemm.session import Session
from edgemm.stream.accounting import AccountingError
from edgemm.stream.decode import Label, Score, Values
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo, VideoFrame
from edgemm.stream.results import Result
from edgemm.stream.sinks.jsonl import JsonLinesSink
from edgemm.stream.sinks.memory import MemorySink
from edgemm.stream.sources.protocol import AudioWant, VideoWant
from edgemm.stream.sources.synthetic import SyntheticSource
from edgemm.stream.spans import Spans
from edgemm.stream.turns import NICENESS, Turns, turns
from edgemm.types import Array, StatePair, Tensors, TensorSpec

pytestmark = pytest.mark.real_time

RATE_HZ = 16000
MS = 10**6

AV = """
edgemm = 1
name = "demo"
[streams.mic]
kind = "audio"
[streams.camera]
kind = "video"
[schedule]
policy = "latest"
[models.av]
file = "av.onnx"
hop = "100 ms"
[models.av.inputs.sound]
stream = "mic"
window = "1 s"
log_mel = { n_mels = 20 }
[models.av.inputs.pictures]
stream = "camera"
window = "4 frames"
spacing = "40 ms"
image = { width = 16, height = 12, color = "gray" }
[models.av.outputs.which]
decode = "softmax"
labels = ["dark", "bright"]
[models.av.outputs.loud]
decode = "sigmoid"
"""

AV_INPUTS = [TensorSpec("sound", "float32", (1, 100, 20)), TensorSpec("pictures", "float32", (1, 4, 1, 12, 16))]
AV_OUTPUTS = [TensorSpec("which", "float32", (1, 2)), TensorSpec("loud", "float32", (1, 1))]


def see_and_hear(feeds: Tensors) -> Tensors:
    light = feeds["pictures"][0, 2].mean()  # the last but one
    return {
        "which": np.array([[0.5, light]], np.float32),
        "loud": (feeds["sound"].max(keepdims=True)[0] + 3).astype(np.float32),
    }


def av_engine(function: Callable[[Tensors], Tensors] = see_and_hear) -> FakeEngine:
    return FakeEngine(function, AV_INPUTS, AV_OUTPUTS)


def recipe(text: str = AV, **replaced: str) -> Recipe:
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return recipes.parse(text)


def sound(samples: Array, at_ns: int = 0, stream: str = "mic", **more: Any) -> AudioChunk:
    return AudioChunk(stream, at_ns, Fraction(1, 10**9), at_ns, np.asarray(samples, np.float32), RATE_HZ, **more)


def picture(at_ns: int, value: int = 0, stream: str = "camera") -> VideoFrame:
    return VideoFrame(stream, at_ns, Fraction(1, 10**9), at_ns, np.full((24, 32), value, np.uint8), "gray")


def play(session: Session, events: Sequence[Event]) -> list[Result]:
    results = [r for event in events for r in session.push(event)]
    return results + session.finish()


# A bundle with a real graph.


def av_graph() -> bytes:
    """The function `see_and_hear` as ONNX."""
    nodes = [
        helper.make_node("Gather", ["pictures", "last"], ["newest"], axis=1),
        helper.make_node("ReduceMean", ["newest", "all5"], ["light"], keepdims=0),
        helper.make_node("Reshape", ["light", "one"], ["light1"]),
        helper.make_node("Concat", ["half", "light1"], ["pair"], axis=0),
        helper.make_node("Reshape", ["pair", "row"], ["which"]),
        helper.make_node("ReduceMax", ["sound", "all3"], ["top"], keepdims=0),
        helper.make_node("Add", ["top", "three"], ["lifted"]),
        helper.make_node("Reshape", ["lifted", "cell"], ["loud"]),
    ]
    constants = {
        "last": np.array(2),
        "all5": np.arange(4),
        "all3": np.arange(3),
        "one": np.array([1]),
        "row": np.array([1, 2]),
        "cell": np.array([1, 1]),
        "half": np.array([0.5], np.float32),
        "three": np.array(3, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "av",
        [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in AV_INPUTS],
        [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in AV_OUTPUTS],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def av_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    entry = ModelEntry(
        inputs=AV_INPUTS,
        outputs=AV_OUTPUTS,
        variants={"fp32": Variant(file="models/av/fp32.onnx", digest="d")},
        precision="fp32",
        reason="asked for",
    )
    path = tmp_path_factory.mktemp("bundle") / "av.edgemm"
    return bundles.write(path, recipe=recipe(), models={"av": entry}, files={"models/av/fp32.onnx": av_graph()})


# Virtual time.


def test_two_virtual_runs_are_byte_identical_and_the_flash_is_seen(av_bundle: Bundle, tmp_path: Path) -> None:
    lines = []
    for name in ("one.jsonl", "two.jsonl"):
        summary = runner.run(
            av_bundle.path, input="synthetic", clock="virtual", sinks=[JsonLinesSink(tmp_path / name)], duration_s=3
        )
        lines.append((tmp_path / name).read_bytes())
    assert lines[0] == lines[1]
    results = [json.loads(line) for line in lines[0].splitlines()]
    assert [r["time_ms"] for r in results] == [100.0 * k for k in range(11, 31)]
    bright = [r["time_ms"] for r in results if r["outputs"]["which"]["label"] == "bright"]
    assert bright == [1600.0, 2600.0]  # 1520 to 1600 ms and 2520 to 2600 ms are white
    first = results[0]
    # 1100 ms: the newest log-mel frame ends at 17,520 samples, 5 ms ago, the newest picture is that of 1080 ms.
    assert (first["audio_age_ms"], first["video_age_ms"], first["skew_ms"]) == (5.0, 20.0, 15.0)
    assert first["capture_ms"] == 1080.0
    assert first["engine"] == "onnxruntime"
    assert "latency_ms" not in first
    assert summary.models["av"].made == 20
    assert summary.models["av"].skipped == {"filling": 10}
    assert summary.streams["mic"].captured == 300
    assert not summary.interrupted
    assert summary.engines == {"av": "onnxruntime on CPU, 1 thread"}


def test_without_sinks_results_are_in_the_summary(av_bundle: Bundle) -> None:
    fed: list[tuple[str, tuple[int, ...]]] = []
    summary = runner.run(
        av_bundle,
        input=SyntheticSource(inputs.stream_wants(av_bundle.recipe), seconds=1.3),
        on_feeds=lambda model, tensors: fed.append((model, tensors["pictures"].shape)),
    )
    assert [r.time_ns // MS for r in summary.results] == [1100, 1200, 1300]
    assert fed == [("av", (1, 4, 1, 12, 16))] * 3
    with_fake = play(Session(recipe(), {"av": av_engine()}), list(SyntheticSource(BOTH, seconds=1.3)))
    for real, fake in zip(summary.results, with_fake, strict=True):
        assert isinstance(real.outputs["loud"], Score)
        assert isinstance(fake.outputs["loud"], Score)
        assert real.outputs["loud"].score == pytest.approx(fake.outputs["loud"].score, rel=1e-5)


BOTH = [AudioWant("mic"), VideoWant("camera", "gray")]


def test_ctrl_c_keeps_what_was_written(av_bundle: Bundle, tmp_path: Path) -> None:
    class Impatient(MemorySink):
        def write(self, result: Result) -> None:
            super().write(result)
            if len(self.results) == 3:
                raise KeyboardInterrupt

    closed: list[str] = []

    class Watched(SyntheticSource):
        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            closed.append("source")

    path = tmp_path / "results.jsonl"
    for clock in ("virtual", "wall"):
        summary = runner.run(
            av_bundle,
            input=Watched(BOTH),
            clock=clock,
            sinks=[JsonLinesSink(path), Impatient()],  # type: ignore[arg-type]
        )
        assert summary.interrupted
        assert summary.models["av"].made == 3
        assert len(path.read_bytes().splitlines()) == 3
        assert summary.streams["mic"].captured == summary.streams["mic"].used + summary.streams["mic"].in_flight + sum(
            summary.streams["mic"].dropped.values()
        )
    assert closed == ["source", "source"]
    assert not [t for t in threading.enumerate() if t.name.startswith("capture-")]


def test_a_sink_that_fails_ends_the_run(av_bundle: Bundle) -> None:
    with pytest.raises(SinkError, match="No space left on device"):
        runner.run(av_bundle, input="synthetic", sinks=[JsonLinesSink("/dev/full")])


def test_every_stage_leaves_spans(av_bundle: Bundle) -> None:
    spans = Spans()
    runner.run(av_bundle, input="synthetic", duration_s=1.2, recorder=spans, sinks=[MemorySink()])
    assert {s.stage for s in spans.spans} == {"source", "front_end", "window", "inference", "decode", "sink"}
    steps = [(s.model, s.step) for s in spans.spans if s.stage == "inference"]
    assert steps == [("av", 11), ("av", 12)]
    assert all(s.begin_ns <= s.end_ns for s in spans.spans)
    assert {s.model for s in spans.spans if s.stage == "source"} == {"mic", "camera"}


# Wall time.


def test_wall_time_measures_and_drops_nothing_when_there_is_time(av_bundle: Bundle) -> None:
    spans = Spans()
    begin = time.monotonic()
    source = SyntheticSource(BOTH, seconds=1.4)
    summary = runner.run(av_bundle, input=source, clock="wall", recorder=spans)
    assert time.monotonic() - begin >= 1.4
    assert summary.clock == "wall"
    assert summary.duration_ns >= 1400 * MS
    made = summary.models["av"].made
    assert 1 <= made <= 4
    for result in summary.results:
        assert result.latency is not None
        assert result.latency.inference_ns > 0
        assert result.latency.total_ns >= result.latency.inference_ns
        assert result.audio_age_ns is not None
        assert result.audio_age_ns >= 5 * MS
    assert "queue" in {s.stage for s in spans.spans}
    assert summary.streams["mic"].captured == 140


@wants_permission
def test_the_thread_that_infers_is_prompt_in_wall_time_but_not_while_engines_are_opened(
    av_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening: list[Turns | None] = []
    inferring: list[Turns | None] = []
    open_engines = runner.open_engines

    def watched(*args: Any, **options: Any) -> Any:
        opening.append(turns())
        return open_engines(*args, **options)

    monkeypatch.setattr(runner, "open_engines", watched)
    for clock in ("wall", "virtual"):
        source = SyntheticSource(BOTH, seconds=1.4)
        runner.run(av_bundle, input=source, clock=clock, on_feeds=lambda *_: inferring.append(turns()))  # type: ignore[arg-type]
        assert {found.niceness for found in inferring if found is not None} == {NICENESS if clock == "wall" else 0}
        inferring.clear()
    assert [found.niceness for found in opening if found is not None] == [0, 0]


def test_a_slow_engine_costs_steps_but_never_holds_up_capture() -> None:
    def slow(feeds: Tensors) -> Tensors:
        time.sleep(0.3)
        return see_and_hear(feeds)

    text = AV.replace('"1 s"', '"100 ms"').replace('"100 ms"\n[models.av.inputs', '"20 ms"\n[models.av.inputs')
    results = []
    engine = FakeEngine(slow, [TensorSpec("sound", "float32", (1, 10, 20)), AV_INPUTS[1]], AV_OUTPUTS)
    from edgemm.stream.clock import WallClock

    session = Session(recipes.parse(text), {"av": engine}, clock=WallClock())
    results = list(runner.live(session, [SyntheticSource(BOTH, seconds=2)], None))
    summary = session.summary()
    assert summary.models["av"].skipped["superseded"] > 20
    # Each result rests on what was there when its step began: at most one inference and one wait for a picture ago.
    ages = [r.audio_age_ns for r in results if r.audio_age_ns is not None]
    assert max(ages[1:]) < 800 * MS
    assert all(r.deadline_missed for r in results)
    assert summary.streams["mic"].captured == 200
    assert summary.streams["camera"].captured == 50


def test_under_every_no_step_is_skipped_and_the_queue_sheds_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(feeds: Tensors) -> Tensors:
        time.sleep(0.1)
        return see_and_hear(feeds)

    from edgemm.stream.clock import WallClock

    monkeypatch.setattr(sessions, "QUEUE_PICTURES", 2)
    text = AV.replace('"latest"', '"every"').replace('hop = "100 ms"', 'hop = "40 ms"')
    session = Session(recipes.parse(text), {"av": av_engine(slow)}, clock=WallClock())
    results = list(runner.live(session, [SyntheticSource(BOTH, seconds=2)], 1.9))
    summary = session.summary()
    assert not set(summary.models["av"].skipped) & {"superseded", "late"}
    assert summary.streams["camera"].dropped["queue_full"] > 0
    assert results


# Windows of sound.


def collect(text: str, spec: TensorSpec, events: Sequence[Event]) -> tuple[list[Array], list[Result], Session]:
    fed: list[Array] = []
    engine = FakeEngine(lambda feeds: {"y": np.zeros((1, 1), np.float32)}, [spec], [TensorSpec("y", "float32", (1, 1))])
    session = Session(recipes.parse(text), {"m": engine}, on_feeds=lambda _, tensors: fed.append(tensors["x"].copy()))
    return fed, play(session, events), session


def one_input(entry: str, hop: str = "40 ms") -> str:
    return f"""
edgemm = 1
name = "one"
[streams.mic]
kind = "audio"
[streams.camera]
kind = "video"
[models.m]
file = "m.onnx"
hop = "{hop}"
[models.m.inputs.x]
{entry}
"""


def in_blocks(samples: Array, sizes: Sequence[int]) -> Iterator[AudioChunk]:
    at = number = 0
    while at < len(samples):
        size = sizes[number % len(sizes)]
        yield sound(samples[at : at + size], at * 10**9 // RATE_HZ)
        at += size
        number += 1


NOISE = np.random.default_rng(3).standard_normal(12_000).astype(np.float32) * 0.1


@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=5),
    edges=st.sampled_from(["snip", "reflect", "zero"]),
    frames=st.integers(1, 30),
    deltas=st.sampled_from([None, 0, 1, 2]),
)
def test_windows_are_the_frames_of_the_whole_signal_whatever_the_blocks(
    sizes: list[int], edges: str, frames: int, deltas: int | None
) -> None:
    log_mel = LogMelOptions(n_mels=13, edges=edges)  # type: ignore[arg-type]
    entry = f'stream = "mic"\nwindow = "{frames} frames"\n'
    if deltas is None:
        whole = LogMel(log_mel).offline(NOISE)
        entry += f'log_mel = {{ n_mels = 13, edges = "{edges}" }}'
    else:
        whole = Mfcc(MfccOptions(log_mel, deltas=deltas)).offline(NOISE)  # type: ignore[arg-type]
        entry += f'mfcc = {{ deltas = {deltas}, log_mel = {{ n_mels = 13, edges = "{edges}" }} }}'
    spec = TensorSpec("x", "float32", (1, frames, whole.shape[1]))
    fed, results, _ = collect(one_input(entry), spec, list(in_blocks(NOISE, sizes)))
    assert len(results) == len(fed) >= 1
    for tensor, result in zip(fed, results, strict=True):
        # The newest frame ends where the result says that its sound ends; find it by what it holds.
        matches = [k for k in range(frames, len(whole) + 1) if np.array_equal(whole[k - frames : k], tensor[0])]
        assert len(matches) == 1
        newest = matches[0] - 1
        before = 0 if edges == "snip" else 256
        offset = 0 if edges == "snip" else 56
        end = newest * 160 + offset + 400 - before + 2 * (deltas or 0) * 160
        assert result.audio_age_ns == result.made_ns - end * 10**9 // RATE_HZ
        # The newest frame there can be: the next one would end after the step's time.
        assert end * 10**9 // RATE_HZ <= result.time_ns < (end + 160) * 10**9 // RATE_HZ


def test_samples_with_overlap_and_zero_history_as_a_voice_detector_wants_them() -> None:
    entry = 'stream = "mic"\nwindow = "576 samples"\nmissing = "zeros"'
    spec = TensorSpec("x", "float32", (1, 576))
    fed, results, _ = collect(one_input(entry, "512 samples"), spec, list(in_blocks(NOISE, [700, 30])))
    padded = np.concatenate((np.zeros(64, np.float32), NOISE))
    assert len(fed) == len(NOISE) // 512
    for number, tensor in enumerate(fed):
        assert np.array_equal(tensor[0], padded[number * 512 : number * 512 + 576])
    assert {r.capture_ns - r.time_ns for r in results if r.capture_ns is not None} == {0}


def test_without_zeros_the_first_step_waits_for_a_full_window() -> None:
    spec = TensorSpec("x", "float32", (1, 576))
    fed, results, session = collect(
        one_input('stream = "mic"\nwindow = "576 samples"', "512 samples"), spec, list(in_blocks(NOISE, [160]))
    )
    assert np.array_equal(fed[0][0], NOISE[1024 - 576 : 1024])
    assert session.summary().models["m"].skipped == {"filling": 1}
    assert results[0].step == 2


def test_inputs_with_the_same_front_end_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LogMel] = []

    class Counted(LogMel):
        def __init__(self, options: LogMelOptions) -> None:
            super().__init__(options)
            made.append(self)

    monkeypatch.setattr(sessions, "LogMel", Counted)
    text = one_input('stream = "mic"\nwindow = "5 frames"\nlog_mel = { n_mels = 13 }')
    text += '[models.m.inputs.z]\nstream = "mic"\nwindow = "9 frames"\nlog_mel = { n_mels = 13 }\n'
    engine = FakeEngine(
        lambda feeds: {"y": feeds["x"] - feeds["z"][:, -5:]},
        [TensorSpec("x", "float32", (1, 5, 13)), TensorSpec("z", "float32", (1, 9, 13))],
        [TensorSpec("y", "float32", (1, 5, 13))],
    )
    results = play(Session(recipes.parse(text), {"m": engine}), list(in_blocks(NOISE, [160])))
    assert len(made) == 1
    for result in results:
        assert isinstance(result.outputs["y"], Values)
        assert not result.outputs["y"].values.any()


# State.


def summing_engine() -> OnnxRuntimeEngine:
    """y = h' = h + max(x): counts the steps since the last reset when x is ones."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x", "axes"], ["top"], keepdims=1),
            helper.make_node("Add", ["h", "top"], ["hn"]),
            helper.make_node("Identity", ["hn"], ["y"]),
        ],
        "sum",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 320)),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, (1, 1)),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1)),
            helper.make_tensor_value_info("hn", TensorProto.FLOAT, (1, 1)),
        ],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return OnnxRuntimeEngine(model.SerializeToString(), [StatePair("h", "hn")])


def test_state_is_carried_and_starts_anew_after_a_gap() -> None:
    text = one_input('stream = "mic"\nwindow = "320 samples"', "20 ms")
    text += '[[models.m.state]]\ninput = "h"\noutput = "hn"\n'
    ones = np.ones(1600, np.float32)
    events = [*in_blocks(ones, [160]), *(sound(c.samples, c.capture_ns + 300 * MS) for c in in_blocks(ones, [160]))]
    with summing_engine() as engine:
        session = Session(recipes.parse(text), {"m": engine})
        results = play(session, events)
    values = [r.outputs["y"].values.item() for r in results if isinstance(r.outputs["y"], Values)]
    assert values == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert [r.state_reset for r in results] == [None] * 5 + ["discontinuity"] + [None] * 4
    assert results[5].skipped == 10
    summary = session.summary()
    assert summary.models["m"].resets == {"discontinuity": 1}
    assert summary.streams["mic"].discontinuities == 1


# Several models.

CHAIN = """
edgemm = 1
name = "chain"
[streams.mic]
kind = "audio"
[models.vad]
file = "vad.onnx"
hop = "20 ms"
[models.vad.inputs.x]
stream = "mic"
window = "320 samples"
[models.vad.inputs.sr]
value = 16000
[models.vad.outputs.speech]
decode = "threshold"
[models.head]
file = "head.onnx"
when = "vad.speech > 0.5"
hold = "40 ms"
[models.head.inputs.e]
from = "vad.embedding"
[models.head.inputs.bias]
value = [1, 2]
"""


def chain_engines() -> dict[str, Engine]:
    buffer = np.empty((1, 2), np.float32)  # reused, as an engine may

    def vad(feeds: Tensors) -> Tensors:
        assert feeds["sr"].dtype == np.int64
        assert feeds["sr"].item() == 16000
        buffer[:] = feeds["x"].max()
        return {"speech": feeds["x"].max(keepdims=True), "embedding": buffer}

    return {
        "vad": FakeEngine(
            vad,
            [TensorSpec("x", "float32", (1, 320)), TensorSpec("sr", "int64", ())],
            [TensorSpec("speech", "float32", (1, 1)), TensorSpec("embedding", "float32", (1, 2))],
        ),
        "head": FakeEngine(
            lambda feeds: {"y": feeds["e"] + feeds["bias"]},
            [TensorSpec("e", "float32", ("batch", 2)), TensorSpec("bias", "float32", (2,))],
            [TensorSpec("y", "float32", ("batch", 2))],
        ),
    }


def test_a_gated_model_takes_the_output_of_another() -> None:
    loud = np.zeros(3200, np.float32)
    loud[640:1280] = 0.75
    results = play(Session(recipes.parse(CHAIN), chain_engines()), list(in_blocks(loud, [160])))
    head = [r for r in results if r.model == "head"]
    # Speech at 60 and 80 ms, held for 40 ms more.
    assert [r.time_ns // MS for r in head] == [60, 80, 100, 120]
    assert isinstance(head[0].outputs["y"], Values)
    assert head[0].outputs["y"].values.tolist() == [[1.75, 2.75]]
    assert isinstance(head[3].outputs["y"], Values)
    assert head[3].outputs["y"].values.tolist() == [[1.0, 2.0]]
    assert head[0].audio_age_ns == 0  # what it rests on is what the other saw
    assert head[0].video_age_ns is None
    assert [r.model for r in results][:5] == ["vad", "vad", "vad", "head", "vad"]


# Frame by frame.


def test_losses_ends_and_books_from_the_outside() -> None:
    session = Session(recipe(), {"av": av_engine()}, streams=[StreamInfo("camera", "video", interval_ns=40 * MS)])
    events: list[Event] = [sound(np.zeros(160), 0), Lost("camera", "corrupt", 5 * MS, 2), End("camera", 6 * MS)]
    assert play(session, events) == []
    summary = session.summary()
    assert summary.streams["camera"].captured == 2
    assert summary.streams["camera"].dropped == {"corrupt": 2}
    session._seen["mic"] += 1
    with pytest.raises(AccountingError, match='Stream "mic": 2 frames came, 1 are in the books'):
        session.summary()


def test_a_picture_that_is_out_of_order_is_dropped() -> None:
    session = Session(recipe(), {"av": av_engine()})
    play(session, [picture(100 * MS), picture(60 * MS)])
    assert session.summary().streams["camera"].dropped["out_of_order"] == 1


def test_long_blocks_give_the_same_results_as_short_ones() -> None:
    long = play(Session(recipe(), {"av": av_engine()}), [picture(0, 9), sound(np.zeros(32_000))])
    short = play(
        Session(recipe(), {"av": av_engine()}), [picture(0, 9), *in_blocks(np.zeros(32_000, np.float32), [160])]
    )
    assert [r.to_json() for r in long] == [r.to_json() for r in short]
    assert len(long) == 10  # 1100 to 2000 ms


def test_a_label_is_what_the_recipe_calls_it() -> None:
    events: list[Event] = [picture(n * 40 * MS, 255) for n in range(30)]
    events += in_blocks(np.zeros(19_200, np.float32), [160])
    results = play(Session(recipe(), {"av": av_engine()}), sorted(events, key=lambda e: e.end_ns))
    assert [r.outputs["which"] for r in results] == [Label("bright", 1, pytest.approx(0.6224, abs=1e-3))] * 2


@pytest.mark.parametrize("count", [1, 6])
def test_every_picture_of_a_folder_gets_a_result(tmp_path: Path, count: int) -> None:
    value = helper.make_tensor_value_info
    shape = [1, 1, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "eye",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    entry = 'stream = "camera"\nimage = { width = 4, height = 4, color = "gray", scale = 1 }'
    (tmp_path / "m.toml").write_text(one_input(entry))
    builder.build(tmp_path / "m.toml", tmp_path / "m.edgemm", precision="fp32")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(count):
        header = b"P5 4 4 255\n"
        (folder / f"{number}.pgm").write_bytes(header + bytes([10 * number + 5]) * 16)
    results = runner.run(tmp_path / "m.edgemm", input=folder).results
    shown = [float(r.outputs["y"].values.reshape(-1)[0]) for r in results]
    assert shown == [10 * number + 5 for number in range(count)]


# Which input for which stream.


def test_inputs_by_name_and_one_pass_for_one_file(av_bundle: Bundle, tmp_path: Path) -> None:
    wanted = av_bundle.recipe
    assert inputs.stream_wants(wanted) == BOTH
    assert len(inputs.open_sources(wanted, {"mic": "a.mp4", "camera": "a.mp4"})) == 1
    assert len(inputs.open_sources(wanted, {"mic": "a.wav", "camera": tmp_path})) == 2
    with pytest.raises(UsageError, match="is a folder of images, but the recipe also reads mic"):
        inputs.open_sources(wanted, tmp_path)
    with pytest.raises(UsageError, match="Inputs were given for mic, the recipe's models read: mic, camera"):
        inputs.open_sources(wanted, {"mic": "a.wav"})
    two = recipes.parse(
        one_input('stream = "mic"\nwindow = "1 s"').replace("[models.m]", '[streams.far]\nkind = "audio"\n[models.m]')
        + '[models.m.inputs.z]\nstream = "far"\nwindow = "1 s"\n'
    )
    with pytest.raises(UsageError, match=r"has 2 audio streams \(mic, far\) and one input"):
        inputs.open_sources(two, "clip.mp4")


def test_separate_sources_are_merged_by_time(av_bundle: Bundle) -> None:
    wants = inputs.stream_wants(av_bundle.recipe)
    together = runner.run(av_bundle, input=SyntheticSource(wants, seconds=1.5))
    apart = runner.run(
        av_bundle,
        input={
            "mic": SyntheticSource(wants[:1], seconds=1.5),
            "camera": SyntheticSource(wants[1:], seconds=1.5),
        },
    )
    assert [r.to_json() for r in together.results] == [r.to_json() for r in apart.results]


# Recipes and engines that do not fit each other.


@pytest.mark.parametrize(
    ("change", "engine", "words"),
    [
        ({}, {}, 'No engine was given for the model "av"'),
        ({}, {"av": FakeEngine(see_and_hear, AV_INPUTS[:1], AV_OUTPUTS)}, 'feeds "pictures", but .* inputs: sound'),
        ({}, {"av": FakeEngine(see_and_hear, AV_INPUTS, AV_OUTPUTS[:1])}, 'decodes "loud", but .* outputs: which'),
        (
            {},
            {"av": FakeEngine(see_and_hear, [*AV_INPUTS, TensorSpec("more", "float32", (1,))], AV_OUTPUTS)},
            r'"more" of the model "av" has no source. Add a table \[models.av.inputs.more\]',
        ),
        ({'"1 s"': '"2 s"'}, {"av": av_engine()}, "cannot hold a window of shape"),
    ],
)
def test_recipes_and_engines_that_do_not_fit(change: dict[str, str], engine: dict[str, Engine], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Session(recipe(AV, **change), engine)


def test_a_recipe_without_streams_cannot_be_run() -> None:
    plain = recipes.parse('edgemm = 1\nname = "plain"\n[models.m]\nfile = "m.onnx"\n')
    with pytest.raises(RecipeError, match="no model that reads a stream: it can be profiled, but not run"):
        Session(plain, {})


def test_gates_and_feeds_that_lead_nowhere() -> None:
    engines = chain_engines()
    with pytest.raises(RecipeError, match=r'takes "vad.nothing", expected a streamed model'):
        Session(recipes.parse(CHAIN.replace("vad.embedding", "vad.nothing")), engines)
    embedding = CHAIN.replace('decode = "threshold"', 'decode = "embedding"')
    with pytest.raises(RecipeError, match="needs a streamed model and an output with a score"):
        Session(recipes.parse(embedding), engines)
    vector = CHAIN.replace(
        '[models.vad.outputs.speech]\ndecode = "threshold"', '[models.vad.outputs.embedding]\ndecode = "raw"'
    )
    session = Session(recipes.parse(vector.replace("vad.speech >", "vad.embedding >")), engines)
    with pytest.raises(RecipeError, match='A gate compares "vad.embedding", which is not a single number'):
        play(session, list(in_blocks(NOISE, [160])))


def test_the_fake_engine_is_as_strict_as_a_real_one() -> None:
    with av_engine() as engine:
        assert engine.is_open
        with pytest.raises(EngineError, match='"sound" was fed nothing, expected sound: float32'):
            engine.run({})
        with pytest.raises(EngineError, match=r"was fed float64\[2\]"):
            engine.run({"sound": np.zeros(2)})
    assert not engine.is_open
    assert engine.layer_times() == ()
    assert engine.steps == 0
