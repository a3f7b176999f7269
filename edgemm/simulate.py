"""A session as it would go on another device: the same scheduler, in simulated time, with latencies from a profile.

    report = simulate("model.edgemm", "orin_nano.json", input="clip.mp4")

A discrete-event simulation. Frames arrive when they were captured, through the queue that live threads use. Every step
is really computed, here, so that outputs, gates and chains are the true ones; but it takes the time that the profile
says of the device: each stage is drawn from its measured distribution, with a fixed seed. So the same call gives the
same report, and two devices can be compared on the same frames.

What is not in it: a camera's and a network's own delay, capture threads that compete with inference for the processor,
and whatever a step's time depends on (a stage is drawn without regard to the others and to the step before). A profile
is as good as its measurement: made on a board that was cool, idle and short of neither power nor memory, it tells of
such a board.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from edgemm import bundle as bundles
from edgemm.bundle import Bundle
from edgemm.engine.load import EngineName
from edgemm.engine.protocol import Engine, LayerTime
from edgemm.errors import UsageError
from edgemm.inputs import SYNTHETIC, Media, open_sources, stream_wants
from edgemm.profiler import report as reports
from edgemm.profiler.percentiles import Percentiles
from edgemm.profiler.report import ProfileReport
from edgemm.recipe import streamed
from edgemm.runner import live
from edgemm.session import Session, mode_key, open_engines
from edgemm.stream.capture import FrameQueue
from edgemm.stream.frames import AudioChunk, Event
from edgemm.stream.results import Latency, Result, Summary
from edgemm.stream.scheduler import OVERLOAD
from edgemm.stream.sinks.protocol import Sink
from edgemm.stream.sources.protocol import AudioWant, Source
from edgemm.stream.sources.synthetic import SyntheticSource
from edgemm.types import StatePair, Tensors, TensorSpec

SYNTHETIC_SECONDS = 60.0
"""Length of the made-up input: 600 steps at ten a second, six of which lie beyond the 99th percentile."""

STAGES = ("front_end", "window", "inference", "decode")
"""The stages of a step, as a profile names them; what a step waits is not drawn but follows."""


@dataclass(frozen=True)
class ModelForecast:
    """How one model would fare. An age is a result's: from the capture of what it rests on (the older of sound and
    picture) to when it was made; None if there is no result."""

    engine: str
    """What the profile was measured on."""
    dropped_share: float
    """Share of the steps due that a faster device would have made."""
    busy_share: float
    """Share of the time that its steps took: near 1, over all models, the device is full."""
    age_p50_ns: float | None
    age_p99_ns: float | None
    age_max_ns: int | None


@dataclass(frozen=True)
class SimulationReport:
    """What a simulation found."""

    profile: str
    """The profile's file, or the bundle that it was made of."""
    machine: str
    """Where the profile was measured."""
    same_bundle: bool
    """False if the profile is of another bundle: an older build, or one for another target."""
    scale: float
    seed: int
    summary: Summary
    """The accounts of frames and steps; `results` if there was no sink to take them."""
    models: Mapping[str, ModelForecast]
    notes: tuple[str, ...] = ()
    """What of the recipe could not be simulated, and why."""

    def to_json(self) -> bytes:
        """The report without its results, as JSON, indented; times in ms, as in a run's summary."""
        models = {
            name: {
                "engine": found.engine,
                "dropped_share": found.dropped_share,
                "busy_share": found.busy_share,
                **{
                    f"age_{key}_ms": None if age is None else age / 1e6
                    for key, age in (("p50", found.age_p50_ns), ("p99", found.age_p99_ns), ("max", found.age_max_ns))
                },
            }
            for name, found in self.models.items()
        }
        about = {
            "profile": self.profile,
            "machine": self.machine,
            "same_bundle": self.same_bundle,
            "scale": self.scale,
            "seed": self.seed,
            "forecast": models,
            "notes": self.notes,
        }
        return msgspec.json.format(
            msgspec.json.encode({**msgspec.json.decode(self.summary.to_json()), **about}), indent=1
        )


def simulate(
    bundle: Bundle | str | Path,
    profile: ProfileReport | str | Path,
    *,
    input: Media | Mapping[str, Media] | None = None,
    duration_s: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
    sinks: Sequence[Sink] = (),
    engine: EngineName = "auto",
    precision: str = "auto",
    threads: int = 1,
    fps: float = 25.0,
) -> SimulationReport:
    """Run a bundle as it would go on the device that `profile` was measured on.

    `profile` is a report, or the file that `edgemm profile --json` wrote there. `input` is as in `edgemm.run`, but not
    live; without one, a minute (or `duration_s`) of made-up sound and pictures. `scale` multiplies the engine's
    time, and no other: 5 is an engine five times as slow. `engine`, `precision` and `threads` are what computes the
    outputs here. Results go to `sinks`, with the times and latencies simulated.

    Raises UsageError if the profile lacks a model of the bundle, and the errors of bundle, engine, sources, sinks.
    """
    if scale <= 0:
        raise UsageError(f"The scale multiplies the engine's time: expected a number above 0, found {scale:g}.")
    opened = bundle if isinstance(bundle, Bundle) else bundles.open(bundle)
    found = profile if isinstance(profile, ProfileReport) else reports.load(Path(profile))
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(opened, engine=engine, precision=precision, threads=threads))
        for sink in sinks:
            stack.enter_context(sink)
        clock = SimulatedClock()
        spent = {name: Spent(_sounds_of(opened, name)) for name in streamed(opened.recipe)}
        timed: dict[str, Engine] = {}
        notes: list[str] = []
        for name, books in spent.items():
            times = _step_times(found, name, scale, seed)
            timed[name] = TimedEngine(engines[name], clock, times, books)
            for mode in opened.recipe.models[name].degrade:
                key = mode_key(name, mode)
                if mode.precision is not None:
                    notes.append(f'{name}: the mode "{mode}" is left out, as the profile does not tell its latency')
                elif mode.model is not None and key not in timed:
                    smaller = {**times, "inference": _step_times(found, mode.model, scale, seed)["inference"]}
                    timed[key] = TimedEngine(engines[key], clock, smaller, books)
        sources = _sources(opened, input, duration_s, fps)
        for source in sources:
            stack.enter_context(source)
        infos = [info for source in sources for info in source.streams]
        session = Session(opened.recipe, timed, streams=infos, clock=clock)
        sound = {
            name: Times(stream.stages["front_end"], 1.0, (seed, 1, number))
            for number, (name, stream) in enumerate(sorted(found.streams.items()))
            if "front_end" in stream.stages
        }
        queue = SimulatedQueue(sources, clock, session.queue_limits(), sound)
        results: list[Result] = []
        ages: dict[str, list[int]] = defaultdict(list)
        for result in live(session, sources, duration_s, arrivals=queue):
            made = result.with_latency(spent[result.model].explain(result.latency, queue.spent_ns))
            if made.capture_ns is not None:
                ages[made.model].append(made.made_ns - made.capture_ns)
            for sink in sinks:
                sink.write(made)
            if not sinks:
                results.append(made)
        summary = replace(session.summary(), clock="simulated", results=tuple(results))
    return SimulationReport(
        profile=found.bundle if isinstance(profile, ProfileReport) else str(profile),
        machine=found.machine,
        same_bundle=found.sha256 == opened.digest,
        scale=scale,
        seed=seed,
        summary=summary,
        models={
            name: _forecast(found.models[name].engine, summary, name, books.busy_ns, ages[name])
            for name, books in spent.items()
        },
        notes=tuple(notes),
    )


class SimulatedClock:
    """Time that passes when the simulation says so. Not a VirtualClock: under that one nothing takes time."""

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        """The simulated time."""
        return self._now_ns

    def wait_until(self, time_ns: int) -> None:
        """Be at `time_ns`; a time in the past changes nothing."""
        self._now_ns = max(self._now_ns, time_ns)


class Times:
    """Draws times of one stage from its distribution, straight between the known percentiles."""

    _SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)

    def __init__(self, found: Percentiles, scale: float, seed: Sequence[int]) -> None:
        known = (found.min_ns, found.p50_ns, found.p90_ns, found.p99_ns, found.p999_ns, found.max_ns)
        self._known_ns = [scale * time_ns for time_ns in known]
        self._random = np.random.default_rng(seed)

    def draw_ns(self) -> int:
        """The next time."""
        return round(float(np.interp(self._random.random(), self._SHARES, self._known_ns)))


class Spent:
    """What the steps of one model took; `sounds` are the streams of sound that it reads."""

    def __init__(self, sounds: Sequence[str] = ()) -> None:
        self._sounds = sounds
        self._sound_ns = 0
        self.last_ns: dict[str, int] = {}
        """By stage, of the last step."""
        self.busy_ns = 0

    def explain(self, measured: Latency | None, sound_ns: Mapping[str, int]) -> Latency:
        """The last step's latency, with the stages that were drawn in place of those measured here.

        `sound_ns` is what the front ends of each stream's sound have taken until now.
        """
        if measured is None:
            raise ValueError("a result of a session under a SimulatedClock has a latency")
        until_ns = sum([sound_ns[name] for name in self._sounds])
        sound, self._sound_ns = until_ns - self._sound_ns, until_ns
        last = self.last_ns
        return Latency(
            sound_ns=sound,
            queue_ns=measured.queue_ns,
            front_end_ns=last.get("front_end", 0),
            window_ns=last.get("window", 0),
            inference_ns=last.get("inference", 0),
            decode_ns=last.get("decode", 0),
            total_ns=measured.total_ns,
        )


class TimedEngine:
    """An engine whose `run` takes as long, by a simulated clock, as all stages of a step were drawn."""

    def __init__(self, inner: Engine, clock: SimulatedClock, times: Mapping[str, Times], spent: Spent) -> None:
        self._inner = inner
        self._clock = clock
        self._times = times
        self._spent = spent
        self.name = inner.name
        self.device = inner.device
        self.fallback = inner.fallback
        self.inputs: Sequence[TensorSpec] = inner.inputs
        self.outputs: Sequence[TensorSpec] = inner.outputs
        self.states: Sequence[StatePair] = inner.states

    def __enter__(self) -> TimedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, feeds: Tensors) -> Tensors:
        """Run one step of the engine itself, and let the time pass that was drawn for it."""
        outputs = self._inner.run(feeds)
        last_ns = {stage: times.draw_ns() for stage, times in self._times.items()}
        took_ns = sum(last_ns.values())
        self._spent.last_ns = last_ns
        self._spent.busy_ns += took_ns
        self._clock.wait_until(self._clock.now_ns() + took_ns)
        return outputs

    def reset(self) -> None:
        """Reset the engine's state."""
        self._inner.reset()

    def layer_times(self) -> Sequence[LayerTime]:
        """None: layers are not simulated."""
        return ()


class SimulatedQueue:
    """Sources, their threads and their queue, in simulated time: `take` lets it pass until there is something to take.

    A frame is put into the queue when it was captured, whatever the taker does meanwhile; where it is full, the oldest
    is lost. Taking sound costs the time of its front end, `sound` by stream, as it does on a device.
    """

    def __init__(
        self, sources: Sequence[Source], clock: SimulatedClock, limits: Mapping[str, int], sound: Mapping[str, Times]
    ) -> None:
        self._queue = FrameQueue(limits)
        self._queue.open()
        self._clock = clock
        self._sound = sound
        self._coming: Iterator[Event] = heapq.merge(*sources, key=lambda event: event.end_ns)
        self._next = next(self._coming, None)
        if self._next is None:
            self._queue.close()
        self.spent_ns = dict.fromkeys(limits, 0)
        """By stream: what the front ends of its sound have taken."""

    def take(self, timeout_s: float | None, limit: int | None = None) -> list[tuple[Event, int]] | None:
        """As FrameQueue.take."""
        self._deliver()
        taken = self._queue.take(0, limit)
        if taken is not None and not taken:
            now_ns = self._clock.now_ns()
            times = [] if timeout_s is None else [now_ns + round(timeout_s * 1e9)]
            if self._next is not None:
                times.append(self._next.end_ns)
            self._clock.wait_until(min(times))
            self._deliver()
            taken = self._queue.take(0, limit)
        for event, _ in taken or ():
            if isinstance(event, AudioChunk) and event.stream in self._sound:
                spent_ns = self._sound[event.stream].draw_ns()
                self.spent_ns[event.stream] += spent_ns
                self._clock.wait_until(self._clock.now_ns() + spent_ns)
        return taken

    def drain(self) -> list[tuple[Event, int]]:
        """As FrameQueue.drain."""
        return self._queue.drain()

    def _deliver(self) -> None:
        while self._next is not None and self._next.end_ns <= self._clock.now_ns():
            self._queue.put(self._next, self._next.end_ns)
            self._next = next(self._coming, None)
            if self._next is None:
                self._queue.close()


def _sources(
    opened: Bundle, input: Media | Mapping[str, Media] | None, duration_s: float | None, fps: float
) -> list[Source]:
    if input is None or input == SYNTHETIC:
        return [SyntheticSource(stream_wants(opened.recipe), seconds=duration_s or SYNTHETIC_SECONDS, fps=fps)]
    sources = open_sources(opened.recipe, input, fps=fps)
    if any(source.live for source in sources):
        raise UsageError("A simulation makes its own time: give it a file or a recording, not a live source.")
    return sources


def _step_times(profile: ProfileReport, model: str, scale: float, seed: int) -> dict[str, Times]:
    if model not in profile.models:
        raise UsageError(
            f'The profile holds the models {", ".join(profile.models)}, the bundle runs "{model}". '
            "Profile the bundle itself on the device: edgemm profile BUNDLE --json LATENCY.json"
        )
    stages = profile.models[model].stages
    number = sorted(profile.models).index(model)
    return {
        stage: Times(stages[stage], scale if stage == "inference" else 1.0, (seed, 0, number, STAGES.index(stage)))
        for stage in STAGES
        if stage in stages
    }


def _sounds_of(opened: Bundle, model: str) -> list[str]:
    named = {entry.stream for entry in opened.recipe.models[model].inputs.values()}
    return [want.name for want in stream_wants(opened.recipe) if isinstance(want, AudioWant) and want.name in named]


def _forecast(engine: str, summary: Summary, model: str, busy_ns: int, ages_ns: Iterable[int]) -> ModelForecast:
    account = summary.models[model]
    dropped = sum(account.skipped.get(cause, 0) for cause in OVERLOAD)
    ages = sorted(ages_ns)
    p50, p99 = np.percentile(ages, (50, 99)) if ages else (None, None)
    return ModelForecast(
        engine=engine,
        dropped_share=dropped / account.due if account.due else 0.0,
        busy_share=busy_ns / summary.duration_ns if summary.duration_ns else 0.0,
        age_p50_ns=None if p50 is None else float(p50),
        age_p99_ns=None if p99 is None else float(p99),
        age_max_ns=ages[-1] if ages else None,
    )
