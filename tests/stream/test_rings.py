from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemm.stream.rings import Ring


@given(
    capacity=st.integers(1, 20),
    pushes=st.lists(st.integers(0, 45), max_size=12),
    window=st.integers(1, 25),
    back=st.integers(0, 25),
)
def test_a_ring_is_the_tail_of_all_that_was_appended(capacity: int, pushes: list[int], window: int, back: int) -> None:
    ring = Ring(capacity, (2,))
    history = np.zeros((0, 2), np.float32)
    for count in pushes:
        rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2) + 1 + 100 * len(history)
        ring.append(rows)
        history = np.concatenate((history, rows))
    assert ring.end == len(history)
    assert ring.begin == max(0, len(history) - capacity)

    first = len(history) - back - window
    out = np.full((window, 2), -1.0)
    if (back == 0 and window <= capacity) or (first >= ring.begin and first + window <= ring.end):
        ring.read(first, out)
        before = np.zeros((max(0, -first), 2))
        assert np.array_equal(out, np.concatenate((before, history[max(0, first) :]))[:window])


@given(st.integers(1, 8), st.integers(0, 30))
def test_rows_that_are_not_held_are_refused(capacity: int, count: int) -> None:
    ring = Ring(capacity)
    ring.append(np.arange(count, dtype=np.float32))
    with pytest.raises(IndexError, match="are held"):
        ring.read(count, np.empty(1))
    if count > capacity:
        with pytest.raises(IndexError, match="asked for"):
            ring.read(count - capacity - 1, np.empty(1))


def test_a_reset_ring_begins_anew_and_never_shows_old_rows() -> None:
    ring = Ring(4)
    ring.append(np.ones(9, np.float32))
    ring.reset()
    ring.append(np.full(2, 5, np.float32))
    out = np.empty(4)
    ring.read(-2, out)
    assert out.tolist() == [0, 0, 5, 5]
    ring.read(-4, out)
    assert out.tolist() == [0, 0, 0, 0]


def test_reading_casts_to_the_tensor() -> None:
    ring = Ring(4)
    ring.append(np.array([0.5, 1.5], np.float32))
    out = np.empty(2, np.float16)
    ring.read(0, out)
    assert out.tolist() == [0.5, 1.5]
