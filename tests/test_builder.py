"""Builds: from a model or a recipe to a bundle, every precision, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgemm
from edgemm import bundle
from edgemm.demo import folder
from edgemm.engine.load import choose
from edgemm.errors import CalibrationError, EdgemmError, ModelError, RecipeError, UsageError


def conv_net(path: Path, *, seed: int = 0, classes: int = 4) -> Path:
    """A small convolutional classifier: x [1, 1, 8, 8] -> y [1, classes]."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.4).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", strides=[2, 2]),
            helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
            helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
            helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="gemm"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [
            weight("w1", 8, 1, 3, 3),
            weight("b1", 8),
            weight("w2", 16, 8, 3, 3),
            weight("b2", 16),
            weight("w3", 16, classes),
            weight("b3", classes),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(count: int = 40, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 1, 8, 8)).astype(np.float32)} for _ in range(count)]


def recipe(folder: Path, extra: str = "", model: str = "") -> Path:
    conv_net(folder / "net.onnx")
    path = folder / "recipe.toml"
    path.write_text(
        f'edgemm = 1\nname = "net"\n{extra}\n[models.net]\nfile = "net.onnx"\ndims = {{ n = 1 }}\n{model}\n'
        '[models.net.outputs.y]\ndecode = "softmax"\n'
    )
    return path


def run_once(path: Path, precision: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with choose(bundle.open(path), "net", precision=precision).engine as engine:
        return np.array(engine.run(feeds)["y"])


def test_a_plain_model_is_built_in_float_without_data(tmp_path: Path) -> None:
    report = edgemm.build(conv_net(tmp_path / "net.onnx"), tmp_path / "out.edgemm")
    (model,) = report.models
    assert model.precision == "fp32"
    assert "no calibration data was given" in model.reason
    assert [v.precision for v in model.variants] == ["fp32"]
    opened = edgemm.open(tmp_path / "out.edgemm")
    assert opened.digest == report.sha256
    feeds = samples(1)[0]
    np.testing.assert_allclose(run_once(tmp_path / "out.edgemm", "fp32", feeds).shape, (1, 4))


def test_int8_from_python_data_is_close_and_measured(tmp_path: Path) -> None:
    report = edgemm.build(recipe(tmp_path), tmp_path / "out.edgemm", precision="int8", calibration=samples())
    (model,) = report.models
    assert model.precision == "int8"
    assert "30 steps" in model.calibration
    assert "compared on 10 steps held out" in model.calibration
    int8 = model.variants[1]
    assert int8.agreement is not None
    assert int8.agreement >= 0.99
    assert int8.int8_share is not None
    assert int8.int8_share > 0.9
    for feeds in samples(5, seed=7):
        a, b = (run_once(tmp_path / "out.edgemm", precision, feeds) for precision in ("fp32", "int8"))
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max() + 0.05
    entry = edgemm.open(tmp_path / "out.edgemm").models["net"]
    assert entry.variants["int8"].tensorrt in edgemm.open(tmp_path / "out.edgemm").manifest.files
    assert entry.ranges == "models/net/ranges.json"
    assert entry.variants["int8"].scores["agreement"] == int8.agreement


def test_auto_keeps_int8_only_if_it_was_measured_faster(tmp_path: Path) -> None:
    report = edgemm.build(recipe(tmp_path), tmp_path / "out.edgemm", calibration=samples())
    (model,) = report.models
    times = {v.precision: v.milliseconds for v in model.variants}
    assert times["fp32"] is not None
    assert times["int8"] is not None
    assert (model.precision == "int8") == (times["int8"] <= times["fp32"] * 0.97)
    assert "faster" in model.reason or "speed" in model.reason


def test_another_target_is_unmeasured(tmp_path: Path) -> None:
    report = edgemm.build(recipe(tmp_path), tmp_path / "out.edgemm", calibration=samples(), target="orin-nano-8gb")
    assert report.models[0].precision == "fp32"
    assert "unmeasured" in report.models[0].reason


def test_fp16(tmp_path: Path) -> None:
    report = edgemm.build(recipe(tmp_path), tmp_path / "out.edgemm", precision="fp16", calibration=samples(8))
    fp16 = report.models[0].variants[1]
    assert fp16.agreement == 1.0
    assert fp16.bytes < report.models[0].variants[0].bytes
    feeds = samples(1)[0]
    a, b = (run_once(tmp_path / "out.edgemm", precision, feeds) for precision in ("fp32", "fp16"))
    np.testing.assert_allclose(a, b, atol=0.01)
    without = edgemm.build(recipe(tmp_path), tmp_path / "out.edgemm", precision="fp16")
    assert without.models[0].variants[1].agreement is None


def test_a_fixed_precision_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = recipe(tmp_path)
    for name in ("a", "b"):
        edgemm.build(source, tmp_path / name, precision="int8", calibration=samples())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("observer", ["min-max", "percentile", "entropy", "mse"])
def test_every_observer(tmp_path: Path, observer: str) -> None:
    report = edgemm.build(
        recipe(tmp_path), tmp_path / "o", precision="int8", calibration=samples(12), observer=observer, max_drop=0.2
    )
    assert f"observer {observer}" in report.models[0].calibration
    assert "the same ones" in report.models[0].calibration


def test_calibration_folder_and_single_file(tmp_path: Path) -> None:
    folder = tmp_path / "cal"
    folder.mkdir()
    for number, feeds in enumerate(samples(6)):
        np.savez(folder / f"{number}.npz", **feeds)
    from_folder = edgemm.build(recipe(tmp_path), tmp_path / "a", precision="int8", calibration=folder)
    assert "6 steps" in from_folder.models[0].calibration
    stack = np.stack([feeds["x"] for feeds in samples(6)])
    np.savez(tmp_path / "stack.npz", x=stack)
    from_file = edgemm.build(recipe(tmp_path), tmp_path / "b", precision="int8", calibration=tmp_path / "stack.npz")
    assert "6 steps" in from_file.models[0].calibration
    assert edgemm.open(tmp_path / "a").read("models/net/ranges.json") == edgemm.open(tmp_path / "b").read(
        "models/net/ranges.json"
    )


def test_ranges_are_exported_edited_and_used_again(tmp_path: Path) -> None:
    source = recipe(tmp_path)
    ranges = tmp_path / "ranges.json"
    edgemm.build(source, tmp_path / "a", precision="int8", calibration=samples(), export_ranges=ranges)
    edgemm.build(source, tmp_path / "b", precision="int8", ranges=ranges, calibration=samples())
    member = "models/net/int8.onnx"
    assert edgemm.open(tmp_path / "a").read(member) == edgemm.open(tmp_path / "b").read(member)
    alone = edgemm.build(source, tmp_path / "c", precision="int8", ranges=ranges)
    assert "weights are rounded to nearest: ranges were given without data" in " ".join(alone.models[0].notes)
    assert edgemm.open(tmp_path / "a").read(member) != edgemm.open(tmp_path / "c").read(member)
    edited = ranges.read_text().replace('"amax": ', '"amax": 2')
    (tmp_path / "edited.json").write_text(edited)
    edgemm.build(source, tmp_path / "d", precision="int8", ranges=tmp_path / "edited.json")
    assert edgemm.open(tmp_path / "c").read(member) != edgemm.open(tmp_path / "d").read(member)
    conv_net(tmp_path / "net.onnx", seed=5)
    with pytest.raises(CalibrationError, match="belong to the graph"):
        edgemm.build(source, tmp_path / "e", precision="int8", ranges=ranges)
    assert not (tmp_path / "e").exists()


def test_layers_stay_in_float_by_wish(tmp_path: Path) -> None:
    source = recipe(tmp_path, model='keep_float = ["conv1"]')
    report = edgemm.build(source, tmp_path / "a", precision="int8", calibration=samples())
    assert "conv1" in report.models[0].variants[1].left_in_float


def test_nothing_can_be_int8(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    data = [{"x": np.ones((1, 4), np.float32)}] * 4
    with pytest.raises(EdgemmError, match="int8"):
        edgemm.build(path, tmp_path / "a", precision="int8", calibration=data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"x": np.ones((1, 1, 8, 9), np.float32)}] * 4, "expected x: float32"),
        ([{"x": np.full((1, 1, 8, 8), np.nan, np.float32)}] * 4, "NaN or infinite"),
        ([{"z": np.ones((1, 1, 8, 8), np.float32)}] * 4, "expected exactly the model's inputs: x"),
        (samples(1), "expected at least 2"),
        ([], "found no sample|no data"),
    ],
)
def test_bad_calibration_data(tmp_path: Path, data: list[dict[str, np.ndarray]], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        edgemm.build(recipe(tmp_path), tmp_path / "a", precision="int8", calibration=data)
    assert not (tmp_path / "a").exists()


def test_no_calibration_data_is_an_error_that_says_how_to_give_some(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--calibration"):
        edgemm.build(recipe(tmp_path), tmp_path / "a", precision="int8")
    with pytest.raises(CalibrationError, match="There is no calibration"):
        edgemm.build(recipe(tmp_path), tmp_path / "a", precision="int8", calibration=tmp_path / "nothing")


def test_a_failed_build_leaves_the_old_bundle(tmp_path: Path) -> None:
    source = recipe(tmp_path)
    edgemm.build(source, tmp_path / "a.edgemm")
    before = (tmp_path / "a.edgemm").read_bytes()
    (tmp_path / "net.onnx").write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        edgemm.build(source, tmp_path / "a.edgemm")
    assert (tmp_path / "a.edgemm").read_bytes() == before


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    proto = onnx.load(conv_net(tmp_path / "net.onnx"))
    proto.graph.node[1].op_type = "Rellu"
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="Rellu"):
        edgemm.build(tmp_path / "net.onnx", tmp_path / "a")


def test_dims_that_the_model_lacks(tmp_path: Path) -> None:
    source = recipe(tmp_path)
    source.write_text(source.read_text().replace("{ n = 1 }", "{ m = 1 }"))
    with pytest.raises(RecipeError, match='no input has the dimension "m", there are: n'):
        edgemm.build(source, tmp_path / "a")


def test_a_recording_needs_a_recipe(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"x")
    with pytest.raises(CalibrationError, match="without a recipe nothing says"):
        edgemm.build(conv_net(tmp_path / "net.onnx"), tmp_path / "a", precision="int8", calibration=clip)


def test_a_bundle_is_not_a_source(tmp_path: Path) -> None:
    edgemm.build(recipe(tmp_path), tmp_path / "a.edgemm")
    with pytest.raises(UsageError, match="is a bundle already"):
        edgemm.build(tmp_path / "a.edgemm", tmp_path / "b.edgemm")
    with pytest.raises(UsageError, match="no ranges"):
        edgemm.build(recipe(tmp_path), tmp_path / "b", precision="fp32", export_ranges=tmp_path / "r.json")


def test_the_report_is_json(tmp_path: Path) -> None:
    import json

    report = edgemm.build(recipe(tmp_path), tmp_path / "a", precision="int8", calibration=samples())
    read = json.loads(report.to_json())
    assert read["models"][0]["variants"][1]["precision"] == "int8"


def test_data_from_python_is_for_one_model(tmp_path: Path) -> None:
    source = recipe(tmp_path)
    source.write_text(source.read_text() + '[models.two]\nfile = "net.onnx"\ndims = { n = 1 }\n')
    with pytest.raises(CalibrationError, match="is for one model"):
        edgemm.build(source, tmp_path / "a", precision="int8", calibration=samples())


def test_a_value_of_the_recipe_takes_its_branch_out_of_the_graph_and_int8_reaches_it(tmp_path: Path) -> None:
    """A model for two sample rates, with sizes that only one of its branches can bear and no names for them."""
    weight = np.random.default_rng(3).standard_normal((4, 1, 3)).astype(np.float32)
    rate = helper.make_tensor_value_info("sr", TensorProto.INT64, [])
    wide = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"], name="conv")],
        "wide",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    narrow = helper.make_graph(
        [helper.make_node("Reshape", ["x", "seven"], ["b"], name="reshape")],
        "narrow",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, 7, -1]), "seven")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Equal", ["sr", "sixteen"], ["is_wide"]),
            helper.make_node("If", ["is_wide"], ["y"], name="rates", then_branch=wide, else_branch=narrow),
        ],
        "rates",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1, None]), rate],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, None])],
        [numpy_helper.from_array(np.array(16000), "sixteen")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "rates.onnx")
    path = tmp_path / "recipe.toml"
    path.write_text(
        'edgemm = 1\nname = "rates"\n[models.rates]\nfile = "rates.onnx"\ndims = { x_dim0 = 1, x_dim2 = 16 }\n'
        "inputs.sr = { value = 16000 }\n"
    )
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 1, 16)).astype(np.float32), "sr": np.array(16000)} for _ in range(8)]
    report = edgemm.build(path, tmp_path / "out.edgemm", precision="int8", max_drop=1.0, calibration=data)
    assert "fix-inputs: sr is always 16000" in report.models[0].notes
    assert "take-branches: rates always takes its then_branch" in report.models[0].notes
    assert report.models[0].variants[1].int8_share == 1.0
    with choose(bundle.open(tmp_path / "out.edgemm"), "rates", precision="fp32").engine as engine:
        got = np.array(engine.run(data[0])["y"])
    want = np.stack([np.convolve(data[0]["x"][0, 0], kernel[0, ::-1], "valid") for kernel in weight])[None]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_folder_of_images_is_a_recording_to_calibrate_on(tmp_path: Path) -> None:
    import cv2

    conv_net(tmp_path / "net.onnx")
    path = tmp_path / "recipe.toml"
    path.write_text(
        'edgemm = 1\nname = "look"\n[streams.camera]\nkind = "video"\n[models.net]\nfile = "net.onnx"\n'
        'hop = "40 ms"\ndims = { n = 1 }\n'
        'inputs.x = { stream = "camera", image = { width = 8, height = 8, color = "gray" } }\n'
    )
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        cv2.imwrite(str(pictures / f"{number}.png"), rng.integers(0, 256, (12, 12, 3), np.uint8))
    (model,) = edgemm.build(path, tmp_path / "out.edgemm", precision="int8", calibration=pictures).models
    assert model.calibration.startswith(f"6 steps of {pictures}")
    # Samples have the right of way, and here they do not fit.
    np.savez(pictures / "one.npz", y=np.zeros(3))
    with pytest.raises(CalibrationError, match="one.npz has the keys y"):
        edgemm.build(path, tmp_path / "out.edgemm", precision="int8", calibration=pictures)


@pytest.mark.parametrize(("precision", "least"), [("fp8", 0.85), ("int4", 0.85)])
def test_narrow_types_are_built_and_measured(tmp_path: Path, precision: str, least: float) -> None:
    few = [dict(np.load(file)) for file in sorted((folder() / "calibration").glob("*.npz"))[:12]]
    report = edgemm.build(
        folder() / "recipe.toml",
        tmp_path / "out.edgemm",
        precision=precision,  # type: ignore[arg-type]
        target="rtx-sm89",
        observer="min-max",
        calibration=few,
    )
    (model,) = report.models
    found = model.variants[1]
    assert (model.precision, found.precision) == (precision, precision)
    assert found.agreement is not None
    assert found.agreement >= least
    assert found.bytes < model.variants[0].bytes
    assert f"{precision} is made for TensorRT; onnxruntime runs it, too, but no faster" in model.notes
    opened = edgemm.open(tmp_path / "out.edgemm")
    types = {
        tensor.data_type
        for tensor in onnx.load_from_string(opened.read(f"models/av/{precision}.onnx")).graph.initializer
    }
    assert {"fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4}[precision] in types
    # What was measured at build time is what the bundle runs.
    clip = np.load(next((folder() / "calibration").glob("*.npz")))
    feeds = {name: clip[name] for name in ("audio", "video")}
    feeds = {
        name: value.reshape((-1, *opened.models["av"].inputs[i].shape[1:]))[:1]
        for i, (name, value) in enumerate(feeds.items())
    }
    with choose(opened, "av", precision="fp32").engine as one, choose(opened, "av").engine as other:
        expected, got = np.array(one.run(feeds)["digit"]), np.array(other.run(feeds)["digit"])
    assert np.abs(expected - got).max() < 0.25 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("precision", "target", "words"),
    [
        ("fp8", "rtx-sm75", "SM75 and has no kernels for fp8, which needs SM89"),
        ("fp8", "rtx-sm80", "SM80 and has no kernels for fp8"),
        ("fp8", "rtx-sm86", "--precision int8, int4, fp16 or fp32"),
        ("fp8", "orin-nano", "Jetson Orin Nano 8GB is SM87"),
        ("int4", "rtx-sm75", "SM75 and has no kernels for int4, which needs SM80"),
    ],
)
def test_a_precision_that_the_target_lacks_is_refused_before_any_work(
    tmp_path: Path, precision: str, target: str, words: str
) -> None:
    steps: list[str] = []
    with pytest.raises(UsageError, match=words):
        edgemm.build(
            recipe(tmp_path),
            tmp_path / "out.edgemm",
            precision=precision,  # type: ignore[arg-type]
            target=target,
            progress=steps.append,
        )
    assert steps == []


def test_what_loses_too_much_is_said(tmp_path: Path) -> None:
    report = edgemm.build(
        recipe(tmp_path), tmp_path / "o.edgemm", precision="fp8", calibration=samples(), max_drop=-1e9
    )
    assert any("agrees with float in" in note and "keep_float" in note for note in report.models[0].notes)


def test_nothing_to_narrow_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing can be INT4"):
        edgemm.build(recipe(tmp_path), tmp_path / "out.edgemm", precision="int4")
    source = recipe(tmp_path, model='keep_float = ["conv1", "conv2", "gemm"]')
    with pytest.raises(UsageError, match="no convolution or matrix product that can run in FP8"):
        edgemm.build(source, tmp_path / "out.edgemm", precision="fp8", calibration=samples())


def with_front_end_inside(tmp_path: Path) -> Path:
    text = (folder() / "recipe.toml").read_text().replace("time_axis = 1\n", "time_axis = 1\nin_graph = true\n")
    path = tmp_path / "inside.toml"
    path.write_text(text)
    (tmp_path / "av_digits.onnx").write_bytes((folder() / "av_digits.onnx").read_bytes())
    (tmp_path / "calibration").symlink_to(folder() / "calibration")
    return path


def test_a_front_end_moves_into_the_graph_and_the_recipe_follows(tmp_path: Path) -> None:
    report = edgemm.build(with_front_end_inside(tmp_path), tmp_path / "inside.edgemm", precision="fp16")
    opened = edgemm.open(tmp_path / "inside.edgemm")
    entry = opened.recipe.models["av"].inputs["audio"]
    assert (entry.log_mel, entry.in_graph, str(entry.window), entry.time_axis) == (None, False, "16240 samples", 0)
    assert opened.recipe.models["av"].inputs["video"].image is not None
    assert str(opened.models["av"].inputs[0]) == "audio: float32[1, 16240]"
    for precision, variant in opened.models["av"].variants.items():
        assert variant.operators == ["LogMel"], precision
    assert any(note.startswith("put-in-front-end: on noise the outputs differ by") for note in report.models[0].notes)
    results = list(edgemm.run(tmp_path / "inside.edgemm", input=folder() / "clip.mkv").results)
    assert len(results) > 100


def test_a_front_end_that_changes_the_outputs_stays_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemm.builder.FRONT_END_TOLERANCE", 0.0)
    report = edgemm.build(with_front_end_inside(tmp_path), tmp_path / "out.edgemm", precision="fp32")
    assert any("put-in-front-end: left outside" in note for note in report.models[0].notes)
    opened = edgemm.open(tmp_path / "out.edgemm")
    assert opened.recipe.models["av"].inputs["audio"].log_mel is not None
    assert opened.models["av"].variants["fp32"].operators == []


def test_attention_is_fused_where_it_is_wanted_and_exact_enough(tmp_path: Path) -> None:
    source = tmp_path / "recipe.toml"
    source.write_text((folder() / "recipe.toml").read_text() + "\n[tensorrt]\nfuse_attention = true\n")
    (tmp_path / "av_digits.onnx").write_bytes((folder() / "av_digits.onnx").read_bytes())
    (tmp_path / "calibration").symlink_to(folder() / "calibration")

    def build(**options: object) -> tuple[str, bundle.Bundle]:
        report = edgemm.build(source, tmp_path / "out.edgemm", **options)  # type: ignore[arg-type]
        return "\n".join(report.models[0].notes), edgemm.open(tmp_path / "out.edgemm")

    notes, opened = build(precision="fp16")
    variant = opened.models["av"].variants["fp16"]
    assert "1 of 1 attentions fused" in notes
    assert variant.operators == ["FusedAttention"]
    assert variant.tensorrt == "models/av/fp16-tensorrt.onnx"
    plain = onnx.load_from_string(opened.read(variant.file))
    assert not plain.functions, "onnxruntime keeps the graph as it was"
    notes, opened = build(precision="fp16", max_drop=-0.5)
    assert "undone, that is more than may be lost" in notes
    assert opened.models["av"].variants["fp16"].tensorrt is None
    notes, _ = build(precision="fp32")
    assert "takes fp16, and nothing was built in it" in notes


def test_what_is_not_int8_runs_in_fp16_on_tensorrt_if_it_is_exact_enough(tmp_path: Path) -> None:
    source = recipe(tmp_path, "[tensorrt]\nhalf = true", 'keep_float = ["gemm"]')
    report = edgemm.build(source, tmp_path / "o.edgemm", precision="int8", calibration=samples())
    opened = edgemm.open(tmp_path / "o.edgemm")
    variant = opened.models["net"].variants["int8"]
    assert variant.tensorrt is not None
    halved = onnx.load_from_string(opened.read(variant.tensorrt))
    plain = onnx.load_from_string(opened.read(variant.file))
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in halved.graph.initializer}
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in plain.graph.initializer}
    assert any(note.startswith("half, int8: agreement with float") for note in report.models[0].notes)


def test_fp16_beside_fp8_that_loses_too_much_is_undone(tmp_path: Path) -> None:
    source = recipe(tmp_path, "[tensorrt]\nhalf = true")
    report = edgemm.build(source, tmp_path / "o.edgemm", precision="fp8", calibration=samples(), max_drop=-2)
    assert any("half, fp8" in n and "undone, that is more than may be lost" in n for n in report.models[0].notes)
    assert edgemm.open(tmp_path / "o.edgemm").models["net"].variants["fp8"].tensorrt is None


def test_dla_and_workspace_are_kept_for_the_device(tmp_path: Path) -> None:
    source = recipe(tmp_path, "[tensorrt]\nsparsity = true", "[models.net.tensorrt]\nrefit = true")
    report = edgemm.build(source, tmp_path / "o.edgemm", target="agx-orin", dla=(1, True), workspace_mb=64)
    wanted = edgemm.open(tmp_path / "o.edgemm").recipe.tensorrt_of("net")
    assert (wanted.dla_core, wanted.dla_strict, wanted.memory_pools_mb) == (1, True, {"WORKSPACE": 64})
    assert (wanted.sparsity, wanted.refit) == (True, True)
    assert any("the plan will be compiled on Jetson AGX Orin 64GB" in line for line in report.plans)
