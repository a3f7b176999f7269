"""Calibration ranges: what was measured, kept so that it can be looked at, edited and used again."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from edgemm.errors import CalibrationError
from edgemm.graph import Model
from edgemm.quant.rounding import WeightRounding

SCHEMA: Final = 1


@dataclass(frozen=True)
class TensorRange:
    """What one tensor did during calibration."""

    lo: float
    """Smallest value seen."""
    hi: float
    """Largest value seen."""
    amax: float
    """Magnitude that the largest int8 level stands for; the observer's choice. This is the number to edit."""
    shape: tuple[int, ...]
    """Shape in the first sample; costs are counted with it."""


@dataclass(frozen=True)
class Ranges:
    """The ranges of one float graph, by tensor name."""

    graph: str
    """Digest of the float graph they were measured on."""
    observer: str
    samples: int
    """How many steps were run."""
    tensors: Mapping[str, TensorRange]
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of further tensors, needed to count operations."""
    rounding: WeightRounding | None = field(default=None, compare=False, repr=False)
    """What calibration saw of the weights' inputs. It is not written to the file: without it weights are rounded to
    nearest."""

    def check(self, model: Model) -> None:
        """Raise CalibrationError if they were measured on another graph than `model`."""
        if self.graph != model.digest:
            raise CalibrationError(
                f"These ranges belong to the graph {self.graph[:12]}, this model is {model.digest[:12]}: weights or "
                "nodes have changed since. Calibrate again."
            )

    def to_json(self) -> str:
        """Return them as indented JSON, the same text for the same ranges."""
        document = {"schema": SCHEMA, **asdict(replace(self, rounding=None))}
        del document["rounding"]
        return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1).decode() + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them to a JSON file. Raises CalibrationError if the file cannot be written."""
        try:
            Path(path).write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise CalibrationError(f"Cannot write the ranges to {path}: {error}.") from error


@dataclass(frozen=True)
class _Document:
    schema: int
    graph: str
    observer: str
    samples: int
    tensors: dict[str, TensorRange]
    shapes: dict[str, tuple[int, ...]]


def from_json(text: str | bytes, origin: str = "The ranges") -> Ranges:
    """Return the ranges that `to_json` wrote and a person may have edited.

    Raises CalibrationError, beginning with `origin`, for what is malformed, of another schema, or not a range.
    """
    try:
        version = msgspec.json.decode(text)["schema"]
        if version != SCHEMA:
            raise CalibrationError(
                f"{origin}: schema {version}, this edgemm reads schema {SCHEMA}. Calibrate again with this version."
            )
        document = msgspec.json.decode(text, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{origin}: not the JSON that edgemm writes: {error}. Export them again.") from error
    except (KeyError, TypeError) as error:
        raise CalibrationError(f'{origin}: no "schema" in it, so these are no calibration ranges.') from error
    for name, entry in document.tensors.items():
        if not (math.isfinite(entry.amax) and entry.amax >= 0):
            raise CalibrationError(
                f'{origin}: the amax of "{name}" is {entry.amax}; expected a finite number, 0 or above.'
            )
    return Ranges(document.graph, document.observer, document.samples, document.tensors, document.shapes)


def load_ranges(path: str | os.PathLike[str]) -> Ranges:
    """Read ranges from a JSON file. Raises CalibrationError if it cannot be read or is not one."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(f"Cannot read the ranges {path}: {error}.") from error
    return from_json(text, str(path))
