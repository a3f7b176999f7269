from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from edgemm.stream.sync import AudioNeed, PictureTimes, VideoNeed, samples_until

captures = st.lists(st.integers(0, 2_000), unique=True, max_size=40).map(sorted)
needs = st.builds(
    VideoNeed,
    stream=st.just("camera"),
    count=st.integers(1, 6),
    spacing_ns=st.integers(1, 300),
    missing=st.sampled_from(["repeat", "zeros", "skip"]),
)


@given(captures, st.integers(-50, 2_200), needs)
def test_pictures_are_those_that_the_rule_names(captures_ns: list[int], time_ns: int, need: VideoNeed) -> None:
    stale_ns = 400
    chosen = PictureTimes(captures_ns).select(time_ns, need, stale_ns)
    past = [c for c in captures_ns if c <= time_ns]
    is_stale = bool(past) and time_ns - past[-1] > stale_ns
    if not past or (is_stale and need.missing != "repeat"):
        assert chosen == ([None] * need.count if need.missing == "zeros" else None)
        return
    expected: list[int | None] = []
    for place in range(need.count - 1, -1, -1):
        target = past[-1] - place * need.spacing_ns
        nearest = min(past, key=lambda c: (abs(c - target), c))
        if 2 * abs(nearest - target) <= need.spacing_ns:
            expected.append(nearest)
        elif need.missing == "skip":
            assert chosen is None
            return
        elif need.missing == "zeros":
            expected.append(None)
        else:
            earlier = [c for c in past if c <= target]
            expected.append(earlier[-1] if earlier else past[0])
    assert chosen is not None
    assert [None if i is None else captures_ns[i] for i in chosen] == expected


@given(captures, st.integers(0, 2_200), st.integers(0, 500), needs)
def test_pictures_that_are_released_are_never_asked_for_again(
    captures_ns: list[int], time_ns: int, later_ns: int, need: VideoNeed
) -> None:
    # Released at a step's time, when the pictures up to there had come; asked at any later time with more of them.
    come = [c for c in captures_ns if c <= time_ns]
    first = PictureTimes(come).first_needed(time_ns, need)
    whole = PictureTimes(captures_ns).select(time_ns + later_ns, need, 400)
    kept = captures_ns[first:]
    times = PictureTimes(captures_ns)
    times.drop(first)
    assert times.captures_ns == kept
    pruned = times.select(time_ns + later_ns, need, 400)
    as_captures = lambda seen, chosen: chosen and [None if i is None else seen[i] for i in chosen]  # noqa: E731
    assert as_captures(captures_ns, whole) == as_captures(kept, pruned)


def test_eight_pictures_at_25_a_second_40_ms_apart_are_the_last_eight() -> None:
    captures_ns = [n * 40_000_000 for n in range(30)]
    need = VideoNeed("camera", 8, 40_000_000)
    assert PictureTimes(captures_ns).select(29 * 40_000_000 + 7, need, 0) == list(range(22, 30))


def test_at_the_start_the_first_picture_stands_for_those_before_it() -> None:
    need = VideoNeed("camera", 4, 40)
    assert PictureTimes([100, 140]).select(150, need, 0) == [0, 0, 0, 1]


@given(st.integers(1, 10**6), st.integers(8000, 48000), st.integers(1, 2000), st.integers(0, 10**12))
def test_a_hop_in_samples_is_exact_for_ever(step: int, rate_hz: int, hop_samples: int, start_ns: int) -> None:
    hop_ns = Fraction(hop_samples * 10**9, rate_hz)
    time_num = start_ns * hop_ns.denominator + step * hop_ns.numerator
    assert samples_until(time_num, hop_ns.denominator, start_ns, rate_hz) == step * hop_samples


@given(st.integers(-100, 5000), st.integers(1, 300), st.integers(1, 500), st.integers(0, 600))
def test_a_row_counts_when_its_last_sample_is_there(
    samples: int, hop_samples: int, first_samples: int, warmup_samples: int
) -> None:
    need = AudioNeed("mic", 1, hop_samples, first_samples, warmup_samples=warmup_samples)
    row = need.last_row(samples)
    assert row >= -1
    if row >= 0:
        assert need.end_sample(row) <= samples
        assert samples >= warmup_samples
    if samples >= warmup_samples:
        assert need.end_sample(row + 1) > samples


def test_the_span_of_one_second_of_log_mel() -> None:
    assert AudioNeed("mic", 100, 160, 400, 400).span_samples == 99 * 160 + 400
    assert AudioNeed("mic", 576).span_samples == 576
