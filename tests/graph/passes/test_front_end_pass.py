"""The audio front end put into graphs, taken out, and recognised in what exporters and other people's code write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import graph_text
import numpy as np
import onnx
import pytest
from onnx import helper, inliner, numpy_helper

from edgemm import recipe
from edgemm.errors import ModelError, UsageError
from edgemm.frontend.log_mel import LogMel
from edgemm.graph import Model, from_proto, load, ops
from edgemm.graph.passes import (
    FoldConstants,
    InferShapes,
    PutInFrontEnd,
    RecogniseFrontEnd,
    TakeOutFrontEnd,
    find_front_end,
    run,
)
from edgemm.graph.passes.front_end import samples_for
from edgemm.kernels.log_mel import (
    dct_matrix,
    frame_count,
    lifter,
    log_mel_reference,
    mel_filterbank,
    mfcc_reference,
    window,
)
from edgemm.options import LogMelOptions, MfccOptions

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("front_end_*.onnx"))
DEMO = Path(__file__).parents[3] / "calibration" / "av_digits"
PREPARE = [InferShapes(), FoldConstants(), InferShapes()]
PLAIN = LogMelOptions(
    window_samples=256, hop_samples=128, fft_size=256, window="hann", window_periodic=True, remove_dc=False,
    preemphasis=0.0, n_mels=20, mel_scale="htk", low_hz=0.0,
)  # fmt: skip


def noise(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (1, count)).astype(np.float32)


def reader(shape: str) -> Model:
    return graph_text.model(f"(float[{shape}] features, float[2] other) => (y) {{ y = Neg(features) z = Neg(other) }}")


# put in, take out


@pytest.mark.parametrize(
    "options", [PLAIN, LogMelOptions(n_mels=40), MfccOptions(deltas=1)], ids=["hann", "fbank", "mfcc"]
)
@pytest.mark.parametrize(("time_axis", "extra"), [(0, ""), (1, ""), (0, "1, "), (1, "1, 1, ")])
def test_a_front_end_goes_in_and_comes_out(options: LogMelOptions | MfccOptions, time_axis: int, extra: str) -> None:
    frames = 9
    count = 20 if options is PLAIN else 40 if isinstance(options, LogMelOptions) else 26
    sizes = f"{frames}, {count}" if time_axis == 0 else f"{count}, {frames}"
    model = reader(f"1, {extra}{sizes}")
    put = PutInFrontEnd("features", options, time_axis)  # type: ignore[arg-type]
    result = run(model, [put])
    samples = samples_for(frames, options)
    assert result.notes == (f"put-in-front-end: features takes {samples} samples instead of {frames} frames",)
    assert result.model.inputs[0].shape == (1, samples)
    sound = noise(samples)
    reference = log_mel_reference if isinstance(options, LogMelOptions) else mfcc_reference
    want = -reference(sound[0], options)  # type: ignore[arg-type]
    want = want if time_axis == 0 else want.T
    (got,) = graph_text.run(result.model, {"features": sound, "other": np.zeros(2, np.float32)})
    assert got.shape == model.inputs[0].shape
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=5e-3)

    found = find_front_end(result.model, "features")
    assert found is not None
    assert (found.options, found.time_axis, found.shape) == (options, time_axis, model.inputs[0].shape)
    out = run(result.model, [TakeOutFrontEnd("features")])
    assert out.model.inputs == model.inputs
    assert graph_text.ops(out.model) == graph_text.ops(model)
    assert len(out.model.proto.functions) == len(out.model.proto.graph.initializer) == 0
    assert "instead of samples" in out.notes[0]


def test_the_demo_model_with_its_recipe() -> None:
    meant = recipe.load(DEMO / "recipe.toml")
    entry = meant.models["av"].inputs["audio"]
    assert entry.log_mel is not None
    model = load(DEMO / "av_digits.onnx")
    result = run(model, [PutInFrontEnd("audio", entry.log_mel, entry.time_axis)])  # type: ignore[arg-type]
    sound = noise(samples_for(100, entry.log_mel))
    video = np.random.default_rng(0).random((1, 8, 32, 32)).astype(np.float32)
    features = LogMel(entry.log_mel).offline(sound[0]).T[None]
    want = graph_text.run(model, {"audio": np.ascontiguousarray(features), "video": video})
    got = graph_text.run(result.model, {"audio": sound, "video": video})
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_free_sizes_stay_free() -> None:
    result = run(reader("batch, frames, 20"), [PutInFrontEnd("features", PLAIN)])
    assert result.model.inputs[0].shape == ("batch", "features_samples")
    out = run(result.model, [TakeOutFrontEnd("features")])
    assert out.model.inputs[0].shape == ("batch", "features_frames", 20)


@pytest.mark.parametrize("edges", ["snip", "reflect", "zero"])
@pytest.mark.parametrize("frames", [3, 4, 50])
def test_the_samples_give_the_frames(edges: str, frames: int) -> None:
    options = replace(PLAIN, edges=edges)  # type: ignore[arg-type]
    assert frame_count(samples_for(frames, options), options) == frames


@pytest.mark.parametrize(
    ("shape", "options", "time_axis", "words"),
    [
        ("1, 9, 21", PLAIN, 0, "cannot take the front end, which gives float32"),
        ("1, 9, 20", PLAIN, 1, r"\[batch, features, frames\] with 20"),
        ("9, 20", PLAIN, 0, "cannot take the front end"),
        ("1, 2, 9, 20", PLAIN, 0, "expected other axes to be 1"),
        ("1, 1, 20", replace(PLAIN, edges="reflect", hop_samples=64), 0, "no sound that is long enough"),
    ],
)
def test_inputs_that_do_not_fit(shape: str, options: LogMelOptions, time_axis: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        run(reader(shape), [PutInFrontEnd("features", options, time_axis)])  # type: ignore[arg-type]


def test_other_faults() -> None:
    with pytest.raises(ModelError, match='no input "sound", expected one of: features, other'):
        run(reader("1, 9, 20"), [PutInFrontEnd("sound", PLAIN)])
    with pytest.raises(UsageError):
        PutInFrontEnd("features", replace(PLAIN, n_mels=0))
    old = graph_text.model("(float[1, 9, 20] features) => (y) { y = Neg(features) }", opset=12)
    with pytest.raises(ModelError, match="opset 12, and a front end in the graph needs 13"):
        run(old, [PutInFrontEnd("features", PLAIN)])
    with pytest.raises(ModelError, match='only reader of the input "features"'):
        run(reader("1, 9, 20"), [TakeOutFrontEnd("features")])
    inside = run(reader("1, 9, 20"), [PutInFrontEnd("features", PLAIN)]).model
    with pytest.raises(ModelError, match="is still there"):
        TakeOutFrontEnd("features").ensures(inside, inside)
    with pytest.raises(ModelError, match="is not where it was put"):
        PutInFrontEnd("features", PLAIN).ensures(inside, reader("1, 9, 20"))
    with pytest.raises(UsageError, match="expected the rate of the signal"):
        RecogniseFrontEnd(0)


# recognise


def spelled(options: LogMelOptions | MfccOptions, samples: int | str) -> Model:
    """A graph that computes the features by a Conv for the spectra, another for the filterbank, another for the DCT."""
    if isinstance(options, LogMelOptions):
        node, features = ops.log_mel_node("sound", "out", options), options.n_mels
    else:
        node, features = ops.mfcc_node("sound", "out", options), options.n_coefficients
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("sound", onnx.TensorProto.FLOAT, [1, samples])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, "frames", features])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ops.add_bodies(proto)
    return run(from_proto(inliner.inline_local_functions(proto)), PREPARE).model


def assert_same_features(before: Model, after: Model, samples: int, tolerance: float = 2e-3) -> None:
    sound = noise(samples)
    sound[:, samples // 2 :] = 0
    name = before.inputs[0].name
    if len(before.inputs[0].shape) == 1:
        sound = sound[0]
    (want,), (got,) = (graph_text.run(model, {name: sound}) for model in (before, after))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=tolerance)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem.removeprefix("front_end_"))
def test_what_pytorch_exports(path: Path) -> None:
    model = load(path)
    assert path.stat().st_size < 30_000
    result = run(run(model, PREPARE).model, [RecogniseFrontEnd(16000)])
    if "offset" in path.stem:
        assert not result.changed
        assert "it adds 1e-06 before the logarithm, where LogMel takes the larger of the two" in result.notes[0]
        return
    found = find_front_end(result.model, "samples")
    assert found is not None
    expected = replace(PLAIN, floor=float(np.float32(1e-10)))
    if "centred" in path.stem:
        expected = replace(expected, edges="reflect", log="log10")
    elif "frames" in path.stem:
        expected = replace(expected, power=1, floor=float(np.float32(1e-5)))
    else:
        # 10 log10(x) + 40, over 20, is a natural logarithm normalised.
        gain = 10 / np.log(10) / 20
        expected = replace(expected, mean=-2.0 / gain, std=1.0 / gain)
    assert isinstance(found.options, LogMelOptions)
    for name, value in vars(expected).items():
        got = getattr(found.options, name)
        assert got == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    assert_same_features(model, result.model, 896)


CASES = [
    LogMelOptions(n_mels=40),
    LogMelOptions(n_mels=23, scale=32768.0, high_hz=7600.0, window="hamming"),
    replace(PLAIN, edges="reflect", mel_scale="slaney", mel_norm="slaney", log="log10"),
    replace(PLAIN, edges="zero", power=1, log="db", window="blackman", window_periodic=False, floor=1e-5),
    replace(PLAIN, window_samples=200, edges="reflect", mean=-4.0, std=4.5),
    replace(PLAIN, log="none", window="rectangular", low_hz=80.0, high_hz=7600.0),
]


@pytest.mark.parametrize("options", CASES, ids=range(len(CASES)))
def test_convolutions(options: LogMelOptions) -> None:
    model = spelled(options, 2400)
    result = run(model, [RecogniseFrontEnd(16000)])
    found = find_front_end(result.model, "sound")
    assert found is not None, result.notes
    assert isinstance(found.options, LogMelOptions)
    for name, value in vars(options).items():
        got = getattr(found.options, name)
        if name == "window_periodic" and options.window == "rectangular":
            continue
        assert got == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
    relative = 2e-3 if options.log != "none" else 1e-3 * float(mel_filterbank(options).sum(axis=1).max())
    assert_same_features(model, result.model, 2400, relative)


def test_a_signal_of_any_length() -> None:
    model = spelled(LogMelOptions(n_mels=40), "n")
    result = run(model, [RecogniseFrontEnd(16000)])
    assert find_front_end(result.model, "sound") is not None
    for samples in (400, 3001):
        assert_same_features(model, result.model, samples)


MFCCS = [
    MfccOptions(LogMelOptions(n_mels=23)),
    MfccOptions(replace(PLAIN, n_mels=40), n_coefficients=40, lifter=0.0),
    MfccOptions(replace(PLAIN, log="db", edges="reflect", mean=-30.0, std=20.0), n_coefficients=1, lifter=30.0),
]


@pytest.mark.parametrize("options", MFCCS, ids=range(len(MFCCS)))
def test_cepstra_by_convolutions(options: MfccOptions) -> None:
    model = spelled(options, 2400)
    result = run(model, [RecogniseFrontEnd(16000)])
    assert graph_text.ops(result.model) == ["MFCC"], result.notes
    found = find_front_end(result.model, "sound")
    assert found is not None
    assert isinstance(found.options, MfccOptions)
    assert found.options.n_coefficients == options.n_coefficients
    if options.n_coefficients > 1:  # the lifter's first factor is 1 whatever its length
        assert found.options.lifter == options.lifter
    assert found.options.log_mel.n_mels == options.log_mel.n_mels
    assert_same_features(model, result.model, 2400, 2e-2)


def cepstra(tail: str, out: str, **changes: np.ndarray) -> Model:
    """`matrices()` with a DCT behind it."""
    options = MfccOptions(PLAIN, n_coefficients=13)
    tables = {"dct": dct_matrix(options).T, "lift": lifter(options), **changes}
    proto = matrices().copy_proto()
    nodes = graph_text.proto(f"(float[6, 20] y) => (float{out} z) {{ {tail} }}")
    proto.graph.node.extend(nodes.graph.node)
    del proto.graph.output[:]
    proto.graph.output.extend(nodes.graph.output)
    for name, table in tables.items():
        proto.graph.initializer.append(numpy_helper.from_array(table.astype(np.float32), name))
    return from_proto(proto)


@pytest.mark.parametrize(
    ("tail", "out", "found"),
    [
        ("c0 = MatMul(y, dct) z = Mul(c0, lift)", "[6, 13]", "MFCC"),
        ("c0 = MatMul(y, dct) c1 = Mul(lift, c0) z = Transpose <perm = [1, 0]> (c1)", "[13, 6]", "MFCC"),
        ("t = Transpose <perm = [1, 0]> (y) z = MatMul(rows, t)", "[13, 6]", "MFCC"),
        ("t = Transpose <perm = [1, 0]> (y) c0 = MatMul(rows, t) z = Mul(c0, down)", "[13, 6]", "MFCC"),
        ("c0 = MatMul(y, dct) c1 = Identity(c0) z = Neg(c1)", "[6, 13]", "MFCC"),
        ("c0 = MatMul(y, dct) z = Mul(c0, other)", "[6, 13]", "MFCC"),
        ("z = MatMul(y, other_rows)", "[6, 13]", "LogMel"),
        ("c0 = MatMul(y, dct) s = ReduceSum(y) z = Add(c0, s)", "[6, 13]", "LogMel"),
        ("t = Transpose <perm = [1, 0]> (y) z = MatMul(left, t)", "[3, 6]", "LogMel"),
        ("c0 = MatMul(y, square) z = Mul(c0, along)", "[6, 20]", "LogMel"),
        ("z = Neg(y)", "[6, 20]", "LogMel"),
    ],
)
def test_cepstra_by_matrix_products(tail: str, out: str, found: str) -> None:
    options = MfccOptions(PLAIN, n_coefficients=13)
    rng = np.random.default_rng(0)
    model = cepstra(
        tail,
        out,
        rows=dct_matrix(options),
        down=lifter(options)[:, None],
        other=rng.random(13),
        other_rows=rng.random((20, 13)),
        left=rng.random((3, 20)),
        square=rng.random((20, 20)),
        along=rng.random((20,)),
    )
    result = run(model, [RecogniseFrontEnd(16000)])
    assert found in graph_text.ops(result.model), result.notes
    assert f'is {found} of "sound"' in result.notes[0]
    assert_same_features(model, result.model, 896, 2e-2)


def test_then_out_of_the_graph() -> None:
    model = spelled(LogMelOptions(n_mels=40), 2400)
    result = run(model, [RecogniseFrontEnd(16000), TakeOutFrontEnd("sound")])
    # The Transpose at the node's back went with it.
    assert result.model.inputs[0].shape == (1, 40, 13)


def matrices(**changes: np.ndarray) -> Model:
    """Frames by Gather, the Fourier transform as two matrix products, the logarithm after Max."""
    fft, bins = 256, 129
    angle = 2 * np.pi * np.arange(fft)[:, None] * np.arange(bins) / fft
    tables = {
        "at": np.arange(6)[:, None] * 128 + np.arange(fft),
        "window": window(PLAIN),
        "cos": np.cos(angle),
        "sin": np.sin(angle),
        "filters": mel_filterbank(PLAIN).T,
        "floor": np.array(1e-10),
        "gain": np.array(0.5),
        "shift": np.array(3.0),
        **changes,
    }
    proto = graph_text.proto(
        """(float[896] sound) => (float[6, 20] y) {
        frames = Gather <axis = 0> (sound, at) w = Mul(window, frames)
        re = MatMul(w, cos) im = MatMul(w, sin) a = Mul(re, re) b = Mul(im, im) p0 = Add(a, b)
        m = MatMul(p0, filters) c = Max(floor, m) l = Log(c) n = Mul(l, gain) y = Sub(n, shift) }"""
    )
    for name, table in tables.items():
        kind = np.int64 if name == "at" else np.float32
        proto.graph.initializer.append(numpy_helper.from_array(table.astype(kind), name))
    return from_proto(proto)


def test_matrix_products() -> None:
    model = matrices()
    result = run(model, [RecogniseFrontEnd(16000)])
    assert graph_text.ops(result.model) == ["Unsqueeze", "LogMel", "Squeeze"]
    assert_same_features(model, result.model, 896)


@pytest.mark.parametrize(
    ("changes", "rate", "reason"),
    [
        ({}, 8000, "no filterbank of 20 bands at 8000 Hz that edgemm knows matches; the nearest is"),
        ({"filters": mel_filterbank(PLAIN).T + 1e-3}, 16000, "no filterbank of 20 bands at 16000 Hz"),
        ({"window": window(PLAIN) ** 1.1}, 16000, "no window, edges or pre-emphasis that edgemm knows"),
        ({"sin": np.zeros((256, 129))}, 16000, "no window, edges or pre-emphasis that edgemm knows"),
        ({"at": np.arange(6)[:, None] * 128 + np.arange(256)[::-1]}, 16000, None),
        ({"floor": np.array(-1.0)}, 16000, "floor is -1.0; expected a number above 0"),
    ],
)
def test_what_does_not_match_and_why(changes: dict[str, np.ndarray], rate: int, reason: str | None) -> None:
    result = run(matrices(**changes), [RecogniseFrontEnd(rate)])
    if reason is None:
        # Frames read backwards have the same power spectra, but the periodic window is no longer symmetric.
        reason = "no window, edges or pre-emphasis"
    assert not result.changed
    assert len(result.notes) == 1
    assert reason in result.notes[0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("c = Max(floor, m)", "c = Identity(m)", "its logarithm has no floor under it"),
        ("w = Mul(window, frames)", "v = Abs(frames) w = Mul(window, v)", "expected one signal"),
        ("w = Mul(window, frames)", "v = Mul(window, frames) w = Add(v, window)", "expected one signal"),
        ("im = MatMul(w, sin)", "im = MatMul(other, sin)", "its spectrum is made of 2 values"),
        ("y = Sub(n, shift)", "y = Sub(n, l)", "its logarithm is read elsewhere, too|differ"),
    ],
)  # fmt: skip
def test_graphs_that_are_something_else(old: str, new: str, reason: str) -> None:
    source = matrices().proto
    body = """(float[896] sound, float[6, 256] other) => (float[6, 20] y) {
        frames = Gather <axis = 0> (sound, at) w = Mul(window, frames)
        re = MatMul(w, cos) im = MatMul(w, sin) a = Mul(re, re) b = Mul(im, im) p0 = Add(a, b)
        m = MatMul(p0, filters) c = Max(floor, m) l = Log(c) n = Mul(l, gain) y = Sub(n, shift) }"""
    assert old in body
    proto = graph_text.proto(body.replace(old, new))
    proto.graph.initializer.extend(source.graph.initializer)
    model = from_proto(proto)
    result = run(model, [RecogniseFrontEnd(16000)])
    if "l)" in new:
        # What reads the logarithm twice stays; the node ends before.
        assert result.changed
        sound = noise(896)[0]
        feeds = {"sound": sound, "other": np.zeros((6, 256), np.float32)}
        np.testing.assert_allclose(graph_text.run(result.model, feeds)[0], graph_text.run(model, feeds)[0], atol=2e-3)
        return
    assert not result.changed
    assert any(word in result.notes[0] for word in reason.split("|")), result.notes


def test_two_different_front_ends_stay_as_they_are() -> None:
    first, second = matrices().proto, spelled(LogMelOptions(n_mels=40), 2400).proto
    both = onnx.ModelProto()
    both.CopyFrom(second)
    prefixed = onnx.compose.add_prefix(first, "b_")
    both.graph.node.extend(prefixed.graph.node)
    both.graph.initializer.extend(prefixed.graph.initializer)
    both.graph.input.extend(prefixed.graph.input)
    both.graph.output.extend(prefixed.graph.output)
    result = run(from_proto(both), [RecogniseFrontEnd(16000)])
    assert not result.changed
    assert "nothing replaced" in result.notes[-1]


def test_old_opsets_and_plain_models() -> None:
    assert run(reader("1, 9, 20"), [RecogniseFrontEnd(16000)]).notes == ()
    proto = matrices().copy_proto()
    proto.opset_import[0].version = 12
    assert "opset 12, and 13 is needed" in run(from_proto(proto), [RecogniseFrontEnd(16000)]).notes[0]
