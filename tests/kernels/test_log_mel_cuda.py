"""The CUDA log-mel kernel, run by the emulator, against float64 within derived bounds, Kaldi, and itself in pieces."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import log_mel_bounds as bounds
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from require import require

from edgemm.errors import KernelError, UsageError
from edgemm.kernels.cmvn import Cmvn, GlobalCmvn, SlidingCmvn, cmvn_reference
from edgemm.kernels.emulate import Sanitizer
from edgemm.kernels.launch import EmulatorRunner
from edgemm.kernels.log_mel import mel_filterbank, mfcc_reference
from edgemm.kernels.log_mel_cuda import LogMelKernel, LogMelStream, band_tables, features_reference
from edgemm.options import LogMelOptions, MfccOptions
from edgemm.types import Array

RUNNER = EmulatorRunner()
Options = LogMelOptions | MfccOptions


class CountingRunner(EmulatorRunner):
    """An emulator that counts launches."""

    launches = 0

    def launch(self, source: str, kernel: str, params: ctypes.Structure, **keywords: Any) -> None:
        self.launches += 1
        super().launch(source, kernel, params, **keywords)


def whole(
    samples: Array,
    options: Options,
    *,
    lengths: Sequence[int] | None = None,
    cmvn: Cmvn | None = None,
    dtype: str = "float32",
    runner: EmulatorRunner = RUNNER,
) -> list[Array]:
    """The frames of each signal of a batch, from the kernel; what lies beyond them must be zero."""
    kernel = LogMelKernel(options, runner, cmvn=cmvn)
    room = kernel.frame_count(samples.shape[1]) + 2
    out = np.full((len(samples), room, kernel.feature_count), 7, dtype)
    counts = np.full(len(samples), -1, np.int32)
    kernel(samples, out, lengths=None if lengths is None else np.array(lengths, np.int32), out_frames=counts)
    for row, count in zip(out, counts, strict=True):
        assert not row[count:].any()
    return [row[:count] for row, count in zip(out, counts, strict=True)]


def pieces(
    samples: Array,
    options: Options,
    cuts: Sequence[int],
    *,
    cmvn: Cmvn | None = None,
    dtype: str = "float32",
    runner: EmulatorRunner = RUNNER,
    stream: LogMelStream | None = None,
) -> list[Array]:
    """The frames of each signal, pushed in chunks that end at `cuts`, the rest with the flush."""
    kernel = LogMelKernel(options, runner, cmvn=cmvn)
    ends = [*sorted(cuts), samples.shape[1]]
    starts = [0, *ends[:-1]]
    longest = max(max(end - start for start, end in zip(starts, ends, strict=True)), 1)
    stream = stream or kernel.open_stream(len(samples), longest)
    out = np.empty((len(samples), stream.max_frames, kernel.feature_count), dtype)
    counts = np.zeros(len(samples), np.int32)
    rows: list[list[Array]] = [[] for _ in samples]
    for start, end in zip(starts, ends, strict=True):
        stream.push(samples[:, start:end], out, counts, flush=end == ends[-1] and start == starts[-1])
        for signal, count in enumerate(counts):
            rows[signal].append(out[signal, :count].copy())
    return [np.concatenate(parts) for parts in rows]


def noise(signals: int, samples: int, seed: int = 0, size: float = 0.1) -> Array:
    return (np.random.default_rng(seed).standard_normal((signals, samples)) * size).astype(np.float32)


def assert_within(found: Array, samples: Array, options: Options, cmvn: Cmvn | None = None) -> None:
    low, high = bounds.interval(samples, options, cmvn)
    if found.dtype == np.float16:
        low, high = bounds.half(low, high)
    assert found.shape == low.shape
    assert np.all((low <= found) & (found <= high)), (
        f"off by {np.max(np.maximum(low - found, found - high))} beyond the bound"
    )


@st.composite
def log_mel_options(draw: st.DrawFn) -> LogMelOptions:
    fft_size = draw(st.sampled_from((256, 512, 1024, 2048)))
    return LogMelOptions(
        rate_hz=draw(st.sampled_from((8000, 16000, 44100))),
        fft_size=fft_size,
        window_samples=draw(st.sampled_from((fft_size, fft_size * 25 // 32, fft_size // 2 + 1, 7))),
        hop_samples=draw(st.integers(fft_size // 8, fft_size + 9)),
        window=draw(st.sampled_from(("povey", "hann", "hamming", "blackman", "rectangular"))),
        window_periodic=draw(st.booleans()),
        remove_dc=draw(st.booleans()),
        preemphasis=draw(st.sampled_from((0.0, 0.97, 1.0))),
        scale=draw(st.sampled_from((1.0, 32768.0))),
        power=draw(st.sampled_from((1, 2))),
        n_mels=draw(st.sampled_from((1, 13, 33, 80, 128))),
        mel_scale=draw(st.sampled_from(("kaldi", "htk", "slaney"))),
        mel_norm=draw(st.sampled_from(("none", "slaney"))),
        log=draw(st.sampled_from(("ln", "log10", "db", "none"))),
        floor=draw(st.sampled_from((1e-10, 1.1920929e-07, 1.0))),
        edges=draw(st.sampled_from(("snip", "reflect", "zero"))),
        mean=draw(st.sampled_from((0.0, -4.5))),
        std=draw(st.sampled_from((1.0, 3.7))),
    )


@st.composite
def signals(draw: st.DrawFn, longest: int = 5000) -> Array:
    shape = (draw(st.integers(1, 3)), draw(st.one_of(st.integers(0, 40), st.integers(0, longest))))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(("noise", "int16", "silence", "tone", "loud", "denormal", "offset")))
    random = np.random.default_rng(seed)
    if kind == "int16":
        return random.integers(-32768, 32768, shape, dtype=np.int16)
    wave = {
        "noise": lambda: random.standard_normal(shape) * 0.1,
        "silence": lambda: np.zeros(shape),
        "tone": lambda: np.sin(np.arange(shape[1]) * random.uniform(0, np.pi)) * np.ones((shape[0], 1)),
        "loud": lambda: np.sign(random.standard_normal(shape)) * 65504,
        "denormal": lambda: random.standard_normal(shape) * 1e-41,
        "offset": lambda: 0.9 + random.standard_normal(shape) * 1e-4,
    }[kind]()
    return wave.astype(np.float32)


@settings(max_examples=120)
@given(st.data())
def test_log_mel_is_within_the_bounds_of_float64(data: st.DataObject) -> None:
    options, samples = data.draw(log_mel_options()), data.draw(signals())
    lengths = data.draw(st.lists(st.integers(0, samples.shape[1]), min_size=len(samples), max_size=len(samples)))
    found = whole(samples, options, lengths=lengths, dtype=data.draw(st.sampled_from(("float32", "float16"))))
    for row, signal, length in zip(found, samples, lengths, strict=True):
        assert_within(row, signal[:length], options)


@pytest.mark.parametrize("edges", ["snip", "reflect", "zero"])
@pytest.mark.parametrize("fft_size", [256, 512, 1024, 2048])
def test_every_size_and_edge(fft_size: int, edges: Any) -> None:
    options = LogMelOptions(
        fft_size=fft_size, window_samples=fft_size * 25 // 32, hop_samples=fft_size // 3, edges=edges
    )
    samples = np.random.default_rng(4).integers(-9000, 9000, (2, 4 * fft_size + 77), dtype=np.int16)
    found = whole(samples, options)
    for row, signal in zip(found, samples, strict=True):
        assert_within(row, signal, options)
    for cut, at_once in zip(pieces(samples, options, [fft_size // 2, fft_size, 3000]), found, strict=True):
        assert cut.tobytes() == at_once.tobytes()


def test_int16_is_a_fraction_of_32768() -> None:
    # A tone in the middle of a narrow band: the bound is 2.2e-5 of its value there, and 32767 would be 3.1e-5 off.
    options = LogMelOptions(
        window="rectangular", window_samples=512, remove_dc=False, preemphasis=0.0, power=1, log="none", n_mels=128
    )
    samples = np.rint(20000 * np.cos(2 * np.pi * 8 * np.arange(512) / 512)).astype(np.int16)[None]
    assert_within(whole(samples, options)[0], samples[0], options)


@pytest.mark.parametrize("deltas", [0, 1, 2])
def test_cepstra_normalised_and_derived(deltas: Any) -> None:
    options, cmvn, samples = MfccOptions(deltas=deltas), SlidingCmvn(9, variance=True), noise(2, 5000, seed=5)
    found = whole(samples, options, cmvn=cmvn)
    for row, signal in zip(found, samples, strict=True):
        assert_within(row, signal, options, cmvn)
    for cut, at_once in zip(pieces(samples, options, [900, 3000], cmvn=cmvn), found, strict=True):
        assert cut.tobytes() == at_once.tobytes()


@settings(max_examples=60)
@given(st.data())
def test_mfcc_is_within_the_bounds_of_float64(data: st.DataObject) -> None:
    mel = replace(data.draw(log_mel_options()), log="ln", n_mels=data.draw(st.sampled_from((13, 23, 40))))
    options = MfccOptions(
        mel,
        n_coefficients=data.draw(st.integers(1, 13)),
        lifter=data.draw(st.sampled_from((0.0, 22.0))),
        deltas=data.draw(st.sampled_from((0, 1, 2))),
    )
    columns = options.n_coefficients
    cmvn = data.draw(
        st.sampled_from(
            (
                None,
                SlidingCmvn(5),
                SlidingCmvn(300),
                GlobalCmvn(tuple(range(columns)), tuple(1.0 + i for i in range(columns))),
                GlobalCmvn((0.5,) * columns),
            )
        )
    )
    samples = data.draw(signals())
    found = whole(samples, options, cmvn=cmvn, dtype=data.draw(st.sampled_from(("float32", "float16"))))
    for row, signal in zip(found, samples, strict=True):
        assert_within(row, signal, options, cmvn)


@pytest.mark.parametrize("frames", [1, 4, 50])
def test_sliding_variance_is_within_the_bounds_of_float64(frames: int) -> None:
    # Signals whose features vary: where they do not, the floor of the variance decides, and any error is magnified.
    options, cmvn = MfccOptions(deltas=1), SlidingCmvn(frames, variance=True)
    samples = noise(2, 6000, seed=3)
    for row, signal in zip(whole(samples, options, cmvn=cmvn), samples, strict=True):
        assert_within(row, signal, options, cmvn)


@settings(max_examples=80)
@given(st.data())
def test_a_stream_makes_the_bits_of_a_batch(data: st.DataObject) -> None:
    options: Options = data.draw(log_mel_options())
    samples = data.draw(signals(longest=4000))
    cuts = data.draw(st.lists(st.integers(0, samples.shape[1]), max_size=8))
    cmvn = data.draw(st.sampled_from((None, SlidingCmvn(3), SlidingCmvn(40, variance=True))))
    if data.draw(st.booleans()):
        mel = replace(options, n_mels=13, log="ln")
        options = MfccOptions(mel, n_coefficients=12, deltas=data.draw(st.sampled_from((0, 1, 2))))
    dtype = data.draw(st.sampled_from(("float32", "float16")))
    for cut, at_once in zip(
        pieces(samples, options, cuts, cmvn=cmvn, dtype=dtype),
        whole(samples, options, cmvn=cmvn, dtype=dtype),
        strict=True,
    ):
        assert cut.tobytes() == at_once.tobytes()


def test_streams_of_different_lengths_share_a_launch() -> None:
    options = LogMelOptions(n_mels=23)
    kernel, samples = LogMelKernel(options, RUNNER), noise(3, 1600)
    stream = kernel.open_stream(3, 400)
    out, counts = np.empty((3, stream.max_frames, 23), np.float32), np.zeros(3, np.int32)
    takes = np.array([[400, 0, 17], [0, 400, 383], [123, 400, 400]], np.int32)
    taken = np.zeros(3, int)
    rows: list[list[Array]] = [[], [], []]
    for take in takes:
        chunk = np.zeros((3, 400), np.float32)
        for i, count in enumerate(take):
            chunk[i, :count] = samples[i, taken[i] : taken[i] + count]
        taken += take
        stream.push(chunk, out, counts, chunk_lengths=take)
        for i in range(3):
            rows[i].append(out[i, : counts[i]].copy())
    for i, at_once in enumerate(whole(samples, options, lengths=[int(n) for n in taken])):
        assert np.concatenate(rows[i]).tobytes() == at_once.tobytes()


def test_a_hop_is_one_launch_and_one_frame() -> None:
    runner = CountingRunner()
    kernel = LogMelKernel(MfccOptions(deltas=2), runner, cmvn=SlidingCmvn(100))
    stream, samples = kernel.open_stream(1, 160), noise(1, 160 * 30)
    out, counts = np.empty((1, stream.max_frames, 39), np.float32), np.zeros(1, np.int32)
    made = []
    for at in range(0, samples.shape[1], 160):
        stream.push(samples[:, at : at + 160], out, counts)
        made.append(int(counts[0]))
    assert runner.launches == 30
    assert made == [0] * 6 + [1] * 24  # a window of 2.5 hops, and derivatives that look 4 frames ahead


def test_reset_starts_anew() -> None:
    options = MfccOptions(deltas=1)
    kernel, samples = LogMelKernel(options, RUNNER, cmvn=SlidingCmvn(4)), noise(2, 2000)
    stream = kernel.open_stream(2, 2000)
    first = pieces(samples, options, [700], cmvn=SlidingCmvn(4), stream=stream)
    stream.reset()
    second = pieces(samples, options, [700], cmvn=SlidingCmvn(4), stream=stream)
    assert [row.tobytes() for row in first] == [row.tobytes() for row in second]


def test_batches_of_growing_size_share_a_kernel() -> None:
    options = MfccOptions(deltas=1)
    kernel = LogMelKernel(options, RUNNER)
    kernel.reserve(1, 4)
    for signals_, length in ((1, 800), (3, 4000), (2, 900)):
        samples = noise(signals_, length)
        out = np.empty((signals_, kernel.frame_count(length), kernel.feature_count), np.float32)
        kernel(samples, out)
        for row, signal in zip(out, samples, strict=True):
            assert_within(row, signal, options)


@pytest.mark.parametrize("order", ["forward", "reversed", "shuffled"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_order_of_threads_and_blocks_changes_a_bit(order: Any, seed: int) -> None:
    options = MfccOptions(LogMelOptions(n_mels=23, edges="reflect"), deltas=2)
    samples, cmvn = noise(2, 3000), SlidingCmvn(5, variance=True)
    runner = EmulatorRunner(seed=seed, block_order=order)
    expected = [row.tobytes() for row in whole(samples, options, cmvn=cmvn)]
    assert [row.tobytes() for row in whole(samples, options, cmvn=cmvn, runner=runner)] == expected
    assert [row.tobytes() for row in pieces(samples, options, [500, 900], cmvn=cmvn, runner=runner)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined", "thread"])
@pytest.mark.parametrize("fft_size", [256, 512, 1024, 2048])
def test_sanitizers_find_nothing(sanitizer: Sanitizer, fft_size: int) -> None:
    mel = LogMelOptions(
        n_mels=23, fft_size=fft_size, window_samples=fft_size - 12, hop_samples=fft_size // 3, edges="reflect"
    )
    options, cmvn = MfccOptions(mel, deltas=2), SlidingCmvn(3)
    runner = EmulatorRunner(sanitizer=sanitizer, seed=1)
    samples = noise(2, 4 * fft_size + 77)
    lengths = [samples.shape[1], 100]
    whole(samples, replace(mel, edges="snip"), lengths=lengths, runner=runner, dtype="float16")
    found = whole(samples, options, cmvn=cmvn, runner=runner)
    cut = pieces(samples, options, [fft_size, 3 * fft_size], cmvn=cmvn, runner=runner)
    assert [row.tobytes() for row in found] == [row.tobytes() for row in cut]


# ---- special signals ----


def test_not_a_number_stays_in_the_frames_that_hold_it() -> None:
    samples = noise(1, 2000)
    samples[0, 1000] = np.nan
    frames = whole(samples, LogMelOptions())[0]
    covered = [k for k in range(len(frames)) if k * 160 <= 1000 < k * 160 + 400]
    assert np.isnan(frames[covered]).all()
    assert np.isfinite(np.delete(frames, covered, axis=0)).all()


def test_silence_is_the_floor() -> None:
    options = LogMelOptions(floor=1e-5)
    np.testing.assert_allclose(whole(np.zeros((1, 1000), np.float32), options)[0], np.log(1e-5), rtol=1e-6)


def test_a_signal_that_makes_no_frame() -> None:
    assert whole(noise(2, 399), LogMelOptions())[0].shape == (0, 80)
    assert whole(noise(2, 0), LogMelOptions(edges="zero"))[0].shape == (0, 80)
    kernel = LogMelKernel(LogMelOptions(), RUNNER)
    counts = np.full(2, 9, np.int32)
    kernel(noise(2, 100), np.empty((2, 0, 80), np.float32), out_frames=counts)
    assert not counts.any()


def test_lengths_outside_the_signal_are_held_to_it() -> None:
    samples = noise(2, 1000)
    short, long = whole(samples, LogMelOptions(), lengths=[-5, 5000])
    assert short.shape == (0, 80)
    assert_within(long, samples[1], LogMelOptions())


def test_a_row_stride_is_followed() -> None:
    samples = noise(2, 2000)
    for row, signal in zip(whole(samples[:, 300:1500], LogMelOptions()), samples, strict=True):
        assert_within(row, signal[300:1500], LogMelOptions())


# ---- peers ----


def test_kaldi_native_fbank_agrees() -> None:
    knf = require("kaldi_native_fbank", "test", "pip install kaldi-native-fbank")
    samples = noise(1, 16000, size=0.2)
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    peer = knf.OnlineFbank(options)
    peer.accept_waveform(16000, samples[0].tolist())
    theirs = np.stack([peer.get_frame(i) for i in range(peer.num_frames_ready)])
    ours = whole(samples, LogMelOptions())[0]
    # both are float32; Kaldi's own distance from float64 is a few 1e-5
    np.testing.assert_allclose(ours, theirs, atol=5e-4)


def test_kaldi_native_mfcc_agrees() -> None:
    knf = require("kaldi_native_fbank", "test", "pip install kaldi-native-fbank")
    samples = noise(1, 16000, size=0.2)
    options = knf.MfccOptions()
    options.frame_opts.dither = 0
    options.use_energy = False
    peer = knf.OnlineMfcc(options)
    peer.accept_waveform(16000, samples[0].tolist())
    theirs = np.stack([peer.get_frame(i) for i in range(peer.num_frames_ready)])
    np.testing.assert_allclose(whole(samples, MfccOptions())[0], theirs, atol=5e-3)


# ---- tables and references ----


def test_band_tables_hold_the_filterbank() -> None:
    filters = mel_filterbank(LogMelOptions(n_mels=128))  # with bands that no bin falls into
    first, offsets, weights = band_tables(filters)
    dense = np.zeros_like(filters)
    for m in range(len(filters)):
        row = weights[offsets[m] : offsets[m + 1]]
        dense[m, first[m] : first[m] + len(row)] = row
    np.testing.assert_allclose(dense, filters, rtol=1e-6)


def test_the_reference_without_cmvn_is_the_mfcc_reference() -> None:
    samples = noise(1, 3000)[0]
    for deltas in (0, 1, 2):
        options = MfccOptions(deltas=deltas)
        np.testing.assert_allclose(features_reference(samples, options), mfcc_reference(samples, options))


def test_sliding_cmvn_over_everything_is_the_mean_so_far() -> None:
    features = np.random.default_rng(0).standard_normal((7, 3))
    found = cmvn_reference(features, SlidingCmvn(100, variance=True))
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[6], (features[6] - features.mean(axis=0)) / features.std(axis=0))


# ---- bad input ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fft_size": 4096}, "has no FFT of 4096 points; it has 256, 512, 1024, 2048"),
        ({"n_mels": 257}, "takes up to 256 bands; found 257"),
    ],
)
def test_options_that_the_kernel_has_not(change: dict[str, int], words: str) -> None:
    with pytest.raises(KernelError, match=words):
        LogMelKernel(replace(LogMelOptions(), **change), RUNNER)


@pytest.mark.parametrize(
    ("cmvn", "words"),
    [
        (SlidingCmvn(0), r"SlidingCmvn.frames is 0; expected 1 to"),
        (GlobalCmvn((0.0, 1.0)), r"GlobalCmvn.mean has 2 values; expected 80"),
        (GlobalCmvn((0.0,) * 80, (-1.0,) * 80), r"variance holds -1.0; expected numbers of at least 0"),
    ],
)
def test_cmvn_that_does_not_fit(cmvn: Cmvn, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LogMelKernel(LogMelOptions(), RUNNER, cmvn=cmvn)


def misaligned(shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape)) * 4
    return np.zeros(size + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


OUT = np.zeros((2, 4, 80), np.float32)
SAMPLES = np.zeros((2, 880), np.float32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": SAMPLES.astype(np.float64)}, "samples is float64; expected float32 or int16"),
        ({"samples": SAMPLES[0]}, r"samples has shape \[880\]; expected \[any, any\]"),
        ({"samples": np.zeros((2, 1760), np.float32)[:, ::2]}, "samples has strides .* each row to be contiguous"),
        ({"samples": SAMPLES[::-1]}, "row stride of -3520 bytes; expected whole samples, forward"),
        ({"samples": SAMPLES.tolist()}, "samples is a list; the emulator takes numpy arrays"),
        ({"samples": misaligned((2, 880))}, "samples lies at 0x.*; expected an address that is a multiple of 4"),
        ({"out": OUT[:, :, :79]}, r"out has shape \[2, 4, 79\]; expected \[2, any, 80\]"),
        ({"out": OUT.astype(np.int8)}, "out is int8; expected float32 or float16"),
        ({"out": np.empty((2, 8, 80), np.float32)[:, ::2]}, "out has strides .*; expected a contiguous array"),
        ({"out": OUT[:, :3].copy()}, "out has room for 3 frames; 880 samples make 4. Make it longer"),
        ({"out": read_only(OUT.copy())}, "out is read-only, but the kernel writes to it"),
        ({"lengths": np.zeros(3, np.int32)}, r"lengths has shape \[3\]; expected \[2\]"),
        ({"lengths": np.zeros(2, np.int64)}, "lengths is int64; expected int32"),
        ({"out_frames": np.zeros(2, np.float32)}, "out_frames is float32; expected int32"),
    ],
)
def test_arguments_that_do_not_fit_a_batch(arguments: dict[str, Any], words: str) -> None:
    runner = CountingRunner()
    kernel = LogMelKernel(LogMelOptions(), runner)
    samples, out = arguments.pop("samples", SAMPLES), arguments.pop("out", OUT)
    with pytest.raises(KernelError, match=words):
        kernel(samples, out, **arguments)
    assert runner.launches == 0


def test_too_many_signals_for_a_grid() -> None:
    kernel = LogMelKernel(LogMelOptions(n_mels=1), RUNNER)
    samples = np.broadcast_to(np.zeros((1, 400), np.float32), (70000, 400))
    with pytest.raises(KernelError, match="70000 signals of 400 samples; expected at most 65535"):
        kernel(samples, np.empty((70000, 1, 1), np.float32))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"chunk": np.zeros((1, 161), np.float32)}, "chunk has 161 samples; expected at most 160"),
        ({"chunk": np.zeros((2, 160), np.float32)}, r"chunk has shape \[2, 160\]; expected \[1, any\]"),
        ({"chunk": np.zeros((1, 320), np.float32)[:, ::2]}, "chunk has strides"),
        ({"out": np.empty((1, 1, 80), np.float32)}, r"out has room for 1 frames; expected \d+ \(`max_frames`\)"),
        ({"out_frames": np.zeros(1, np.int64)}, "out_frames is int64; expected int32"),
    ],
)
def test_arguments_that_do_not_fit_a_stream(arguments: dict[str, Any], words: str) -> None:
    runner = CountingRunner()
    stream = LogMelKernel(LogMelOptions(), runner).open_stream(1, 160)
    given_ = {
        "chunk": np.zeros((1, 160), np.float32),
        "out": np.empty((1, stream.max_frames, 80), np.float32),
        "out_frames": np.zeros(1, np.int32),
    } | arguments
    with pytest.raises(KernelError, match=words):
        stream.push(**given_)
    assert runner.launches == 0


@pytest.mark.parametrize(("streams", "chunk"), [(0, 160), (1, 0), (1, 1 << 24)])
def test_streams_that_cannot_be_opened(streams: int, chunk: int) -> None:
    with pytest.raises(UsageError, match="expected at least 1, chunks below 2\\^24"):
        LogMelKernel(LogMelOptions(), RUNNER).open_stream(streams, chunk)


def test_too_little_room_for_the_frames_of_a_chunk() -> None:
    with pytest.raises(UsageError, match="max_frames 1; a chunk may make"):
        LogMelKernel(LogMelOptions(), RUNNER).open_stream(1, 1600, max_frames=1)
