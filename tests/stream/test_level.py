from __future__ import annotations

import logging

import numpy as np
import pytest

from edgemm.stream.sources.level import FLOOR_DBFS, LevelMeter

RATE_HZ = 16000


def push(meter: LevelMeter, samples: np.ndarray) -> None:
    for first in range(0, len(samples), 160):
        meter.push(samples[first : first + 160].astype(np.float32), RATE_HZ)


def test_a_sine_of_full_scale_is_minus_three_dbfs(caplog: pytest.LogCaptureFixture) -> None:
    meter = LevelMeter("mic")
    assert meter.level is None
    time_s = np.arange(RATE_HZ) / RATE_HZ
    push(meter, 0.999 * np.sin(2 * np.pi * 440 * time_s))
    assert meter.level is not None
    assert meter.level.peak_dbfs == pytest.approx(0, abs=0.02)
    assert meter.level.rms_dbfs == pytest.approx(-3.01, abs=0.05)
    assert meter.level.clipped == 0
    push(meter, -0.1 * np.ones(RATE_HZ))
    assert meter.level.peak_dbfs == pytest.approx(-20, abs=0.01)
    assert meter.level.rms_dbfs == pytest.approx(-20, abs=0.01)
    assert caplog.text == ""


def test_clipping_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    meter = LevelMeter("The microphone")
    wave = np.clip(3 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ), -1, 32767 / 32768)
    with caplog.at_level(logging.WARNING):
        push(meter, wave)
        push(meter, wave)
    assert meter.level is not None
    assert meter.level.clipped > 1000
    assert caplog.text.count("The microphone clips: turn its gain down") == 1


def test_exact_zeros_are_said_once_and_noise_is_not(caplog: pytest.LogCaptureFixture) -> None:
    meter = LevelMeter("The microphone")
    with caplog.at_level(logging.WARNING):
        push(meter, np.full(5 * RATE_HZ, 1 / 32768))
        assert caplog.text == ""
        push(meter, np.zeros(8 * RATE_HZ))
    assert meter.level is not None
    assert meter.level.peak_dbfs == meter.level.rms_dbfs == FLOOR_DBFS
    assert meter.level.zeros_s == pytest.approx(8, abs=0.4)
    assert caplog.text.count("gives exact zeros for 3 s: is it muted, or the wrong device?") == 1
    meter.push(np.empty(0, np.float32), RATE_HZ)
