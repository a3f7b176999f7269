"""The tables and float64 references against Kaldi, librosa and torchaudio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest

from edgemm.errors import UsageError
from edgemm.kernels import log_mel as maths
from edgemm.options import LogMelOptions, MfccOptions

GOLDEN = np.load(Path(__file__).parents[1] / "frontend" / "golden" / "log_mel.npz")
SAMPLES = GOLDEN["samples"]  # int16
LIBROSA_SLANEY = LogMelOptions(
    window="hann",
    window_periodic=True,
    remove_dc=False,
    preemphasis=0.0,
    n_mels=64,
    mel_scale="slaney",
    mel_norm="slaney",
    low_hz=0.0,
    log="db",
    floor=1e-10,
    edges="reflect",
)


def kaldi(options: knf.FbankOptions | knf.MfccOptions, samples: np.ndarray) -> np.ndarray:
    stream = knf.OnlineFbank(options) if isinstance(options, knf.FbankOptions) else knf.OnlineMfcc(options)
    stream.accept_waveform(options.frame_opts.samp_freq, samples.tolist())
    stream.input_finished()
    return np.stack([stream.get_frame(k) for k in range(stream.num_frames_ready)])


@pytest.mark.parametrize(
    ("window", "periodic", "theirs_window"),
    [
        ("povey", False, "povey"),
        ("hann", False, "hanning"),
        ("hann", True, "hann"),  # kaldi-native-fbank's name for the periodic one
        ("hamming", False, "hamming"),
        ("blackman", False, "blackman"),
        ("rectangular", False, "rectangular"),
    ],
)
@pytest.mark.parametrize(("remove_dc", "preemphasis"), [(True, 0.97), (False, 0.0), (True, 0.5)])
def test_windows_and_steps_are_kaldis(
    window: str, periodic: bool, theirs_window: str, remove_dc: bool, preemphasis: float
) -> None:
    options = LogMelOptions(
        window=window,  # type: ignore[arg-type]
        window_periodic=periodic,
        remove_dc=remove_dc,
        preemphasis=preemphasis,
        n_mels=40,
        scale=32768.0,
    )
    theirs = knf.FbankOptions()
    theirs.frame_opts.dither = 0
    theirs.frame_opts.window_type = theirs_window
    theirs.frame_opts.remove_dc_offset = remove_dc
    theirs.frame_opts.preemph_coeff = preemphasis
    theirs.mel_opts.num_bins = 40
    expected = kaldi(theirs, SAMPLES.astype(np.float32))
    np.testing.assert_allclose(maths.log_mel_reference(SAMPLES, options), expected, atol=5e-4)


@pytest.mark.parametrize(("low_hz", "high_hz"), [(20.0, 0.0), (64.0, -400.0), (100.0, 3800.0)])
@pytest.mark.parametrize(("rate_hz", "window", "hop", "fft"), [(16000, 400, 160, 512), (8000, 200, 80, 256)])
@pytest.mark.parametrize("power", [1, 2])
def test_mel_bands_are_kaldis(
    low_hz: float, high_hz: float, rate_hz: int, window: int, hop: int, fft: int, power: int
) -> None:
    options = LogMelOptions(
        rate_hz=rate_hz,
        window_samples=window,
        hop_samples=hop,
        fft_size=fft,
        n_mels=23,
        low_hz=low_hz,
        high_hz=high_hz,
        power=power,  # type: ignore[arg-type]
    )
    theirs = knf.FbankOptions()
    theirs.frame_opts.dither = 0
    theirs.frame_opts.samp_freq = rate_hz
    theirs.mel_opts.num_bins = 23
    theirs.mel_opts.low_freq = low_hz
    theirs.mel_opts.high_freq = high_hz
    theirs.use_power = power == 2
    expected = kaldi(theirs, SAMPLES.astype(np.float32) / 32768)
    np.testing.assert_allclose(maths.log_mel_reference(SAMPLES, options), expected, atol=1e-3)


@pytest.mark.parametrize(("coefficients", "bands", "lifter"), [(13, 23, 22.0), (20, 40, 0.0), (1, 23, 22.0)])
def test_mfcc_is_kaldis(coefficients: int, bands: int, lifter: float) -> None:
    options = MfccOptions(LogMelOptions(n_mels=bands, scale=32768.0), coefficients, lifter)
    theirs = knf.MfccOptions()
    theirs.frame_opts.dither = 0
    theirs.mel_opts.num_bins = bands
    theirs.num_ceps = coefficients
    theirs.cepstral_lifter = lifter
    theirs.use_energy = False
    expected = kaldi(theirs, SAMPLES.astype(np.float32))
    np.testing.assert_allclose(maths.mfcc_reference(SAMPLES, options), expected, atol=2e-3)


def test_slaney_mel_in_db_is_librosas() -> None:
    ours = maths.log_mel_reference(SAMPLES, LIBROSA_SLANEY)
    np.testing.assert_allclose(ours, GOLDEN["librosa_slaney_db"], atol=2e-3)


def test_magnitude_with_zero_edges_and_a_size_that_is_no_power_of_two_is_librosas() -> None:
    options = LogMelOptions(
        fft_size=400,
        window="hamming",
        window_periodic=True,
        remove_dc=False,
        preemphasis=0.0,
        power=1,
        n_mels=32,
        mel_scale="htk",
        low_hz=60.0,
        high_hz=7000.0,
        log="none",
        edges="zero",
    )
    expected = GOLDEN["librosa_htk_magnitude"]
    np.testing.assert_allclose(maths.log_mel_reference(SAMPLES, options), expected, rtol=2e-4, atol=1e-6)


def test_dct_is_librosas() -> None:
    options = MfccOptions(LIBROSA_SLANEY, n_coefficients=13, lifter=0.0)
    np.testing.assert_allclose(maths.mfcc_reference(SAMPLES, options), GOLDEN["librosa_mfcc"], atol=2e-3)


def test_htk_mel_is_torchaudios() -> None:
    options = replace(LIBROSA_SLANEY, n_mels=40, mel_scale="htk", mel_norm="none", log="none")
    expected = GOLDEN["torchaudio_htk_power"]
    np.testing.assert_allclose(maths.log_mel_reference(SAMPLES, options), expected, rtol=5e-4, atol=1e-7)


def test_kaldi_options_are_torchaudios() -> None:
    options = LogMelOptions(window="hamming", n_mels=40, low_hz=40.0, high_hz=-200.0, scale=32768.0)
    expected = GOLDEN["torchaudio_kaldi_fbank"]
    np.testing.assert_allclose(maths.log_mel_reference(SAMPLES, options), expected, atol=1e-3)


def test_deltas_are_torchaudios() -> None:
    options = MfccOptions(LIBROSA_SLANEY, n_coefficients=13, lifter=0.0, deltas=1)
    np.testing.assert_allclose(maths.mfcc_reference(SAMPLES, options)[:, 13:], GOLDEN["torchaudio_deltas"], atol=2e-3)


def test_second_derivative_of_a_parabola_is_its_curvature() -> None:
    # Away from the ends, a regression is exact for t ** 2: the taps sum to the second derivative, 2.
    frames = np.arange(-4.0, 5.0) ** 2
    assert maths.delta_filter(2) @ frames == pytest.approx(2.0)
    assert maths.delta_filter(1) @ np.arange(7.0, 12.0) == pytest.approx(1.0)
    assert maths.delta_filter(0).tolist() == [1.0]


def test_slaney_norm_gives_unit_area() -> None:
    options = LogMelOptions(fft_size=8192, mel_scale="slaney", mel_norm="slaney", n_mels=40)
    areas_hz = maths.mel_filterbank(options).sum(axis=1) * options.rate_hz / options.fft_size
    np.testing.assert_allclose(areas_hz, 1.0, rtol=2e-3)


def test_dct_rows_are_orthonormal() -> None:
    matrix = maths.dct_matrix(MfccOptions(LogMelOptions(n_mels=23), n_coefficients=23))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(23), atol=1e-12)


def test_log10_and_db_differ_by_their_factors() -> None:
    options = replace(LIBROSA_SLANEY, log="ln")
    ln = maths.log_mel_reference(SAMPLES, options)
    np.testing.assert_allclose(maths.log_mel_reference(SAMPLES, replace(options, log="log10")) * np.log(10), ln)
    db = maths.log_mel_reference(SAMPLES, replace(options, log="db", mean=-40.0, std=20.0))
    np.testing.assert_allclose(db * 20.0 - 40.0, 10.0 * ln / np.log(10))


def test_magnitudes_in_db_are_those_of_power() -> None:
    # One filter at one bin, so that summing magnitudes or powers makes no difference.
    options = LogMelOptions(n_mels=1, low_hz=990.0, high_hz=1020.0, mel_scale="htk", log="db", floor=1e-30)
    bank = maths.mel_filterbank(options)
    assert np.count_nonzero(bank) == 1
    weight_db = 10 * np.log10(bank.max())
    power = maths.log_mel_reference(SAMPLES, options) - weight_db
    magnitude = maths.log_mel_reference(SAMPLES, replace(options, power=1)) - 2 * weight_db
    np.testing.assert_allclose(power, magnitude)


@pytest.mark.parametrize("edges", ["snip", "reflect", "zero"])
@pytest.mark.parametrize("count", [0, 1, 100, 399, 400, 559, 560, 1000])
@pytest.mark.parametrize("fft_size", [401, 512])
def test_frame_count_is_what_the_reference_returns(edges: str, count: int, fft_size: int) -> None:
    options = LogMelOptions(edges=edges, fft_size=fft_size)  # type: ignore[arg-type]
    frames = maths.log_mel_reference(SAMPLES[:count], options)
    assert frames.shape == (maths.frame_count(count, options), 80)
    cepstra = maths.mfcc_reference(SAMPLES[:count], MfccOptions(options, deltas=2))
    assert cepstra.shape == (len(frames), 39)
    if edges != "snip" and fft_size % 2 == 0:
        assert len(frames) == (1 + count // 160 if count else 0)  # librosa and torch


def test_windows_of_one_sample() -> None:
    options = LogMelOptions(window_samples=1)
    assert maths.window(options).tolist() == [1.0]
    assert maths.window(replace(options, window_periodic=True)).tolist() == [0.0]


def test_reference_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"LogMelOptions.fft_size is 256; expected at least window_samples, 400"):
        maths.log_mel_reference(SAMPLES, LogMelOptions(fft_size=256))
