"""What of the calibration data is kept to judge by."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.calibration_data import split
from edgemm.quant import Sample


def sequences(*lengths: int) -> list[Sample]:
    """Samples whose steps are numbered through, so that each can be told from every other."""
    numbers = iter(range(sum(lengths)))
    return [Sample([{"x": np.array(next(numbers))} for _ in range(n)], f"s{k}") for k, n in enumerate(lengths)]


def steps(samples: list[Sample]) -> list[int]:
    return [int(step["x"]) for sample in samples for step in sample.steps]


def test_of_many_samples_every_fourth_is_held_out() -> None:
    calibrating, comparing, held_out = split(sequences(*[1] * 40))
    assert held_out
    assert steps(comparing) == list(range(3, 40, 4))
    assert sorted(steps(calibrating) + steps(comparing)) == list(range(40))


def test_few_samples_are_used_for_both() -> None:
    calibrating, comparing, held_out = split(sequences(*[1] * 31))
    assert not held_out
    assert steps(calibrating) == steps(comparing) == list(range(31))


@pytest.mark.parametrize(
    ("lengths", "kept"), [((200,), range(150, 200)), ((100, 60), [*range(75, 100), *range(145, 160)])]
)
def test_of_a_few_long_sequences_the_last_quarter_is_held_out(lengths: tuple[int, ...], kept: range) -> None:
    calibrating, comparing, held_out = split(sequences(*lengths))
    assert held_out
    assert steps(comparing) == list(kept)
    assert sorted(steps(calibrating) + steps(comparing)) == list(range(sum(lengths)))


def test_of_four_sequences_one_is_held_out_whole() -> None:
    _, comparing, held_out = split(sequences(50, 50, 50, 50))
    assert held_out
    assert steps(comparing) == list(range(150, 200))


def test_a_short_sequence_is_used_for_both() -> None:
    calibrating, comparing, held_out = split(sequences(100))
    assert not held_out
    assert steps(calibrating) == steps(comparing) == list(range(100))


def test_what_is_compared_has_an_end() -> None:
    _, comparing, _ = split(sequences(40_000))
    assert steps(comparing) == list(range(30_000, 30_512))
