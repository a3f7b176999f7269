"""Sensitivity, the search within a budget, and the choice by accuracy and speed."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.errors import CalibrationError, UsageError
from edgemm.quant import Candidate, Reference, calibrate, choose, insert_qdq, search, sensitivity
from edgemm.types import StatePair


@pytest.fixture
def fragile(graph):
    """Four layers, of which "fragile" multiplies columns of very different size by weights that undo it."""
    x = graph.input("x", 4, 8)
    y = graph.op("Relu", graph.op("MatMul", x, graph.weight(8, 16), name="sturdy"))
    sizes = np.logspace(0, 4, 16).astype(np.float32)
    y = graph.op("Mul", y, graph.const(sizes))
    weight = (graph.rng.normal(size=(16, 16)) / sizes[:, None]).astype(np.float32)
    y = graph.op("Relu", graph.op("MatMul", y, graph.const(weight), name="fragile"))
    y = graph.op("Relu", graph.op("MatMul", y, graph.weight(16, 16), name="third"))
    graph.output(graph.op("MatMul", y, graph.weight(16, 4), name="last"))
    return graph.model()


@pytest.fixture
def judged(fragile, executor, samples):
    """Model, its ranges and a score in dB."""
    data = samples(fragile, 16)
    reference = Reference(fragile, data, executor)
    return fragile, calibrate(fragile, data, executor, "min-max"), lambda m: reference.compare(m).sqnr_db


@pytest.mark.parametrize("mode", ["alone", "all-but"])
def test_the_fragile_layer_comes_first(judged, mode):
    model, ranges, score = judged
    told = []
    found = sensitivity(model, ranges, score, "tensorrt", mode=mode, progress=lambda *done: told.append(done))
    assert found[0].node == "fragile"
    assert found[0].op == "MatMul"
    assert {item.node for item in found} == {"sturdy", "fragile", "third", "last"}
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=mode == "all-but")
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_search_leaves_the_fragile_layer_in_float_and_says_why(judged):
    model, ranges, score = judged

    def capped(candidate):
        return min(score(candidate), 60.0)

    result = search(model, ranges, capped, 32.0, "tensorrt", lambda: sensitivity(model, ranges, score, "tensorrt"))
    assert result.float_score == 60.0
    assert result.score >= 28.0
    assert [name for name, _ in result.left] == ["fragile"]
    assert "MatMul scores" in result.left[0][1]
    assert "28 is wanted" in result.left[0][1]
    assert result.quantized.left_in_float == {"fragile": "left in float on request"}
    assert result.trials[0].in_float == 0
    assert not result.trials[0].fits


def test_within_the_budget_nothing_is_analysed(judged):
    model, ranges, score = judged

    def never():
        raise AssertionError("the order was not needed")

    result = search(model, ranges, score, 1000.0, "tensorrt", never, exclude=["last"])
    assert result.left == ()
    assert list(result.quantized.left_in_float) == ["last"]


def test_without_a_budget_everything_stays_in_float(judged):
    model, ranges, score = judged
    result = search(model, ranges, score, 0.0, "tensorrt", lambda: sensitivity(model, ranges, score, "tensorrt"))
    assert len(result.left) == 4
    assert result.score == result.float_score
    assert result.quantized.int8_share == 0.0


def test_a_layer_that_turns_out_harmless_goes_back_to_int8(judged):
    model, ranges, score = judged

    def capped(candidate):
        return min(score(candidate), 60.0)

    def misleading():
        return sorted(sensitivity(model, ranges, score, "tensorrt"), key=lambda item: item.node == "fragile")

    result = search(model, ranges, capped, 32.0, "tensorrt", misleading)
    assert [name for name, _ in result.left] == ["fragile"]


def test_a_negative_budget_is_refused(judged):
    model, ranges, score = judged
    with pytest.raises(UsageError, match="0 or more, found -1"):
        search(model, ranges, score, -1, "tensorrt", list)


def test_choose_wants_both_accuracy_and_speed(fragile):
    times = {"fp32": 2.0, "int8": 1.0, "fp16": 1.5, "bad": 0.1, "slow": 2.5}
    models = {name: fragile.with_proto(fragile.copy_proto()) for name in times}
    measured = []

    def measure(model):
        name = next(name for name, other in models.items() if other is model)
        measured.append(name)
        return times[name]

    def candidate(name, score):
        return Candidate(name, models[name], score)

    baseline = candidate("fp32", 0.95)
    others = [candidate("fp16", 0.95), candidate("int8", 0.945), candidate("bad", 0.5), candidate("slow", 0.95)]
    choice = choose(baseline, others, 0.01, measure)
    assert choice.precision == "int8"
    assert "2.00 times the baseline's speed" in choice.reason
    assert "bad" not in measured, "what is not accurate enough is not timed"
    verdicts = {row.precision: row.verdict for row in choice.table}
    assert "scores 0.5, and 0.94 is wanted" in verdicts["bad"]
    assert "not faster here, 0.80 times" in verdicts["slow"]
    choice = choose(baseline, others[2:], 0.01, measure)
    assert choice.precision == "fp32"
    assert "no other precision is both accurate enough and faster" in choice.reason


def test_a_gain_within_the_noise_is_none(fragile):
    seconds = iter([1.0, 0.99])
    other = Candidate("int8", fragile, 1.0)
    assert choose(Candidate("fp32", fragile, 1.0), [other], 0.0, lambda _: next(seconds)).precision == "fp32"


# Agreement


def test_a_model_agrees_with_itself(judged, executor, samples):
    model, _, _ = judged
    agreement = Reference(model, samples(model), executor).compare(model)
    assert agreement.sqnr_db == 150.0
    assert agreement.cosine == pytest.approx(1.0)
    assert agreement.decisions is None


def test_sqnr_is_its_formula_and_the_worst_output_counts(new_graph, executor):
    def build(a, b):
        g = new_graph()
        x = g.input("x", 2)
        for name, factor in (("a", a), ("b", b)):
            g.output(g.op("Mul", x, g.const(np.float32(factor)), output=name), 2)
        return g.model()

    data = [{"x": np.array([3.0, 4.0], np.float32)}]
    reference = Reference(build(1.0, 1.0), data, executor, decisions={"b": lambda y: y > 2.9})
    agreement = reference.compare(build(1.1, 0.5))
    assert agreement.by_output["a"] == pytest.approx(20.0, abs=1e-4)
    assert agreement.by_output["b"] == pytest.approx(10 * np.log10(4), abs=1e-4)
    assert agreement.sqnr_db == agreement.by_output["b"]
    assert agreement.decisions == 0.0
    assert reference.compare(build(-1.0, 1.0)).cosine == pytest.approx(-1.0)
    assert reference.compare(build(0.0, 1.0)).by_output["a"] == pytest.approx(0.0)
    assert reference.compare(build(0.0, 1.0)).cosine == 0.0
    assert reference.compare(build(np.nan, 1.0)).by_output["a"] == -150.0


def test_states_are_carried_and_not_compared(graph, executor):
    x = graph.input("x", 1)
    s = graph.input("s", 1)
    new = graph.output(graph.op("Add", x, s, output="s_next"), 1)
    graph.output(graph.op("Mul", new, graph.const(np.float32(2)), output="y"), 1)
    model = graph.model()
    steps = [{"x": np.ones(1, np.float32)}] * 3
    agreement = Reference(model, [steps], executor, states=[StatePair("s", "s_next")]).compare(model)
    assert set(agreement.by_output) == {"y"}


def test_no_data_and_no_float_output_are_errors(graph, executor):
    x = graph.input("x", 3)
    graph.output(graph.op("ArgMax", x), 1, dtype=7)
    model = graph.model()
    with pytest.raises(CalibrationError, match="no data to compare with"):
        Reference(model, [], executor)
    with pytest.raises(CalibrationError, match="No output of the model is a float tensor"):
        Reference(model, [{"x": np.zeros(3, np.float32)}], executor)


def test_int8_of_one_layer_is_what_the_analysis_scored(judged):
    model, ranges, score = judged
    found = {item.node: item.score for item in sensitivity(model, ranges, score, "onnxruntime")}
    others = [name for name in found if name != "last"]
    assert score(insert_qdq(model, ranges, "onnxruntime", others).model) == found["last"]
