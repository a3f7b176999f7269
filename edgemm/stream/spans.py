"""Where the time goes: begin and end of each stage of each step, for latencies, profiles and traces."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Stage = Literal["source", "queue", "front_end", "window", "inference", "decode", "sink"]
"""source: reading and decoding one frame. queue: from when a step is ready to when it begins. front_end: features of
sound and pictures. window: copying them into the input tensors. inference: the engine's `run`. decode: outputs to
results. sink: writing a result."""


class Recorder(Protocol):
    """Receives spans. Called from the thread that did the work, so it must be quick and safe to call from several."""

    def span(self, stage: Stage, model: str, step: int, begin_ns: int, end_ns: int) -> None:
        """A stage of step `step` of `model` ran from `begin_ns` to `end_ns` by `time.perf_counter_ns`.

        `model` is the name of the stream and `step` 0 for what belongs to no step: source, and front_end of sound.
        """


class Span(NamedTuple):
    """One span, as `Spans` keeps it."""

    stage: Stage
    model: str
    step: int
    begin_ns: int
    end_ns: int


class Spans:
    """A Recorder that keeps every span in memory, in `spans`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def span(self, stage: Stage, model: str, step: int, begin_ns: int, end_ns: int) -> None:
        """Keep a span."""
        self.spans.append(Span(stage, model, step, begin_ns, end_ns))
