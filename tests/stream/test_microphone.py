"""What is said of microphones that are missing, busy or unsuitable, on a PyAudio made up here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from niceness import in_thread, wants_permission

from edgemm.errors import MissingExtraError, SourceError
from edgemm.stream.sources import microphone
from edgemm.stream.sources.microphone import MicrophoneSource, microphones
from edgemm.stream.sources.protocol import AudioWant
from edgemm.stream.turns import NICENESS, Turns, turns

pytestmark = pytest.mark.real_time

WANT = AudioWant("mic", 16000)


class FakePyAudio:
    """PyAudio with the devices in `devices`, (name, input channels, rate); the last one is the default."""

    devices: tuple[tuple[str, int, int], ...] = (("HDMI", 0, 48000), ("USB Mic", 1, 48000), ("USB Cam", 2, 44100))
    rates: tuple[int, ...] = (44100, 48000)
    trouble: Exception | None = None
    opened: dict[str, Any] | None = None
    started: Turns | None = None
    """How a thread is treated that is started while a stream is opened, as PortAudio starts one to call back."""

    def get_device_count(self) -> int:
        return len(self.devices)

    def get_device_info_by_index(self, index: int) -> dict[str, Any]:
        assert 0 <= index < len(self.devices), "the real one crashes here"
        name, channels, rate_hz = self.devices[index]
        return {"index": index, "name": name, "hostApi": 0, "maxInputChannels": channels, "defaultSampleRate": rate_hz}

    def get_default_input_device_info(self) -> dict[str, Any]:
        if not self.devices:
            raise OSError("No Default Input Device Available")
        return self.get_device_info_by_index(len(self.devices) - 1)

    def get_host_api_info_by_index(self, index: int) -> dict[str, Any]:
        return {"name": "ALSA"}

    def is_format_supported(self, rate: int, **_: Any) -> bool:
        if self.trouble is not None:
            raise self.trouble
        if rate not in self.rates:
            raise ValueError("Invalid sample rate", -9997)
        return True

    def open(self, **options: Any) -> Any:
        type(self).opened = options
        type(self).started = in_thread(turns)
        if options["rate"] == 44100:
            raise OSError(-9999, "Unanticipated host error")
        return SimpleNamespace(close=lambda: None, is_active=lambda: True)

    def terminate(self) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakePyAudio]:
    class Fake(FakePyAudio):
        pass

    module = SimpleNamespace(PyAudio=Fake, paInt16=8, paContinue=0)
    monkeypatch.setitem(sys.modules, "pyaudio", module)
    return Fake


def said(device: str | int | None = None) -> str:
    with pytest.raises(SourceError) as caught, MicrophoneSource(WANT, device):
        pass
    return str(caught.value)


def test_devices_without_inputs_are_left_out(fake: type[FakePyAudio]) -> None:
    assert [(info.index, info.name, info.is_default) for info in microphones()] == [
        (1, "USB Mic", False),
        (2, "USB Cam", True),
    ]


def test_a_rate_that_the_device_lacks_is_taken_from_those_it_has(fake: type[FakePyAudio]) -> None:
    with MicrophoneSource(WANT, "mic"):
        assert fake.opened is not None
        assert (fake.opened["rate"], fake.opened["channels"], fake.opened["input_device_index"]) == (48000, 1, 1)
        assert fake.opened["frames_per_buffer"] == 480


@wants_permission
def test_the_thread_that_calls_back_is_prompt(fake: type[FakePyAudio]) -> None:
    with MicrophoneSource(WANT, "USB Mic"):
        pass
    assert fake.started is not None
    assert fake.started.niceness == NICENESS


def test_names_must_fit_one(fake: type[FakePyAudio]) -> None:
    assert said("USB") == (
        '"USB" fits 2 microphones, there are: 1 "USB Mic", 2 "USB Cam". Give an index, or a name that fits one.'
    )
    assert '"0" is no microphone' in said(0)
    assert '"HDMI" is no microphone' in said("HDMI")


def test_what_cannot_be_opened_is_said(fake: type[FakePyAudio]) -> None:
    assert 'The microphone "USB Cam" cannot be opened: Unanticipated host error.' in said(2)
    fake.rates = ()
    assert 'The microphone "USB Mic" delivers 16-bit sound at none of 16000, 48000' in said(1)
    fake.trouble = ValueError("Device unavailable", -9985)
    assert 'The microphone "USB Mic" is in use by another program' in said(1)


def test_no_microphone_and_one_that_may_not_be_read(fake: type[FakePyAudio], monkeypatch: pytest.MonkeyPatch) -> None:
    fake.devices = ()
    monkeypatch.setattr(Path, "glob", lambda *_: iter([]))
    assert said() == (
        "No microphone was found. Plug one in, or start the sound server (PulseAudio, PipeWire), then look again: "
        "edgemm devices"
    )
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/snd/pcmC0D0c")]))
    monkeypatch.setattr(microphone.os, "access", lambda *_: False)
    monkeypatch.setattr(microphone.sys, "platform", "linux")
    assert "/dev/snd/pcmC0D0c exists, but may not be read" in said()


def test_pyaudio_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyaudio", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[live\]"'):
        microphones()
    with pytest.raises(SourceError, match="is not open: use the source in a with statement"):
        next(iter(MicrophoneSource(WANT)))
