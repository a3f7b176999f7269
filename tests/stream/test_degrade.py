"""Who makes do with less when the engine is too slow, and who gets it back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.stream.degrade import JUDGED_STEPS, LONGEST_STAY_NS, STAY_NS, TOO_MANY, Degradation, Ladder

MS = 10**6
HOP_NS = 100 * MS


def overload(of: Degradation, model: str, time_ns: int, steps: int = TOO_MANY) -> int:
    """`steps` overloaded steps of `model`, one a hop; returns when the next is due."""
    for _ in range(steps):
        of.observe(model, time_ns, overloaded=True)
        time_ns += HOP_NS
    return time_ns


def calm(of: Degradation, model: str, time_ns: int, lasting_ns: int) -> int:
    until_ns = time_ns + lasting_ns
    while time_ns <= until_ns:
        of.observe(model, time_ns, overloaded=False)
        time_ns += HOP_NS
    return time_ns


def test_a_quarter_of_the_last_steps_is_too_many_and_less_is_not() -> None:
    one = Degradation({"av": Ladder(2)})
    for number in range(400):
        one.observe("av", number * HOP_NS, overloaded=number % 5 == 0)
    assert one.level("av") == 0
    other = Degradation({"av": Ladder(2)})
    for number in range(JUDGED_STEPS):
        other.observe("av", number * HOP_NS, overloaded=number % 4 == 0)
    assert other.level("av") == 1


def test_a_level_is_kept_for_a_while_and_given_back_in_calm() -> None:
    ladder = Degradation({"av": Ladder(1)})
    now_ns = overload(ladder, "av", 0)
    assert ladder.level("av") == 1
    now_ns = calm(ladder, "av", now_ns, STAY_NS - 3 * HOP_NS)
    assert ladder.level("av") == 1
    # One overloaded step begins the wait anew.
    now_ns = overload(ladder, "av", now_ns, 1)
    now_ns = calm(ladder, "av", now_ns, STAY_NS - 3 * HOP_NS)
    assert ladder.level("av") == 1
    calm(ladder, "av", now_ns, 3 * HOP_NS)
    assert ladder.level("av") == 0
    assert ladder.changes == {"av": 1}


def test_there_is_no_level_below_the_last() -> None:
    ladder = Degradation({"av": Ladder(1), "fixed": Ladder(0)})
    overload(ladder, "av", 0, 100)
    assert (ladder.level("av"), ladder.level("fixed")) == (1, 0)


def test_a_machine_that_is_just_too_slow_settles() -> None:
    # Too slow at level 0, fast enough at level 1: every return is punished, and waits longer.
    ladder = Degradation({"av": Ladder(1)})
    returns = []
    before = 0
    for number in range(6000):
        time_ns = number * HOP_NS
        ladder.observe("av", time_ns, overloaded=ladder.level("av") == 0)
        if before == 1 and ladder.level("av") == 0:
            returns.append(time_ns)
        before = ladder.level("av")
    gaps = [later - earlier for earlier, later in pairwise(returns)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 2 * STAY_NS
    assert gaps[-1] >= LONGEST_STAY_NS
    assert len(returns) < 6000 * HOP_NS // LONGEST_STAY_NS + 5


def test_the_least_important_gives_way_and_the_most_important_comes_back_first() -> None:
    ladder = Degradation({"vad": Ladder(1, priority=5), "av": Ladder(1), "extra": Ladder(1, priority=-1)})
    now_ns = overload(ladder, "vad", 0)
    assert [ladder.level(m) for m in ("vad", "av", "extra")] == [0, 0, 1]
    now_ns = overload(ladder, "vad", now_ns)
    assert [ladder.level(m) for m in ("vad", "av", "extra")] == [0, 1, 1]
    now_ns = overload(ladder, "av", now_ns)
    assert [ladder.level(m) for m in ("vad", "av", "extra")] == [1, 1, 1]
    now_ns = calm(ladder, "vad", now_ns, STAY_NS)
    assert [ladder.level(m) for m in ("vad", "av", "extra")] == [0, 1, 1]
    now_ns = calm(ladder, "vad", now_ns, STAY_NS)
    assert [ladder.level(m) for m in ("vad", "av", "extra")] == [0, 0, 1]


def test_among_equals_the_one_that_suffers_gives_way() -> None:
    ladder = Degradation({"one": Ladder(1), "two": Ladder(1), "three": Ladder(1)})
    overload(ladder, "two", 0)
    assert [ladder.level(m) for m in ("one", "two", "three")] == [0, 1, 0]
    overload(ladder, "two", 10**10)
    assert [ladder.level(m) for m in ("one", "two", "three")] == [0, 1, 1]


@settings(max_examples=100)
@given(
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000), st.booleans()), max_size=300),
    levels=st.tuples(*[st.integers(0, 3)] * 3),
)
def test_levels_stay_on_their_ladder_and_move_one_at_a_time(
    steps: list[tuple[str, int, bool]], levels: tuple[int, int, int]
) -> None:
    def run() -> list[tuple[int, ...]]:
        ladder = Degradation({name: Ladder(n, n % 2) for name, n in zip("abc", levels, strict=True)})
        seen, time_ns = [(0, 0, 0)], 0
        for model, later_ms, overloaded in steps:
            time_ns += later_ms * MS
            ladder.observe(model, time_ns, overloaded=overloaded)
            seen.append(tuple(ladder.level(name) for name in "abc"))
        return seen

    seen = run()
    assert seen == run()
    for before, after in pairwise(seen):
        assert sum(abs(a - b) for a, b in zip(before, after, strict=True)) <= 1
    assert all(0 <= have <= most for row in seen for have, most in zip(row, levels, strict=True))
