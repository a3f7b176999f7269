"""Where a build's calibration samples come from: files, the caller, or a recording run through the recipe.

A recording goes through the same sources, windows and front ends as `edgemm run`, so that calibration sees what
run will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from edgemm.errors import CalibrationError
from edgemm.graph import Model
from edgemm.quant import HOW_TO_GIVE_DATA, Sample, from_folder
from edgemm.recipe import Recipe
from edgemm.stream.sources.images import SUFFIXES
from edgemm.types import Tensors

Data = str | Path | Iterable[Tensors | Sequence[Tensors]]
"""Calibration data: a path, or in Python an iterable as `edgemm.quant.calibrate` takes it."""

Record = Callable[[Path], Mapping[str, Sequence[Tensors]]]
"""Runs a recording through the recipe in float and returns what each model was fed, step by step."""

_HELD_OUT_FROM = 32
"""With so many samples or more, every fourth is kept from calibration and used to compare with float."""

_HELD_OUT_STEPS = 128
"""So many steps in sequences are as good: every fourth sequence is kept, or of fewer than four the last quarter."""

_COMPARED_STEPS = 512
"""Comparing keeps samples and outputs in memory; more steps than this say little more."""


class CalibrationSource:
    """Calibration samples for each model of a recipe."""

    def __init__(self, data: Data | None, recipe: Recipe, models: Mapping[str, Model], record: Record) -> None:
        self._data = Path(data) if isinstance(data, str) else data
        self._recipe = recipe
        self._models = models
        self._record = record
        self._recorded: Mapping[str, Sequence[Tensors]] | None = None

    @property
    def given(self) -> bool:
        """True if there is any data."""
        return self._data is not None

    @property
    def origin(self) -> str:
        """Where the data comes from, in words."""
        return str(self._data) if isinstance(self._data, Path) else "the caller's data"

    def samples(self, name: str) -> list[Sample]:
        """The samples of one model. Raises CalibrationError."""
        if self._data is None:
            raise CalibrationError(f'Quantizing "{name}" needs calibration data, found none. {HOW_TO_GIVE_DATA}')
        states = {pair.input for pair in self._recipe.models[name].states}
        fed = [spec for spec in self._models[name].inputs if spec.name not in states]
        if not isinstance(self._data, Path):
            if len(self._models) > 1:
                raise CalibrationError("Data from Python is for one model; for several give a folder or a recording.")
            return [s if isinstance(s, Sample) else _sample(s, n) for n, s in enumerate(self._data, 1)]
        if not self._data.exists():
            raise CalibrationError(f"There is no calibration data at {self._data}. {HOW_TO_GIVE_DATA}")
        own = self._data / name
        folder = own if own.is_dir() else self._data
        if self._data.suffix == ".npz" or (folder.is_dir() and not _holds_pictures(folder)):
            samples = from_folder(folder, fed)
            # Without state the steps of a stack are samples like any other.
            return list(samples) if states else [one for sample in samples for one in _apart(sample)]
        if self._recorded is None:
            self._recorded = self._record(self._data)
        if not self._recorded[name]:
            return []
        whole = Sample(self._recorded[name], str(self._data))
        return [whole] if states else list(_apart(whole))


def _holds_pictures(folder: Path) -> bool:
    """True for a folder of images, which is a recording. Samples beside them have the right of way."""
    suffixes = {file.suffix.lower() for file in folder.iterdir()}
    return ".npz" not in suffixes and not suffixes.isdisjoint(SUFFIXES)


def _apart(sample: Sample) -> Sequence[Sample]:
    if len(sample.steps) == 1:
        return [sample]
    return [Sample([step], f"{sample.origin}, step {number}") for number, step in enumerate(sample.steps, 1)]


def _sample(item: Tensors | Sequence[Tensors], number: int) -> Sample:
    return Sample([item] if isinstance(item, Mapping) else item, f"sample {number}")


def split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample], bool]:
    """Samples to calibrate on, samples to compare on, and whether these were held out: they are if there are enough.

    A quarter is held out: of many samples every fourth, of a few long sequences the end of each. Such an end begins
    with the state at zeros, for float and for int8.
    """
    sequences = len(samples) < sum(len(s.steps) for s in samples) >= _HELD_OUT_STEPS
    held_out = sequences or len(samples) >= _HELD_OUT_FROM
    if not held_out:
        calibrating, comparing = list(samples), list(samples)
    elif len(samples) >= 4:
        calibrating = [s for n, s in enumerate(samples) if n % 4 != 3]
        comparing = list(samples[3::4])
    else:
        cuts = [len(s.steps) - len(s.steps) // 4 for s in samples]
        calibrating = [Sample(s.steps[:cut], s.origin) for s, cut in zip(samples, cuts, strict=True)]
        comparing = [Sample(s.steps[cut:], s.origin) for s, cut in zip(samples, cuts, strict=True) if s.steps[cut:]]
    steps = sum(len(s.steps) for s in comparing)
    if steps > _COMPARED_STEPS and len(comparing) > 1:
        comparing = comparing[:: -(-steps // _COMPARED_STEPS)]
    return calibrating, [Sample(s.steps[:_COMPARED_STEPS], s.origin) for s in comparing], held_out
