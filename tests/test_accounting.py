"""The accounting law through a whole session: real queue, windows, gates and modes, in simulated time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemm import recipe as recipes
from edgemm.engine.fake import FakeEngine
from edgemm.profiler.percentiles import Percentiles
from edgemm.runner import live
from edgemm.session import Session
from edgemm.simulate import SimulatedClock, SimulatedQueue, Spent, TimedEngine, Times
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo, VideoFrame
from edgemm.stream.results import Result
from edgemm.types import StatePair, Tensors, TensorSpec

MS = 10**6
RATE_HZ = 8000
STREAMS = ("mic", "left", "right")

RECIPE = """
edgemm = 1
name = "law"
streams.mic = {{ kind = "audio", rate_hz = 8000 }}
streams.left = {{ kind = "video", fps = 25 }}
streams.right = {{ kind = "video", fps = 30 }}
schedule = {{ policy = "{policy}", deadline = "{deadline} ms" }}

[models.vad]
file = "vad.onnx"
hop = "256 samples"
state = [{{ input = "h", output = "hn" }}]
inputs.x = {{ stream = "mic", window = "320 samples", missing = "{missing}" }}
outputs.y = {{ decode = "threshold" }}
priority = {priority}

[models.av]
file = "av.onnx"
hop = "{hop} ms"
when = "vad.y > 0.5"
hold = "{hold} ms"
state = [{{ input = "h", output = "hn" }}]
inputs.s = {{ stream = "mic", window = "400 samples" }}
inputs.f = {{ from = "vad.y" }}
inputs.p = {{ stream = "left", window = "2 frames", spacing = "40 ms", image = {image}, missing = "{pictures}" }}
outputs.y = {{ decode = "raw" }}
degrade = [{{ every = 2 }}, {{ every = 3, precision = "int8" }}]

[models.eyes]
file = "eyes.onnx"
hop = "1 frames"
deadline = "60 ms"
inputs.p = {{ streams = ["left", "right"], image = {image} }}
outputs.y = {{ decode = "raw" }}
degrade = [{{ every = 4 }}]

[models.after]
file = "after.onnx"
inputs.x = {{ from = "eyes.y" }}
outputs.y = {{ decode = "raw" }}
"""


class Script:
    """A source of given events."""

    live = False
    streams: tuple[StreamInfo, ...] = ()

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)


@st.composite
def scripts(draw: st.DrawFn, stream: str) -> Script:
    """One stream with faults: frames that are lost, stall, break off, come back, or come from the past."""
    events: list[Event] = []
    at_ms = draw(st.integers(0, 200))
    for fate in draw(st.lists(st.sampled_from(["ok"] * 20 + ["lost", "stall", "away", "past"]), max_size=90)):
        broken = False
        if fate == "lost":
            events.append(Lost(stream, "corrupt", at_ms * MS, draw(st.integers(1, 3))))
            continue
        if fate in ("stall", "away"):
            if fate == "away":
                events.append(End(stream, at_ms * MS))
                broken = True
            at_ms += draw(st.integers(1, 1500))
        capture_ns = at_ms * MS - (draw(st.integers(1, 300)) * MS if fate == "past" else 0)
        if stream == "mic":
            samples = np.ones(RATE_HZ // 100, np.float32)
            events.append(AudioChunk(stream, 0, Fraction(1, RATE_HZ), capture_ns, samples, RATE_HZ, broken))
            at_ms += 10
        else:
            picture = np.full((2, 2), 255, np.uint8)
            events.append(VideoFrame(stream, 0, Fraction(1, 1000), capture_ns, picture, "gray", broken))
            at_ms += 40 if stream == "left" else 33
    # A source gives what it has in the order of its times; what is from the past is so against its own stream.
    return Script(sorted(events, key=lambda event: event.end_ns) if draw(st.booleans()) else events)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    sources=st.tuples(*[scripts(stream) for stream in STREAMS]),
    policy=st.sampled_from(["latest", "every", "deadline"]),
    deadline=st.sampled_from([50, 200]),
    hop=st.sampled_from([20, 50]),
    hold=st.sampled_from([1, 100]),
    missing=st.sampled_from(["repeat", "zeros"]),
    pictures=st.sampled_from(["repeat", "zeros", "skip"]),
    priority=st.integers(-1, 1),
    took_ms=st.tuples(*[st.sampled_from([0, 2, 15, 60, 400])] * 3),
    queue=st.integers(1, 20),
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=9),
    seconds=st.sampled_from([None, 0.5]),
)
def test_nothing_is_lost_without_a_cause(
    sources: tuple[Script, ...],
    policy: str,
    deadline: int,
    hop: int,
    hold: int,
    missing: str,
    pictures: str,
    priority: int,
    took_ms: tuple[int, ...],
    queue: int,
    scores: list[float],
    seconds: float | None,
) -> None:
    text = RECIPE.format(
        policy=policy,
        deadline=deadline,
        hop=hop,
        hold=hold,
        missing=missing,
        pictures=pictures,
        priority=priority,
        image='{ width = 2, height = 2, color = "gray" }',
    )
    recipe = recipes.parse(text)

    def run() -> tuple[list[Result], Session, Counter[str]]:
        clock = SimulatedClock()
        chance = iter(range(1 << 30))

        def engine(took: int, inputs: list[TensorSpec], size: int = 1, *, state: bool = False) -> TimedEngine:
            def score(feeds: Tensors) -> Tensors:
                return {"y": np.full(size, scores[next(chance) % len(scores)], np.float32)}

            pairs = [StatePair("h", "hn")] if state else []
            inner = FakeEngine(score, inputs, [TensorSpec("y", "float32", (size,))], pairs)
            spread = Percentiles.of([took * MS, took * MS, 2 * took * MS])
            return TimedEngine(inner, clock, {"inference": Times(spread, 1.0, (1,))}, Spent())

        shapes = {"s": (400,), "p": (2, 1, 2, 2), "f": (1,)}
        av = [TensorSpec(name, "float32", shape) for name, shape in shapes.items()]
        engines = {
            "vad": engine(took_ms[0], [TensorSpec("x", "float32", (320,))], state=True),
            "av": engine(took_ms[1], av, state=True),
            "av:int8": engine(took_ms[1] // 4, av, state=True),
            "eyes": engine(took_ms[2], [TensorSpec("p", "float32", (2, 1, 2, 2))], 2),
            "after": engine(0, [TensorSpec("x", "float32", (2,))], 1),
        }
        session = Session(recipe, engines, clock=clock)
        given: Counter[str] = Counter()
        arrivals = SimulatedQueue(sources, clock, dict.fromkeys(STREAMS, queue), {})
        put = arrivals._queue.put

        def counted(event: Event, now_ns: int) -> None:
            given[event.stream] += event.count if isinstance(event, Lost) else not isinstance(event, End)
            put(event, now_ns)

        arrivals._queue.put = counted  # type: ignore[method-assign]
        return list(live(session, [], seconds, arrivals=arrivals)), session, given

    results, session, given_frames = run()
    summary = session.summary(interrupted=seconds is not None)
    made = Counter(result.model for result in results)
    for name, stream in summary.streams.items():
        assert stream.captured == given_frames[name]
        assert stream.captured == stream.used + sum(stream.dropped.values()) + stream.in_flight
        assert seconds is not None or stream.in_flight == 0
    for name, model in summary.models.items():
        assert model.made == made[name]
        assert model.due == model.made + sum(model.skipped.values()) + model.pending
        of = [result for result in results if result.model == name]
        assert sum(model.degraded.values()) == sum(result.mode is not None for result in of)
        assert sum(model.resets.values()) == sum(result.state_reset is not None for result in of)
        assert model.deadlines_missed == sum(result.deadline_missed for result in of)
        # What every result says was skipped before it, and what was after the last.
        assert sum(result.skipped for result in of) <= sum(model.skipped.values())
    # The same again, but for what was measured here.
    assert [r.with_latency(None).to_json() for r in results] == [r.with_latency(None).to_json() for r in run()[0]]
