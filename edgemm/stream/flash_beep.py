"""Flash and beep: how much later a camera stamps its pictures than a microphone its sound, from what both notice.

A clip (`pictures`, `sound`) shows a white flash and sounds a chirp at the same moment, again and again at irregular
distances. Flashes are found as steps of the mean luminance that fall back after a tenth of a second, chirps by a
matched filter (normalised correlation). Only differences that many events share count, so a light that is switched on,
a voice, a flash missed or a chirp missed do no harm: with irregular distances wrong pairs agree with nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemm.errors import SourceError

FLASH_S = 0.1
"""Three pictures of a camera at 30 per second: one may be lost."""

CHIRP_S = 0.06
CHIRP_HZ = (1000.0, 4000.0)
"""What the smallest speaker plays and every microphone hears. A sweep's correlation has one peak, a tone's many."""

FPS = 60
"""The clip's. Flashes fall on whole pictures of it, at distances that are odd and even: with a camera of 30 per second
both phases occur, and tell where between two of its pictures the flash began."""

GAPS = (54, 90)
"""Pictures of the clip between two events: at least 0.9 s, so that offsets up to 0.45 s cannot be mistaken."""

MOST_OFFSET_S = 0.45
MIN_EVENTS = 5
MIN_CORRELATION = 0.4
"""The correlation of noise with the chirp stays under 0.35; a room's echo leaves 0.5 to 0.9."""

BASE_NS = 500_000_000
MIN_STEP = 2.0
"""Levels of 255 that the mean must rise; a phone held before the camera gives 20 to 150."""

SIGMAS = 6
JITTER_NS = 10_000_000
"""What timestamps may scatter by, beside the time between two pictures, among pairs that count as the same offset."""

LOCKED = 0.25
"""Where the phases of the pictures against the flashes cover less than this part of a period, they say nothing."""


@dataclass(frozen=True)
class Flash:
    """A flash as a camera saw it: it began after the picture `before_ns` and no later than the picture `time_ns`."""

    before_ns: int
    time_ns: int


@dataclass(frozen=True)
class Skew:
    """What the events of a measurement say."""

    offset_ms: float
    """How much later pictures are stamped than sound; negative: earlier."""
    spread_ms: float
    """Scatter (1 sigma) of the single events."""
    uncertain_ms: float
    """How far the truth may be off, for all that the time between two pictures leaves open."""
    events: int
    flashes: int
    beeps: int


def schedule(seconds: float) -> list[int]:
    """The pictures of the clip at which an event begins."""
    gaps = np.random.default_rng(2024).integers(GAPS[0], GAPS[1] + 1, max(1, round(seconds * FPS)))
    times = np.cumsum(gaps)
    return [int(at) for at in times[times < (seconds - 0.5) * FPS]]


def pictures(seconds: float, width: int, height: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The clip's pictures, gray `[height, width]`: black, and white for a tenth of a second."""
    lit = {at + number for at in schedule(seconds) for number in range(round(FLASH_S * FPS))}
    black, white = np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8)
    for number in range(round(seconds * FPS)):
        yield white if number in lit else black


def sound(seconds: float, rate_hz: int, offset_ms: float = 0.0) -> npt.NDArray[np.float32]:
    """The clip's sound `[n]`: a chirp with each flash, `offset_ms` after it."""
    samples = np.zeros(round(seconds * rate_hz), np.float32)
    wave = 0.8 * chirp(rate_hz)
    for at in schedule(seconds):
        first = round((at / FPS + offset_ms / 1e3) * rate_hz)
        samples[first : first + len(wave)] += wave[: len(samples) - first]
    return samples


def chirp(rate_hz: int) -> npt.NDArray[np.float32]:
    """The sound of an event, float32 `[n]` in [-1, 1]: a linear sweep whose ends are faded over 3 ms."""
    time_s = np.arange(round(CHIRP_S * rate_hz)) / rate_hz
    low, high = CHIRP_HZ
    wave = np.sin(2 * np.pi * (low * time_s + (high - low) * time_s**2 / (2 * CHIRP_S)))
    fade = np.minimum(1.0, np.minimum(time_s, CHIRP_S - time_s) / 0.003)
    faded: npt.NDArray[np.float32] = (wave * fade).astype(np.float32)
    return faded


def find_flashes(times_ns: Sequence[int], means: Sequence[float]) -> list[Flash]:
    """The flashes in pictures captured at `times_ns` (ascending) whose mean luminances (0 to 255) are `means`."""
    levels = np.asarray(means, float)
    if len(levels) < 3:
        return []
    noise = 1.4826 * float(np.median(np.abs(np.diff(levels))))
    step = max(MIN_STEP, SIGMAS * noise)
    interval_ns = float(np.median(np.diff(times_ns)))
    found: list[Flash] = []
    at = 1
    while at < len(levels):
        # The last half second: long enough for a flash not to hide in it, and what stays bright becomes the base.
        since = bisect_left(times_ns, times_ns[at] - BASE_NS)
        base = float(np.median(levels[min(since, at - 1) : at]))
        if levels[at] - base <= step:
            at += 1
            continue
        lit = range(at, bisect_left(times_ns, times_ns[at] + round(FLASH_S * 1e9)))
        half = (base + max(levels[i] for i in lit)) / 2
        # A picture that was exposed while the flash began is of it if most of its exposure was.
        first = next(i for i in lit if levels[i] >= half)
        last = next((i for i in range(first, len(levels)) if levels[i] < half), len(levels))
        length_ns = times_ns[min(last, len(levels) - 1)] - times_ns[first]
        if 0.4e9 * FLASH_S - interval_ns < length_ns < 2e9 * FLASH_S + interval_ns:
            found.append(Flash(times_ns[first - 1], times_ns[first]))
            at = last
        else:
            at = first + 1
    return found


def find_beeps(samples: npt.NDArray[np.float32], rate_hz: int) -> list[int]:
    """Where in `samples` `[n]` chirps begin: indices, ascending."""
    wave = chirp(rate_hz).astype(np.float64)
    count = len(samples) - len(wave) + 1
    if count < 1:
        return []
    size = 1 << (len(samples) + len(wave) - 1).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(wave, size))
    product = np.abs(np.fft.irfft(spectrum, size)[:count])  # a microphone's polarity is anybody's guess
    total = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    energy = np.maximum(total[len(wave) :] - total[:count], 1e-9)
    likeness = product / np.sqrt(energy * float(np.dot(wave, wave)))
    found: list[int] = []
    near = round(0.3 * rate_hz)
    while True:
        best = int(np.argmax(likeness))
        if likeness[best] < MIN_CORRELATION:
            return sorted(found)
        found.append(best)
        # Echoes come later and are weaker.
        likeness[max(0, best - near) : best + near] = 0


def measure(flashes: Sequence[Flash], beeps_ns: Sequence[int]) -> Skew:
    """What flashes and the times of beeps say together. Raises SourceError if too few fit together."""
    if len(flashes) < MIN_EVENTS or len(beeps_ns) < MIN_EVENTS:
        raise SourceError(_too_few(len(flashes), len(beeps_ns), None))
    interval_ns = float(np.median([flash.time_ns - flash.before_ns for flash in flashes]))
    away = np.array([[flash.time_ns - beep for beep in beeps_ns] for flash in flashes], float)
    candidates = np.sort(away[np.abs(away) <= MOST_OFFSET_S * 1e9])
    width_ns = interval_ns + JITTER_NS
    best = (0, 0.0)
    for low in candidates:
        inside = (away >= low) & (away <= low + width_ns)
        best = max(best, (int(inside.any(axis=1).sum()), -float(low)))
    events, low = best[0], -best[1]
    if events < max(MIN_EVENTS, len(flashes) // 3, len(beeps_ns) // 3):
        raise SourceError(_too_few(len(flashes), len(beeps_ns), events))
    inside = (away >= low) & (away <= low + width_ns)
    seen = inside.any(axis=1)
    upper = away[seen, inside[seen].argmax(axis=1)]
    lower = upper - np.array([flash.time_ns - flash.before_ns for flash in flashes])[seen]
    if np.quantile(upper, 0.8) - np.quantile(upper, 0.2) < LOCKED * interval_ns:
        # All agree: pictures and flashes are in step, as where the clip itself is what the "camera" sends. If it is
        # not, the flashes began up to one picture earlier, always by the same.
        offset_ns, uncertain_ns = float(np.median(upper)), interval_ns
    else:
        # Every event says: the offset is above its `lower` and at most its `upper`. A tenth may be outliers.
        most, least = float(np.quantile(upper, 0.1)), float(np.quantile(lower, 0.9))
        offset_ns, uncertain_ns = (most + least) / 2, abs(most - least) / 2
    spread_ns = 1.4826 * float(np.median(np.abs(upper - np.median(upper))))
    return Skew(offset_ns / 1e6, spread_ns / 1e6, uncertain_ns / 1e6, events, len(flashes), len(beeps_ns))


def _too_few(flashes: int, beeps: int, events: int | None) -> str:
    fit = "" if events is None else f", of which {events} fit together"
    if not flashes or not beeps:
        what = "flash" if not flashes else "beep"
        do = (
            "Let the screen fill more of the picture, and darken the room."
            if not flashes
            else "Turn the volume up, and bring the speaker nearer to the microphone."
        )
        return f"No {what} was found ({flashes} flashes, {beeps} beeps): is the clip playing? {do}"
    return (
        f"{flashes} flashes and {beeps} beeps were found{fit}; expected at least {MIN_EVENTS}. "
        "Play the clip full-screen before the camera and loud enough, for longer: --seconds"
    )
