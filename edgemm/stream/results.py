"""What a run gives: one Result for each step of each model, and the Summary at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edgemm.stream.accounting import ModelAccount, SinkAccount, StreamAccount
from edgemm.stream.decode import Decoded
from edgemm.stream.drift import ClockReport


class Latency(msgspec.Struct, frozen=True, gc=False):
    """Where the time of one result went, in ns of real time; absent (None in Result) under the virtual clock.

    queue + front_end + window + inference + decode = total, up to a few microseconds of scheduling.
    """

    sound_ns: int
    """Front end of the sound since the model's last step: done as the sound comes, before the step is ready, so not a
    part of `total_ns`."""
    queue_ns: int
    """From when the step was ready to when it began."""
    front_end_ns: int
    """Front end of the pictures that no step has seen before."""
    window_ns: int
    """Copying the windows into the input tensors."""
    inference_ns: int
    decode_ns: int
    total_ns: int
    """From when the step was ready to when the result was there."""


class Result(msgspec.Struct, frozen=True, gc=False):
    """The outputs of one step of one model, and how old what they rest on was when it was made.

    Times are ns on the session's timeline, which starts at 0. Ages and skew are None where the model reads no such
    stream (or, for pictures, saw only missing ones). A model that takes another's output rests on what that saw.
    """

    model: str
    step: int
    """Counts the steps due, from 1: a skipped one leaves a hole."""
    time_ns: int
    """The step's own time: the sound up to here, the newest picture at or before."""
    made_ns: int
    """When the result was made. Under the virtual clock: when the step could first have been made."""
    outputs: Mapping[str, Decoded]
    capture_ns: int | None
    """When the newest of what it rests on was captured; of sound and picture the earlier one."""
    audio_age_ns: int | None
    """From the end of the newest sound to `made_ns`."""
    video_age_ns: int | None
    """From the capture of the newest picture to `made_ns`."""
    skew_ns: int | None
    """Capture of the newest sound minus that of the newest picture: positive if the picture is older."""
    in_sync: bool | None
    """True if the skew is within the recipe's tolerance."""
    latency: Latency | None
    engine: str
    deadline_missed: bool
    """True if it was made more than the model's deadline after `time_ns`."""
    state_reset: str | None
    """Why the model's state was reset before this step ("discontinuity", "gate", "mode"), if it was."""
    skipped: int
    """Steps of this model skipped since its last result."""
    fallback: str | None = None
    """Why the engine is another than the one wanted first, if it is."""
    mode: str | None = None
    """The degraded mode in which the model is, as the recipe names it ("every 2"), if it is in one."""

    def with_latency(self, latency: Latency | None) -> Result:
        """The same result with another latency; None is what a replay writes, as it measures none."""
        return msgspec.structs.replace(self, latency=latency)

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON Lines: times in ms, outputs as plain values, absent things left out."""
        line: dict[str, Any] = {
            "model": self.model,
            "step": self.step,
            "time_ms": _ms(self.time_ns),
            "made_ms": _ms(self.made_ns),
            "outputs": self.outputs,
        }
        for name, value in (
            ("capture_ms", self.capture_ns),
            ("audio_age_ms", self.audio_age_ns),
            ("video_age_ms", self.video_age_ns),
            ("skew_ms", self.skew_ns),
        ):
            if value is not None:
                line[name] = _ms(value)
        if self.in_sync is not None:
            line["in_sync"] = self.in_sync
        if self.latency is not None:
            line["latency_ms"] = {
                name.removesuffix("_ns"): _ms(getattr(self.latency, name)) for name in Latency.__struct_fields__
            }
        line["engine"] = self.engine
        if self.fallback is not None:
            line["fallback"] = self.fallback
        if self.mode is not None:
            line["mode"] = self.mode
        line["deadline_missed"] = self.deadline_missed
        if self.state_reset is not None:
            line["state_reset"] = self.state_reset
        line["skipped"] = self.skipped
        return line

    def to_json(self) -> bytes:
        """One line of JSON, without the newline. Numbers that JSON cannot hold (NaN, infinity) become null."""
        return _ENCODER.encode(self.to_dict())


@dataclass(frozen=True)
class Summary:
    """How a run ended, and the accounts of its frames and steps, which add up (see `check`)."""

    clock: str
    duration_ns: int
    """Length of the session on its own timeline."""
    streams: Mapping[str, StreamAccount]
    models: Mapping[str, ModelAccount]
    engines: Mapping[str, str]
    """By model: engine and device, e.g. "onnxruntime on CPU, 1 thread"."""
    interrupted: bool = False
    clocks: Mapping[str, ClockReport] = field(default_factory=dict)
    """By stream: how the clock of a live source ran against the machine's."""
    sinks: Mapping[str, SinkAccount] = field(default_factory=dict)
    """By sink, e.g. "jsonl results.jsonl"."""
    results: tuple[Result, ...] = ()
    """All results, if there was no sink to take them."""

    def check(self) -> None:
        """Raise AccountingError if frames or steps do not add up."""
        for name, stream in self.streams.items():
            stream.check(name)
        for name, model in self.models.items():
            model.check(name)
        for name, sink in self.sinks.items():
            sink.check(name)

    def to_json(self) -> bytes:
        """The summary without its results, as JSON, indented; times in ms."""
        summary: dict[str, Any] = {
            "clock": self.clock,
            "duration_ms": _ms(self.duration_ns),
            "interrupted": self.interrupted,
            "streams": self.streams,
            "models": self.models,
            "engines": self.engines,
            **({"clocks": self.clocks} if self.clocks else {}),
            **({"sinks": self.sinks} if self.sinks else {}),
        }
        return msgspec.json.format(_ENCODER.encode(summary), indent=1)


def _ms(ns: int) -> float:
    return ns / 1e6


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(f"no encoding of {type(value)}")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
