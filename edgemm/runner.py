"""Path 2: sources -> clock -> windows -> front end -> engine -> decode -> sinks.

    summary = edgemm.run("model.edgemm", input="clip.mp4", sinks=[JsonLinesSink("results.jsonl")])

or frame by frame, with engines of your own:

    with open_engines(bundle) as engines:
        session = Session(bundle.recipe, engines)
        for event in source:
            for result in session.push(event):
                ...
        results, summary = session.finish()
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from edgemm import bundle as bundles
from edgemm.bundle import Bundle
from edgemm.engine.load import EngineName, choose
from edgemm.engine.protocol import Engine
from edgemm.errors import RecipeError, UsageError
from edgemm.frontend.image import Image
from edgemm.frontend.log_mel import LogMel, Mfcc
from edgemm.kernels.log_mel import DELTA_REACH, window_offset
from edgemm.options import ImageOptions, LogMelOptions, MfccOptions
from edgemm.recipe import AudioStream, Embedding, Input, Model, Raw, Recipe, VideoStream, hop_ns, window_frames
from edgemm.stream.accounting import AccountingError
from edgemm.stream.capture import QUEUE_PICTURES, QUEUE_SECONDS, Capture
from edgemm.stream.clock import Clock, VirtualClock, WallClock
from edgemm.stream.decode import Decoded, Decoder, decoder, score_of
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo
from edgemm.stream.results import Latency, Result, Summary
from edgemm.stream.scheduler import ModelPlan, Scheduler, Step, StreamPlan
from edgemm.stream.sinks.protocol import Sink
from edgemm.stream.sources.camera import CameraMode, open_camera
from edgemm.stream.sources.images import ImagesSource
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.microphone import MicrophoneSource
from edgemm.stream.sources.protocol import AudioWant, LiveSource, Source, VideoWant, Want
from edgemm.stream.sources.recording import Recording, RecordingWriter
from edgemm.stream.sources.synthetic import SyntheticSource
from edgemm.stream.spans import Recorder
from edgemm.stream.sync import AudioNeed, VideoNeed
from edgemm.stream.tape import EndOfTape, ScriptClock, Tape, TapeClock
from edgemm.stream.windows import AudioWindow, HeldInput, PictureTrack, SoundTrack, VideoWindow
from edgemm.types import Array, Tensors, TensorSpec

ClockName = Literal["wall", "virtual"]
Media = str | Path | Source
Device = str | int | bool | None
"""A microphone or camera: its name, path, URL or number; True is the default one, None or False is none."""

OnFeeds = Callable[[str, Tensors], None]
"""Given a model and the tensors that it is fed, which are reused: copy what is kept."""

LAG_SECONDS = 3
"""Sound that is held behind the newest, for steps that are late: what the capture queue may hold, and a second."""

BLOCKS_PER_SECOND = 100
"""Sound that is pushed in longer pieces is cut: its age is then as exact as a microphone's."""

BOOKS_EVERY = 64
"""The books on chunks of sound are closed once in so many: their samples are in rings, and wait for nobody."""

SWITCH_INTERVAL_S = 0.0005
"""How soon Python hands the interpreter to a capture thread: with the usual 5 ms a hand-off takes 10 ms at p99 beside a
busy thread, with this 1.3."""

SYNTHETIC = "synthetic"


def run(
    bundle: Bundle | str | Path,
    *,
    input: Media | Mapping[str, Media] | None = None,
    mic: Device = None,
    camera: Device = None,
    pixel_format: str | None = None,
    clock: ClockName | None = None,
    record: str | Path | None = None,
    recording: str | Path | None = None,
    sinks: Sequence[Sink] = (),
    duration_s: float | None = None,
    engine: EngineName = "auto",
    precision: str = "auto",
    threads: int = 1,
    fps: float = 25.0,
    recorder: Recorder | None = None,
    on_feeds: OnFeeds | None = None,
) -> Summary:
    """Run a bundle over `input` until it ends, or for `duration_s`, and write every result to every sink.

    Without sinks the results are kept in memory, in the summary's `results`.

    `input` is a media file or URL, a folder of images (at `fps`), "synthetic", a Source, or a mapping from the
    recipe's streams to those. Under the "virtual" clock the run is as fast as the machine can and its results are the
    same, byte for byte, every time; latencies are then not measured. Under the "wall" clock files are paced as if
    they were live, and frames that inference is too slow for are dropped, with a cause. The default is "virtual", and
    "wall" where a source is live.

    `mic` and `camera` are live: the recipe's sound comes from a microphone (its name or index), its pictures from a
    camera (`/dev/videoN`, N, a URL, `csi:N`, `gst:PIPELINE`, or a file, which is paced; V4L2 in `pixel_format`).
    Streams that neither gives come from `input`. A device that goes away ends its stream until it is back.

    `record` is a Matroska file to record a run on the wall clock to; `recording` is one to replay instead of any other
    input: the same engines give the same results, bit for bit, without latencies.

    `recorder` receives the time that every stage takes; `on_feeds` is called with a model and its input tensors before
    each of its steps.

    Ctrl-C ends the run: sources, sinks and engines are closed in this order, and the summary of what was done is
    returned with `interrupted` set. Raises the errors of bundle, recipe, engine, sources and sinks.
    """
    opened = bundle if isinstance(bundle, Bundle) else bundles.open(bundle)
    recipe = opened.recipe
    if recording is not None:
        if input is not None or mic or camera or record is not None or clock == "wall":
            raise UsageError(
                "A recording is replayed by itself: without --input, --mic, --camera, --record and --clock."
            )
        return _run_recording(opened, recording, sinks, engine, precision, threads, recorder, on_feeds)
    sources = open_sources(recipe, input, mic=mic, camera=camera, pixel_format=pixel_format, fps=fps)
    is_live = any(source.live for source in sources)
    if is_live and clock == "virtual":
        raise UsageError("A live source keeps its own time: run it on the wall clock (--clock wall).")
    if record is not None and clock == "virtual":
        raise UsageError("A recording keeps what happened in wall time: --record needs --clock wall.")
    wall = is_live or clock == "wall" or record is not None
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(opened, engine=engine, precision=precision, threads=threads))
        for sink in sinks:
            stack.enter_context(sink)
        for source in sources:
            stack.enter_context(source)
        infos = [info for source in sources for info in source.streams]
        tape = None if record is None else stack.enter_context(RecordingWriter(record, infos))
        timeline: Clock = WallClock() if wall else VirtualClock()
        if tape is not None:
            timeline = TapeClock(timeline, tape)
        session = Session(recipe, engines, streams=infos, clock=timeline, recorder=recorder, on_feeds=on_feeds)
        loop = live(session, sources, duration_s, tape) if wall else replay(session, sources, duration_s)
        interrupted = False
        kept: list[Result] = []
        try:
            for result in loop:
                if tape is not None:
                    tape.result(result)
                if sinks:
                    _write(result, sinks, recorder)
                else:
                    kept.append(result)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            loop.close()
        summary = session.summary(interrupted=interrupted)
        if tape is not None:
            tape.note(["s", interrupted])
        clocks = {source.streams[0].name: source.report() for source in sources if isinstance(source, LiveSource)}
        return replace(summary, results=tuple(kept), clocks=clocks)


def _run_recording(
    opened: Bundle,
    path: str | Path,
    sinks: Sequence[Sink],
    engine: EngineName,
    precision: str,
    threads: int,
    recorder: Recorder | None,
    on_feeds: OnFeeds | None,
) -> Summary:
    with ExitStack() as stack:
        recording = stack.enter_context(Recording(path))
        found = {info.name for info in recording.streams}
        wanted = {want.name for want in stream_wants(opened.recipe)}
        if found != wanted:
            raise UsageError(
                f"{path} holds the streams {', '.join(sorted(found))}, the recipe's models read: "
                f"{', '.join(sorted(wanted))}. Replay it with the bundle that it was recorded with."
            )
        engines = stack.enter_context(open_engines(opened, engine=engine, precision=precision, threads=threads))
        for sink in sinks:
            stack.enter_context(sink)
        clock = ScriptClock()
        session = Session(
            opened.recipe, engines, streams=recording.streams, clock=clock, recorder=recorder, on_feeds=on_feeds
        )
        kept: list[Result] = []
        loop = rerun(session, recording, clock)
        try:
            while True:
                result = next(loop)._replace(latency=None)
                if sinks:
                    _write(result, sinks, recorder)
                else:
                    kept.append(result)
        except StopIteration as end:
            interrupted = bool(end.value)
        except KeyboardInterrupt:
            interrupted = True
        clock.has_ended = True
        return replace(session.summary(interrupted=interrupted), results=tuple(kept))


def rerun(session: Session, recording: Recording, clock: ScriptClock) -> Generator[Result, None, bool]:
    """A recorded session once more: the same frames, arrivals and readings of the clock in the same order.

    Returns whether the session was interrupted, or the recording breaks off.
    """
    entries = iter(recording)
    ahead = next(entries, None)
    try:
        while ahead is not None:
            entry, event = ahead
            ahead = next(entries, None)
            kind = entry[0]
            if event is not None:
                session.ingest(event, entry[2])
            elif kind == "c":
                clock.readings.append(entry[1])
            elif kind == "s":
                return bool(entry[1])
            elif kind in ("t", "f"):
                # What the steps that follow will read.
                while ahead is not None and ahead[0][0] in ("c", "r"):
                    if ahead[0][0] == "c":
                        clock.readings.append(ahead[0][1])
                    ahead = next(entries, None)
                if kind == "f":
                    yield from session.finish()
                else:
                    session.tick(entry[1])
                    yield from session.steps()
    except EndOfTape:
        pass
    return True


def _write(result: Result, sinks: Sequence[Sink], recorder: Recorder | None) -> None:
    begin_ns = time.perf_counter_ns()
    for sink in sinks:
        sink.write(result)
    if recorder is not None:
        recorder.span("sink", result.model, result.step, begin_ns, time.perf_counter_ns())


def replay(session: Session, sources: Sequence[Source], duration_s: float | None) -> Generator[Result, None, None]:
    """One thread, virtual time: every event in the order of its time."""
    end_ns = None if duration_s is None else round(duration_s * 1e9)
    for event in _timed(heapq.merge(*sources, key=lambda event: event.end_ns), session.recorder):
        if end_ns is not None and event.end_ns > end_ns:
            break
        yield from session.push(event)
    yield from session.finish()


def live(
    session: Session, sources: Sequence[Source], duration_s: float | None, tape: Tape | None = None
) -> Generator[Result, None, None]:
    """Wall time: sources are read by threads of their own; this one takes what has come and makes the steps.

    `tape` receives all that `rerun` needs, beside what the session's clock, a TapeClock, gives it.
    """
    # Only what the session itself reads decides its results.
    clock = session.clock.inner if isinstance(session.clock, TapeClock) else session.clock
    end_ns = None if duration_s is None else round(duration_s * 1e9)
    # "every" makes the steps of each frame before it takes the next; the others need to know what is newest.
    limit = 1 if session.recipe.schedule.policy == "every" else None
    capture = Capture(sources, clock, session.queue_limits(), session.recorder)
    try:
        with capture, _quick_hand_off():
            while end_ns is None or clock.now_ns() < end_ns:
                wakes = [time_ns for time_ns in (session.wake_ns(), end_ns) if time_ns is not None]
                timeout_s = max(0, min(wakes) - clock.now_ns()) / 1e9 if wakes else None
                events = capture.queue.take(timeout_s, limit)
                if events is None:
                    if tape is not None:
                        tape.note(["f"])
                    yield from session.finish()
                    break
                for event, arrived_ns in events:
                    if tape is not None:
                        tape.event(event, arrived_ns)
                    session.ingest(event, arrived_ns)
                now_ns = events[-1][1] if limit and events else clock.now_ns()
                if tape is not None:
                    tape.note(["t", now_ns])
                session.tick(now_ns)
                yield from session.steps()
    finally:
        # What was still waiting goes to the books, too.
        if tape is not None:
            tape.note(["d"])
        for event, arrived_ns in capture.queue.drain():
            if tape is not None:
                tape.event(event, arrived_ns)
            session.ingest(event, arrived_ns)


def _timed(events: Iterator[Event], recorder: Recorder | None) -> Iterator[Event]:
    if recorder is None:
        yield from events
        return
    begin_ns = time.perf_counter_ns()
    for event in events:
        recorder.span("source", event.stream, 0, begin_ns, time.perf_counter_ns())
        yield event
        begin_ns = time.perf_counter_ns()


@contextmanager
def _quick_hand_off() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def open_sources(
    recipe: Recipe,
    input: Media | Mapping[str, Media] | None,
    *,
    mic: Device = None,
    camera: Device = None,
    pixel_format: str | None = None,
    fps: float = 25.0,
) -> list[Source]:
    """The sources, not yet entered, that deliver the streams which the recipe's models read.

    Raises UsageError if it cannot be said which stream an input or a device is for, or a stream has neither.
    """
    wants = stream_wants(recipe)
    devices: list[Source] = []
    if mic is not None and mic is not False:
        sound = _only([want for want in wants if isinstance(want, AudioWant)], "microphone", "sound")
        devices.append(MicrophoneSource(sound, None if mic is True else mic))
        wants.remove(sound)
    if camera is not None and camera is not False:
        video = _only([want for want in wants if isinstance(want, VideoWant)], "camera", "picture")
        devices.append(_camera(recipe, video, None if camera is True else camera, pixel_format))
        wants.remove(video)
    if input is None:
        if wants:
            raise UsageError(
                f"Nothing was given for {', '.join(want.name for want in wants)}: "
                "give --input FILE, --mic for sound, --camera for pictures."
            )
        return devices
    if devices and not wants:
        raise UsageError("--mic and --camera give all that the recipe reads: leave out --input.")
    return [*devices, *_inputs(wants, input, fps)]


T = TypeVar("T", bound=Want)


def _only(wants: Sequence[T], device: str, stream: str) -> T:
    if len(wants) != 1:
        names = f" ({', '.join(want.name for want in wants)})" if wants else ""
        raise UsageError(
            f"A {device} was given, but the recipe's models read {len(wants) or 'no'} {stream} "
            f"stream{'' if len(wants) == 1 else 's'}{names}: expected one."
        )
    return wants[0]


def _camera(recipe: Recipe, want: VideoWant, device: str | int | None, pixel_format: str | None) -> Source:
    if isinstance(device, str) and Path(device).is_file():
        return MediaSource(device, [want])
    stream = recipe.streams[want.name]
    mode = CameraMode(pixel_format=pixel_format)
    if isinstance(stream, VideoStream):
        # The rate is only asked for beside a size: a device that lacks it in its default size refuses altogether.
        mode = CameraMode(stream.width, stream.height, stream.fps if stream.width else None, pixel_format)
    return open_camera(device, want, mode)


def _inputs(wants: list[Want], input: Media | Mapping[str, Media], fps: float) -> list[Source]:
    if not isinstance(input, Mapping):
        for kind, name in ((AudioWant, "audio"), (VideoWant, "video")):
            same = [want.name for want in wants if isinstance(want, kind)]
            if len(same) > 1 and isinstance(input, str | Path):
                raise UsageError(
                    f"The recipe has {len(same)} {name} streams ({', '.join(same)}) and one input: "
                    "name an input for each stream."
                )
        return [_open_source(input, wants, fps)]
    unknown = set(input) - {want.name for want in wants}
    missing = [want.name for want in wants if want.name not in input]
    if unknown or missing:
        raise UsageError(
            f"Inputs were given for {', '.join(sorted(input)) or 'no stream'}, "
            f"the recipe's models read: {', '.join(want.name for want in wants)}."
        )
    # One pass over a file for all the streams that come from it.
    together: list[tuple[Media, list[Want]]] = []
    for want in wants:
        media = input[want.name]
        group = next((group for other, group in together if other is media or other == media), None)
        if group is None:
            together.append((media, [want]))
        else:
            group.append(want)
    return [_open_source(media, group, fps) for media, group in together]


def _open_source(media: Media, wants: Sequence[Want], fps: float) -> Source:
    if not isinstance(media, str | Path):
        return media
    if str(media) == SYNTHETIC:
        return SyntheticSource(wants, fps=fps)
    if Path(media).is_dir():
        videos = [want for want in wants if isinstance(want, VideoWant)]
        sounds = [want.name for want in wants if isinstance(want, AudioWant)]
        if sounds or len(videos) != 1:
            raise UsageError(
                f"{media} is a folder of images, but the recipe also reads {', '.join(sounds) or 'several videos'}: "
                "name an input for each stream."
            )
        return ImagesSource(media, videos[0], fps)
    return MediaSource(media, wants)


def stream_wants(recipe: Recipe) -> list[Want]:
    """What the recipe's streamed models ask of a source, in the order of the recipe's streams."""
    entries = [entry for name in streamed(recipe) for entry in recipe.models[name].inputs.values()]
    wants: list[Want] = []
    for name, stream in recipe.streams.items():
        readers = [entry for entry in entries if entry.stream == name]
        if not readers:
            continue
        if isinstance(stream, AudioStream):
            wants.append(AudioWant(name, stream.rate_hz))
        else:
            gray = all(entry.image is not None and entry.image.color == "gray" for entry in readers)
            wants.append(VideoWant(name, "gray" if gray else "rgb"))
    return wants


def streamed(recipe: Recipe) -> list[str]:
    """The models that a run steps: those that read a stream, and those that take the outputs of such."""
    names: list[str] = []
    for name, model in recipe.models.items():
        reads = any(entry.stream is not None for entry in model.inputs.values())
        takes = any(entry.source is not None for entry in model.inputs.values())
        if (reads and model.hop is not None) or (takes and not reads):
            names.append(name)
    return names


@contextmanager
def open_engines(
    bundle: Bundle, *, engine: EngineName = "auto", precision: str = "auto", threads: int = 1
) -> Iterator[dict[str, Engine]]:
    """The entered engines of the models that a run steps, by model."""
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in streamed(bundle.recipe):
            choice = choose(bundle, name, engine=engine, precision=precision, threads=threads)
            engines[name] = stack.enter_context(choice.engine)
        yield engines


class Session:
    """A recipe at work on its streams, frame by frame; one thread at a time.

    `engines` are entered, by model, and stay the caller's. `streams` is what the sources say of themselves (for the
    usual time between pictures). With the default clock, a VirtualClock, `push` and `finish` are all there is to
    call, and equal frames give equal results; for a live session see `ingest`, `tick`, `steps` and `wake_ns`.

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
            runner.engine.reset()

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
        while (step := self._scheduler.next_step(self.clock.now_ns())) is not None:
            yield self._make(step)

    def queue_limits(self) -> dict[str, int]:
        """How many frames of each stream may wait for the session: two seconds of sound, some pictures."""
        streams = self.recipe.streams
        return {
            name: QUEUE_SECONDS * BLOCKS_PER_SECOND if isinstance(streams[name], AudioStream) else QUEUE_PICTURES
            for name in self._stream_names()
        }

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

    def _make(self, step: Step) -> Result:
        runner = self._runners[step.model]
        begun_ns = 0 if self._is_virtual else self.clock.now_ns()
        t0 = time.perf_counter_ns()
        if step.reset is not None:
            runner.engine.reset()
        for (video, _), numbers in zip(runner.video, step.video, strict=True):
            video.prepare(numbers)
        t1 = time.perf_counter_ns()
        for (audio, _), row in zip(runner.audio, step.audio, strict=True):
            audio.fill(row)
        for (video, _), numbers in zip(runner.video, step.video, strict=True):
            video.fill(numbers)
        if self._on_feeds is not None:
            self._on_feeds(step.model, runner.tensors)
        t2 = time.perf_counter_ns()
        raw = runner.engine.run(runner.tensors)
        t3 = time.perf_counter_ns()
        outputs: dict[str, Decoded] = {}
        for name, decode in runner.decoders:
            outputs[name] = decode(raw[name])
        for consumer, input_name, held, name in runner.consumers:
            held.fill(raw[name])
            consumer.tensors[input_name] = held.tensor
        scores = {name: _score(step.model, name, outputs[name]) for name in runner.gating}
        t4 = time.perf_counter_ns()
        made_ns = self.clock.now_ns()
        late = self._scheduler.done(step, made_ns, scores)
        latency = None
        if not self._is_virtual:
            sound_ns = sum([track.spent_ns for track in runner.sounds])
            latency = Latency(
                sound_ns=sound_ns - runner.sound_ns,
                queue_ns=begun_ns - step.ready_ns,
                front_end_ns=t1 - t0,
                window_ns=t2 - t1,
                inference_ns=t3 - t2,
                decode_ns=t4 - t3,
                total_ns=made_ns - step.ready_ns,
            )
            runner.sound_ns = sound_ns
        if self.recorder is not None:
            self._record(self.recorder, step, begun_ns, (t0, t1, t2, t3, t4))
        return self._result(runner, step, outputs, made_ns, late, latency)

    def _record(self, to: Recorder, step: Step, begun_ns: int, t: tuple[int, int, int, int, int]) -> None:
        if not self._is_virtual:
            to.span("queue", step.model, step.number, t[0] - (begun_ns - step.ready_ns), t[0])
        to.span("front_end", step.model, step.number, t[0], t[1])
        to.span("window", step.model, step.number, t[1], t[2])
        to.span("inference", step.model, step.number, t[2], t[3])
        to.span("decode", step.model, step.number, t[3], t[4])

    def _result(
        self,
        runner: _Runner,
        step: Step,
        outputs: dict[str, Decoded],
        made_ns: int,
        late: bool,
        latency: Latency | None,
    ) -> Result:
        audio_ns, video_ns = step.audio_ns, step.video_ns
        for feed in runner.feeds:
            audio_ns = _earlier(audio_ns, feed.audio_ns)
            video_ns = _earlier(video_ns, feed.video_ns)
        runner.audio_ns, runner.video_ns = audio_ns, video_ns
        skew_ns = None if audio_ns is None or video_ns is None else audio_ns - video_ns
        return Result(
            model=step.model,
            step=step.number,
            time_ns=step.time_ns,
            made_ns=made_ns,
            outputs=outputs,
            capture_ns=_earlier(audio_ns, video_ns),
            audio_age_ns=None if audio_ns is None else made_ns - audio_ns,
            video_age_ns=None if video_ns is None else made_ns - video_ns,
            skew_ns=skew_ns,
            in_sync=None if skew_ns is None else abs(skew_ns) <= self._tolerance_ns,
            latency=latency,
            engine=runner.engine.name,
            deadline_missed=late,
            state_reset=step.reset,
            skipped=step.skipped,
            fallback=runner.engine.fallback,
        )

    # Building, once.

    def _stream_names(self) -> list[str]:
        used = {
            entry.stream for name in self._runners for entry in self.recipe.models[name].inputs.values() if entry.stream
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
            elif isinstance(self.recipe.streams[entry.stream or ""], VideoStream):
                video = self._video_window(entry, model, runner, spec)
                runner.tensors[input_name] = video.tensor
            else:
                key, need = self._sounds.need(entry)
                track = self._sounds.track(key)
                audio = AudioWindow(spec, track, need.count, entry.time_axis, model.dims)
                runner.audio.append((audio, need))
                runner.sounds.append(track)
                runner.tensors[input_name] = audio.tensor
        outputs = {spec.name for spec in engine.outputs}
        for output, kind in (model.outputs or {spec.name: Raw() for spec in engine.outputs}).items():
            if output not in outputs:
                raise RecipeError(
                    f'The recipe decodes "{output}", but the model "{name}" has the outputs: '
                    f"{', '.join(sorted(outputs))}."
                )
            runner.decoders.append((output, decoder(output, kind)))
        if model.when is not None:
            judge = self._runners.get(model.when.model)
            judged = self.recipe.models[model.when.model].outputs.get(model.when.output)
            if judge is None or judged is None or isinstance(judged, Embedding):
                raise RecipeError(
                    f'The gate "{model.when}" of "{name}" needs a streamed model and an output with a score '
                    "(softmax, argmax, sigmoid, threshold, or raw with one number)."
                )
            judge.gating.append(model.when.output)
        return runner

    def _video_window(self, entry: Input, model: Model, runner: _Runner, spec: TensorSpec) -> VideoWindow:
        stream = entry.stream or ""
        if entry.image is None:
            raise RecipeError(f'The input "{spec.name}" reads pictures: say their size with image = {{ ... }}.')
        tracks = self._pictures.setdefault(stream, {})
        track = tracks.get(entry.image)
        if track is None:
            track = tracks[entry.image] = PictureTrack(Image(entry.image))
        count = 1 if entry.window is None else int(entry.window.value)
        spacing_ns = 0 if entry.spacing is None else entry.spacing.ns()
        video = VideoWindow(spec, track, count, entry.time_axis, model.dims)
        runner.video.append((video, VideoNeed(stream, count, spacing_ns, entry.missing)))
        return video

    def _model_plan(self, runner: _Runner) -> ModelPlan:
        model = runner.model
        gate = model.when
        return ModelPlan(
            name=runner.name,
            hop_ns=hop_ns(self.recipe, runner.name) if runner.audio or runner.video else None,
            audio=tuple(need for _, need in runner.audio),
            video=tuple(need for _, need in runner.video),
            feeds=tuple(dict.fromkeys(feed.name for feed in runner.feeds)),
            gate_model=gate.model if gate else None,
            gate=(lambda scores: gate.holds(scores[gate.output])) if gate else None,
            hold_ns=model.hold.ns() if model.hold else 0,
            priority=model.priority,
            stateful=bool(runner.engine.states),
        )


class _Runner:
    """One model with all that a step of it needs, allocated once."""

    def __init__(self, name: str, model: Model, engine: Engine) -> None:
        self.name = name
        self.model = model
        self.engine = engine
        self.tensors: dict[str, Array] = {}
        self.audio: list[tuple[AudioWindow, AudioNeed]] = []
        self.video: list[tuple[VideoWindow, VideoNeed]] = []
        self.sounds: list[SoundTrack] = []
        self.sound_ns = 0
        """Time spent on the front ends of its sound until the last step."""
        self.decoders: list[tuple[str, Decoder]] = []
        self.gating: list[str] = []
        """Outputs whose scores a gate wants."""
        self.feeds: list[_Runner] = []
        self.consumers: list[tuple[_Runner, str, HeldInput, str]] = []
        """Inputs of other models that take an output of this one."""
        self.audio_ns: int | None = None
        self.video_ns: int | None = None
        """What its last step rested on."""


_SoundOptions = LogMelOptions | MfccOptions | None
_SoundKey = tuple[str, _SoundOptions]


class _Sounds:
    """The sound tracks of a session: one for each stream and front end, whatever number of inputs reads it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._counts: dict[_SoundKey, int] = {}
        self._tracks: dict[_SoundKey, SoundTrack] = {}
        self._by_stream: dict[str, list[SoundTrack]] = {}
        for name in streamed(recipe):
            for entry in recipe.models[name].inputs.values():
                if entry.stream is not None and isinstance(recipe.streams[entry.stream], AudioStream):
                    key, need = self.need(entry)
                    self._counts[key] = max(self._counts.get(key, 0), need.count)

    def need(self, entry: Input) -> tuple[_SoundKey, AudioNeed]:
        """Which track an input reads, and which rows of it."""
        name = entry.stream or ""
        stream = self._recipe.streams[name]
        if entry.window is None or not isinstance(stream, AudioStream):
            raise RecipeError(f'An input reads "{name}" without a window: say how much, e.g. window = "1 s".')
        zeros = entry.missing == "zeros"
        options = entry.mfcc or entry.log_mel
        if options is None:
            return (name, None), AudioNeed(name, entry.window.samples(stream.rate_hz), zeros=zeros)
        log_mel = options.log_mel if isinstance(options, MfccOptions) else options
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
            if options is None:
                track = SoundTrack(self._counts[key] + lag_samples)
            elif isinstance(options, MfccOptions):
                rows = self._counts[key] + lag_samples // options.log_mel.hop_samples + 2
                track = SoundTrack(rows, Mfcc(options), options.n_coefficients * (1 + options.deltas))
            else:
                rows = self._counts[key] + lag_samples // options.hop_samples + 2
                track = SoundTrack(rows, LogMel(options), options.n_mels)
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


def _score(model: str, output: str, decoded: Decoded) -> float:
    score = score_of(decoded)
    if score is None:
        raise RecipeError(f'A gate compares "{model}.{output}", which is not a single number. Decode it to one.')
    return score


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
