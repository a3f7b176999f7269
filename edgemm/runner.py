"""Path 2: sources -> clock -> windows -> front end -> engine -> decode -> sinks.

    summary = edgemm.run("model.edgemm", input="clip.mp4", sinks=[JsonLinesSink("results.jsonl")])

`edgemm.session` is the same frame by frame, with engines of your own.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from edgemm import bundle as bundles
from edgemm import rig
from edgemm.bundle import Bundle
from edgemm.engine.load import EngineName
from edgemm.errors import UsageError
from edgemm.inputs import Device, Media, open_sources, stream_wants
from edgemm.session import OnFeeds, Session, open_engines
from edgemm.stream.accounting import SinkAccount
from edgemm.stream.capture import Arrivals, Capture
from edgemm.stream.clock import Clock, VirtualClock, WallClock
from edgemm.stream.drift import ClockReport
from edgemm.stream.frames import Event
from edgemm.stream.results import Result, Summary
from edgemm.stream.sinks.outlets import Outlets
from edgemm.stream.sinks.protocol import Run, Sink, Snapshot
from edgemm.stream.sources.protocol import LiveSource, RigSource, Source
from edgemm.stream.sources.recording import Recording, RecordingWriter
from edgemm.stream.spans import Recorder
from edgemm.stream.tape import EndOfTape, ScriptClock, Tape, TapeClock
from edgemm.stream.turns import prompt_turns

ClockName = Literal["wall", "virtual"]

OnEvent = Callable[[Event], None]
"""Called with every event that the session takes."""

SWITCH_INTERVAL_S = 0.0005
"""How soon Python hands the interpreter to a capture thread: with the usual 5 ms a hand-off takes 10 ms at p99 beside a
busy thread, with this 1.3."""


def run(
    bundle: Bundle | str | Path,
    *,
    input: Media | Mapping[str, Media] | None = None,
    mic: Device = None,
    camera: Device | Mapping[str, Device] = None,
    pixel_format: str | None = None,
    camera_options: Mapping[str, str] | None = None,
    sync_offset: bool = True,
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
    camera (`/dev/videoN`, N, a URL, `csi:N`, `gst:PIPELINE`, or a file, which is paced; V4L2 in
    `pixel_format`, and with `camera_options`, its controls by name); a
    mapping gives a camera to each of several streams.
    Streams that neither gives come from `input`. A device that goes away ends its stream until it is back. What
    `edgemm calibrate-sync` measured of the pair is taken off its times, unless `sync_offset` is False.

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
    sources = open_sources(
        recipe, input, mic=mic, camera=camera, pixel_format=pixel_format, camera_options=camera_options, fps=fps
    )
    is_live = any(source.live for source in sources)
    if is_live and clock == "virtual":
        raise UsageError("A live source keeps its own time: run it on the wall clock (--clock wall).")
    if record is not None and clock == "virtual":
        raise UsageError("A recording keeps what happened in wall time: --record needs --clock wall.")
    wall = is_live or clock == "wall" or record is not None
    with ExitStack() as stack:
        # With the usual turns: a first run may compile a plan, for minutes.
        engines = stack.enter_context(open_engines(opened, engine=engine, precision=precision, threads=threads))
        outlets = stack.enter_context(Outlets(sinks, direct=not wall))
        for source in sources:
            stack.enter_context(source)
        if sync_offset:
            rig.apply(sources)
        infos = [info for source in sources for info in source.streams]
        tape = None if record is None else stack.enter_context(RecordingWriter(record, infos))
        timeline: Clock = WallClock() if wall else VirtualClock()
        if tape is not None:
            timeline = TapeClock(timeline, tape)
        session = Session(recipe, engines, streams=infos, clock=timeline, recorder=recorder, on_feeds=on_feeds)
        names = frozenset(info.name for source in sources if source.live for info in source.streams)
        outlets.begin(Run(recipe, infos, names, "wall" if wall else "virtual"), _books(session, sources))
        if wall:
            loop = live(session, sources, duration_s, tape, outlets.on_event)
        else:
            loop = replay(session, sources, duration_s, outlets.on_event)
        interrupted = False
        kept: list[Result] = []
        try:
            for result in loop:
                if tape is not None:
                    tape.result(result)
                if sinks:
                    _write(result, outlets, recorder)
                else:
                    kept.append(result)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            loop.close()
        summary = session.summary(interrupted=interrupted)
        if tape is not None:
            tape.note(["s", interrupted])
        return replace(summary, results=tuple(kept), clocks=_clocks(sources), sinks=outlets.drain())


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
        outlets = stack.enter_context(Outlets(sinks, direct=True))
        clock = ScriptClock()
        session = Session(
            opened.recipe, engines, streams=recording.streams, clock=clock, recorder=recorder, on_feeds=on_feeds
        )
        outlets.begin(Run(opened.recipe, recording.streams, frozenset(), "virtual"), _books(session, ()))
        kept: list[Result] = []
        loop = rerun(session, recording, clock, outlets.on_event)
        try:
            while True:
                result = next(loop).with_latency(None)
                if sinks:
                    _write(result, outlets, recorder)
                else:
                    kept.append(result)
        except StopIteration as end:
            interrupted = bool(end.value)
        except KeyboardInterrupt:
            interrupted = True
        clock.has_ended = True
        return replace(session.summary(interrupted=interrupted), results=tuple(kept), sinks=outlets.drain())


def rerun(
    session: Session, recording: Recording, clock: ScriptClock, on_event: OnEvent | None = None
) -> Generator[Result, None, bool]:
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
                if on_event is not None:
                    on_event(event)
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


def _write(result: Result, outlets: Outlets, recorder: Recorder | None) -> None:
    begin_ns = time.perf_counter_ns()
    outlets.write(result)
    if recorder is not None:
        recorder.span("sink", result.model, result.step, begin_ns, time.perf_counter_ns())


def _books(session: Session, sources: Sequence[Source]) -> Callable[[Mapping[str, SinkAccount]], Snapshot]:
    def books(sinks: Mapping[str, SinkAccount]) -> Snapshot:
        streams, models = session.accounts()
        return Snapshot(streams, models, _clocks(sources), sinks)

    return books


def _clocks(sources: Sequence[Source]) -> dict[str, ClockReport]:
    devices = [source for source in sources if isinstance(source, LiveSource)]
    clocks: dict[str, ClockReport] = {}
    for source in devices:
        delays_ns = source.delays_ns if isinstance(source, RigSource) else {}
        for info in source.streams:
            report = source.report()
            clocks[info.name] = replace(report, delay_ms=report.delay_ms + delays_ns.get(info.name, 0) / 1e6)
    return clocks


def replay(
    session: Session, sources: Sequence[Source], duration_s: float | None, on_event: OnEvent | None = None
) -> Generator[Result, None, None]:
    """One thread, virtual time: every event in the order of its time."""
    end_ns = None if duration_s is None else round(duration_s * 1e9)
    for event in _timed(heapq.merge(*sources, key=lambda event: event.end_ns), session.recorder):
        if end_ns is not None and event.end_ns > end_ns:
            break
        if on_event is not None:
            on_event(event)
        yield from session.push(event)
    yield from session.finish()


def live(
    session: Session,
    sources: Sequence[Source],
    duration_s: float | None,
    tape: Tape | None = None,
    on_event: OnEvent | None = None,
    arrivals: Arrivals | None = None,
) -> Generator[Result, None, None]:
    """Wall time: sources are read by threads of their own; this one takes what has come and makes the steps.

    `tape` receives all that `rerun` needs, beside what the session's clock, a TapeClock, gives it. `on_event` is called
    with every event before the session takes it. `arrivals` stands in for the threads and their queue where time is
    simulated.
    """
    # Only what the session itself reads decides its results.
    clock = session.clock.inner if isinstance(session.clock, TapeClock) else session.clock
    end_ns = None if duration_s is None else round(duration_s * 1e9)
    # "every" makes the steps of each frame before it takes the next; the others need to know what is newest.
    limit = 1 if session.recipe.schedule.policy == "every" else None
    capture = Capture([] if arrivals else sources, clock, session.queue_limits(), session.recorder)
    queue = arrivals or capture.queue
    try:
        with capture, prompt_turns(), _quick_hand_off():
            while end_ns is None or clock.now_ns() < end_ns:
                wakes = [time_ns for time_ns in (session.wake_ns(), end_ns) if time_ns is not None]
                timeout_s = max(0, min(wakes) - clock.now_ns()) / 1e9 if wakes else None
                events = queue.take(timeout_s, limit)
                if events is None:
                    if tape is not None:
                        tape.note(["f"])
                    yield from session.finish()
                    break
                for event, arrived_ns in events:
                    if tape is not None:
                        tape.event(event, arrived_ns)
                    if on_event is not None:
                        on_event(event)
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
        for event, arrived_ns in queue.drain():
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
