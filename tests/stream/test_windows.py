from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemm.errors import RecipeError
from edgemm.stream.frames import Color, VideoFrame
from edgemm.stream.windows import AudioWindow, HeldInput, PictureTrack, SoundTrack, VideoWindow, tensor_shape
from edgemm.types import Array, TensorSpec


class Halves:
    """A front end for sound: pairs of samples, [n, 2]; counts the samples that it saw."""

    def __init__(self) -> None:
        self.rest = np.empty(0, np.float32)
        self.seen = 0

    def push(self, samples: Array) -> Array:
        self.seen += len(samples)
        samples = np.concatenate((self.rest, samples))
        whole = len(samples) // 2 * 2
        self.rest = samples[whole:]
        return samples[:whole].reshape(-1, 2)

    def reset(self) -> None:
        self.rest = np.empty(0, np.float32)


class Mean:
    """A front end for pictures: the mean, [1]; counts its calls."""

    shape = (1,)
    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self) -> None:
        self.calls = 0

    def prepare(self, picture: Array, color: Color, out: Array | None = None) -> Array:
        self.calls += 1
        result = np.empty(1, np.float32) if out is None else out
        result[:] = picture.mean()
        return result


def picture(value: int) -> VideoFrame:
    return VideoFrame("camera", value, Fraction(1, 25), value, np.full((2, 2), value, np.uint8), "gray")


@pytest.mark.parametrize(
    ("tensor", "window", "time_axis", "dims", "expected"),
    [
        ((1, 100, 40), (100, 40), 0, {}, (1, 100, 40)),
        ((1, 40, 100), (100, 40), 1, {}, (1, 40, 100)),
        ((1, 1, 40, 100), (100, 40), 1, {}, (1, 1, 40, 100)),
        ((1, 3, 8, 16, 16), (8, 3, 16, 16), 1, {}, (1, 3, 8, 16, 16)),
        ((1, 3, 16, 16), (1, 3, 16, 16), 0, {}, (1, 3, 16, 16)),
        ((1, 576), (576,), 0, {}, (1, 576)),
        ((1, 1, 512), (512,), 0, {}, (1, 1, 512)),
        (("batch", "frames", 40), (100, 40), 0, {}, (1, 100, 40)),
        (("batch", None, 40), (100, 40), 0, {"batch": [1, 1, 4]}, (1, 100, 40)),
        (("n", 512, 1), (512,), 0, {"n": 1}, (1, 512, 1)),
        ((16, 16), (1, 1, 16, 16), 0, {}, (16, 16)),
    ],
)
def test_windows_take_the_shape_of_the_tensor(
    tensor: tuple[Any, ...], window: tuple[int, ...], time_axis: int, dims: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert tensor_shape(TensorSpec("x", "float32", tensor), window, time_axis, dims) == expected


def test_a_window_that_does_not_fit_says_what_it_is_and_what_is_wanted() -> None:
    with pytest.raises(RecipeError, match=r'"x: float32\[1, 98, 40\]" cannot hold a window of shape \[100, 40\]'):
        tensor_shape(TensorSpec("x", "float32", (1, 98, 40)), (100, 40), 0, {})
    with pytest.raises(RecipeError, match="dims"):
        tensor_shape(TensorSpec("x", "float32", ("n", 40)), (100, 40), 0, {"n": 50})
    with pytest.raises(RecipeError, match="cannot hold float32 values"):
        AudioWindow(TensorSpec("x", "int64", (1, 4)), SoundTrack(8), 4)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_an_audio_window_is_the_last_rows_whatever_the_blocks(blocks: list[int], count: int) -> None:
    front_end = Halves()
    track = SoundTrack(64, front_end, 2)
    window = AudioWindow(TensorSpec("x", "float32", (1, 2, count)), track, count, time_axis=1)
    total = 0
    for size in blocks:
        track.push(np.arange(total, total + size, dtype=np.float32))
        total += size
    rows = np.arange(total // 2 * 2, dtype=np.float32).reshape(-1, 2)
    if not len(rows):
        return
    last = len(rows) - 1
    window.fill(last)
    padded = np.concatenate((np.zeros((count, 2)), rows))[-count:]
    assert np.array_equal(window.tensor[0].T, padded)
    assert front_end.seen == total  # each sample once


def test_a_reset_sound_track_forgets_its_front_end_too() -> None:
    front_end = Halves()
    track = SoundTrack(8, front_end, 2)
    track.push(np.array([1, 2, 3], np.float32))
    track.reset()
    track.push(np.array([7, 8], np.float32))
    window = AudioWindow(TensorSpec("x", "float32", (1, 2)), track, 1)
    window.fill(0)
    assert window.tensor.tolist() == [[7, 8]]


def test_each_picture_passes_the_front_end_once_and_only_if_asked_for() -> None:
    front_end = Mean()
    track = PictureTrack(front_end)
    window = VideoWindow(TensorSpec("x", "float32", (1, 3, 1)), track, 3)
    for number in range(10):
        track.push(number, picture(number))
    for last in (4, 6, 8):
        window.prepare((last - 4, None, last))
        window.fill((last - 4, None, last))
        assert window.tensor.ravel().tolist() == [last - 4, 0, last]
    assert front_end.calls == 5  # 0, 2, 4, 6, 8
    track.release(6)
    for released in (4, 5):
        with pytest.raises(KeyError):
            window.prepare((released, 6, 7))
    window.prepare((6, 7, 8))  # 7 in memory that 4 or an earlier one had
    window.fill((6, 7, 8))
    assert window.tensor.ravel().tolist() == [6, 7, 8]


def test_pictures_are_held_however_many_and_in_whatever_layout() -> None:
    track = PictureTrack(Mean())
    narrow = VideoWindow(TensorSpec("x", "float64", (1, 1, 3)), track, 3, time_axis=1)
    for number in range(40):
        track.push(number, picture(number))
    wide = VideoWindow(TensorSpec("x", "float32", (1, 1, 40)), track, 40, time_axis=1)
    wide.prepare(range(40))
    wide.fill(range(40))
    assert wide.tensor.ravel().tolist() == list(range(40))
    narrow.fill((39, None, 0))
    assert narrow.tensor.ravel().tolist() == [39, 0, 0]


def test_held_inputs_keep_their_own_copy() -> None:
    held = HeldInput(TensorSpec("x", "float32", (1, 1, 3)))
    value = np.array([[1, 2, 3]], np.float64)
    held.fill(value)
    value[:] = 0
    assert held.tensor.tolist() == [[[1, 2, 3]]]
    assert held.tensor.dtype == np.float32
    held.fill(np.asarray(7))
    assert held.tensor.tolist() == [[[7, 7, 7]]]
    with pytest.raises(RecipeError, match=r"given a value of shape \[2\], expected \[1, 1, 3\]"):
        held.fill(np.zeros(2))


def test_held_inputs_follow_symbolic_dimensions() -> None:
    held = HeldInput(TensorSpec("x", "float32", (1, "n")), {})
    held.fill(np.ones((1, 4)))
    assert held.tensor.shape == (1, 4)
    held.fill(np.ones((1, 2)))
    assert held.tensor.shape == (1, 2)
    with pytest.raises(RecipeError, match="expected"):
        held.fill(np.ones((3, 2)))
    assert HeldInput(TensorSpec("x", "int64", ("n",)), {"n": 5}).tensor.shape == (5,)
