"""`edgemm.profile`: run a bundle with a recorder, and say where the time went."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from edgemm import bundle as bundles
from edgemm import runner
from edgemm.bundle import Bundle
from edgemm.engine.load import EngineName, choose
from edgemm.engine.protocol import Engine, LayerTime
from edgemm.errors import UsageError
from edgemm.inputs import SYNTHETIC, open_sources
from edgemm.profiler import trace as traces
from edgemm.profiler.percentiles import Percentiles
from edgemm.profiler.report import ModelProfile, ProfileReport, StreamProfile
from edgemm.recipe import streamed
from edgemm.runner import ClockName
from edgemm.session import Session
from edgemm.stream.clock import VirtualClock, WallClock
from edgemm.stream.spans import Span, Spans
from edgemm.types import Array, Tensors

_LAYER_STEPS = 50
"""Steps of the separate run with the engine's own profiler on."""


def profile(
    bundle: Bundle | str | Path,
    *,
    input: str | Path | None = None,
    iterations: int = 200,
    warm_up: int = 20,
    engine: EngineName = "auto",
    precision: str = "auto",
    threads: int = 1,
    clock: ClockName = "virtual",
    trace: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> ProfileReport:
    """Measure `iterations` steps of every model of a bundle, after `warm_up` steps, stage by stage.

    The recording `input` (sound and pictures are made up without one) is run from its start again if it is too short.
    Under the "virtual" clock it is run as fast as possible on one thread: the times are the work itself, without
    waiting. Under the "wall" clock it is paced as if it were live, and the stage "queue" is what a ready step waits. A
    model that reads no
    stream is fed normal noise; only its inference is timed. `trace` is where to write a trace for Perfetto. Raises
    UsageError, and the errors of bundle, engine, sources.
    """
    if iterations < 1:
        raise UsageError(f"A profile needs at least 1 iteration, found {iterations}.")
    tell = progress or (lambda message: None)
    opened = bundle if isinstance(bundle, Bundle) else bundles.open(bundle)
    names = streamed(opened.recipe)
    media = SYNTHETIC if input is None else input
    before = _resident_bytes()
    with ExitStack() as stack:
        choices = {
            name: choose(opened, name, engine=engine, precision=precision, threads=threads) for name in opened.models
        }
        engines = {name: stack.enter_context(choice.engine) for name, choice in choices.items()}
        spans: list[Span] = []
        if names:
            tell(f"measuring {iterations} steps on {media}")
            spans = _streamed_spans(opened, engines, media, clock, warm_up, iterations)
        for name in opened.models:
            if name not in names:
                tell(f"{name}: measuring {iterations} inferences on noise")
                spans += _bare_spans(name, engines[name], warm_up, iterations)
        grown = _resident_bytes() - before
    layers = {}
    for name in opened.models:
        tell(f"{name}: measuring its layers")
        layers[name] = _layers(opened, name, engine, precision, threads)
    if trace is not None:
        traces.write(Path(trace), spans)
    return ProfileReport(
        bundle=str(opened.path),
        sha256=opened.digest,
        input=str(media) if names else "noise",
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
        warm_up=warm_up,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        engine_memory_bytes=max(0, grown),
        models={
            name: _model_profile(
                name, spans, f"{engines[name].name} on {engines[name].device}", choices[name].precision, layers[name]
            )
            for name in opened.models
        },
        streams=_stream_profiles(spans, set(opened.recipe.streams)),
        total_ns=_total_ns(spans),
        accounted_ns=sum(span.end_ns - span.begin_ns for span in spans),
    )


# measuring


def _streamed_spans(
    opened: Bundle,
    engines: Mapping[str, Engine],
    media: str | Path,
    clock: ClockName,
    warm_up: int,
    iterations: int,
) -> list[Span]:
    """Spans of the measured steps; each model makes at least `iterations` of them, the slowest exactly so many."""
    names = streamed(opened.recipe)
    recorder = Spans()
    made = dict.fromkeys(names, 0)
    begin = 0
    while min(made.values()) < warm_up + iterations:
        before = dict(made)
        with ExitStack() as stack:
            sources = [stack.enter_context(source) for source in open_sources(opened.recipe, media)]
            infos = [info for source in sources for info in source.streams]
            session = Session(
                opened.recipe,
                {name: engines[name] for name in names},
                streams=infos,
                clock=WallClock() if clock == "wall" else VirtualClock(),
                recorder=recorder,
            )
            loop = runner.live if clock == "wall" else runner.replay
            results = stack.enter_context(closing(loop(session, sources, None)))
            for result in results:
                made[result.model] += 1
                if begin == 0 and min(made.values()) >= warm_up:
                    begin = len(recorder.spans)
                if min(made.values()) >= warm_up + iterations:
                    break
        idle = [name for name in names if made[name] == before[name]]
        if idle:
            raise UsageError(
                f'The model "{idle[0]}" made no step on {media}: the recording is shorter than its window, or its gate '
                "never opened. Give a longer one: --input CLIP"
            )
    return recorder.spans[begin:]


def _bare_spans(name: str, engine: Engine, warm_up: int, iterations: int) -> list[Span]:
    feeds = _noise(engine)
    spans = []
    for number in range(1, warm_up + iterations + 1):
        begin_ns = time.perf_counter_ns()
        engine.run(feeds)
        if number > warm_up:
            spans.append(Span("inference", name, number - warm_up, begin_ns, time.perf_counter_ns()))
    return spans


def _noise(engine: Engine) -> dict[str, Array]:
    """Normal noise, or zeros for integers, in the shape of the inputs; a symbolic dimension counts as 1."""
    generator = np.random.default_rng(0)
    feeds = {}
    for spec in engine.inputs:
        shape = [d if isinstance(d, int) else 1 for d in spec.shape]
        is_float = np.dtype(spec.dtype).kind == "f"
        feeds[spec.name] = (generator.standard_normal(shape) if is_float else np.zeros(shape)).astype(spec.dtype)
    return feeds


def _layers(opened: Bundle, name: str, engine: EngineName, precision: str, threads: int) -> Sequence[LayerTime]:
    """Per-layer times from a run of its own: the engine's profiler slows every layer down."""
    choice = choose(opened, name, engine=engine, precision=precision, threads=threads, profile_layers=True)
    with choice.engine as loaded:
        feeds: Tensors = _noise(loaded)
        for _ in range(_LAYER_STEPS):
            loaded.run(feeds)
        return sorted(loaded.layer_times(), key=lambda layer: -layer.total_ns)


# summing up


def _model_profile(
    name: str, spans: Iterable[Span], engine: str, precision: str, layers: Sequence[LayerTime]
) -> ModelProfile:
    stages: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    step = 0
    last: int | None = None
    for span in spans:
        if span.model != name:
            continue
        # Steps are numbered anew when the recording starts again: a number that comes back is another step.
        if span.step != last:
            step, last = step + 1, span.step
        stages[span.stage][step] += span.end_ns - span.begin_ns
    total: dict[int, int] = defaultdict(int)
    for times in stages.values():
        for number, spent in times.items():
            total[number] += spent
    return ModelProfile(
        engine=engine,
        precision=precision,
        steps=len(total),
        stages={stage: Percentiles.of(list(times.values())) for stage, times in stages.items()},
        step=Percentiles.of(list(total.values())),
        layers=layers,
    )


def _stream_profiles(spans: Iterable[Span], streams: set[str]) -> dict[str, StreamProfile]:
    stages: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for span in spans:
        if span.model in streams and span.step == 0:
            stages[span.model][span.stage].append(span.end_ns - span.begin_ns)
    return {
        name: StreamProfile(
            frames=max(len(times) for times in found.values()),
            stages={stage: Percentiles.of(times) for stage, times in found.items()},
        )
        for name, found in stages.items()
    }


def _total_ns(spans: Sequence[Span]) -> int:
    return max(span.end_ns for span in spans) - min(span.begin_ns for span in spans) if spans else 0


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
