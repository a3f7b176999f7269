"""States cut out of one tensor: what check says of them, and what the real compiler does."""

from __future__ import annotations

import numpy as np
import pytest
import trt_graphs
from onnx import NodeProto, TensorProto, helper
from require import require

from edgemm.engine import targets
from edgemm.engine.tensorrt import flavours
from edgemm.engine.tensorrt.build import TensorRTRefused, build_plan
from edgemm.engine.tensorrt.plan import BuildOptions
from edgemm.graph import check, from_bytes

SIZE = 8


def two_lstms(cut: str, *, one: bool = False) -> bytes:
    """Two LSTMs in a row whose four states are cut out of one input."""
    rng = np.random.default_rng(0)
    weights = {
        name: (0.1 * rng.standard_normal((1, 4 * SIZE, SIZE))).astype(np.float32) for name in ("w1", "r1", "w2", "r2")
    }
    axis = 0 if cut == "first axis" else 3
    shape = [4, 1, 1, SIZE] if cut == "first axis" else [1, 1, SIZE, 4]
    weights |= {"axis": np.array([axis]), "direction": np.array([1]), "ones": np.ones((1, 1, SIZE), np.float32)}  # type: ignore[dict-item]
    nodes: list[NodeProto] = []
    for number, name in enumerate(("h1", "c1", "h2", "c2")):
        weights |= {f"{name}_from": np.array([number]), f"{name}_to": np.array([number + 1])}  # type: ignore[dict-item]
        nodes += [
            helper.make_node("Slice", ["s", f"{name}_from", f"{name}_to", "axis"], [f"{name}_cut"]),
            helper.make_node("Squeeze", [f"{name}_cut", "axis"], [f"{name}_flat"]),
            helper.make_node("Mul", [f"{name}_flat", "ones"], [name])
            if cut == "multiplied"
            else helper.make_node("Identity", [f"{name}_flat"], [name]),
        ]
    nodes += [
        helper.make_node("LSTM", ["x", "w1", "r1", "", "", "h1", "c1"], ["a"], name="first", hidden_size=SIZE),
        helper.make_node("Squeeze", ["a", "direction"], ["b"]),
    ]
    if not one:
        nodes += [
            helper.make_node(
                "LSTM", ["b", "w2", "r2", "", "", "h2", "c2"], ["second"], name="second", hidden_size=SIZE
            ),
            helper.make_node("Squeeze", ["second", "direction"], ["y"]),
        ]
    inputs = [("x", TensorProto.FLOAT, [1, 1, SIZE]), ("s", TensorProto.FLOAT, shape)]
    return trt_graphs.model(nodes, inputs, [("b" if one else "y", TensorProto.FLOAT, [1, 1, SIZE])], weights)


CASES = [
    (two_lstms("last axis"), False),
    (two_lstms("first axis"), True),
    (two_lstms("multiplied"), True),
    (two_lstms("last axis", one=True), True),
]
NAMES = ["last axis", "first axis", "multiplied", "one only"]


@pytest.mark.parametrize(("model", "builds"), CASES, ids=NAMES)
def test_check_knows(model: bytes, builds: bool) -> None:
    report = check(from_bytes(model), "tensorrt-rtx")
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [(error.node, error.op) for error in errors] == ([] if builds else [("second", "LSTM")])
    if not builds:
        assert '"h2" is cut out of "s" along the last axis' in errors[0].reason
        assert "multiply" in errors[0].remedy
    assert not check(from_bytes(model), "tensorrt").findings


@pytest.mark.parametrize(("model", "builds"), CASES, ids=NAMES)
def test_the_compiler_does_what_check_says(model: bytes, builds: bool) -> None:
    require("tensorrt_rtx", "rtx")
    arguments = {"flavour": flavours.get("tensorrt-rtx"), "graph": "g", "precision": "fp32"}
    if builds:
        assert build_plan(model, BuildOptions(), targets.get("rtx-sm86"), **arguments).data  # type: ignore[arg-type]
    else:
        with pytest.raises(TensorRTRefused, match=r"internal error \(bb.cpp"):
            build_plan(model, BuildOptions(), targets.get("rtx-sm86"), **arguments)  # type: ignore[arg-type]
