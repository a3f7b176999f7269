from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.stream.drift import MIN_BUCKETS, ClockFit
from edgemm.stream.frames import AudioChunk
from edgemm.stream.retime import BEGIN_NS, Retimer
from edgemm.stream.sources.level import LevelMeter
from edgemm.stream.sources.protocol import AudioWant
from edgemm.stream.sources.sample_ring import Block
from edgemm.stream.sources.sound_frames import SoundFrames

HOUR_S = 3600
MS = 1_000_000
START_NS = 10**15
"""The machine's clock counts from its boot, the source's from anything."""


def residuals_ns(ppm: float, *, late_only: bool, per_second: int, seed: int, seconds: int = HOUR_S) -> np.ndarray:
    """True minus mapped time of every observation of a clock that is `ppm` fast, its stamps noisy, some far off."""
    random = np.random.default_rng(seed)
    host_ns = START_NS + np.arange(seconds * per_second) * (10**9 // per_second)
    source_ns = ((host_ns - START_NS) * (1 + ppm * 1e-6)).astype(np.int64)
    if late_only:
        # A network: 1 ms to arrive at best, usually some more, now and then much more.
        seen_ns = host_ns + random.exponential(3 * MS, len(host_ns)).astype(np.int64)
        seen_ns += (random.random(len(host_ns)) < 0.01) * 200 * MS
    else:
        seen_ns = host_ns + random.normal(0, 1 * MS, len(host_ns)).astype(np.int64)
        seen_ns += (random.random(len(host_ns)) < 0.01) * random.integers(-50, 50, len(host_ns)) * MS
    fit = ClockFit(late_only=late_only)
    errors = np.empty(len(host_ns))
    for number, (source, seen) in enumerate(zip(source_ns.tolist(), seen_ns.tolist(), strict=True)):
        fit.observe(source, seen)
        errors[number] = fit.map(source) - int(host_ns[number])
    assert fit.drift_ppm == pytest.approx(ppm, abs=10)
    assert fit.jitter_ns == pytest.approx(1 * MS if not late_only else 2.5 * MS, rel=0.5)
    return errors


def sound_errors_ns(ppm: float, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """True times of the sound that `SoundFrames` gives, and assigned minus true time, of a microphone `ppm` fast."""
    random = np.random.default_rng(1)
    rate_hz, size = 8000, 800
    # The session began a second before.
    begin_ns = START_NS - 10**9
    frames = SoundFrames(AudioWant("mic", rate_hz), rate_hz, ClockFit(), begin_ns, LevelMeter("mic"), broken=False)
    block = np.ones((size, 1), np.int16)
    true_ns, errors = [], []
    taken = 0
    for number in range(seconds * rate_hz // size):
        # What the device counts as 100 ms lasts a little more or less; the driver's stamps scatter by a millisecond.
        captured_ns = START_NS + round(number * size * 1e9 / rate_hz / (1 + ppm * 1e-6))
        stamp_ns = captured_ns + round(random.normal(0, 1 * MS))
        if random.random() < 0.01:
            stamp_ns += int(random.integers(-50, 50)) * MS
        for chunk in frames.push(Block(number * size, block, stamp_ns)):
            assert isinstance(chunk, AudioChunk), "nothing is lost"
            # Chunks are the blocks in their order, some a sample longer or shorter.
            begun_ns = round(taken * size * 1e9 / rate_hz / (1 + ppm * 1e-6))
            taken += 1
            true_ns.append(begun_ns)
            errors.append(chunk.capture_ns - 10**9 - begun_ns)
    return np.array(true_ns), np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("ppm", [-500, -200, -50, 50, 200, 500])
def test_an_hour_of_drift_leaves_milliseconds_between_sound_and_picture(ppm: float) -> None:
    true_ns, sound = sound_errors_ns(ppm, HOUR_S)
    # The camera's crystal is off the other way.
    picture = residuals_ns(-ppm, late_only=True, per_second=10, seed=2)
    shown_ns = np.arange(len(picture)) * 10**8
    skew = np.interp(shown_ns, true_ns, sound) - picture
    # The first two seconds have little to go by; from then on it is bounded.
    skew = np.abs(skew[20:]) / MS
    assert skew.max() < 5
    assert np.percentile(skew, 99) < 2


@pytest.mark.parametrize("ppm", [-500, -200, -50, 50, 200, 500])
def test_ten_minutes_of_drift_leave_milliseconds(ppm: float) -> None:
    sound = residuals_ns(ppm, late_only=False, per_second=10, seed=1, seconds=600)
    picture = residuals_ns(ppm, late_only=True, per_second=10, seed=2, seconds=600)
    skew = np.abs(sound - picture)[20:]
    assert skew.max() < 3 * MS
    assert np.percentile(skew, 99) < 1 * MS


@settings(max_examples=8)
@given(st.floats(-500, 500), st.booleans(), st.integers(0, 10**6))
def test_any_drift_is_found(ppm: float, late_only: bool, seed: int) -> None:
    errors = residuals_ns(ppm, late_only=late_only, per_second=20, seed=seed, seconds=120)
    assert np.abs(errors[20 * 70 :]).max() < 3 * MS


def test_nothing_is_said_before_enough_is_known() -> None:
    fit = ClockFit()
    assert not fit.is_ready
    assert fit.jitter_ns == 0
    fit.observe(5, 1005)
    assert fit.is_ready
    assert fit.map(105) == 1105
    assert fit.drift_ppm is None
    for second in range(MIN_BUCKETS + 1):
        fit.observe(10**9 * (second + 1), 10**9 * (second + 1) + 1000)
    assert fit.drift_ppm == pytest.approx(0, abs=0.01)
    fit.reset()
    assert not fit.is_ready


@settings(max_examples=30)
@given(st.floats(-500, 500), st.sampled_from([8000, 16000, 44100, 48000]))
def test_sound_is_kept_in_step(ppm: float, rate_hz: int) -> None:
    retimer = Retimer(rate_hz)
    size = rate_hz // 100
    block = np.linspace(-1, 1, size, dtype=np.float32)
    retimer.begin(0)
    seconds = 60
    for number in range(seconds * 100):
        # What the device counts as 10 ms lasts a little more or less.
        capture_ns = round(number * 10**7 / (1 + ppm * 1e-6))
        assert abs(retimer.next_ns - capture_ns) <= BEGIN_NS + 10**7
        given_block = retimer.push(block, capture_ns)
        assert abs(len(given_block) - size) <= 1
        assert given_block[0] == block[0]
        assert given_block[-1] == block[-1]
    assert abs(retimer.next_ns - round(seconds * 10**9 / (1 + ppm * 1e-6))) <= BEGIN_NS + 2 * 10**9 // rate_hz
    assert retimer.corrected >= (abs(ppm) * 1e-6 * seconds - 0.002) * rate_hz


def test_sound_in_step_is_left_alone() -> None:
    retimer = Retimer(16000)
    retimer.begin(7)
    block = np.arange(160, dtype=np.float32)
    for number in range(1000):
        assert retimer.push(block, 7 + number * 10**7 + (-1) ** number * 10**6) is block
    assert retimer.corrected == 0
