"""Calibration: what is measured, what data is refused, and state that is carried."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from onnx import TensorProto

from edgemm.errors import CalibrationError, UsageError
from edgemm.quant import OBSERVERS, Sample, calibrate, from_folder, from_json, load_ranges
from edgemm.types import StatePair


@pytest.fixture
def model(graph):
    x = graph.input("x", 2, 4)
    y = graph.op("Relu", graph.op("MatMul", x, graph.weight(4, 3), name="one"))
    graph.output(graph.op("MatMul", y, graph.weight(3, 2), name="two"))
    return graph.model()


def stateful(graph):
    """s' = s + x, y = s' @ w: the state of step k is the sum of the inputs so far."""
    x = graph.input("x", 1, 2)
    s = graph.input("s", 1, 2)
    new = graph.output(graph.op("Add", x, s, output="s_next"), 1, 2)
    graph.output(graph.op("MatMul", new, graph.const(np.eye(2, dtype=np.float32)), output="y"), 1, 2)
    return graph.model(), [StatePair("s", "s_next")]


def ones(*shape, value=1.0):
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_ranges_hold_what_the_tensors_did(model, executor, samples, observer):
    data = samples(model)
    ranges = calibrate(model, data, executor, observer)
    assert ranges.graph == model.digest
    assert ranges.observer == observer
    assert ranges.samples == 8
    assert set(ranges.tensors) == {"x", "relu_1_out"}
    values = np.stack([feeds["x"] for feeds in data])
    entry = ranges.tensors["x"]
    assert (entry.lo, entry.hi) == (values.min(), values.max())
    assert 0 < entry.amax <= np.abs(values).max()
    assert entry.shape == (2, 4)
    assert ranges.tensors["relu_1_out"].lo == 0.0
    assert ranges.shapes["one_out"] == (2, 3)


def test_data_may_be_a_generator_and_progress_is_told(model, executor, samples):
    seen = []
    ranges = calibrate(model, iter(samples(model, 3)), executor, progress=seen.append)
    assert seen == [1, 2, 3]
    assert ranges.samples == 3


def test_state_is_carried_inside_a_sequence_and_reset_between(graph, executor):
    model, states = stateful(graph)
    steps = [{"x": ones(1, 2)}] * 5
    ranges = calibrate(model, [steps, steps], executor, "min-max", states=states)
    assert ranges.samples == 10
    assert ranges.tensors["s_next"].hi == 5.0
    ranges = calibrate(model, [steps[0]] * 10, executor, "min-max", states=states)
    assert ranges.tensors["s_next"].hi == 1.0


def test_a_wrong_state_pair_is_named(graph, executor):
    model, _ = stateful(graph)
    with pytest.raises(CalibrationError, match='no state pair "nope" -> "s"'):
        calibrate(model, [], executor, states=[StatePair("s", "nope")])


def test_a_state_without_fixed_shape_is_named(graph, executor):
    s = graph.input("s", 1, "n")
    graph.output(graph.op("Identity", s, output="s_next"), 1, "n")
    graph.output(graph.op("MatMul", s, graph.weight(4, 3)))
    with pytest.raises(CalibrationError, match=r"s: float32\[1, n\] has no fixed shape"):
        calibrate(graph.model(), [], executor, states=[StatePair("s", "s_next")])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"y": ones(2, 4)}, r"sample 2 has the keys y; expected exactly the model's inputs: x"),
        ({}, r"sample 2 has the keys \(none\)"),
        ({"x": ones(2, 5)}, r'sample 2: "x" is float32\[2, 5\]; expected x: float32\[2, 4\]'),
        ({"x": np.ones((2, 4))}, r'"x" is float64\[2, 4\]; expected x: float32'),
        ({"x": [[1.0]]}, r'"x" is a list; expected a numpy array'),
        ({"x": ones(2, 4, value=np.nan)}, r'sample 2: "x" holds 8 values that are NaN or infinite'),
        ({"x": ones(2, 4, value=np.inf)}, r'sample 2: "x" holds 8 values that are NaN or infinite'),
        ([{"x": ones(2, 4)}, {"x": ones(3, 4)}], r'sample 2, step 2: "x" is float32\[3, 4\]'),
        (7, r"sample 2 is a int; expected a dict of arrays by input name"),
    ],
)
def test_a_bad_sample_is_named_with_what_was_expected(model, executor, bad, words):
    with pytest.raises(CalibrationError, match=words):
        calibrate(model, [{"x": ones(2, 4)}, bad], executor)


def test_no_data_and_one_sample_are_errors_that_say_how_to_give_some(model, executor):
    with pytest.raises(
        CalibrationError, match=r"found no sample; expected at least 2, and 100 or more .*--calibration"
    ):
        calibrate(model, [], executor)
    with pytest.raises(CalibrationError, match="found one sample"):
        calibrate(model, [{"x": ones(2, 4)}], executor)


def test_a_model_that_makes_nan_is_found_out(graph, executor):
    x = graph.input("x", 2, 2)
    y = graph.op("Log", x)
    graph.output(graph.op("MatMul", y, graph.weight(2, 2)))
    with pytest.raises(CalibrationError, match=r'tensor "log_0_out" holds NaN or infinity when calibration sample 2'):
        calibrate(graph.model(), [{"x": ones(2, 2)}, {"x": ones(2, 2, value=-1)}], executor)


def test_a_model_without_anything_to_quantize_says_so(graph, executor):
    graph.output(graph.op("Relu", graph.input("x", 2, 2)))
    with pytest.raises(CalibrationError, match="nothing to calibrate"):
        calibrate(graph.model(), [], executor)


def test_an_unknown_observer_is_refused_before_any_work(model, executor):
    with pytest.raises(UsageError, match="no calibrator"):
        calibrate(model, [], executor, "max")


def test_empty_tensors_are_counted_but_not_measured(graph, executor):
    x = graph.input("x", "n", 3)
    graph.output(graph.op("MatMul", x, graph.weight(3, 2)))
    ranges = calibrate(graph.model(), [{"x": ones(0, 3)}] * 2, executor)
    assert dataclasses.astuple(ranges.tensors["x"]) == (0.0, 0.0, 0.0, (0, 3))


# Folders


def test_a_folder_holds_one_sample_a_file_or_a_stack(tmp_path, model, executor):
    np.savez(tmp_path / "a.npz", x=ones(2, 4))
    np.savez(tmp_path / "b.npz", x=ones(3, 2, 4, value=2))
    loaded = list(from_folder(tmp_path, model.inputs))
    assert [(sample.origin, len(sample.steps)) for sample in loaded] == [
        (str(tmp_path / "a.npz"), 1),
        (str(tmp_path / "b.npz"), 3),
    ]
    ranges = calibrate(model, from_folder(tmp_path, model.inputs), executor)
    assert ranges.samples == 4
    assert ranges.tensors["x"].hi == 2.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Found no .npz file in"),
        (b"not a zip", "Cannot read .*bad.npz as .npz"),
        ({"z": ones(2, 4)}, "bad.npz has the keys z; expected exactly the model's inputs: x"),
        ({"x": ones(2, 9)}, r'bad.npz: "x" is float32\[2, 9\]'),
        ({"x": ones(2, 4, value=np.nan)}, r'bad.npz: "x" holds 8 values that are NaN'),
        ({"x": ones(2, 3, 9)}, r'bad.npz, step 1: "x" is float32\[3, 9\]'),
    ],
)
def test_a_bad_file_is_named(tmp_path, model, executor, content, words):
    if isinstance(content, bytes):
        (tmp_path / "bad.npz").write_bytes(content)
    elif content is not None:
        np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(CalibrationError, match=words):
        calibrate(model, from_folder(tmp_path, model.inputs), executor)


def test_a_truncated_npz_and_pickles_are_refused(tmp_path, model):
    np.savez(tmp_path / "bad.npz", x=ones(200, 400))
    whole = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CalibrationError, match="Cannot read"):
        list(from_folder(tmp_path, model.inputs))
    np.savez(tmp_path / "bad.npz", x=np.array([object()]))
    with pytest.raises(CalibrationError, match="Cannot read"):
        list(from_folder(tmp_path, model.inputs))


def test_a_missing_folder_and_uneven_stacks_are_named(tmp_path, graph):
    a = graph.input("a", 2)
    b = graph.input("b", 2)
    graph.output(graph.op("Add", a, b))
    inputs = graph.model().inputs
    with pytest.raises(CalibrationError, match="There is no calibration folder"):
        list(from_folder(tmp_path / "nowhere", inputs))
    np.savez(tmp_path / "bad.npz", a=ones(3, 2), b=ones(4, 2))
    with pytest.raises(CalibrationError, match="differ in length"):
        list(from_folder(tmp_path, inputs))


def test_samples_of_ones_own_carry_their_origin(model, executor):
    bad = Sample([{"x": ones(1, 1)}], "clip.mp4 at 3.2 s")
    with pytest.raises(CalibrationError, match=r"Calibration clip.mp4 at 3.2 s"):
        calibrate(model, [bad], executor)


# Ranges


def test_ranges_survive_a_file_and_may_be_edited(tmp_path, model, executor, samples):
    ranges = calibrate(model, samples(model), executor, "mse")
    path = tmp_path / "ranges.json"
    ranges.save(path)
    assert load_ranges(path) == ranges
    assert path.read_text() == load_ranges(path).to_json()
    document = json.loads(path.read_text())
    document["tensors"]["x"]["amax"] = 2
    path.write_text(json.dumps(document))
    assert load_ranges(path).tensors["x"].amax == 2.0


def edited(ranges, change):
    document = json.loads(ranges.to_json())
    change(document)
    return json.dumps(document)


def test_bad_ranges_say_what_is_wrong(tmp_path, model, executor, samples):
    ranges = calibrate(model, samples(model), executor)

    def reject(change, words):
        with pytest.raises(CalibrationError, match=words):
            from_json(edited(ranges, change), "r.json")

    reject(lambda d: d.update(schema=9), "r.json: schema 9, this edgemm reads schema 1")
    reject(lambda d: d.pop("schema"), 'no "schema" in it')
    reject(lambda d: d["tensors"]["x"].update(amax=-1), 'amax of "x" is -1.0; expected a finite number')
    reject(lambda d: d["tensors"]["x"].update(amax="big"), "not the JSON that edgemm writes: .*amax")
    reject(lambda d: d.pop("graph"), "not the JSON that edgemm writes: .*graph")
    for text in ("{", b"\xff\xfe", "[]", "3"):
        with pytest.raises(CalibrationError, match="The ranges: "):
            from_json(text)
    with pytest.raises(CalibrationError, match="Cannot read the ranges"):
        load_ranges(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="Cannot write the ranges"):
        ranges.save(tmp_path / "no folder" / "r.json")


def test_ranges_of_another_graph_are_refused(model, new_graph, executor, samples):
    ranges = calibrate(model, samples(model), executor)
    ranges.check(model)
    other = new_graph(seed=5)
    x = other.input("x", 2, 4)
    other.output(other.op("MatMul", x, other.weight(4, 3)))
    with pytest.raises(CalibrationError, match=f"belong to the graph {model.digest[:12]}"):
        ranges.check(other.model())


def test_integer_inputs_are_fed_and_not_quantized(graph, executor):
    tokens = graph.input("tokens", 3, dtype=TensorProto.INT64)
    y = graph.op("Gather", graph.weight(10, 4), tokens)
    graph.output(graph.op("MatMul", y, graph.weight(4, 2)))
    model = graph.model()
    ranges = calibrate(model, [{"tokens": np.array([1, 2, k])} for k in range(3)], executor)
    assert set(ranges.tensors) == {"gather_0_out"}
