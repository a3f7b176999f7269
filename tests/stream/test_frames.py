from __future__ import annotations

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from edgemm.stream.frames import ns


@given(st.integers(-(1 << 62), 1 << 62), st.fractions(Fraction(1, 10**10), 10).filter(bool))
@example(1, Fraction(1, 2 * 10**9))
@example(3, Fraction(1, 2 * 10**9))
@example(-1, Fraction(1, 2 * 10**9))
@example(-3, Fraction(1, 2 * 10**9))
def test_nanoseconds_are_those_of_the_exact_fraction(pts: int, time_base: Fraction) -> None:
    assert ns(pts, time_base) == round(pts * time_base * 10**9)
