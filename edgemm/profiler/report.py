"""What a profile found: a value that can be saved, loaded and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgemm.engine.protocol import LayerTime
from edgemm.errors import SinkError, UsageError
from edgemm.profiler.percentiles import Percentiles

SCHEMA = 2


@dataclass(frozen=True)
class ModelProfile:
    """The profile of one model."""

    engine: str
    precision: str
    steps: int
    """Steps measured; the warm-up is not among them."""
    stages: Mapping[str, Percentiles]
    """By stage of a step: queue (under the wall clock), front_end (of pictures), window, inference, decode."""
    step: Percentiles
    """All stages of a step together."""
    layers: Sequence[LayerTime]
    """Per-layer times from a separate run with the engine's profiler on, which makes every layer slower."""


@dataclass(frozen=True)
class StreamProfile:
    """The profile of what is done for each frame of a stream, whichever models read it."""

    frames: int
    stages: Mapping[str, Percentiles]
    """By stage of a frame: source (demux, decode, resample), front_end (of sound)."""


@dataclass(frozen=True)
class ProfileReport:
    """What `edgemm.profile` found."""

    bundle: str
    sha256: str
    input: str
    machine: str
    warm_up: int
    peak_memory_bytes: int
    """Largest resident memory of this process so far, the interpreter included."""
    engine_memory_bytes: int
    """Growth of the resident memory while the engines were opened and warmed up."""
    models: Mapping[str, ModelProfile]
    streams: Mapping[str, StreamProfile]
    total_ns: int
    """From the first span to the last: all the time that was measured."""
    accounted_ns: int
    """Sum of all spans; what is missing to `total_ns` lies between the stages: scheduling and making results."""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The report as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"

    def save(self, path: Path) -> None:
        """Write the report to `path`. Raises SinkError."""
        try:
            path.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise SinkError(f"Cannot write the profile {path}: {error.strerror}.") from error


def load(path: Path) -> ProfileReport:
    """Read a report that `save` wrote. Raises UsageError if it is none, or of another schema."""
    try:
        data = path.read_bytes()
        schema = msgspec.json.decode(data, type=dict[str, object]).get("schema")
        if schema != SCHEMA:
            raise UsageError(f"{path} is no profile of schema {SCHEMA}, found {schema!r}. Profile again.")
        return msgspec.json.decode(data, type=ProfileReport)
    except OSError as error:
        raise UsageError(f"Cannot read the profile {path}: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not a profile that `edgemm profile --json` wrote: {error}.") from error
