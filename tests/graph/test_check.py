from __future__ import annotations

import json

import graph_text
import numpy as np
import pytest
import random_graphs

from edgemm.errors import UsageError
from edgemm.graph import Finding, check, from_proto, ort
from edgemm.graph import model as model_module

ENGINES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
RELU = "(float[3] x) => (float[3] y) { y = Relu(x) }"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sound_model_is_fine_everywhere(engine: str) -> None:
    report = check(graph_text.model(RELU), engine)
    assert report.ok
    assert report.findings == ()
    assert report.ops == {"Relu": 1}
    assert report.to_text() == (f"The model runs on {engine}: 0 errors, 0 warnings, 0 notes; 1 nodes of 1 operators.")


def test_an_unknown_engine_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match='no engine "tensorflow".*onnxruntime, tensorrt, tensorrt-rtx'):
        check(graph_text.model(RELU), "tensorflow")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_operator_is_named_with_its_node(engine: str) -> None:
    report = check(graph_text.model("(float[3] x) => (float[3] y) { [odd] y = Wrelu(x) }"), engine)
    assert not report.ok
    (finding,) = report.findings
    assert (finding.severity, finding.node, finding.op) == ("error", "odd", "Wrelu")
    assert "ONNX has no operator Wrelu in opset 17" in finding.reason
    assert "error: Wrelu odd: ONNX has no operator" in report.to_text()


def test_an_operator_of_a_later_opset_is_unknown() -> None:
    report = check(graph_text.model("(float[3] x) => (float[3] y) { y = Gelu(x) }", opset=17))
    assert "no operator Gelu in opset 17" in report.findings[0].reason
    assert check(graph_text.model("(float[3] x) => (float[3] y) { y = Gelu(x) }", opset=20)).ok


@pytest.mark.parametrize(("engine", "fine"), [("onnxruntime", True), ("tensorrt", False), ("tensorrt-rtx", False)])
def test_contrib_operators_are_known_to_onnxruntime_only(engine: str, fine: bool) -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { y = com.microsoft.Gelu(x) }", domains=', "com.microsoft" : 1'
    )
    report = check(model, engine)
    assert report.ok is fine
    assert report.ops == {"com.microsoft.Gelu": 1}
    assert fine or "no function body" in report.findings[0].reason


@pytest.mark.parametrize("engine", ENGINES)
def test_local_functions_and_edgemm_s_operators_are_known(engine: str) -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { a = edgemm.Twice(x) y = mine.Twice(a) }",
        domains=', "mine" : 1, "edgemm" : 1',
        functions="".join(
            f'<domain: "{domain}", opset_import: ["" : 17]> Twice (a) => (b) {{ b = Add(a, a) }}'
            for domain in ("mine", "edgemm")
        ),
    )
    assert check(model, engine).ok


@pytest.mark.parametrize("engine", ENGINES)
def test_contradicting_shapes_are_an_error_with_the_node(engine: str) -> None:
    report = check(graph_text.model("(float[3] x, float[4] z) => (float[3] y) { [sum] y = Add(x, z) }"), engine)
    assert not report.ok
    (finding,) = report.findings
    assert (finding.node, finding.op) == ("sum", "Add")
    assert "shapes contradict each other" in finding.reason
    assert finding.remedy.startswith("Correct the shape")


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_that_are_no_tensors_are_an_error(engine: str) -> None:
    report = check(graph_text.model("(seq(float[3]) x) => (int64 y) { y = SequenceLength(x) }"), engine)
    assert not report.ok
    assert '"x", one of the inputs, is a sequence' in report.findings[0].reason


def test_what_only_onnxruntime_itself_knows_is_reported() -> None:
    # check cannot know every contrib operator; onnxruntime does.
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { [odd] y = com.microsoft.NoSuchThing(x) }", domains=', "com.microsoft" : 1'
    )
    report = check(model)
    assert not report.ok
    assert "onnxruntime does not take the model: " in report.findings[0].reason
    assert "NoSuchThing" in report.findings[0].reason
    assert "/onnxruntime" not in report.findings[0].reason, "no source positions"


def test_the_report_is_json_for_machines() -> None:
    report = check(graph_text.model("(float[3] x) => (float[3] y) { [odd] y = Wrelu(x) }"))
    data = json.loads(report.to_json())
    assert data["ok"] is False
    assert data["engine"] == "onnxruntime"
    assert data["ops"] == {"Wrelu": 1}
    assert Finding(**data["findings"][0]) == report.findings[0]


def test_a_model_over_the_limit_of_one_file_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "PROTO_LIMIT", model_module._HEADROOM + 1000)
    monkeypatch.setattr(ort, "PROTO_LIMIT", 1000)
    proto = graph_text.proto("(float[1, 200] x) => (float[1, 200] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(graph_text.weight("w", np.ones((200, 200), np.float32)))
    for engine in ENGINES:
        assert check(from_proto(proto), engine).ok


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("engine", ENGINES)
def test_random_sound_graphs_are_fine_everywhere(engine: str, seed: int) -> None:
    assert check(from_proto(random_graphs.random_graph(seed).model), engine).ok


def test_long_chains_of_shape_arithmetic_are_followed_in_reasonable_time() -> None:
    # Each level reads the one before twice: 2 ** 1500 paths, and 1500 levels deep.
    levels = " ".join(f"a{n + 1} = Mul(a{n}, one) b{n + 1} = Mul(a{n}, b{n})" for n in range(1500))
    model = graph_text.model(
        f"(float[3, 4] x) => (float[?, ?] y) <int64[1] a0 = {{1}}, int64[1] b0 = {{1}}, int64[1] one = {{1}}> "
        f"{{ {levels} y = ReduceSum(x, b1500) }}"
    )
    assert check(model, "tensorrt").ok
