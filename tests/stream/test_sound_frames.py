from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.stream.drift import ClockFit
from edgemm.stream.frames import AudioChunk, Event, Lost
from edgemm.stream.sources.level import LevelMeter
from edgemm.stream.sources.protocol import AudioWant
from edgemm.stream.sources.sample_ring import Block, SampleRing
from edgemm.stream.sources.sound_frames import WARM_UP, SoundFrames

RATE_HZ = 16000
SIZE = 160
MS = 1_000_000
HOST_NS = 10**14
WANT = AudioWant("mic", RATE_HZ)


def blocks(count: int, *, ppm: float = 0.0, first: int = 0, host_ns: int = HOST_NS, channels: int = 1) -> list[Block]:
    """Blocks of a device that counts `ppm` too fast; each sample is its number."""
    made = []
    for number in range(count):
        begin = number * SIZE
        samples = np.repeat(((begin + np.arange(SIZE)) % 30000).astype(np.int16)[:, None], channels, axis=1)
        made.append(Block(first + begin, samples, host_ns + round(begin * 1e9 / RATE_HZ / (1 + ppm * 1e-6))))
    return made


def frames(delivered: Sequence[Block], *, rate_hz: int = RATE_HZ, want: AudioWant = WANT) -> list[Event]:
    sound = SoundFrames(want, rate_hz, ClockFit(), HOST_NS, LevelMeter("mic"), broken=False)
    events = [event for block in delivered for event in sound.push(block)]
    return [*events, *sound.flush()]


def chunks(events: Sequence[Event]) -> list[AudioChunk]:
    return [event for event in events if isinstance(event, AudioChunk)]


def lost(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(event.cause, event.count) for event in events if isinstance(event, Lost)]


def shifted(delivered: Sequence[Block], by_ns: int) -> Iterator[Block]:
    return (block._replace(host_ns=block.host_ns + by_ns) for block in delivered)


def test_samples_pass_untouched_and_their_times_are_counted() -> None:
    events = frames(blocks(500))
    sound = np.concatenate([chunk.samples for chunk in chunks(events)])
    np.testing.assert_array_equal(sound * 32768, np.arange(500 * SIZE) % 30000)
    assert [chunk.capture_ns for chunk in chunks(events)] == [number * 10 * MS for number in range(500)]
    assert len(events) == 500
    assert not any(chunk.discontinuity for chunk in chunks(events))


def test_the_first_timestamps_may_be_wrong_and_single_ones_later_too() -> None:
    delivered = blocks(500)
    bad = [*shifted(delivered[:2], -8 * MS), *delivered[2:]]
    bad[100:102] = shifted(bad[100:102], 60 * MS)
    assert [c.capture_ns for c in chunks(frames(bad))] == [number * 10 * MS for number in range(500)]
    assert lost(frames(bad)) == []


def test_what_came_before_the_session_is_no_part_of_it() -> None:
    events = frames(blocks(50, host_ns=HOST_NS - 200 * MS))
    assert len(events) == 30
    assert chunks(events)[0].capture_ns == 0


@pytest.mark.parametrize("ppm", [-500, -200, 200, 500])
def test_sound_of_a_drifting_crystal_stays_in_step(ppm: float) -> None:
    seconds = 100
    events = chunks(frames(blocks(seconds * 100, ppm=ppm, host_ns=HOST_NS + 50 * MS)))
    # Counted time against true time: the scheduler counts samples.
    samples = np.cumsum([0, *(len(chunk.samples) for chunk in events)])
    counted = events[0].capture_ns + samples * 1e9 / RATE_HZ
    true = 50 * MS + np.arange(len(samples)) * 1e7 / (1 + ppm * 1e-6)
    assert np.abs(counted - true).max() < 5 * MS
    assert not any(chunk.discontinuity for chunk in events)
    assert abs(events[-1].capture_ns - counted[-2]) < 100


@settings(max_examples=15)
@given(st.integers(16, 2000), st.integers(WARM_UP + 1, 200))
def test_sound_that_the_driver_lost_is_found_by_its_clock(gap_ms: int, at: int) -> None:
    # The count goes on as if nothing had been; only the times tell.
    delivered = blocks(300)
    events = frames([*delivered[:at], *shifted(delivered[at:], gap_ms * MS)])
    [(cause, count)] = lost(events)
    assert cause == "driver_lost"
    assert count == pytest.approx(gap_ms / 10, abs=0.6)
    sound = chunks(events)
    assert [chunk.discontinuity for chunk in sound] == [number == at for number in range(300)]
    assert sound[at].capture_ns == pytest.approx((at * 10 + gap_ms) * MS, abs=MS // 10)
    assert len(sound) == 300


def test_what_found_no_room_in_the_ring_is_counted() -> None:
    delivered = blocks(100)
    events = frames([*delivered[:40], *delivered[65:]])
    assert lost(events) == [("overrun", 25)]
    assert [c.capture_ns for c in chunks(events) if c.discontinuity] == [650 * MS]


def test_a_clock_that_is_set_back_begins_a_segment() -> None:
    delivered = blocks(200)
    events = frames([*delivered[:100], *shifted(delivered[100:], -500 * MS)])
    assert lost(events) == []
    assert [c.capture_ns for c in chunks(events) if c.discontinuity] == [500 * MS]


def test_channels_are_averaged_and_rates_converted() -> None:
    stereo = [block._replace(samples=block.samples * np.array([1, 0], np.int16)) for block in blocks(60, channels=2)]
    sound = np.concatenate([chunk.samples for chunk in chunks(frames(stereo))])
    np.testing.assert_allclose(sound * 65536, np.arange(60 * SIZE), atol=0.01)
    low = chunks(frames(blocks(60), want=AudioWant("mic", 8000)))
    assert sum(len(chunk.samples) for chunk in low) == pytest.approx(60 * SIZE / 2, abs=64)
    assert {chunk.rate_hz for chunk in low} == {8000}


def test_the_ring_wraps_drops_and_says_so() -> None:
    ring = SampleRing(400, 2)
    rows = np.arange(320, dtype=np.int16).reshape(160, 2)
    for _ in range(3):
        ring.write(rows.tobytes(), 160, 7)
    assert (ring.read(0.1), ring.read(0.1)) != (None, None)
    assert ring.read(0.001) is None, "the third found no room"
    for number in range(20):
        ring.write((rows + number).tobytes(), 160, number)
        block = ring.read(0.1)
        assert block is not None
        assert (block.first, block.host_ns) == (480 + number * 160, number)
        np.testing.assert_array_equal(block.samples, rows + number)
