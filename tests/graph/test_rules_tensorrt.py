"""Each rule, on the smallest graph that it is about. That TensorRT agrees is `bench/check_accuracy.py`'s matter."""

# ruff: noqa: E501 - a graph on one line reads better than one cut in pieces

from __future__ import annotations

import re

import graph_text
import pytest

from edgemm.graph import Model, check, from_proto
from edgemm.graph.rules_tensorrt import RULES, UNSUPPORTED, UNSUPPORTED_RTX

ATTENTION = (
    "(%s[2, 4, 6, %d] q, %s[2, 4, 6, %d] k, %s[2, 4, 6, %d] v) => (%s[2, 4, 6, %d] y) { y = Attention%s(q, k, v) }"
)


def attention(dtype: str, size: int, attributes: str = "") -> str:
    return ATTENTION % (dtype, size, dtype, size, dtype, size, dtype, size, attributes)


def model_of(body: str, opset: int) -> Model:
    return from_proto(graph_text.proto(body, opset=opset), any_opset=True)


FAILS = {
    "a sequence": (
        "(float[4] x) => (float[2] y) <int64 i = {0}> { s = SplitToSequence(x) y = SequenceAt(s, i) }",
        17,
        "sequence",
    ),
    "no such operator": ("(float[2, 2] x) => (float y) { y = Det(x) }", 17, "TensorRT has no Det"),
    "a dtype": ("(int16[3] x) => (int16[3] y) { y = Add(x, x) }", 17, '"x" is int16'),
    "strings": ("(string[3] x) => (string[3] y) { y = Identity(x) }", 17, "object"),
    "a narrow dtype": ("(float[3] x) => (float8e4m3fn[3] y) { y = Cast <to = 17> (x) }", 21, "only QuantizeLinear"),
    "uint8 arithmetic": ("(uint8[3] x) => (uint8[3] y) { y = Add(x, x) }", 17, "does not compute in uint8"),
    "8-bit clip": ("(int8[3] x) => (int8[3] y) <int8 a = {1}> { y = Clip(x, a) }", 17, "no 8-bit integers"),
    "mod of floats": ("(float[3] x) => (float[3] y) { y = Mod(x, x) }", 28, "sign of the dividend"),
    "celu in half": ("(float16[3] x) => (float16[3] y) { y = Celu(x) }", 28, "Celu takes float32 only, not float16"),
    "a ring": (
        '(float[1, 1, 4, 5] c, float[1, 1, 1, 5] u, int64[1] i) => (float[1, 1, 4, 5] y) { y = TensorScatter <mode = "circular"> (c, u, i) }',
        24,
        "no mode circular",
    ),
    "a cache of rank 3": (
        "(float[3, 4, 5] c, float[3, 2, 5] u, int64[3] i) => (float[3, 4, 5] y) { y = TensorScatter(c, u, i) }",
        24,
        "caches of rank 4, not 3",
    ),
    "8-bit mod": ("(int8[3] x) => (int8[3] y) { y = Mod(x, x) }", 17, "Mod takes int32"),
    "live axes": ("(float[3, 4] x, int64[1] a) => (float[?, ?] y) { y = ReduceSum(x, a) }", 17, 'axes "a" depend'),
    "axes by Range": (
        "(float[3, 4] x) => (float[?, ?] y) <int64 a = {0}, int64 b = {1}> { s = Shape(x) n = Size(s) r = Range(a, n, b) y = ReduceSum(x, r) }",
        17,
        'axes "r" depend',
    ),
    "live squeeze": ("(float[1, 4] x, int64[1] a) => (float[?] y) { y = Squeeze(x, a) }", 17, 'axes "a" depend'),
    "live frame step": (
        "(float[1, 64, 1] x, int64 s) => (float[?, ?, ?, ?] y) <int64 n = {16}> { y = STFT(x, s, , n) }",
        17,
        '"s" depends',
    ),
    "training": ("(float[4] x, bool t) => (float[4] y) { y = Dropout(x, , t) }", 17, 'training mode "t"'),
    "float scales": (
        "(float[1, 1, 2, 2] x, float[4] s) => (float[?, ?, ?, ?] y) { y = Resize(x, , s) }",
        17,
        'depends on "s", a float',
    ),
    "float range": ("(float x) => (float[?] y) <float a = {0}, float b = {1}> { y = Range(a, x, b) }", 17, "a float"),
    "crop resize": (
        '(float[1, 1, 2, 2] x) => (float[?, ?, ?, ?] y) <float[4] s = {1, 1, 2, 2}, float[8] r = {0, 0, 0, 0, 1, 1, 1, 1}> { y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, s) }',
        17,
        "tf_crop_and_resize",
    ),
    "antialias": (
        '(float[1, 1, 4, 4] x) => (float[?, ?, ?, ?] y) <float[4] s = {1, 1, 0.5, 0.5}> { y = Resize <antialias = 1, mode = "linear"> (x, , s) }',
        18,
        "antialias",
    ),
    "aspect ratio": (
        '(float[1, 1, 4, 4] x) => (float[?, ?, ?, ?] y) <int64[4] n = {1, 1, 2, 3}> { y = Resize <keep_aspect_ratio_policy = "not_larger"> (x, , , n) }',
        18,
        "only stretches",
    ),
    "scales of axes": (
        "(float[1, 1, 4, 4] x) => (float[?, ?, ?, ?] y) <float[2] s = {2, 2}> { y = Resize <axes = [2, 3]> (x, , s) }",
        18,
        "scales for all axes",
    ),
    "dilated pool": (
        "(float[1, 1, 9, 9] x) => (float[?, ?, ?, ?] y) { y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x) }",
        17,
        "dilate",
    ),
    "second output": (
        "(float[1, 1, 4, 4] x) => (float[?, ?, ?, ?] y, int64[?, ?, ?, ?] i) { y, i = MaxPool <kernel_shape = [2, 2]> (x) }",
        17,
        "first output only",
    ),
    "training batch norm": (
        "(float[1, 2, 4] x) => (float[1, 2, 4] y) <float[2] s = {1, 1}> { y = BatchNormalization <training_mode = 1> (x, s, s, s, s) }",
        17,
        "training mode",
    ),
    "odd norm": (
        "(float[1, 1, 4, 4] x) => (float[?, ?, ?, ?] y) { y = LpPool <kernel_shape = [2, 2], p = 3> (x) }",
        18,
        "p 1 or 2, not 3",
    ),
    "scatter add": (
        '(float[4] x, float[1] u) => (float[4] y) <int64[1, 1] i = {2}> { y = ScatterND <reduction = "add"> (x, i, u) }',
        18,
        "without a reduction",
    ),
    "softcap": (attention("float16", 32, "<softcap = 2.0>"), 23, "softcap"),
    "float32 attention": (attention("float", 32), 23, "in float32"),
    "narrow heads": (attention("float16", 8), 23, "8 values or fewer"),
    "one head": (attention("float16", 32).replace("4, 6", "1, 6"), 23, "a single head"),
    "one query": (
        attention("float16", 32)
        .replace("2, 4, 6, 32] q", "2, 2, 1, 32] q")
        .replace("2, 4, 6, 32] y", "2, 2, 1, 32] y")
        .replace("2, 4, 6", "2, 2, 6"),
        23,
        "fewer than 4 heads",
    ),
    "mask and causal": (
        attention("float16", 32, "<is_causal = 1>").replace("v) =>", "v, bool[6, 6] m) =>").replace("v) }", "v, m) }"),
        23,
        "both a mask and is_causal",
    ),
    "sizes of heads": (
        attention("float16", 32).replace("32] v", "16] v").replace("32] y", "16] y"),
        23,
        "keys and values of the same size",
    ),
    "vector times batch": (
        "(float[4] x, float[2, 4, 3] z) => (float[?, ?] y) { y = MatMul(x, z) }",
        17,
        "batch of matrices",
    ),
    "live scale": (
        "(float[4] x, float s) => (int8[4] y) <int8 z = {0}> { y = QuantizeLinear(x, s, z) }",
        17,
        '"s" depends',
    ),
    "zero point": (
        "(float[4] x) => (uint8[4] y) <float s = {0.1}, uint8 z = {128}> { y = QuantizeLinear(x, s, z) }",
        17,
        "zero point is not 0",
    ),
    "live depth": (
        "(int64[3] i, int64 d) => (float[?, ?] y) <float[2] v = {0, 1}> { y = OneHot(i, d, v) }",
        17,
        'depth "d" depends',
    ),
    "float64 noise": ("(double[3] x) => (double[3] y) { y = RandomUniformLike(x) }", 17, "not float64"),
    "rotary cache": (
        "(float[1, 2, 3, 8] x, float[1, 3, 4] c, float[1, 3, 4] s) => (float[1, 2, 3, 8] y) { y = RotaryEmbedding <rotary_embedding_dim = 4> (x, c, s) }",
        23,
        "rows of 4",
    ),
    "branches": (
        """(bool c, float[1, 3] x) => (float[?, ?] y) <int64[1] a = {0}> {
            q = If (c) <then_branch = t () => (float[?] a1) { a1 = Squeeze(x, a) },
                        else_branch = e () => (float[?, ?] b1) { b1 = Neg(x) }>
            y = Abs(q)
        }""",
        17,
        "1 dimensions in one branch and 2 in the other",
    ),
    "live loop condition": (
        """(float[3] x, bool c) => (float[3] y) <int64 n = {3}> {
            y = Loop (n, c, x) <body = b (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Identity(go) w = Abs(v) }>
        }""",
        17,
        'starting condition "c"',
    ),
    "a loop that reads another's output": (
        """(float[3] x) => (float[3] y) <int64 n = {3}, bool c = {1}> {
            p = Loop (n, c, x) <body = b1 (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Identity(go) w = Abs(v) }>
            y = Loop (n, c, x) <body = b2 (int64 j, bool go2, float[3] q) => (bool on2, float[3] r) { on2 = Identity(go2) r = Add(q, p) }>
        }""",
        17,
        'The body reads "p", the output of a Loop',
    ),
    "missing loop condition": (
        """(float[3] x) => (float[3] y) <int64 n = {3}> {
            y = Loop (n, , x) <body = b (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Identity(go) w = Abs(v) }>
        }""",
        17,
        "reads a condition",
    ),
}

BUILDS = {
    "constant axes": ("(float[3, 4] x) => (float[?, ?] y) <int64[1] a = {1}> { y = ReduceSum(x, a) }", 17),
    "axes from a static shape": (
        "(float[3, 4] x) => (float[?, ?] y) <int64[1] a = {1}, int64[1] b = {3}> { s = Shape(x) t = Gather(s, a) u = Sub(t, b) y = ReduceSum(x, u) }",
        17,
    ),
    "scales from an integer": (
        "(float[1, 1, 2, 2] x, int64[4] n) => (float[?, ?, ?, ?] y) { s = Cast <to = 1> (n) y = Resize(x, , s) }",
        17,
    ),
    "float16 attention": (attention("float16", 32), 23),
    "float32 attention of one query": (
        attention("float", 32).replace("6, 32] q", "1, 32] q").replace("6, 32] y", "1, 32] y"),
        23,
    ),
    "flat attention": (
        "(float[2, 6, 32] q) => (float[2, 6, 32] y) { y = Attention <q_num_heads = 4, kv_num_heads = 4> (q, q, q) }",
        23,
    ),
    "symmetric quantization": (
        "(float[4] x) => (float[4] y) <float s = {0.1}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        17,
    ),
    "branches of equal rank": (
        """(bool c, float[1, 3] x) => (float[1, 3] y) {
            q = If (c) <then_branch = t () => (float[1, 3] a1) { a1 = Abs(x) }, else_branch = e () => (float[1, 3] b1) { b1 = Neg(x) }>
            y = Abs(q)
        }""",
        17,
    ),
    "a chosen branch": (
        """(float[1, 3] x) => (float[?, ?] y) <int64[1] a = {0}, bool c = {1}> {
            q = If (c) <then_branch = t () => (float[?] a1) { a1 = Squeeze(x, a) }, else_branch = e () => (float[?, ?] b1) { b1 = Neg(x) }>
            y = Abs(q)
        }""",
        17,
    ),
    "a loop with a constant condition": (
        """(float[3] x) => (float[3] y) <int64 n = {3}, bool c = {1}> {
            y = Loop (n, c, x) <body = b (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Identity(go) w = Abs(v) }>
        }""",
        17,
    ),
    "a loop that reads another's output through an Identity": (
        """(float[3] x) => (float[3] y) <int64 n = {3}, bool c = {1}> {
            p = Loop (n, c, x) <body = b1 (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Identity(go) w = Abs(v) }>
            k = Identity(p)
            y = Loop (n, c, x) <body = b2 (int64 j, bool go2, float[3] q) => (bool on2, float[3] r) { on2 = Identity(go2) r = Add(q, k) }>
        }""",
        17,
    ),
    "a loop that computes from another's output alone": (
        """(float[3] x) => (float[3] y) <int64 n = {3}, bool c = {1}> {
            p = Loop (n, c, x) <body = b1 (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Identity(go) w = Abs(v) }>
            y = Loop (n, c, x) <body = b2 (int64 j, bool go2, float[3] q) => (bool on2, float[3] r) { on2 = Identity(go2) k = Neg(p) r = Add(q, k) }>
        }""",
        17,
    ),
    "a loop without a condition": (
        """(float[3] x) => (float[3] y) <int64 n = {3}> {
            y = Loop (n, , x) <body = b (int64 i, bool go, float[3] v) => (bool on, float[3] w) { on = Constant <value = bool {1}> () w = Abs(v) }>
        }""",
        17,
    ),
    "a full rotation": (
        "(float[1, 2, 3, 8] x, float[1, 3, 4] c, float[1, 3, 4] s) => (float[1, 2, 3, 8] y) { y = RotaryEmbedding(x, c, s) }",
        23,
    ),
    "a vector times one matrix": ("(float[4] x, float[1, 4, 3] z) => (float[1, 3] y) { y = MatMul(x, z) }", 17),
}


FAILS_ON_RTX = {
    "a state cut along the last axis": (
        '(float[1, 1, 2] x, float[1, 1, 2, 2] s) => (float[1, 1, 1, 2] y) <int64 i = {1}, int64[1] d = {1}, float[1, 2, 2] w = {1, 1, 1, 1}> { h = Gather <axis = 3> (s, i) a = RNN <hidden_size = 2> (x, w, w) b = Squeeze(a, d) y = RNN <hidden_size = 2> (b, w, w, "", "", h) }',
        17,
        "along the last axis",
    ),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_tensorrt_does_not_take_is_an_error_with_a_remedy(name: str) -> None:
    body, opset, words = FAILS[name]
    for engine in ("tensorrt", "tensorrt-rtx"):
        report = check(model_of(body, opset), engine)
        assert not report.ok
        assert any(words in finding.reason and finding.remedy for finding in report.findings), report.to_text()


@pytest.mark.parametrize("name", FAILS_ON_RTX)
def test_what_only_tensorrt_for_rtx_does_not_take(name: str) -> None:
    body, opset, words = FAILS_ON_RTX[name]
    model = model_of(body, opset)
    report = check(model, "tensorrt-rtx")
    assert any(words in finding.reason and finding.remedy for finding in report.findings), report.to_text()
    assert check(model, "tensorrt").ok


@pytest.mark.parametrize("name", BUILDS)
def test_what_tensorrt_takes_is_fine(name: str) -> None:
    body, opset = BUILDS[name]
    report = check(model_of(body, opset), "tensorrt-rtx")
    assert report.ok, report.to_text()


def test_some_operators_are_missing_in_tensorrt_for_rtx_only() -> None:
    model = graph_text.model("(float[3] x) => (int64[1, ?] y) { y = NonZero(x) }")
    assert check(model, "tensorrt").ok
    report = check(model, "tensorrt-rtx")
    assert report.findings[0].reason == "TensorRT for RTX has no NonZero."


def test_nodes_in_bodies_and_functions_are_judged() -> None:
    body = """(bool c, float[2, 2] x) => (float y) {
        [choose] y = If (c) <then_branch = t () => (float a) { [bad] a = Det(x) },
                             else_branch = e () => (float b) <float k = {1}> { b = Identity(k) }>
    }"""
    assert check(graph_text.model(body), "tensorrt").findings[0].node == "choose.then_branch/bad"
    model = graph_text.model(
        "(float[2, 2] x) => (float y) { y = mine.D(x) }",
        domains=', "mine" : 1',
        functions='<domain: "mine", opset_import: ["" : 17]> D (a) => (b) { b = Det(a) }',
    )
    assert [finding.op for finding in check(model, "tensorrt").findings] == ["Det"]


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    listed = {f"TensorRT has no {op}." for op in UNSUPPORTED}
    listed |= {f"TensorRT for RTX has no {op}." for op in UNSUPPORTED_RTX}
    said = [
        finding.reason
        for body, opset, _ in (*FAILS.values(), *FAILS_ON_RTX.values())
        for finding in check(model_of(body, opset), "tensorrt-rtx").findings
    ]
    unbroken = [
        rule.reason
        for rule in RULES
        if rule.reason not in listed
        and not any(re.fullmatch(re.escape(rule.reason).replace(r"\{\}", ".*"), reason) for reason in said)
    ]
    assert unbroken == []
