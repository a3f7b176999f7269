"""A microphone, through PyAudio.

The driver's callback copies into a ring and does nothing else; the thread that reads makes frames of it. When a
sample was captured is the driver's ADC time, which has a base of its own on every host API and is therefore used as
an age: `monotonic now - (current_time - input_buffer_adc_time)`. A ClockFit goes through these, a Retimer keeps the
sound in step with them. Sound that the driver lost shows as a jump of the ADC time against the count of samples: the
overflow flags stay silent on ALSA's plugins.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edgemm.errors import MissingExtraError, SourceError
from edgemm.stream.clock import Clock, WallClock
from edgemm.stream.drift import ClockFit, ClockReport
from edgemm.stream.frames import End, Event, StreamInfo
from edgemm.stream.sources.level import Level, LevelMeter
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import AudioWant, RigSource
from edgemm.stream.sources.reopening import RETRY_S
from edgemm.stream.sources.sample_ring import Block, SampleRing
from edgemm.stream.sources.sound_frames import BLOCKS_PER_SECOND, SoundFrames
from edgemm.stream.turns import prompt_turns

RING_SECONDS = 2
"""What the ring holds while the reading thread is kept from running."""

SILENT_S = 1.0
"""Without a callback for this long the device is taken to be gone; drivers deliver every 10 to 100 ms."""

POLL_S = 0.1

_BUSY = -9985  # paDeviceUnavailable
_RATES = (48000, 44100, 16000, 32000, 96000)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicrophoneInfo:
    """A device that sound can be captured from."""

    index: int
    name: str
    host_api: str
    channels: int
    rate_hz: int
    """Its own preference; most devices take others, too."""
    is_default: bool


def microphones() -> list[MicrophoneInfo]:
    """The devices that sound can be captured from. Raises MissingExtraError without PyAudio."""
    audio = _open_portaudio()
    try:
        return _list(audio)
    finally:
        audio.terminate()


def listen(device: str | int | None, seconds: float) -> Level:
    """How loud a microphone is: the loudest 0.3 s of `seconds`. Raises as MicrophoneSource does."""
    with MicrophoneSource(AudioWant("level"), device) as source:
        source.start(WallClock())
        levels: list[Level] = []
        # A timer, as a device that is silent gives no event at which to look at the clock.
        timer = threading.Timer(seconds, source.stop)
        timer.start()
        for _ in source:
            if source.level is not None and (not levels or source.level is not levels[-1]):
                levels.append(source.level)
        timer.cancel()
    if not levels:
        raise SourceError(f"The microphone gave no sound for {seconds:g} s. Choose another device: edgemm devices")
    return Level(
        max(level.peak_dbfs for level in levels),
        max(level.rms_dbfs for level in levels),
        sum(level.clipped for level in levels),
        levels[-1].zeros_s,
    )


def open_microphone(device: str | int | None, want: AudioWant) -> RigSource:
    """The microphone that `device` names, not yet entered: an index, a part of a name, None for the default one; or a
    URL that FFmpeg reads."""
    if isinstance(device, str) and "://" in device:
        return NetworkSource(device, [want])
    return MicrophoneSource(want, device)


class MicrophoneSource:
    """A microphone as a live Source: one channel at the rate wanted.

    `device` is an index or a part of a name as `edgemm devices` lists them, None the default one. A rate that the
    device does not have is converted, several channels are averaged. Raises SourceError on entry if there is no such
    microphone or it cannot be opened. If it falls silent later (unplugged, server gone), the stream ends, and goes on
    when the device is back.
    """

    live = True

    def __init__(self, want: AudioWant, device: str | int | None = None) -> None:
        self._want = want
        self._device = device
        self._audio: Any = None
        self._stream: Any = None
        self._ring: SampleRing | None = None
        self._rate_hz = 0
        self._offset_ns = 0
        self._stop = threading.Event()
        self._fit = ClockFit()
        self._reconnects = 0
        self._meter = LevelMeter("The microphone")
        self.identity = ""
        """What names the device for good; known once it is open."""
        self.delays_ns: dict[str, int] = {}
        self.streams: tuple[StreamInfo, ...] = (StreamInfo(want.name, "audio", rate_hz=want.rate_hz),)

    def __enter__(self) -> MicrophoneSource:
        self._stop.clear()
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._close()

    def start(self, clock: Clock) -> None:
        """Tell times by `clock` from now on."""
        self._offset_ns = time.monotonic_ns() - clock.now_ns() + self.delays_ns.get(self._want.name, 0)

    def stop(self) -> None:
        """Let iterating end within a tenth of a second."""
        self._stop.set()

    @property
    def level(self) -> Level | None:
        """How loud it is just now; None before the first 0.3 s."""
        return self._meter.level

    def report(self) -> ClockReport:
        """How the device's crystal ran against the machine's clock."""
        return ClockReport(self._fit.drift_ppm, self._fit.jitter_ns / 1e6, self._reconnects)

    def __iter__(self) -> Iterator[Event]:
        if self._ring is None:
            raise SourceError("The microphone is not open: use the source in a with statement.")
        returned = False
        while True:
            sound = SoundFrames(self._want, self._rate_hz, self._fit, self._offset_ns, self._meter, broken=returned)
            for block in self._blocks():
                yield from sound.push(block)
            if self._stop.is_set():
                return
            yield from sound.flush()
            yield End(self._want.name, time.monotonic_ns() - self._offset_ns)
            _log.warning("The microphone has fallen silent: trying to open it again.")
            if not self._reopen():
                return
            _log.warning("The microphone is back.")
            returned = True

    def _blocks(self) -> Iterator[Block]:
        """What the ring receives, until the device falls silent or iterating is stopped."""
        ring = self._ring
        heard = time.monotonic()
        while ring is not None and not self._stop.is_set():
            block = ring.read(POLL_S)
            if block is not None:
                heard = time.monotonic()
                yield block
            elif time.monotonic() - heard > SILENT_S or not self._stream.is_active():
                return

    def _reopen(self) -> bool:
        """Try until the device is back; False if iterating is stopped first."""
        self._close()
        attempt = 0
        while not self._stop.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
            attempt += 1
            try:
                self._open()
            except SourceError:
                continue
            self._fit.reset()
            self._reconnects += 1
            return True
        return False

    def _open(self) -> None:
        import pyaudio

        self._audio = _open_portaudio()
        try:
            info = _choose(_list(self._audio), self._device)
            rate_hz, channels = self._format(info)
            ring = SampleRing(RING_SECONDS * rate_hz, channels)

            def callback(data: bytes, frames: int, times: Mapping[str, float], flags: int) -> tuple[None, int]:
                age_ns = int((times["current_time"] - times["input_buffer_adc_time"]) * 1e9)
                ring.write(data, frames, time.monotonic_ns() - age_ns)
                return None, pyaudio.paContinue

            try:
                # Turns, for the thread that calls back.
                with _quiet(), prompt_turns():
                    self._stream = self._audio.open(
                        format=pyaudio.paInt16,
                        channels=channels,
                        rate=rate_hz,
                        input=True,
                        input_device_index=info.index,
                        frames_per_buffer=max(1, rate_hz // BLOCKS_PER_SECOND),
                        stream_callback=callback,
                    )
            except (OSError, ValueError) as error:
                raise SourceError(_refused(info, error)) from error
        except BaseException:
            self._close()
            raise
        self._ring, self._rate_hz = ring, rate_hz
        self.identity = f"{info.host_api}: {info.name}"

    def _format(self, info: MicrophoneInfo) -> tuple[int, int]:
        """The rate and the number of channels to open: as wanted, else as near as the device has it."""
        import pyaudio

        rates = dict.fromkeys((self._want.rate_hz, info.rate_hz, *_RATES))
        for rate_hz in rates:
            for channels in dict.fromkeys((1, min(2, info.channels), info.channels)):
                try:
                    with _quiet():
                        self._audio.is_format_supported(
                            rate_hz, input_device=info.index, input_channels=channels, input_format=pyaudio.paInt16
                        )
                except ValueError as error:
                    if error.args and error.args[-1] == _BUSY:
                        raise SourceError(_refused(info, error)) from error
                    continue
                return rate_hz, channels
        raise SourceError(
            f'The microphone "{info.name}" delivers 16-bit sound at none of {", ".join(map(str, rates))} Hz. '
            "Choose another device: edgemm devices"
        )

    def _close(self) -> None:
        stream, audio = self._stream, self._audio
        self._stream = self._audio = None
        if stream is not None:
            stream.close()
        if audio is not None:
            audio.terminate()


def _open_portaudio() -> Any:
    try:
        import pyaudio
    except ImportError as error:
        if error.name == "pyaudio":
            raise MissingExtraError("A microphone", "live", "pyaudio") from error
        raise SourceError(
            f"PyAudio cannot be loaded: {error}. Install PortAudio: apt-get install libportaudio2"
        ) from error
    with _quiet():
        return pyaudio.PyAudio()


def _list(audio: Any) -> list[MicrophoneInfo]:
    try:
        default = int(audio.get_default_input_device_info()["index"])
    except OSError:
        default = -1
    found: list[MicrophoneInfo] = []
    for index in range(audio.get_device_count()):
        info = audio.get_device_info_by_index(index)
        if info["maxInputChannels"] > 0:
            api = audio.get_host_api_info_by_index(info["hostApi"])["name"]
            rate_hz = int(info["defaultSampleRate"])
            channels = int(info["maxInputChannels"])
            found.append(MicrophoneInfo(index, str(info["name"]), api, channels, rate_hz, index == default))
    return found


def _choose(found: Sequence[MicrophoneInfo], device: str | int | None) -> MicrophoneInfo:
    """The device meant. PortAudio crashes on an index that it does not have, so nothing unchecked reaches it."""
    if not found:
        raise SourceError(f"No microphone was found. {_why_none()}")
    if device is None:
        return next((info for info in found if info.is_default), found[0])
    names = ", ".join(f'{info.index} "{info.name}"' for info in found)
    if isinstance(device, int) or device.isdecimal():
        chosen = [info for info in found if info.index == int(device)]
    else:
        chosen = [info for info in found if info.name == device]
        chosen = chosen or [info for info in found if device.lower() in info.name.lower()]
    if len(chosen) != 1:
        problem = f"fits {len(chosen)} microphones" if chosen else "is no microphone"
        raise SourceError(f'"{device}" {problem}, there are: {names}. Give an index, or a name that fits one.')
    return chosen[0]


def _why_none() -> str:
    nodes = list(Path("/dev/snd").glob("pcm*c")) if sys.platform == "linux" else []
    if nodes and not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return f'{nodes[0]} exists, but may not be read: add yourself to its group, e.g. "audio".'
    return "Plug one in, or start the sound server (PulseAudio, PipeWire), then look again: edgemm devices"


def _refused(info: MicrophoneInfo, error: Exception) -> str:
    if _BUSY in error.args:
        return f'The microphone "{info.name}" is in use by another program, or gone: close that, and try again.'
    detail = next((arg for arg in error.args if isinstance(arg, str)), str(error))
    return f'The microphone "{info.name}" cannot be opened: {detail}. Choose another device: edgemm devices'


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what ALSA and JACK print to standard error while they look for devices away from the user."""
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)
