"""Calibration data: where samples come from, and that they fit the model."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemm.errors import CalibrationError
from edgemm.types import Array, Tensors, TensorSpec

HOW_TO_GIVE_DATA = (
    "Give real inputs: a folder of .npz files whose keys are the model's inputs (--calibration FOLDER), an iterable of "
    "dicts in Python, or a recording that runs through the recipe's own front end."
)


@dataclass(frozen=True)
class Sample:
    """One independent piece of calibration data: one step, or for a model with state a sequence of them.

    The state starts from zeros before the first step and is carried through the rest.
    """

    steps: Sequence[Tensors]
    origin: str
    """Where it came from, for messages: a file, or a number."""


def from_folder(path: str | os.PathLike[str], inputs: Sequence[TensorSpec]) -> Iterator[Sample]:
    """Yield the samples in a folder of .npz files, in the order of their names, or in a single .npz file.

    A file's keys are the names of `inputs` (for a model with state: without the state). If every array has exactly
    one dimension more than its input, the file is a stack: entry k along the first axis is step k. For a
    model with state the steps of one file are a sequence; for one without, each is a sample like any other.
    Raises CalibrationError for a missing or empty folder and for a file that is not .npz or lacks a key.
    """
    folder = Path(path)
    if not folder.is_dir() and not (folder.suffix == ".npz" and folder.is_file()):
        raise CalibrationError(f"There is no calibration folder {folder}. {HOW_TO_GIVE_DATA}")
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else [folder]
    if not files:
        raise CalibrationError(f"Found no .npz file in {folder}. {HOW_TO_GIVE_DATA}")
    for file in files:
        yield Sample(_steps(_read(file), file, inputs), str(file))


def _read(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"Cannot read {file} as .npz ({error}). Write it with numpy.savez(file, name=array, ...)."
        ) from error


def _steps(arrays: dict[str, Array], file: Path, inputs: Sequence[TensorSpec]) -> Sequence[Tensors]:
    ranks = {spec.name: len(spec.shape) for spec in inputs}
    stacked = set(arrays) == set(ranks) and all(arrays[name].ndim == rank + 1 for name, rank in ranks.items())
    if not stacked:
        # One sample, or a mistake that the check against the inputs will name.
        return [arrays]
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise CalibrationError(f"{file}: the stacked arrays differ in length, {lengths}. Every step needs all inputs.")
    return [{name: array[k] for name, array in arrays.items()} for k in range(next(iter(lengths.values())))]


def samples_of(data: Iterable[Tensors | Sequence[Tensors] | Sample], inputs: Sequence[TensorSpec]) -> Iterator[Sample]:
    """Yield `data` as checked samples: a dict is one step, a sequence of dicts a sequence of steps.

    Raises CalibrationError that says which sample and key is wrong, what was found and what is expected.
    """
    for number, item in enumerate(data, 1):
        if isinstance(item, Sample):
            sample = item
        elif isinstance(item, Mapping):
            sample = Sample([item], f"sample {number}")
        elif isinstance(item, Sequence) and all(isinstance(step, Mapping) for step in item):
            sample = Sample(item, f"sample {number}")
        else:
            raise CalibrationError(
                f"Calibration sample {number} is a {type(item).__name__}; expected a dict of arrays by input "
                "name, or a sequence of such dicts."
            )
        for step, feeds in enumerate(sample.steps, 1):
            where = sample.origin if len(sample.steps) == 1 else f"{sample.origin}, step {step}"
            _check(feeds, where, inputs)
        yield sample


def _check(feeds: Tensors, where: str, inputs: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in inputs]
    if set(feeds) != set(names):
        raise CalibrationError(
            f"Calibration {where} has the keys {', '.join(map(str, feeds)) or '(none)'}; expected exactly the "
            f"model's inputs: {', '.join(names)}."
        )
    for spec in inputs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise CalibrationError(
                f'Calibration {where}: "{spec.name}" is a {type(array).__name__}; expected a numpy array, {spec}.'
            )
        if not spec.accepts(array):
            raise CalibrationError(
                f'Calibration {where}: "{spec.name}" is {array.dtype}{list(array.shape)}; expected {spec}.'
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise CalibrationError(
                f'Calibration {where}: "{spec.name}" holds {bad} values that are NaN or infinite; expected finite '
                "numbers. Repair or remove that sample."
            )
