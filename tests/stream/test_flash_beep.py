"""Flashes, beeps and what they say together: on made signals whose truth is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.errors import SourceError
from edgemm.stream import flash_beep
from edgemm.stream.flash_beep import FPS, Flash, chirp, find_beeps, find_flashes, measure, schedule, sound

RATE_HZ = 16000
SECOND = 10**9


def filmed(
    fps: float, exposure_s: float, phase_s: float, *, seconds: float = 20.0, noise: float = 1.0, seed: int = 0
) -> tuple[list[int], list[float]]:
    """Times (middle of the exposure) and means of what a camera sees of a screen that shows the clip."""
    random = np.random.default_rng(seed)
    shown = np.zeros(round(seconds * FPS))
    for at in schedule(seconds):
        shown[at : at + 6] = 1.0
    # Light that has fallen until each 1/6000 s.
    light = np.concatenate(([0.0], np.cumsum(np.repeat(shown, 100)))) / 6000
    grid = np.arange(len(light)) / 6000
    middles = np.arange(phase_s + 1 / fps, seconds - 1 / fps, 1 / fps)
    until, since = (np.interp(middles + side * exposure_s / 2, grid, light) for side in (1, -1))
    means = 30 + 60 * (until - since) / exposure_s + random.normal(0, noise, len(middles))
    return [round(t * SECOND) for t in middles], means.tolist()


def heard(seconds: float = 20.0, *, noise: float = 0.02, offset_ms: float = 0.0, seed: int = 0) -> np.ndarray:
    """The clip's sound in a room: weaker, with an echo and noise, the other way round."""
    samples = sound(seconds, RATE_HZ, offset_ms) * -0.2
    echo = np.concatenate((np.zeros(400, np.float32), samples[:-400])) * 0.5
    random = np.random.default_rng(seed)
    return (samples + echo + random.normal(0, noise, len(samples))).astype(np.float32)


def beeps_ns(samples: np.ndarray) -> list[int]:
    return [at * SECOND // RATE_HZ for at in find_beeps(samples, RATE_HZ)]


def test_the_clip_is_irregular_and_its_events_far_apart() -> None:
    gaps = np.diff(schedule(30))
    assert len(gaps) >= 20
    assert gaps.min() >= 54
    assert 0.25 < np.mean(gaps % 2) < 0.75, "both phases of a camera at half the rate"
    assert len(set(gaps.tolist())) > 10


@pytest.mark.parametrize("offset_ms", [-120, -33.3, 0, 80, 120])
def test_a_clip_that_is_fed_is_measured_within_a_millisecond(offset_ms: float) -> None:
    times_ns = [number * SECOND // FPS for number in range(30 * FPS)]
    means = [float(p.mean()) for p in flash_beep.pictures(30, 16, 9)]
    skew = measure(find_flashes(times_ns, means), beeps_ns(sound(30, RATE_HZ, offset_ms)))
    assert skew.offset_ms == pytest.approx(-offset_ms, abs=0.1)
    assert skew.events == skew.flashes == skew.beeps == len(schedule(30))
    assert skew.spread_ms < 0.1


@settings(max_examples=12)
@given(
    st.sampled_from([15.0, 24.0, 25.0, 29.97, 30.0, 60.0]),
    st.floats(0.1, 1.0),
    st.floats(0.0, 1.0),
    st.floats(-150, 150),
    st.integers(0, 1000),
)
def test_a_screen_that_is_filmed_is_measured_within_its_uncertainty(
    fps: float, exposed: float, phase: float, offset_ms: float, seed: int
) -> None:
    times_ns, means = filmed(fps, exposed / fps, phase / fps, seed=seed)
    skew = measure(find_flashes(times_ns, means), beeps_ns(heard(offset_ms=offset_ms, seed=seed)))
    assert skew.events >= 12
    assert abs(skew.offset_ms + offset_ms) < skew.uncertain_ms + 3
    # The clip's events fall on several phases of all cameras but those at its own rate.
    assert skew.uncertain_ms < (17 if fps in (15.0, 60.0) else 12)


def test_false_and_missing_events_do_no_harm() -> None:
    times_ns, means = filmed(30, 0.02, 0.004, noise=2.0)
    levels = np.array(means)
    levels[300:] += 40  # a light is switched on,
    levels[500:] -= 55  # and another off,
    for at in (130, 333, 555):
        levels[at : at + 3] += 60  # somebody else's flash
    samples = heard()
    for at in schedule(20)[::4]:
        samples[at * RATE_HZ // FPS :][: RATE_HZ // 2] = 0  # a beep is not heard,
    for second in (3.3, 9.1, 17.7):
        samples[round(second * RATE_HZ) :][:960] += 0.3 * chirp(RATE_HZ)  # another is false
    skew = measure(find_flashes(times_ns, levels.tolist()), beeps_ns(samples))
    assert abs(skew.offset_ms) < skew.uncertain_ms + 3
    assert skew.events >= 8


def test_other_sounds_and_lights_are_no_events() -> None:
    random = np.random.default_rng(3)
    time_s = np.arange(20 * RATE_HZ) / RATE_HZ
    for samples in (
        random.normal(0, 0.3, len(time_s)),
        np.sin(2 * np.pi * 1500 * time_s) * (time_s % 1 < 0.06),
        np.zeros(len(time_s)),
    ):
        assert find_beeps(samples.astype(np.float32), RATE_HZ) == []
    assert find_beeps(np.zeros(10, np.float32), RATE_HZ) == []
    times_ns = [number * SECOND // 30 for number in range(600)]
    assert find_flashes(times_ns[:2], [0.0, 255.0]) == []
    assert find_flashes(times_ns, random.normal(100, 3, 600).tolist()) == []
    steady = np.where(np.arange(600) // 60 % 2, 200.0, 20.0)  # a light, two seconds on, two off
    assert find_flashes(times_ns, steady.tolist()) == []
    unfinished = [20.0] * 599 + [200.0]
    assert len(find_flashes(times_ns, unfinished)) <= 1


@pytest.mark.parametrize(
    ("flashes", "beeps", "said"),
    [
        (0, 20, "No flash was found .0 flashes, 20 beeps.: is the clip playing. Let the screen fill more"),
        (20, 0, "No beep was found .20 flashes, 0 beeps.: is the clip playing. Turn the volume up"),
        (4, 20, "4 flashes and 20 beeps were found; expected at least 5. Play the clip full-screen"),
        (20, 20, "20 flashes and 20 beeps were found, of which [1-6] fit together"),
    ],
)
def test_too_few_events_are_one_sentence(flashes: int, beeps: int, said: str) -> None:
    random = np.random.default_rng(1)
    shown = [Flash(at - 33_000_000, at) for at in sorted(random.integers(0, 100 * SECOND, flashes).tolist())]
    with pytest.raises(SourceError, match=said):
        measure(shown, random.integers(0, 100 * SECOND, beeps).tolist())


def test_where_chirps_begin_to_the_sample() -> None:
    samples = sound(30, RATE_HZ, 12.0)
    found = find_beeps(samples, RATE_HZ)
    assert found == [round((at / FPS + 0.012) * RATE_HZ) for at in schedule(30)]
    assert all(b - a > 0.5 * RATE_HZ for a, b in pairwise(found))
    assert find_beeps(-samples, RATE_HZ) == found, "a microphone's polarity is anybody's guess"
