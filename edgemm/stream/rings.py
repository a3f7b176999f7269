"""A ring of the newest rows of a stream: samples, or frames of a front end."""

from __future__ import annotations

import numpy as np

from edgemm.types import Array


class Ring:
    """The newest `capacity` rows, addressed by their index since the last reset.

    A row is a sample (`row_shape` is ()) or a frame of a front end (`row_shape` is (n_mels,)). Nothing is allocated
    after construction. `time_last` lays the memory out as the windows that are read want it: a window whose time axis
    is the last is then copied in runs of its length instead of number by number.
    """

    def __init__(
        self, capacity: int, row_shape: tuple[int, ...] = (), dtype: str = "float32", *, time_last: bool = False
    ) -> None:
        self.capacity = capacity
        self.end = 0
        """Index of the next row to come: the number of rows since the last reset."""
        self._rows: Array = np.zeros((capacity, *row_shape), dtype, order="F" if time_last else "C")

    @property
    def begin(self) -> int:
        """Index of the oldest row that is still held."""
        return max(0, self.end - self.capacity)

    def append(self, rows: Array) -> None:
        """Copy in `rows`, `[n, *row_shape]`; the oldest fall out. More than `capacity` rows leave the newest."""
        count = len(rows)
        if count > self.capacity:
            self.end += count - self.capacity
            rows = rows[count - self.capacity :]
            count = self.capacity
        at = self.end % self.capacity
        head = self.capacity - at
        if count <= head:
            self._rows[at : at + count] = rows
        else:
            self._rows[at:] = rows[:head]
            self._rows[: count - head] = rows[head:]
        self.end += count

    def read(self, first: int, out: Array) -> None:
        """Copy rows `[first, first + len(out))` to `out`, cast to its dtype; rows before index 0 read as zeros.

        Raises IndexError if a row has not come yet or has fallen out.
        """
        last = first + len(out)
        if last > self.end or max(first, 0) < self.begin:
            raise IndexError(f"rows [{first}, {last}) asked for, [{self.begin}, {self.end}) are held")
        if first < 0:
            blank = min(-first, len(out))
            out[:blank] = 0
            out = out[blank:]
            first = 0
            if not len(out):
                return
        count = len(out)
        at = first % self.capacity
        head = self.capacity - at
        if count <= head:
            out[:] = self._rows[at : at + count]
        else:
            out[:head] = self._rows[at:]
            out[head:] = self._rows[: count - head]

    def reset(self) -> None:
        """Forget every row; the next one has index 0."""
        self.end = 0
