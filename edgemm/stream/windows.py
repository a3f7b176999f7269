"""From streams to input tensors: each window is copied from a ring into an array that is allocated once.

A window of sound is rows of a ring: samples, or frames of a front end that runs once over the stream. A window of
pictures is slots of a store in which each picture passed the front end once, when a step first asked for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgemm.errors import RecipeError
from edgemm.stream.frames import Color, VideoFrame
from edgemm.stream.rings import Ring
from edgemm.types import Array, TensorSpec

Dims = Mapping[str, int | list[int]]


class SoundFrontEnd(Protocol):
    """Turns a stream of samples into rows, e.g. log-mel frames."""

    def push(self, samples: npt.NDArray[np.float32]) -> Array:
        """Take samples `[n]`; return the rows `[m, width]` that are complete now (may be reused by the next call)."""

    def reset(self) -> None:
        """Forget the samples: the next one has nothing to do with the last."""


class PictureFrontEnd(Protocol):
    """Turns pictures into tensors of one shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensors."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the tensors."""

    def prepare(self, picture: npt.NDArray[np.uint8], color: Color, out: Array | None = None) -> Array:
        """Convert `picture`, uint8 `[height, width, 3]` or `[height, width]`, into `out`."""


def tensor_shape(spec: TensorSpec, window: Sequence[int], time_axis: int, dims: Dims) -> tuple[int, ...]:
    """The shape of the tensor `spec` that holds a window `[time, ...]` with its time axis moved to `time_axis`.

    Dimensions of 1 are put in (a batch, a channel) or left out (the time axis of a single picture) as the tensor
    wants; symbolic dimensions take the value in `dims` (the middle one of three), else whatever fits. Raises
    RecipeError if the window does not fit.
    """
    rest = list(window[1:])
    axis = min(time_axis, len(rest))
    moved = (*rest[:axis], window[0], *rest[axis:])
    wanted = [_fixed(d, dims) for d in spec.shape]
    for shape in (moved, tuple(d for d in moved if d != 1)):
        extra = len(wanted) - len(shape)
        if extra < 0:
            continue
        # Leading positions first: a batch is the usual dimension to put in.
        for places in combinations(range(len(wanted)), extra):
            sizes = iter(shape)
            candidate = tuple(1 if i in places else next(sizes) for i in range(len(wanted)))
            if all(want is None or want == have for want, have in zip(wanted, candidate, strict=True)):
                return candidate
    raise RecipeError(
        f'The input "{spec}" cannot hold a window of shape {list(moved)} (time axis {axis}). '
        "Change window, time_axis or the front end of this input in the recipe, or its dims."
    )


def _fixed(dim: int | str | None, dims: Dims) -> int | None:
    if isinstance(dim, int):
        return dim
    value = dims.get(dim) if dim is not None else None
    return value[len(value) // 2] if isinstance(value, list) else value


def _allocate(spec: TensorSpec, window: Sequence[int], time_axis: int, dims: Dims) -> tuple[Array, Array]:
    """The tensor, zeroed, and a view of it as the window `[time, ...]`."""
    tensor = np.zeros(tensor_shape(spec, window, time_axis, dims), spec.dtype)
    return tensor, _as_window(tensor, window, time_axis)


def _as_window(tensor: Array, window: Sequence[int], time_axis: int) -> Array:
    rest = list(window[1:])
    axis = min(time_axis, len(rest))
    moved = (*rest[:axis], window[0], *rest[axis:])
    return np.moveaxis(tensor.reshape(moved), axis, 0)


def batch_tensor(spec: TensorSpec, count: int, window: Sequence[int], time_axis: int, dims: Dims) -> Array:
    """The tensor of `count` windows side by side on the first axis, zeroed. Raises RecipeError if they do not fit."""
    first = _fixed(spec.shape[0], dims) if spec.shape else 1
    if first not in (None, count):
        raise RecipeError(
            f'The input "{spec}" holds a batch of {first}, and {count} cameras are given. '
            "Export the model with this batch, or with a symbolic one."
        )
    one = tensor_shape(TensorSpec(spec.name, spec.dtype, (1, *spec.shape[1:])), window, time_axis, dims)
    return np.zeros((count, *one[1:]), spec.dtype)


def _check_dtype(spec: TensorSpec, have: np.dtype[np.generic]) -> None:
    if not np.can_cast(have, spec.dtype, "same_kind"):
        raise RecipeError(
            f'The input "{spec}" cannot hold {have} values. '
            "Choose a front end that makes its type (image: dtype), or export the model with a float input."
        )


class SoundTrack:
    """One stream of sound after one front end: the rows that the windows of all inputs with that front end read.

    `capacity` is in rows. Without a front end a row is a sample. `time_last` says that the windows have their
    time axis last.
    """

    def __init__(
        self,
        capacity: int,
        front_end: SoundFrontEnd | None = None,
        width: int | None = None,
        *,
        time_last: bool = False,
    ) -> None:
        self.front_end = front_end
        self.row_shape = () if width is None else (width,)
        self.ring = Ring(capacity, self.row_shape, time_last=time_last)
        self.spent_ns = 0
        """Time that the front end has taken until now."""

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Take the next samples of the stream."""
        if self.front_end is None:
            self.ring.append(samples)
            return
        begin_ns = time.perf_counter_ns()
        rows = self.front_end.push(samples)
        self.spent_ns += time.perf_counter_ns() - begin_ns
        self.ring.append(rows)

    def reset(self) -> None:
        """The sound broke off: the next sample is the first of a new segment."""
        self.ring.reset()
        if self.front_end is not None:
            self.front_end.reset()


class AudioWindow:
    """The tensor of one sound input.

    `tensor` is the array to feed; it is owned by the window and changes with the next `fill`.
    """

    def __init__(self, spec: TensorSpec, track: SoundTrack, count: int, time_axis: int = 0, dims: Dims | None = None):
        _check_dtype(spec, np.dtype(np.float32))
        self._ring = track.ring
        self._count = count
        self.tensor, self._rows = _allocate(spec, (count, *track.row_shape), time_axis, dims or {})

    def fill(self, last_row: int) -> None:
        """Copy the window that ends with row `last_row`."""
        self._ring.read(last_row - self._count + 1, self._rows)


class PictureTrack:
    """The pictures of one stream after one front end, by sequence number.

    A picture passes the front end when a window first asks for it, so none is converted that no step sees, and none
    twice. They lie side by side in one array, so that a window of them is one call of numpy.
    """

    def __init__(self, front_end: PictureFrontEnd) -> None:
        self._front_end = front_end
        self.shape = front_end.shape
        self.dtype = front_end.dtype
        self._raw: dict[int, VideoFrame] = {}
        self.pool: Array = np.zeros((1, *self.shape), self.dtype)
        """The converted pictures, `[slots, *shape]`; the first is one of zeros, for those that are missing."""
        self.slots: dict[int | None, int] = {None: 0}
        """Where in the pool the converted pictures are."""
        self._free: list[int] = []

    def push(self, number: int, frame: VideoFrame) -> None:
        """Keep the picture with the sequence number `number`."""
        self._raw[number] = frame

    def convert(self, number: int) -> None:
        """Let a picture pass the front end, into the pool; raises KeyError if it was released."""
        frame = self._raw.pop(number)
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._front_end.prepare(frame.picture, frame.color, self.pool[slot])
        self.slots[number] = slot

    def release(self, floor: int) -> None:
        """Forget the pictures before `floor`."""
        for number in [n for n in self.slots if n is not None and n < floor]:
            self._free.append(self.slots.pop(number))
        for number in [n for n in self._raw if n < floor]:
            del self._raw[number]

    def _grow(self) -> None:
        # By half: how many pictures steps need at a time is known only from running.
        have = len(self.pool)
        pool = np.zeros((have + max(8, have // 2), *self.shape), self.dtype)
        pool[:have] = self.pool
        self.pool = pool
        self._free.extend(range(have, len(pool)))


class VideoWindow:
    """The tensor of one picture input; `tensor` is owned by the window and changes with the next `fill`.

    With `place`, a part of the tensor that several windows share, that is filled instead.
    """

    def __init__(
        self,
        spec: TensorSpec,
        track: PictureTrack,
        count: int,
        time_axis: int = 0,
        dims: Dims | None = None,
        place: Array | None = None,
    ):
        _check_dtype(spec, track.dtype)
        self._track = track
        window = (count, *track.shape)
        if place is None:
            self.tensor, self._rows = _allocate(spec, window, time_axis, dims or {})
        else:
            self.tensor, self._rows = place, _as_window(place, window, time_axis)
        self._is_direct = self._rows.dtype == track.dtype

    def prepare(self, numbers: Sequence[int | None]) -> None:
        """Let those of the pictures that are new pass the front end. Raises KeyError if one was released."""
        slots = self._track.slots
        for number in numbers:
            if number not in slots:
                self._track.convert(number)  # type: ignore[arg-type]  # None is always there

    def fill(self, numbers: Sequence[int | None]) -> None:
        """Copy the pictures, oldest first, after `prepare`; None is a picture of zeros."""
        slots = self._track.slots
        chosen = [slots[number] for number in numbers]
        if self._is_direct:
            # Without "clip" numpy would copy twice, to leave `out` as it was if a slot were out of range.
            self._track.pool.take(chosen, 0, self._rows, "clip")
        else:
            self._rows[...] = self._track.pool[chosen]


class HeldInput:
    """The tensor of an input that takes a constant, or the last output of another model.

    `tensor` is owned by this object; `fill` copies into it, so that the value outlives the engine's next run.
    """

    def __init__(self, spec: TensorSpec, dims: Dims | None = None) -> None:
        self._spec = spec
        sizes = [_fixed(d, dims or {}) for d in spec.shape]
        self.tensor: Array = np.zeros([1 if size is None else size for size in sizes], spec.dtype)
        self._open_axes = tuple(axis for axis, size in enumerate(sizes) if size is None)

    def fill(self, value: Array) -> None:
        """Copy `value`: of the tensor's shape, with dimensions of 1 more or less, or a single number for all.

        Symbolic dimensions follow the value. Raises RecipeError if it does not fit.
        """
        if value.shape != self.tensor.shape and self._follows(value.shape):
            self.tensor = np.empty(value.shape, self.tensor.dtype)
        if value.ndim and value.shape != self.tensor.shape:
            if [d for d in value.shape if d != 1] != [d for d in self.tensor.shape if d != 1]:
                raise RecipeError(
                    f'The input "{self._spec}" was given a value of shape {list(value.shape)}, '
                    f"expected {list(self.tensor.shape)}. Change value or from in the recipe."
                )
            value = value.reshape(self.tensor.shape)
        self.tensor[...] = value

    def _follows(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == self.tensor.ndim and all(
            axis in self._open_axes or have == want
            for axis, (have, want) in enumerate(zip(shape, self.tensor.shape, strict=True))
        )
