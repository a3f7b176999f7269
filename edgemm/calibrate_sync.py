"""Measure the constant offset of a rig, a microphone and a camera, with a clip that flashes and beeps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemm import rig
from edgemm.rig import Rig
from edgemm.stream.capture import Capture
from edgemm.stream.clock import WallClock
from edgemm.stream.flash_beep import Skew, find_beeps, find_flashes, measure
from edgemm.stream.frames import AudioChunk, Event, VideoFrame
from edgemm.stream.sources.camera import CameraMode, open_camera
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.microphone import open_microphone
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, RigSource, VideoWant

RATE_HZ = 16000
SOUND, PICTURES = AudioWant("mic", RATE_HZ), VideoWant("camera", "gray")
WAITING = {"mic": 400, "camera": 32}
EVERY = 4
"""One pixel in so many, each way, is enough for a mean."""


@dataclass(frozen=True)
class SyncReport:
    """What was measured, of which rig, and where it is stored."""

    skew: Skew
    microphone: str
    camera: str
    stored: Path | None = None


def measure_file(path: str | Path) -> SyncReport:
    """The offset of a file's pictures against its sound. Raises SourceError."""
    heard = _Heard()
    with MediaSource(path, [SOUND, PICTURES]) as source:
        heard.take(source)
    return SyncReport(heard.skew(), str(path), str(path))


def measure_rig(
    mic: str | int | None = None,
    camera: str | int | None = None,
    *,
    mode: CameraMode | None = None,
    seconds: float = 30.0,
    store: bool = True,
) -> SyncReport:
    """The offset of a live microphone and camera, before which the clip is playing; stored for the runs to come.

    `mic` and `camera` are as in `edgemm.run`, None is the default one. Raises SourceError if one cannot be opened or
    too few events are found, and UsageError.
    """
    heard = _Heard()
    sources = _open(mic, camera, mode)
    clock = WallClock()
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(source)
        capture = stack.enter_context(Capture(sources, clock, WAITING))
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            events = capture.queue.take(left_s)
            if events is None:
                break
            heard.take(event for event, _ in events)
    skew = heard.skew()
    microphone, seen = sources[0].identity, sources[-1].identity
    stored = None
    if store:
        measured = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        stored = rig.store(Rig(microphone, seen, skew.offset_ms, skew.spread_ms, skew.events, measured))
    return SyncReport(skew, microphone, seen, stored)


def forget_rig(
    mic: str | int | None = None, camera: str | int | None = None, *, mode: CameraMode | None = None
) -> bool:
    """Forget what was measured of a microphone and a camera; False if nothing was. Raises SourceError, UsageError."""
    sources = _open(mic, camera, mode)
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(source)
        return rig.forget(sources[0].identity, sources[-1].identity)


def _open(mic: str | int | None, camera: str | int | None, mode: CameraMode | None) -> list[RigSource]:
    """The sources, not yet entered: of the sound first, of the pictures last."""
    if isinstance(mic, str) and "://" in mic and mic == camera:
        return [NetworkSource(mic, [SOUND, PICTURES])]
    return [open_microphone(mic, SOUND), open_camera(camera, PICTURES, mode)]


class _Heard:
    """What the microphone heard and the camera saw, as far as it is needed."""

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self._means: list[float] = []
        self._pieces: list[tuple[int, list[npt.NDArray[np.float32]]]] = []
        """Sound without breaks, each with the time of its first sample."""
        self._end_ns = 0

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, VideoFrame):
                self._times_ns.append(event.capture_ns)
                self._means.append(float(event.picture[::EVERY, ::EVERY].mean()))
            elif isinstance(event, AudioChunk):
                if event.discontinuity or not self._pieces or abs(event.capture_ns - self._end_ns) > 10**6:
                    self._pieces.append((event.capture_ns, []))
                self._pieces[-1][1].append(event.samples)
                self._end_ns = event.end_ns

    def skew(self) -> Skew:
        beeps_ns = [
            begin_ns + at * 10**9 // RATE_HZ
            for begin_ns, parts in self._pieces
            for at in find_beeps(np.concatenate(parts), RATE_HZ)
        ]
        return measure(find_flashes(self._times_ns, self._means), beeps_ns)


def describe(report: SyncReport) -> Sequence[str]:
    """The lines that say what was measured."""
    skew = report.skew
    late = "later" if skew.offset_ms >= 0 else "earlier"
    lines = [
        f"Pictures are stamped {abs(skew.offset_ms):.1f} ms {late} than sound: {skew.events} events agree "
        f"({skew.flashes} flashes, {skew.beeps} beeps), spread {skew.spread_ms:.1f} ms, "
        f"uncertain by {skew.uncertain_ms:.1f} ms.",
    ]
    if report.microphone != report.camera:
        lines.append(f"Microphone: {report.microphone}. Camera: {report.camera}.")
    if report.stored is not None:
        lines.append(f"Stored in {report.stored}: edgemm run takes it off for this pair. --forget takes it back.")
    return lines
