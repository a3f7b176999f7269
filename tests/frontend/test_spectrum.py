"""The CPU spectrum: the same bits in pieces and at once, numpy's numbers, and its way through a recipe."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import edgemm
from edgemm.errors import RecipeError, UsageError
from edgemm.frontend import Spectrum
from edgemm.kernels import log_mel as maths
from edgemm.options import SpectrumOptions

NOISE = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)

OPTIONS = st.builds(
    SpectrumOptions,
    window_samples=st.sampled_from([25, 128, 400]),
    hop_samples=st.sampled_from([7, 128, 160, 500]),
    fft_size=st.sampled_from([400, 401, 512]),
    window=st.sampled_from(["hann", "hamming", "rectangular"]),
    window_periodic=st.booleans(),
    scale=st.sampled_from([1.0, 32768.0]),
    power=st.sampled_from([1, 2]),
    edges=st.sampled_from(["snip", "reflect", "zero"]),
)
CUTS = st.lists(st.integers(0, 16_000), max_size=40).map(sorted)


def by_numpy(samples: np.ndarray, options: SpectrumOptions) -> np.ndarray:
    signal = samples.astype(np.float64) * options.scale
    frames = maths.frame_count(len(samples), options.as_log_mel())
    if options.edges != "snip" and frames:
        signal = np.pad(signal, options.fft_size // 2, mode="reflect" if options.edges == "reflect" else "constant")
    offset = maths.window_offset(options.as_log_mel())
    starts = [k * options.hop_samples + offset for k in range(frames)]
    window = maths.window(options.as_log_mel())
    blocks = [signal[s : s + options.window_samples] * window for s in starts]
    return np.array([np.abs(np.fft.rfft(block, options.fft_size)) ** options.power for block in blocks])


@settings(max_examples=80)
@given(options=OPTIONS, count=st.sampled_from([0, 300, 5000, 16_000]), cuts=CUTS)
def test_pieces_and_the_whole_give_the_same_bits_and_numpys_numbers(
    options: SpectrumOptions, count: int, cuts: list[int]
) -> None:
    front_end = Spectrum(options)
    samples = NOISE[:count]
    whole = front_end.offline(samples)
    assert whole.dtype == np.float32
    assert whole.shape == (maths.frame_count(count, options.as_log_mel()), options.bins)
    for _ in range(2):  # after flush a new stream begins
        pieces = [front_end.push(piece) for piece in np.split(samples, cuts)]
        np.testing.assert_array_equal(np.concatenate([*pieces, front_end.flush()]), whole)
    if len(whole):
        loudest = (options.scale * 0.5 * options.window_samples) ** options.power
        np.testing.assert_allclose(whole, by_numpy(samples, options), rtol=1e-4, atol=1e-6 * loudest)


def test_the_defaults_are_the_magnitudes_of_whole_blocks() -> None:
    frames = Spectrum(SpectrumOptions()).offline(NOISE)
    assert frames.shape == (122, 257)
    np.testing.assert_allclose(frames[3], np.abs(np.fft.rfft(NOISE[384:896])), atol=1e-5)


def test_a_constant_and_the_highest_tone_stand_at_the_ends() -> None:
    steady, highest = np.ones(512, np.float32), np.tile(np.float32([1, -1]), 256)
    first, last = Spectrum(SpectrumOptions()).offline(np.concatenate([steady, highest]))[[0, -1]]
    assert np.flatnonzero(first > 1) == [0]
    assert np.flatnonzero(last > 1) == [256]
    np.testing.assert_allclose([first[0], last[256]], 512, rtol=1e-6)


def test_a_logarithm_with_a_floor_and_a_normalisation() -> None:
    options = SpectrumOptions(log="db", floor=1e-3, mean=-20.0, std=10.0)
    wanted = (20 * np.log10(np.maximum(by_numpy(NOISE, SpectrumOptions()), 1e-3)) + 20) / 10
    np.testing.assert_allclose(Spectrum(options).offline(NOISE), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SpectrumOptions(fft_size=100, window_samples=100), "fft_size is 100; expected at least 128"),
        (SpectrumOptions(window_samples=600), "fft_size is 512; expected at least window_samples, 600"),
        (SpectrumOptions(hop_samples=0), "hop_samples is 0; expected a whole number of at least 1"),
        (SpectrumOptions(power=3), "power is 3; expected one of 1, 2"),  # type: ignore[arg-type]
        (SpectrumOptions(floor=0.0), "floor is 0.0; expected a number above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: SpectrumOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Spectrum(options)


RECIPE = """
edgemm = 1
name = "spectra"
[streams.mic]
kind = "audio"
[models.net]
file = "net.onnx"
hop = "128 samples"
outputs.y = { decode = "raw" }
[models.net.inputs.x]
stream = "mic"
window = "1 frames"
spectrum = {}
"""


def test_a_recipe_feeds_a_spectrum_hop_by_hop(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "net",
        [value("x", TensorProto.FLOAT, [1, 1, 257])],
        [value("y", TensorProto.FLOAT, [1, 1, 257])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx"
    )
    (tmp_path / "net.toml").write_text(RECIPE)
    edgemm.build(tmp_path / "net.toml", tmp_path / "net.edgemm", precision="fp32")
    samples = np.round(NOISE[:4000] * 32768).astype("<i2")
    with wave.open(str(tmp_path / "noise.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    fed: list[np.ndarray] = []
    edgemm.run(
        tmp_path / "net.edgemm", input=tmp_path / "noise.wav", on_feeds=lambda _, x: fed.append(np.array(x["x"]))
    )
    wanted = Spectrum(SpectrumOptions()).offline(samples)
    assert len(wanted) == (4000 - 512) // 128 + 1
    np.testing.assert_array_equal(np.concatenate(fed).reshape(-1, 257), wanted)


def test_a_recipe_with_two_front_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(RECIPE + "log_mel = {}\n")
    with pytest.raises(RecipeError, match="expected one front end, found log_mel and spectrum"):
        edgemm.recipe.load(tmp_path / "net.toml")
