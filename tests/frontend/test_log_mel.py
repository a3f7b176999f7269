"""The CPU log-mel and MFCC: the same bits in pieces and at once, and the numbers of the reference and of Kaldi."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.errors import UsageError
from edgemm.frontend import LogMel, Mfcc
from edgemm.kernels import log_mel as maths
from edgemm.options import FLOAT32_EPSILON, LogMelOptions, MfccOptions

VOICE = np.load(Path(__file__).parent / "golden" / "log_mel.npz")["samples"]  # [16000] int16
FLOATS = VOICE.astype(np.float32) / 32768

OPTIONS = st.builds(
    LogMelOptions,
    window_samples=st.sampled_from([1, 25, 127, 320, 400]),
    hop_samples=st.sampled_from([7, 80, 160, 400, 500]),
    fft_size=st.sampled_from([400, 401, 512, 600]),
    window=st.sampled_from(["povey", "hann", "hamming", "blackman", "rectangular"]),
    window_periodic=st.booleans(),
    remove_dc=st.booleans(),
    preemphasis=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    scale=st.sampled_from([1.0, 3.3, 32768.0]),
    power=st.sampled_from([1, 2]),
    n_mels=st.integers(1, 90),
    mel_scale=st.sampled_from(["kaldi", "htk", "slaney"]),
    mel_norm=st.sampled_from(["none", "slaney"]),
    low_hz=st.sampled_from([0.0, 20.0, 300.0]),
    high_hz=st.sampled_from([0.0, -200.0, 4000.0]),
    log=st.sampled_from(["ln", "log10", "db", "none"]),
    floor=st.sampled_from([FLOAT32_EPSILON, 1e-10]),
    edges=st.sampled_from(["snip", "reflect", "zero"]),
    mean=st.sampled_from([0.0, -4.0]),
    std=st.sampled_from([1.0, 2.5]),
)


def excerpt(start: int, length: int, dtype: type) -> np.ndarray:
    return (VOICE if dtype == np.int16 else FLOATS.astype(dtype))[start : start + length]


SIGNALS = st.builds(
    excerpt,
    st.integers(0, 200),
    st.one_of(st.integers(0, 1500), st.integers(11_000, 16_000)),
    st.sampled_from([np.int16, np.float32, np.float64]),
)
CUTS = st.lists(st.integers(0, 16_000), max_size=40).map(sorted)


def in_pieces(front_end: LogMel | Mfcc, samples: np.ndarray, cuts: list[int]) -> np.ndarray:
    pieces = np.split(samples, cuts)
    return np.concatenate([*(front_end.push(piece) for piece in pieces), front_end.flush()])


@settings(max_examples=150)
@given(options=OPTIONS, samples=SIGNALS, cuts=CUTS)
def test_pieces_and_the_whole_give_the_same_bits(options: LogMelOptions, samples: np.ndarray, cuts: list[int]) -> None:
    front_end = LogMel(options)
    whole = front_end.offline(samples)
    assert whole.dtype == np.float32
    assert whole.shape == (maths.frame_count(len(samples), options), options.n_mels)
    for _ in range(2):  # after flush a new stream begins
        np.testing.assert_array_equal(in_pieces(front_end, samples, cuts), whole)


@settings(max_examples=60)
@given(log_mel=OPTIONS, deltas=st.sampled_from([0, 1, 2]), data=st.data(), samples=SIGNALS, cuts=CUTS)
def test_mfcc_pieces_and_the_whole_give_the_same_bits(
    log_mel: LogMelOptions, deltas: int, data: st.DataObject, samples: np.ndarray, cuts: list[int]
) -> None:
    coefficients = data.draw(st.integers(1, log_mel.n_mels))
    front_end = Mfcc(MfccOptions(log_mel, coefficients, deltas=deltas))  # type: ignore[arg-type]
    whole = front_end.offline(samples)
    assert whole.dtype == np.float32
    assert whole.shape == (maths.frame_count(len(samples), log_mel), coefficients * (1 + deltas))
    for _ in range(2):
        np.testing.assert_array_equal(in_pieces(front_end, samples, cuts), whole)


@pytest.mark.parametrize("piece", [1, 100, 160, 163, 1600])
def test_a_long_stream_in_equal_pieces(piece: int) -> None:
    # Long enough that the buffers are carried over several times.
    samples = np.tile(FLOATS, 3)
    front_end = LogMel(LogMelOptions())
    cuts = list(range(piece, len(samples), piece))
    np.testing.assert_array_equal(in_pieces(front_end, samples, cuts), front_end.offline(samples))


def test_a_hop_of_one_sample() -> None:
    options = LogMelOptions(hop_samples=1, n_mels=8)
    front_end = LogMel(options)
    frames = in_pieces(front_end, FLOATS[:1200], [1, 500, 501, 777])
    np.testing.assert_array_equal(frames, front_end.offline(FLOATS[:1200]))
    np.testing.assert_allclose(frames, maths.log_mel_reference(FLOATS[:1200], options), atol=2e-3)


@settings(max_examples=150)
@given(options=OPTIONS, samples=SIGNALS)
def test_frames_are_the_references(options: LogMelOptions, samples: np.ndarray) -> None:
    """Error of a band, in float32: some 1e-7 of the root of the frame's energy, in amplitude."""
    linear = replace(options, log="none", mean=0.0, std=1.0, power=1)
    ours = LogMel(linear).offline(samples).astype(np.float64)
    reference = maths.log_mel_reference(samples, linear)
    # The largest magnitude that any frame can have, through the strongest filter.
    loudest = options.scale * np.abs(maths.to_unit_range(samples)).max(initial=0.0) * options.window_samples
    gain = maths.mel_filterbank(linear).sum(axis=1).max() * 2
    np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6 * loudest * gain + 1e-12)


@pytest.mark.parametrize("log", ["ln", "log10", "db", "none"])
@pytest.mark.parametrize("power", [1, 2])
def test_logarithm_floor_and_normalisation_are_the_references(log: str, power: int) -> None:
    options = LogMelOptions(log=log, power=power, floor=1e-3, mean=-2.0, std=3.0)  # type: ignore[arg-type]
    reference = maths.log_mel_reference(FLOATS, options)
    np.testing.assert_allclose(LogMel(options).offline(FLOATS), reference, rtol=1e-4, atol=5e-3)


def noise(amplitude: float, offset: float = 0.0) -> np.ndarray:
    return (offset + amplitude * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)


SOUNDS = {
    "voice": FLOATS,
    "noise": noise(0.1),
    "quiet noise": noise(1e-4),
    "noise on an offset": noise(1e-3, 0.5),
    "tone": (0.9 * np.sin(2 * np.pi * 440 / 16000 * np.arange(16000))).astype(np.float32),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("scale", [1.0, 32768.0])
@pytest.mark.parametrize("n_mels", [40, 80])
def test_agrees_with_kaldi_native_fbank(name: str, scale: float, n_mels: int) -> None:
    samples = SOUNDS[name]
    options = LogMelOptions(scale=scale, n_mels=n_mels)
    theirs = knf.FbankOptions()
    theirs.frame_opts.dither = 0
    theirs.mel_opts.num_bins = n_mels
    stream = knf.OnlineFbank(theirs)
    stream.accept_waveform(16000, (samples * np.float32(scale)).tolist())
    stream.input_finished()
    expected = np.stack([stream.get_frame(k) for k in range(stream.num_frames_ready)])

    # The stated condition: the band holds more than 1e-9 of the energy of the windowed samples.
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64) * scale, 400)[::160]
    energy = 512 * ((frames * maths.window(options)) ** 2).sum(axis=1, keepdims=True)
    counts = maths.log_mel_reference(samples, replace(options, log="none")) > 1e-9 * energy
    # Of a pure tone, and 54 dB below an offset, many bands hold next to nothing.
    assert counts.mean() > {"tone": 0.2, "noise on an offset": 0.6}.get(name, 0.98)
    difference = np.abs(LogMel(options).offline(samples) - expected)
    assert difference[counts].max() < 2e-3
    if name in ("voice", "noise", "quiet noise"):
        assert difference.max() < 2e-3  # there without any condition


def test_mfcc_agrees_with_kaldi_native_fbank() -> None:
    theirs = knf.MfccOptions()
    theirs.frame_opts.dither = 0
    theirs.use_energy = False
    stream = knf.OnlineMfcc(theirs)
    stream.accept_waveform(16000, VOICE.astype(np.float32).tolist())
    stream.input_finished()
    expected = np.stack([stream.get_frame(k) for k in range(stream.num_frames_ready)])
    ours = Mfcc(MfccOptions(LogMelOptions(n_mels=23, scale=32768.0))).offline(VOICE)
    np.testing.assert_allclose(ours, expected, atol=5e-3)  # the lifter multiplies by up to 12


@pytest.mark.parametrize("deltas", [0, 1, 2])
def test_mfcc_is_the_references(deltas: int) -> None:
    options = MfccOptions(n_coefficients=13, deltas=deltas)  # type: ignore[arg-type]
    np.testing.assert_allclose(Mfcc(options).offline(FLOATS), maths.mfcc_reference(FLOATS, options), atol=5e-3)


def test_int16_is_float_times_32768() -> None:
    front_end = LogMel(LogMelOptions())
    np.testing.assert_array_equal(front_end.offline(VOICE), front_end.offline(FLOATS))
    kaldi_range = LogMel(LogMelOptions(scale=32768.0))
    np.testing.assert_array_equal(kaldi_range.offline(VOICE), kaldi_range.offline(FLOATS))


def test_any_strides_and_read_only_samples() -> None:
    front_end = LogMel(LogMelOptions())
    stereo = np.stack([FLOATS, -FLOATS], axis=1)
    stereo.flags.writeable = False
    np.testing.assert_array_equal(front_end.offline(stereo[:, 0]), front_end.offline(FLOATS))


def test_silence_is_the_floor() -> None:
    frames = LogMel(LogMelOptions()).offline(np.zeros(16000, np.float32))
    np.testing.assert_array_equal(frames, np.log(np.float32(FLOAT32_EPSILON)))


def test_a_filter_between_two_bins_is_the_floor() -> None:
    options = LogMelOptions(n_mels=1, low_hz=1001.0, high_hz=1002.0, floor=1e-5)
    np.testing.assert_allclose(LogMel(options).offline(FLOATS), np.log(1e-5), rtol=1e-6)


def test_a_frame_comes_with_its_last_sample() -> None:
    front_end = LogMel(LogMelOptions())
    assert len(front_end.push(FLOATS[:399])) == 0
    assert len(front_end.push(FLOATS[399:400])) == 1
    assert len(front_end.push(FLOATS[400:559])) == 0
    assert len(front_end.push(FLOATS[559:720])) == 2
    assert len(front_end.flush()) == 0


def test_centred_frames_come_when_their_window_is_covered() -> None:
    # The first window of 400 is centred on sample 0 and reaches to sample 200, the next to sample 360.
    zero = LogMel(LogMelOptions(edges="zero"))
    assert len(zero.push(FLOATS[:199])) == 0
    assert len(zero.push(FLOATS[199:200])) == 1
    assert len(zero.push(FLOATS[200:360])) == 1
    assert len(zero.flush()) == 1
    reflect = LogMel(LogMelOptions(edges="reflect"))
    assert len(reflect.push(FLOATS[:256])) == 0
    assert len(reflect.push(FLOATS[256:257])) == 1


def test_reset_drops_the_stream() -> None:
    for front_end in (LogMel(LogMelOptions(edges="reflect")), Mfcc(MfccOptions(deltas=2))):
        front_end.push(FLOATS[:5000])
        front_end.reset()
        np.testing.assert_array_equal(in_pieces(front_end, FLOATS, [3000]), front_end.offline(FLOATS))


def test_offline_leaves_the_stream_alone() -> None:
    front_end = LogMel(LogMelOptions())
    first = front_end.push(FLOATS[:5000])
    front_end.offline(FLOATS[::-1])
    rest = front_end.push(FLOATS[5000:])
    np.testing.assert_array_equal(np.concatenate([first, rest]), front_end.offline(FLOATS))


def test_frames_are_the_callers_and_samples_stay() -> None:
    front_end = LogMel(LogMelOptions())
    samples = FLOATS[:800].copy()
    frames = front_end.push(samples)
    kept = frames.copy()
    front_end.push(FLOATS[800:])
    np.testing.assert_array_equal(frames, kept)
    np.testing.assert_array_equal(samples, FLOATS[:800])


def test_a_nan_spoils_only_the_frames_it_is_part_of() -> None:
    samples = FLOATS.copy()
    samples[4000] = np.nan
    front_end = LogMel(LogMelOptions())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        frames = in_pieces(front_end, samples, list(range(160, 16000, 160)))
    spoiled = np.isnan(frames).any(axis=1)
    covers = [k * 160 <= 4000 < k * 160 + 400 for k in range(len(frames))]
    assert spoiled.tolist() == covers
    np.testing.assert_array_equal(frames[~spoiled], front_end.offline(FLOATS)[~spoiled])


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (np.zeros((2, 160), np.float32), r"float32\[2, 160\]"),
        (np.zeros(160, np.int32), r"int32\[160\]"),
        (np.zeros(160, np.complex64), r"complex64\[160\]"),
    ],
)
@pytest.mark.parametrize("front_end", [LogMel(LogMelOptions()), Mfcc(MfccOptions())])
def test_wrong_samples_are_refused(front_end: LogMel | Mfcc, samples: np.ndarray, found: str) -> None:
    for call in (front_end.push, front_end.offline):
        with pytest.raises(UsageError, match=rf"Samples are {found}; expected one channel.*Mix channels down first"):
            call(samples)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"LogMelOptions.n_mels is 0"):
        LogMel(LogMelOptions(n_mels=0))
    with pytest.raises(UsageError, match=r"MfccOptions.n_coefficients is 24; expected 1 to log_mel.n_mels, 23"):
        Mfcc(MfccOptions(n_coefficients=24))


def test_importing_the_front_ends_does_not_import_opencv() -> None:
    code = "import sys, edgemm.frontend; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
