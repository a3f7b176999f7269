"""A recipe at work: frames in, windows, front ends, engine, decoding, results out. No thread, no source, no sink.

    with open_engines(bundle) as engines:
        session = Session(bundle.recipe, engines)
        for event in source:
            for result in session.push(event):
                ...
        results, summary = session.finish(), session.summary()

`edgemm.runner` does this with sources, threads and sinks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from edgemm.bundle import Bundle
from edgemm.engine.load import EngineName, choose
from edgemm.engine.protocol import Engine
from edgemm.errors import RecipeError
from edgemm.frontend.image import Image
from edgemm.frontend.log_mel import LogMel, Mfcc, Spectrum
from edgemm.kernels.log_mel import DELTA_REACH, window_offset
from edgemm.options import ImageOptions, LogMelOptions, MfccOptions, SpectrumOptions
from edgemm.recipe import (
    AudioStream,
    Degrade,
    Embedding,
    Input,
    Model,
    Raw,
    Recipe,
    VideoStream,
    hop_ns,
    hop_pictures,
    streamed,
    window_frames,
)
from edgemm.stream.accounting import AccountingError, ModelAccount, StreamAccount
from edgemm.stream.capture import QUEUE_PICTURES, QUEUE_SECONDS
from edgemm.stream.clock import Clock, VirtualClock
from edgemm.stream.decode import Decoded, Decoder, decoder, score_of
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo
from edgemm.stream.results import Latency, Result, Summary
from edgemm.stream.scheduler import DegradedMode, ModelPlan, Scheduler, Step, StreamPlan
from edgemm.stream.spans import Recorder
from edgemm.stream.sync import AudioNeed, VideoNeed
from edgemm.stream.windows import AudioWindow, HeldInput, PictureTrack, SoundTrack, VideoWindow, batch_tensor
from edgemm.types import Array, Tensors, TensorSpec

OnFeeds = Callable[[str, Tensors], None]
"""Given a model and the tensors that it is fed, which are reused: copy what is kept."""

LAG_SECONDS = 3
"""Sound that is held behind the newest, for steps that are late: what the capture queue may hold, and a second."""

BLOCKS_PER_SECOND = 100
"""Sound that is pushed in longer pieces is cut: its age is then as exact as a microphone's."""

BOOKS_EVERY = 64
"""The books on chunks of sound are closed once in so many: their samples are in rings, and wait for nobody."""


@contextmanager
def open_engines(
    bundle: Bundle, *, engine: EngineName = "auto", precision: str = "auto", threads: int = 1
) -> Iterator[dict[str, Engine]]:
    """The entered engines of the models that a run steps, by model; those of degraded modes by `mode_key`."""
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in streamed(bundle.recipe):
            choice = choose(bundle, name, engine=engine, precision=precision, threads=threads)
            engines[name] = stack.enter_context(choice.engine)
            for mode in bundle.recipe.models[name].degrade:
                key = mode_key(name, mode)
                if key not in engines:
                    choice = choose(
                        bundle, mode.model or name, engine=engine, precision=mode.precision or "auto", threads=threads
                    )
                    engines[key] = stack.enter_context(choice.engine)
        yield engines


def mode_key(name: str, mode: Degrade) -> str:
    """Under which name a session looks for the engine of a degraded mode: the model's own if only its rate changes."""
    parts = [part for part in (mode.model, mode.precision) if part is not None]
    return ":".join([name, *parts])


class Session:
    """A recipe at work on its streams, frame by frame; one thread at a time.

    `engines` are entered, by model, and stay the caller's. `streams` is what the sources say of themselves (for the
    usual time between pictures). With the default clock, a VirtualClock, `push` and `finish` are all there is to
    call, and equal frames give equal results; for a live session see `ingest`, `tick`, `steps` and `wake_ns`. A
    degraded mode whose engine (`mode_key`) is not among `engines` is left out.

    Raises RecipeError if recipe and engines do not fit each other.
    """

    def __init__(
        self,
        recipe: Recipe,
        engines: Mapping[str, Engine],
        *,
        streams: Sequence[StreamInfo] = (),
        clock: Clock | None = None,
        recorder: Recorder | None = None,
        on_feeds: OnFeeds | None = None,
    ) -> None:
        self.recipe = recipe
        self._on_feeds = on_feeds
        self.clock: Clock = clock or VirtualClock()
        self.recorder = recorder
        self._is_virtual = isinstance(self.clock, VirtualClock)
        self._tolerance_ns = recipe.sync.tolerance.ns()
        names = streamed(recipe)
        if not names:
            raise RecipeError(
                f'The recipe "{recipe.name}" has no model that reads a stream: it can be profiled, but not run. '
                "Give a model an input with stream and window, and a hop."
            )
        self._sounds = _Sounds(recipe)
        self._pictures: dict[str, dict[ImageOptions, PictureTrack]] = {}
        self._runners: dict[str, _Runner] = {}
        for name in names:
            if name not in engines:
                raise RecipeError(f'No engine was given for the model "{name}".')
            self._runners[name] = self._runner(name, engines[name])
            self._add_modes(self._runners[name], engines)
        self._scheduler = Scheduler(
            [self._stream_plan(name, streams) for name in self._stream_names()],
            [self._model_plan(runner) for runner in self._runners.values()],
            policy=recipe.schedule.policy,
            deadline_ns=recipe.schedule.deadline.ns(),
            tolerance_ns=self._tolerance_ns,
        )
        self._seen: Counter[str] = Counter()
        self._last_ns = 0
        for runner in self._runners.values():
            for engine in runner.engines:
                engine.reset()

    # Frame by frame, in virtual time.

    def push(self, event: Event) -> list[Result]:
        """Take the next event; return the results of all steps that were ready before it.

        Events must come in the order of their `end_ns`: that is when they are taken to arrive.
        """
        results: list[Result] = []
        for piece in _pieces(event):
            self._advance(piece.end_ns - 1, results)
            self.clock.wait_until(piece.end_ns)
            self.ingest(piece, piece.end_ns)
        return results

    def finish(self) -> list[Result]:
        """The streams have ended: return the last results."""
        results: list[Result] = []
        for name in self._stream_names():
            self._scheduler.end(name, self._last_ns)
        self._advance(self._last_ns, results)
        return results

    def _advance(self, until_ns: int, results: list[Result]) -> None:
        while (wake_ns := self._scheduler.wake_ns()) is not None and wake_ns <= until_ns:
            self.clock.wait_until(wake_ns)
            self._scheduler.tick(wake_ns)
            results.extend(self.steps())

    # For whoever has a clock of his own.

    def wake_ns(self) -> int | None:
        """When to `tick` next if nothing arrives before; None if only a frame can bring work."""
        return self._scheduler.wake_ns()

    def tick(self, now_ns: int) -> None:
        """Every event that arrived at or before `now_ns` has been ingested."""
        self._scheduler.tick(now_ns)

    def ingest(self, event: Event, arrived_ns: int) -> None:
        """Take an event that arrived at `arrived_ns`; arrivals do not go back in time."""
        name = event.stream
        self._last_ns = max(self._last_ns, arrived_ns)
        if isinstance(event, Lost):
            self._seen[name] += event.count
            self._scheduler.lost(name, event.cause, event.count)
            return
        if isinstance(event, End):
            self._scheduler.end(name, arrived_ns)
            return
        self._seen[name] += 1
        if isinstance(event, AudioChunk):
            taken = self._scheduler.arrive(
                name, event.capture_ns, arrived_ns, samples=len(event.samples), discontinuity=event.discontinuity
            )
            if taken is not None:
                begin_ns = time.perf_counter_ns()
                self._sounds.push(name, event, broken=taken[1])
                if self.recorder is not None:
                    self.recorder.span("front_end", name, 0, begin_ns, time.perf_counter_ns())
                if taken[0] % BOOKS_EVERY == 0:
                    self._scheduler.floor(name)
            return
        taken = self._scheduler.arrive(name, event.capture_ns, arrived_ns, discontinuity=event.discontinuity)
        floor = self._scheduler.floor(name)
        for track in self._pictures[name].values():
            track.release(floor)
            if taken is not None:
                track.push(taken[0], event)

    def steps(self) -> Iterator[Result]:
        """Make the steps that are ready, and give their results one by one."""
        while (step := self._scheduler.next_step(now_ns := self.clock.now_ns())) is not None:
            yield self._make(step, now_ns)

    def queue_limits(self) -> dict[str, int]:
        """How many frames of each stream may wait for the session: two seconds of sound, some pictures."""
        streams = self.recipe.streams
        return {
            name: QUEUE_SECONDS * BLOCKS_PER_SECOND if isinstance(streams[name], AudioStream) else QUEUE_PICTURES
            for name in self._stream_names()
        }

    def accounts(self) -> tuple[dict[str, StreamAccount], dict[str, ModelAccount]]:
        """The accounts of streams and models in the middle of the run, checked; reads no clock."""
        return self._scheduler.close(complete=False)

    def summary(self, *, interrupted: bool = False) -> Summary:
        """The accounts, checked. Raises AccountingError if a frame or a step is missing."""
        streams, models = self._scheduler.close(complete=not interrupted)
        for name, account in streams.items():
            # Counted here, apart from the scheduler's own books.
            if self._seen[name] != account.captured:
                raise AccountingError(
                    f'Stream "{name}": {self._seen[name]} frames came, {account.captured} are in the books. '
                    "Please report this as a bug."
                )
        return Summary(
            clock="virtual" if self._is_virtual else "wall",
            duration_ns=self._last_ns if self._is_virtual else self.clock.now_ns(),
            streams=streams,
            models=models,
            engines={name: f"{r.engine.name} on {r.engine.device}" for name, r in self._runners.items()},
            interrupted=interrupted,
        )

    # One step.

    def _make(self, step: Step, begun_ns: int) -> Result:
        # Every line runs on caches that the last inference has emptied: what can be worked out before, is.
        runner = self._runners[step.model]
        mode = step.mode
        engine = runner.engine if not mode else runner.engines[runner.modes[mode - 1].engine]
        now = time.perf_counter_ns
        t0 = now()
        if step.reset is not None:
            engine.reset()
        for window, numbers in zip(runner.video, step.video):  # noqa: B905  # as many, by construction
            window.prepare(numbers)
        t1 = now()
        for sound, row in zip(runner.audio, step.audio):  # noqa: B905
            sound.fill(row)
        for window, numbers in zip(runner.video, step.video):  # noqa: B905
            window.fill(numbers)
        if self._on_feeds is not None:
            self._on_feeds(step.model, runner.tensors)
        t2 = now()
        raw = engine.run(runner.tensors)
        t3 = now()
        outputs = {key: decode(raw[name]) for key, name, decode in runner.decoders}
        if runner.consumers:
            for consumer, input_name, held, name in runner.consumers:
                held.fill(raw[name])
                consumer.tensors[input_name] = held.tensor
        scores = {name: _score(step.model, name, outputs[name]) for name in runner.gating} if runner.gating else {}
        t4 = now()
        made_ns = self.clock.now_ns()
        late = self._scheduler.done(step, made_ns, scores)
        latency = None
        if not self._is_virtual:
            ready_ns = step.ready_ns
            sound_ns = sum([track.spent_ns for track in runner.sounds])
            latency = Latency(
                sound_ns - runner.sound_ns, begun_ns - ready_ns, t1 - t0, t2 - t1, t3 - t2, t4 - t3, made_ns - ready_ns
            )
            runner.sound_ns = sound_ns
        if self.recorder is not None:
            self._record(self.recorder, step, begun_ns, (t0, t1, t2, t3, t4))
        audio_ns, video_ns = step.audio_ns, step.video_ns
        if runner.feeds:
            for feed in runner.feeds:
                audio_ns = _earlier(audio_ns, feed.audio_ns)
                video_ns = _earlier(video_ns, feed.video_ns)
        runner.audio_ns, runner.video_ns = audio_ns, video_ns
        skew_ns = None if audio_ns is None or video_ns is None else audio_ns - video_ns
        return Result(
            step.model,
            step.number,
            step.time_ns,
            made_ns,
            outputs,
            video_ns if audio_ns is None or (skew_ns is not None and skew_ns > 0) else audio_ns,
            None if audio_ns is None else made_ns - audio_ns,
            None if video_ns is None else made_ns - video_ns,
            skew_ns,
            None if skew_ns is None else -self._tolerance_ns <= skew_ns <= self._tolerance_ns,
            latency,
            engine.name,
            late,
            step.reset,
            step.skipped,
            engine.fallback,
            runner.modes[mode - 1].name if mode else None,
        )

    def _record(self, to: Recorder, step: Step, begun_ns: int, t: tuple[int, int, int, int, int]) -> None:
        if not self._is_virtual:
            to.span("queue", step.model, step.number, t[0] - (begun_ns - step.ready_ns), t[0])
        to.span("front_end", step.model, step.number, t[0], t[1])
        to.span("window", step.model, step.number, t[1], t[2])
        to.span("inference", step.model, step.number, t[2], t[3])
        to.span("decode", step.model, step.number, t[3], t[4])

    # Building, once.

    def _stream_names(self) -> list[str]:
        used = {
            stream
            for name in self._runners
            for entry in self.recipe.models[name].inputs.values()
            for stream in entry.reads
        }
        return [name for name in self.recipe.streams if name in used]

    def _stream_plan(self, name: str, infos: Sequence[StreamInfo]) -> StreamPlan:
        stream = self.recipe.streams[name]
        if isinstance(stream, AudioStream):
            return StreamPlan(name, "audio", stream.rate_hz, lag_samples=LAG_SECONDS * stream.rate_hz)
        info = next((info for info in infos if info.name == name), None)
        interval_ns = info.interval_ns if info is not None else None
        return StreamPlan(name, "video", interval_ns=interval_ns or round(1e9 / stream.fps))

    def _runner(self, name: str, engine: Engine) -> _Runner:
        model = self.recipe.models[name]
        runner = _Runner(name, model, engine)
        specs = {spec.name: spec for spec in engine.inputs}
        for spec in engine.inputs:
            if spec.name not in model.inputs:
                raise RecipeError(
                    f'The input "{spec.name}" of the model "{name}" has no source. '
                    f"Add a table [models.{name}.inputs.{spec.name}] to the recipe, or a state pair."
                )
        for input_name, entry in model.inputs.items():
            if input_name not in specs and entry.value is not None:
                # The build made it a constant of the graph, and an engine may then drop the input.
                continue
            if input_name not in specs:
                raise RecipeError(
                    f'The recipe feeds "{input_name}", but the model "{name}" has the inputs: {", ".join(specs)}.'
                )
            spec = specs[input_name]
            if entry.value is not None:
                constant = HeldInput(spec, model.dims)
                constant.fill(np.asarray(entry.value))
                runner.tensors[input_name] = constant.tensor
            elif entry.source is not None:
                source, _, output = entry.source.partition(".")
                feed = self._runners.get(source)
                if feed is None or output not in {spec.name for spec in feed.engine.outputs}:
                    raise RecipeError(
                        f'The input "{input_name}" of "{name}" takes "{entry.source}", '
                        "expected a streamed model and one of its outputs."
                    )
                held = HeldInput(spec, model.dims)
                runner.tensors[input_name] = held.tensor
                runner.feeds.append(feed)
                feed.consumers.append((runner, input_name, held, output))
            elif isinstance(self.recipe.streams[entry.reads[0]], VideoStream):
                runner.tensors[input_name] = self._video_tensor(entry, model, runner, spec)
            else:
                key, need = self._sounds.need(entry)
                track = self._sounds.track(key)
                audio = AudioWindow(spec, track, need.count, entry.time_axis, model.dims)
                runner.audio.append(audio)
                runner.audio_needs.append(need)
                runner.sounds.append(track)
                runner.tensors[input_name] = audio.tensor
        outputs = {spec.name for spec in engine.outputs}
        for output, kind in (model.outputs or {spec.name: Raw() for spec in engine.outputs}).items():
            if output not in outputs:
                raise RecipeError(
                    f'The recipe decodes "{output}", but the model "{name}" has the outputs: '
                    f"{', '.join(sorted(outputs))}."
                )
            if not runner.cameras:
                runner.decoders.append((output, output, decoder(output, kind)))
            for number, camera in enumerate(runner.cameras):
                runner.decoders.append((f"{output}.{camera}", output, _of_batch(decoder(output, kind), number)))
        if model.when is not None:
            judge = self._runners.get(model.when.model)
            judged = self.recipe.models[model.when.model].outputs.get(model.when.output)
            if judge is None or judged is None or isinstance(judged, Embedding) or judge.cameras:
                raise RecipeError(
                    f'The gate "{model.when}" of "{name}" needs a streamed model and an output with a score '
                    "(softmax, argmax, sigmoid, threshold, or raw with one number)."
                )
            judge.gating.append(model.when.output)
        return runner

    def _video_tensor(self, entry: Input, model: Model, runner: _Runner, spec: TensorSpec) -> Array:
        if entry.image is None:
            raise RecipeError(f'The input "{spec.name}" reads pictures: say their size with image = {{ ... }}.')
        count = 1 if entry.window is None else int(entry.window.value)
        spacing_ns = 0 if entry.spacing is None else entry.spacing.ns()
        batch: Array | None = None
        for number, stream in enumerate(entry.reads):
            tracks = self._pictures.setdefault(stream, {})
            track = tracks.get(entry.image)
            if track is None:
                track = tracks[entry.image] = PictureTrack(Image(entry.image))
            if entry.streams and batch is None:
                shape = (count, *track.shape)
                batch = batch_tensor(spec, len(entry.streams), shape, entry.time_axis, model.dims)
            place = None if batch is None else batch[number : number + 1]
            video = VideoWindow(spec, track, count, entry.time_axis, model.dims, place)
            runner.video.append(video)
            runner.video_needs.append(VideoNeed(stream, count, spacing_ns, entry.missing))
        runner.cameras = tuple(entry.streams) or runner.cameras
        return video.tensor if batch is None else batch

    def _add_modes(self, runner: _Runner, engines: Mapping[str, Engine]) -> None:
        """Take the model's degraded modes; their engines must be fed and read as its own is."""
        for mode in runner.model.degrade:
            key = mode_key(runner.name, mode)
            engine = engines.get(key)
            if engine is None:
                continue
            for what, mine, other in (
                ("inputs", runner.engine.inputs, engine.inputs),
                ("outputs", runner.engine.outputs, engine.outputs),
            ):
                if {str(spec) for spec in mine} != {str(spec) for spec in other}:
                    raise RecipeError(
                        f'The degraded mode "{mode}" of "{runner.name}" has the {what} {", ".join(map(str, other))}; '
                        f"expected those of the model itself: {', '.join(map(str, mine))}."
                    )
            if engine not in runner.engines:
                runner.engines.append(engine)
            runner.modes.append(DegradedMode(str(mode), mode.every, runner.engines.index(engine)))

    def _model_plan(self, runner: _Runner) -> ModelPlan:
        model = runner.model
        gate = model.when
        pictures = hop_pictures(model)
        return ModelPlan(
            name=runner.name,
            hop_ns=hop_ns(self.recipe, runner.name) if (runner.audio or runner.video) and not pictures else None,
            audio=tuple(runner.audio_needs),
            video=tuple(runner.video_needs),
            feeds=tuple(dict.fromkeys(feed.name for feed in runner.feeds)),
            gate_model=gate.model if gate else None,
            gate=(lambda scores: gate.holds(scores[gate.output])) if gate else None,
            hold_ns=model.hold.ns() if model.hold else 0,
            priority=model.priority,
            stateful=any(engine.states for engine in runner.engines),
            hop_pictures=pictures,
            deadline_ns=model.deadline.ns() if model.deadline else None,
            modes=tuple(runner.modes),
        )


class _Runner:
    """One model with all that a step of it needs, allocated once."""

    def __init__(self, name: str, model: Model, engine: Engine) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        self.engines = [engine]
        """Its own, and those of its degraded modes."""
        self.modes: list[DegradedMode] = []
        self.cameras: tuple[str, ...] = ()
        """The streams of its batch, if it takes one."""
        self.tensors: dict[str, Array] = {}
        self.audio: list[AudioWindow] = []
        self.audio_needs: list[AudioNeed] = []
        self.video: list[VideoWindow] = []
        self.video_needs: list[VideoNeed] = []
        self.sounds: list[SoundTrack] = []
        self.sound_ns = 0
        """Time spent on the front ends of its sound until the last step."""
        self.decoders: list[tuple[str, str, Decoder]] = []
        """What a result calls it, the tensor, and how it is decoded."""
        self.gating: list[str] = []
        """Outputs whose scores a gate wants."""
        self.feeds: list[_Runner] = []
        self.consumers: list[tuple[_Runner, str, HeldInput, str]] = []
        """Inputs of other models that take an output of this one."""
        self.audio_ns: int | None = None
        self.video_ns: int | None = None
        """What its last step rested on."""


_SoundOptions = LogMelOptions | MfccOptions | SpectrumOptions | None
_SoundKey = tuple[str, _SoundOptions]


class _Sounds:
    """The sound tracks of a session: one for each stream and front end, whatever number of inputs reads it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._counts: dict[_SoundKey, int] = {}
        self._time_last: dict[_SoundKey, bool] = {}
        self._tracks: dict[_SoundKey, SoundTrack] = {}
        self._by_stream: dict[str, list[SoundTrack]] = {}
        for name in streamed(recipe):
            for entry in recipe.models[name].inputs.values():
                if entry.stream is not None and isinstance(recipe.streams[entry.stream], AudioStream):
                    key, need = self.need(entry)
                    self._counts[key] = max(self._counts.get(key, 0), need.count)
                    self._time_last[key] = entry.time_axis > 0

    def need(self, entry: Input) -> tuple[_SoundKey, AudioNeed]:
        """Which track an input reads, and which rows of it."""
        name = entry.stream or ""
        stream = self._recipe.streams[name]
        if entry.window is None or not isinstance(stream, AudioStream):
            raise RecipeError(f'An input reads "{name}" without a window: say how much, e.g. window = "1 s".')
        zeros = entry.missing == "zeros"
        options = entry.mfcc or entry.log_mel or entry.spectrum
        if options is None:
            return (name, None), AudioNeed(name, entry.window.samples(stream.rate_hz), zeros=zeros)
        log_mel = options.log_mel if isinstance(options, MfccOptions) else options
        if isinstance(log_mel, SpectrumOptions):
            log_mel = log_mel.as_log_mel()
        hop = log_mel.hop_samples
        # A frame with derivatives comes when its neighbours on the right are known, and rests on those on the left.
        reach = DELTA_REACH * options.deltas * hop if isinstance(options, MfccOptions) else 0
        before = 0 if log_mel.edges == "snip" else log_mel.fft_size // 2
        return (name, options), AudioNeed(
            name,
            window_frames(entry.window, log_mel),
            hop_samples=hop,
            first_samples=window_offset(log_mel) + log_mel.window_samples - before + reach,
            extent_samples=log_mel.window_samples + 2 * reach,
            # The first frames are made of the reflected beginning, which must be there.
            warmup_samples=before + 1 if log_mel.edges == "reflect" else 0,
            zeros=zeros,
        )

    def track(self, key: _SoundKey) -> SoundTrack:
        """The track for `key`, made when first asked for."""
        track = self._tracks.get(key)
        if track is None:
            name, options = key
            stream = self._recipe.streams[name]
            lag_samples = LAG_SECONDS * (stream.rate_hz if isinstance(stream, AudioStream) else 0)
            last = self._time_last[key]
            if options is None:
                track = SoundTrack(self._counts[key] + lag_samples)
            elif isinstance(options, MfccOptions):
                rows = self._counts[key] + lag_samples // options.log_mel.hop_samples + 2
                track = SoundTrack(rows, Mfcc(options), options.n_coefficients * (1 + options.deltas), time_last=last)
            else:
                rows = self._counts[key] + lag_samples // options.hop_samples + 2
                if isinstance(options, SpectrumOptions):
                    track = SoundTrack(rows, Spectrum(options), options.bins, time_last=last)
                else:
                    track = SoundTrack(rows, LogMel(options), options.n_mels, time_last=last)
            self._tracks[key] = track
            self._by_stream.setdefault(name, []).append(track)
        return track

    def push(self, name: str, chunk: AudioChunk, *, broken: bool) -> None:
        """Give a chunk to every track of the stream; `broken` if it does not continue the last one."""
        for track in self._by_stream.get(name, ()):
            if broken:
                track.reset()
            track.push(chunk.samples)


def _pieces(event: Event) -> Iterator[Event]:
    """The event itself; long sound in blocks of 10 ms, so that steps fall due as they would live."""
    if not isinstance(event, AudioChunk) or len(event.samples) <= event.rate_hz // BLOCKS_PER_SECOND:
        yield event
        return
    size = max(1, event.rate_hz // BLOCKS_PER_SECOND)
    for begin in range(0, len(event.samples), size):
        yield replace(
            event,
            pts=event.pts + round(begin / (event.rate_hz * event.time_base)),
            capture_ns=event.capture_ns + begin * 10**9 // event.rate_hz,
            samples=event.samples[begin : begin + size],
            discontinuity=event.discontinuity and begin == 0,
        )


def _of_batch(decode: Decoder, number: int) -> Decoder:
    """Decodes one of a batch."""
    return lambda values: decode(values[number : number + 1])


def _score(model: str, output: str, decoded: Decoded) -> float:
    score = score_of(decoded)
    if score is None:
        raise RecipeError(f'A gate compares "{model}.{output}", which is not a single number. Decode it to one.')
    return score


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
