"""Attention as exporters write it, and as it may stand in a graph, against the graph with the fused node."""

from __future__ import annotations

from pathlib import Path

import graph_text
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgemm.errors import ModelError
from edgemm.graph import Model, from_proto, load, ops, walk
from edgemm.graph.passes import FoldConstants, FuseAttention, InferShapes, PassResult, ToHalf, run
from edgemm.graph.passes.fuse_attention import band
from edgemm.kernels.attention import AttentionOptions

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("attention_*.onnx"))
DEMO = Path(__file__).parents[3] / "calibration" / "av_digits" / "av_digits.onnx"
PREPARE = [InferShapes(), FoldConstants(), InferShapes()]

SCALE = 32**-0.5
INPUTS = "float[2, 2, 5, 32] q, float[2, 2, 7, 32] k, float[2, 2, 7, 32] v"
OUT = "(float[2, 2, 5, 32] y)"
TRANSPOSED = "t = Transpose <perm = [0, 1, 3, 2]> (k)"


def fuse(body: str, *, opset: int = 17) -> PassResult:
    return run(graph_text.model(body, opset=opset), [FuseAttention()])


def feeds_of(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    feeds = {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) else {"batch": 3}.get(str(size), 7) for size in spec.shape]
        if spec.dtype == "bool":
            feeds[spec.name] = rng.random(shape) < 0.5
            # Every query sees the first key: True hides it in torch's key_padding_mask, and shows it elsewhere.
            feeds[spec.name][..., 0] = spec.name != "padding"
        elif spec.dtype == "int64":
            feeds[spec.name] = np.maximum(rng.integers(0, 2, shape), np.arange(shape[-1]) == 0).astype(np.int64)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return feeds


def assert_same(before: Model, after: Model, tolerance: float = 1e-5) -> None:
    feeds = feeds_of(before)
    pairs = zip(graph_text.run(after, feeds), graph_text.run(before, feeds), strict=True)
    for got, want in pairs:
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, atol=tolerance, rtol=0)


def fused(result: PassResult) -> tuple[str, AttentionOptions]:
    (node,) = (item for item in result.model.proto.graph.node if item.domain == "edgemm")
    options = ops.options_of(node)
    assert isinstance(options, AttentionOptions)
    return node.op_type, options


def check_fused(body: str, operator: str = "FusedAttention", *, opset: int = 17, scale: float = SCALE) -> PassResult:
    result = fuse(body, opset=opset)
    assert result.notes == ("fuse-attention: 1 of 1 attentions fused",)
    found, options = fused(result)
    assert found == operator
    assert options.softmax_scale == pytest.approx(scale, rel=1e-6)
    assert "Softmax" not in graph_text.ops(result.model)
    assert_same(graph_text.model(body, opset=opset), result.model)
    return result


def test_there_are_golden_graphs() -> None:
    assert len(GOLDEN) == 33
    assert all(path.stat().st_size < 30_000 for path in GOLDEN)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem.removeprefix("attention_"))
def test_what_exporters_write(path: Path) -> None:
    model = run(load(path), PREPARE).model
    result = run(model, [FuseAttention()])
    if "weights" in path.stem:
        assert not result.changed
        assert "the attention weights are read elsewhere, too" in result.notes[0]
        return
    assert result.notes == ("fuse-attention: 1 of 1 attentions fused",)
    operator, options = fused(result)
    assert options.softmax_scale == pytest.approx(SCALE, rel=1e-6)
    causal = any(word in path.stem for word in ("causal", "llama", "operator"))
    assert options.window_limits == (1 << 29, 0 if causal else 1 << 29)
    masked = any(word in path.stem for word in ("mask", "bool", "padding", "bert", "triangle", "bias"))
    assert operator == ("FusedAttentionBias" if masked else "FusedAttention")
    assert_same(load(path), result.model)


def test_the_demo_model() -> None:
    model = load(DEMO)
    result = run(model, [FuseAttention()])
    assert result.notes == ("fuse-attention: 1 of 1 attentions fused",)
    assert fused(result) == ("FusedAttention", AttentionOptions(32, scale=fused(result)[1].scale))
    assert_same(model, result.model, 1e-5)
    narrow = run(model, [FuseAttention("float16")])
    assert_same(model, narrow.model, 2e-2)


@pytest.mark.parametrize(
    "scores",
    [
        "s = MatMul(q, t) z = Mul(s, c) p = Softmax <axis = -1> (z)",
        "m = Mul(q, c) s = MatMul(m, t) p = Softmax <axis = 3> (s)",
        "m = Mul(c, t) s = MatMul(q, m) p = Softmax <axis = -1> (s)",
        "s = MatMul(q, t) z = Div(s, d) p = Softmax <axis = -1> (z)",
        "m = Div(q, r) n = Div(t, r) s = MatMul(m, n) p = Softmax <axis = -1> (s)",
        "s = MatMul(q, t) h = Shape(q) w = Gather <axis = 0> (h, i) f = Cast <to = 1> (w) g = Sqrt(f) "
        "z = Div(s, g) p = Softmax <axis = -1> (z)",
        "c0 = Constant <value_float = 0.17677669> () c1 = Identity(c0) s = MatMul(q, t) z = Mul(s, c1) "
        "z1 = Identity(z) p0 = Softmax <axis = -1> (z1) p = Identity(p0)",
        "e = Constant <value_float = -0.5> () h = Shape <start = 3> (q) f = Cast <to = 1> (h) g = Pow(f, e) "
        "s = MatMul(q, t) z = Mul(g, s) p = Softmax <axis = -1> (z)",
        "h = Shape(q) b = Constant <value_ints = [3]> () e = Constant <value_ints = [4]> () w = Slice(h, b, e) "
        "f = Cast <to = 1> (w) g0 = Sqrt(f) g = Reciprocal(g0) s = MatMul(q, t) z = Mul(g, s) "
        "p = Softmax <axis = -1> (z)",
    ],
)
def test_the_scale_wherever_it_stands(scores: str) -> None:
    constants = f"<float c = {{{SCALE}}}, float d = {{{1 / SCALE}}}, float r = {{{SCALE**-0.5}}}, int64 i = {{3}}>"
    check_fused(f"({INPUTS}) => {OUT} {constants} {{ {TRANSPOSED} {scores} y = MatMul(p, v) }}")


def test_no_scale_at_all() -> None:
    body = f"({INPUTS}) => {OUT} {{ {TRANSPOSED} s = MatMul(q, t) p = Softmax <axis = -1> (s) y = MatMul(p, v) }}"
    check_fused(body, scale=1.0)


KERAS = """(float[2, 5, 2, 32] q, float[2, 7, 2, 32] k, float[2, 7, 2, 32] v, bool[2, 1, 5, 7] mask)
    => (float[2, 5, 2, 32] y) <float c = {0.17677669}, float low = {-3.4e38}> {
    m = Mul(q, c)
    s = Einsum <equation = "aecd,abcd->acbe"> (k, m)
    w = Where(mask, s, low)
    p = Softmax <axis = -1> (w)
    y = Einsum <equation = "acbe,aecd->abcd"> (p, v)
}"""


def test_keras_with_einsum_and_heads_in_the_middle() -> None:
    result = check_fused(KERAS, "FusedAttentionBias")
    assert graph_text.ops(result.model).count("Transpose") == 4


JAX = """(float[2, 5, 2, 32] q, float[2, 7, 2, 32] k, float[2, 7, 2, 32] v) => (float[2, 5, 2, 32] y)
    <float c = {0.17677669}, float low = {-1e30}, int64[1] last = {3}> {
    s = Einsum <equation = "BTNH,BSNH->BNTS"> (q, k)
    z = Mul(s, c)
    largest = ReduceMax <axes = [3], keepdims = 1> (z)
    guarded = Max(low, largest)
    shifted = Sub(z, guarded)
    e = Exp(shifted)
    total = ReduceSum(e, last)
    p = Div(e, total)
    y = Einsum <equation = "BNTS,BSNH->BTNH"> (p, v)
}"""


def test_jax_with_its_softmax_spelled_out() -> None:
    result = check_fused(JAX)
    assert "Exp" not in graph_text.ops(result.model)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("shifted = Sub(z, guarded)", "shifted = Sub(z, c)", "not shifted by their largest"),
        ("shifted = Sub(z, guarded)", "shifted = Identity(z)", "not shifted by their largest"),
        ("ReduceMax <axes = [3]", "ReduceMax <axes = [2]", "not shifted by their largest"),
    ],
)
def test_a_softmax_that_is_none(old: str, new: str, reason: str) -> None:
    assert old in JAX
    assert reason in fuse(JAX.replace(old, new)).notes[0]


def test_batch_and_heads_as_one_axis() -> None:
    body = """(float[4, 5, 32] q, float[4, 7, 32] k, float[4, 7, 32] v, float[5, 7] mask) => (float[4, 5, 32] y)
        <float c = {0.17677669}> {
        m = Mul(q, c) t = Transpose <perm = [0, 2, 1]> (k) s = MatMul(m, t) w = Add(s, mask)
        p = Softmax <axis = -1> (w) y = MatMul(p, v) }"""
    check_fused(body, "FusedAttentionBias")


BART = """(float[4, 5, 32] q, float[4, 7, 32] k, float[4, 7, 32] v, float[2, 1, 5, 7] mask) => (float[4, 5, 32] y)
    <int64[4] apart = {2, 2, 5, 7}, int64[3] joined = {4, 5, 7}> {
    t = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, t)
    four = Reshape(s, apart) w = Add(four, mask) three = Reshape(w, joined)
    p = Softmax <axis = -1> (three) y = MatMul(p, v) }"""


def test_batch_and_heads_taken_apart_for_the_mask() -> None:
    check_fused(BART, "FusedAttentionBias", scale=1.0)


def test_scores_of_one_batch_axis_and_values_of_two() -> None:
    body = """(float[4, 5, 32] q, float[4, 32, 7] t, float[2, 2, 7, 32] v) => (float[2, 5, 2, 32] y)
        <int64[4] apart = {2, 2, 5, 7}> { s = MatMul(q, t) z = Reshape(s, apart) p = Softmax <axis = -1> (z)
        y = Einsum <equation = "bhij,bhjd->bihd"> (p, v) }"""
    check_fused(body, scale=1.0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("s = MatMul(q, t)", "r = MatMul(q, t) s = Add(r, three_d)", "scores of three dimensions that become four"),
        ("three = Reshape(w, joined)", "x = Reshape(w, joined) three = Add(x, three_d)", "in two shapes"),
        ("joined = {4, 5, 7}", "joined = {4, 7, 5}", "makes [4, 7, 5] of the scores"),
        ("float[4, 5, 32] q", "float[n, 5, 32] q", "and the scores are for [2, 2]"),
        ("float[4, 7, 32] k", "float[4, l, 32] k", "their sizes are not static"),
    ],
)
def test_other_reshapes_of_scores(old: str, new: str, reason: str) -> None:
    body = BART.replace("=> (float[4, 5, 32] y)", "=> (y)").replace("mask) =>", "mask, float[4, 5, 7] three_d) =>")
    assert old in body
    (note,) = fuse(body.replace(old, new)).notes
    assert reason in note


def test_one_head_without_batch() -> None:
    body = """(float[5, 32] q, float[7, 32] k, float[7, 32] v, float[7] mask) => (float[32, 5] y) {
        t = Transpose <perm = [1, 0]> (k) s = MatMul(q, t) w = Add(mask, s)
        p = Softmax <axis = -1> (w) z = MatMul(p, v) y = Transpose <perm = [1, 0]> (z) }"""
    check_fused(body, "FusedAttentionBias", scale=1.0)


@pytest.mark.parametrize(
    "masking",
    [
        "w = Add(s, mask) z = Mul(w, c)",  # the scale over the mask, too
        "z0 = Mul(s, c) z = Sub(z0, mask)",
        "z0 = Mul(s, c) z1 = Add(z0, mask) z = Add(row, z1)",
        "z0 = Mul(s, c) z1 = Add(z0, mask) z = Max(z1, low)",
        "z0 = Mul(s, c) z = Where(hide, low, z0)",
        "z0 = Mul(s, c) z1 = Where(show, z0, low) z = Add(z1, mask)",
    ],
)
def test_masks_and_biases(masking: str) -> None:
    body = f"""({INPUTS}, float[1, 2, 5, 7] mask, float[7] row, bool[2, 1, 1, 7] padding, bool[5, 7] show) => {OUT}
        <float c = {{{SCALE}}}, float low = {{-1e9}}> {{
        hide = Identity(padding) {TRANSPOSED} s = MatMul(q, t) {masking} p = Softmax <axis = -1> (z)
        y = MatMul(p, v) }}"""
    check_fused(body, "FusedAttentionBias")


def causal_text(table: np.ndarray) -> Model:
    queries, keys = table.shape
    proto = graph_text.proto(
        f"""(float[1, 1, {queries}, 32] q, float[1, 1, {keys}, 32] k, float[1, 1, {keys}, 32] v)
        => (float[1, 1, {queries}, 32] y) {{
        {TRANSPOSED} s = MatMul(q, t) w = Add(s, mask) p = Softmax <axis = -1> (w) y = MatMul(p, v) }}"""
    )
    proto.graph.initializer.append(graph_text.weight("mask", table.astype(np.float32)))
    return from_proto(proto)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([None, 0, 1, 3]),
    st.sampled_from([None, 0, 2]),
    st.sampled_from(["start", "end"]),
    st.sampled_from([-np.inf, -1e9]),
)
@settings(max_examples=40)
def test_constant_masks_become_windows(
    queries: int, keys: int, before: int | None, after: int | None, place: str, fill: float
) -> None:
    shift = keys - queries if place == "end" else 0
    distance = np.arange(keys)[None] - np.arange(queries)[:, None] - shift
    seen = (distance >= -(before if before is not None else 99)) & (distance <= (after if after is not None else 99))
    mask = np.where(seen, 0.0, fill)
    window = band(mask)
    if not seen.any(axis=1).all():
        assert window is None
        return
    assert window is not None
    found_before, found_after, found_place = window
    distance += shift - (keys - queries if found_place == "end" else 0)
    again = np.ones_like(seen)
    if found_before is not None:
        again &= distance >= -found_before
    if found_after is not None:
        again &= distance <= found_after
    np.testing.assert_array_equal(again, seen)


def test_a_sliding_window_becomes_attributes() -> None:
    distance = np.arange(6)[None] - np.arange(6)[:, None]
    model = causal_text(np.where((distance <= 0) & (distance >= -2), 0.0, -np.inf))
    result = run(model, [FuseAttention()])
    assert fused(result) == ("FusedAttention", AttentionOptions(32, scale=1.0, window=(2, 0)))
    assert_same(model, result.model)


def test_a_causal_mask_that_is_stored_for_every_head() -> None:
    triangle = np.where(np.tril(np.ones((5, 5), bool)), 0.0, -np.inf)
    assert band(np.broadcast_to(triangle, (2, 3, 5, 5))) == (None, 0, "end")
    other = np.stack([triangle, np.zeros((5, 5))])
    assert band(other) is None
    assert band(np.zeros((0, 5, 5))) is None


@pytest.mark.parametrize("what", ["holes", "values"])
def test_other_constant_masks_stay_a_bias(what: str) -> None:
    mask = np.zeros((6, 6))
    if what == "holes":
        mask[:, 2] = -np.inf
    else:
        mask[1, 1] = 0.5
    model = causal_text(mask)
    result = run(model, [FuseAttention()])
    assert fused(result)[0] == "FusedAttentionBias"
    assert_same(model, result.model)


@pytest.mark.parametrize(
    ("attributes", "mask", "operator"),
    [
        ("", "", "FusedAttention"),
        ("<is_causal = 1>", "", "FusedAttention"),
        ("<scale = 0.5>", "", "FusedAttention"),
        ("", "float[5, 7] mask", "FusedAttentionBias"),
        ("<is_causal = 1>", "bool[2, 1, 5, 7] mask", "FusedAttentionBias"),
    ],
)
def test_onnx_attention(attributes: str, mask: str, operator: str) -> None:
    more = f", {mask}" if mask else ""
    body = f"({INPUTS}{more}) => {OUT} {{ y = Attention {attributes} (q, k, v{', mask' if mask else ''}) }}"
    result = check_fused(body, operator, opset=23, scale=0.5 if "scale" in attributes else SCALE)
    assert fused(result)[1].window_limits[1] == (0 if "causal" in attributes else 1 << 29)


def test_onnx_attention_with_heads_side_by_side_and_shared_keys() -> None:
    body = """(float[2, 5, 128] q, float[2, 7, 64] k, float[2, 7, 64] v) => (float[2, 5, 128] y) {
        y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) }"""
    check_fused(body, opset=23)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Attention <softcap = 5.0> (q, k, v)", "it caps its scores"),
        ("y, pk, pv = Attention (q, k, v, , q)", "past keys without past values"),
        ("y, pk, pv = Attention <is_causal = 1> (q, k, v, , q, q)", "its queries are not as many as its new keys"),
        ("y, pk, pv, s = Attention (q, k, v, , q, q)", "its scores are an output"),
    ],
)
def test_onnx_attention_beyond_the_kernel(body: str, reason: str) -> None:
    assert reason in fuse(f"({INPUTS}) => {OUT} {{ {body} }}", opset=23).notes[0]


@pytest.mark.parametrize(
    ("attributes", "mask", "operator", "new", "past"),
    [
        ("", "", "FusedAttention", "7", "4"),
        ("<is_causal = 1>", "", "FusedAttention", "5", "4"),
        ("<is_causal = 1>", "", "FusedAttention", "queries", "past"),
        ("", "float[5, 11] mask", "FusedAttentionBias", "7", "4"),
        ("<is_causal = 1>", "bool[2, 1, 5, 9] mask", "FusedAttentionBias", "5", "4"),
        ("", "float[5, total] mask", "FusedAttentionBias", "7", "past"),
    ],
)
def test_onnx_attention_with_a_past(attributes: str, mask: str, operator: str, new: str, past: str) -> None:
    queries = "queries" if new == "queries" else "5"
    given = [f"float[2, 4, {queries}, 32] q", *(f"float[2, 2, {new}, 32] {x}" for x in "kv")]
    given += [f"float[2, 2, {past}, 32] past_{x}" for x in "kv"] + ([mask] if mask else [])
    name = "mask" if mask else ""
    out = f"float[2, 4, {queries}, 32] y, float[2, 2, p, 32] all_k, float[2, 2, p, 32] all_v"
    body = f"""({", ".join(given)}) => ({out}) {{
        y, all_k, all_v = Attention {attributes} (q, k, v, {name}, past_k, past_v) }}"""
    result = fuse(body, opset=23)
    assert result.notes == ("fuse-attention: 1 of 1 attentions fused",)
    assert fused(result)[0] == operator
    assert graph_text.ops(result.model).count("Concat") == 2
    sizes = {"queries": 7, "past": 4, "total": 11}
    feeds = {}
    rng = np.random.default_rng(0)
    for spec in graph_text.model(body, opset=23).inputs:
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in spec.shape]
        feeds[spec.name] = rng.random(shape) < 0.7 if spec.dtype == "bool" else rng.standard_normal(shape, np.float32)
        if spec.dtype == "bool":
            feeds[spec.name][..., 0] = True
    for got, want in zip(
        graph_text.run(result.model, feeds), graph_text.run(graph_text.model(body, opset=23), feeds), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_onnx_attention_with_a_past_and_heads_side_by_side() -> None:
    body = """(float[2, 5, 128] q, float[2, 5, 64] k, float[2, 5, 64] v, float[2, 2, 4, 32] pk, float[2, 2, 4, 32] pv)
        => (float[2, 5, 128] y, float[2, 2, 9, 32] all_k, float[2, 2, 9, 32] all_v) {
        y, all_k, all_v = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v, , pk, pv) }"""
    check_fused(body, opset=23)


def test_onnx_attention_that_returns_its_keys() -> None:
    body = f"({INPUTS}) => (float[2, 2, 5, 32] y, float[2, 2, 7, 32] all_k) {{ y, all_k = Attention (q, k, v) }}"
    assert "Identity" in graph_text.ops(check_fused(body, opset=23).model)


MASKED_LATER = f"""({INPUTS}, bool[2, 1, 5, 7] show) => {OUT}
    <int64[1] last = {{-1}}, float none = {{0}}, float half = {{0.5}}, float one = {{1}}> {{
    {TRANSPOSED} s0 = MatMul(q, t) s = Mul(s0, half) p = Softmax <axis = -1> (s) m = Cast <to = 1> (show)
    w = Mul(p, m) sum = ReduceSum <keepdims = 1> (w, last) ok = Greater(sum, none) d = Where(ok, sum, one)
    n = Div(w, d) z = Where(ok, n, none) y = MatMul(z, v) }}"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("show", "show"),
        ("z = Where(ok, n, none) y = MatMul(z, v)", "y = MatMul(n, v)"),
        (
            "ok = Greater(sum, none) d = Where(ok, sum, one)\n    n = Div(w, d) z = Where(ok, n, none)",
            "z = Div(w, sum)",
        ),
        ("w = Mul(p, m)", "w = Mul(m, p)"),
    ],
)
def test_a_mask_after_the_softmax(old: str, new: str) -> None:
    assert old in MASKED_LATER
    check_fused(MASKED_LATER.replace(old, new), "FusedAttentionBias", scale=0.5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bool[2, 1, 5, 7] show", "float[2, 1, 5, 7] show"),  # factors, not a mask
        ("m = Cast <to = 1> (show)", "m = Cast <to = 1> (show) y2 = Neg(m)"),
        ("Where(ok, sum, one)", "Where(ok, one, sum)"),
        ("Greater(sum, none)", "Greater(sum, one)"),
        ("Greater(sum, none)", "Less(sum, none)"),
        ("w = Mul(p, m)", "w = Add(p, m)"),
        ("Div(w, d)", "Div(d, w)"),
    ],
)
def test_what_is_no_mask_after_the_softmax(old: str, new: str) -> None:
    assert old in MASKED_LATER
    result = fuse(MASKED_LATER.replace(old, new))
    # A mask that is read elsewhere, too, is a mask.
    assert result.changed == ("y2" in new)


def test_masked_weights_that_are_read_elsewhere() -> None:
    result = fuse(MASKED_LATER.replace(OUT, "(float[2, 2, 5, 32] y, float[2, 2, 5, 7] w)"))
    assert "the attention weights are read elsewhere, too" in result.notes[0]


@pytest.mark.parametrize(("dim", "kernel"), [(48, 64), (72, 80), (24, 32), (112, 128), (127, 128)])
def test_other_head_dimensions_are_filled_up(dim: int, kernel: int) -> None:
    result = check_fused(
        shaped(f"1, 2, 5, {dim}", f"1, 2, 7, {dim}", f"1, 2, 7, {dim}")
        .replace("s = MatMul(q, t)", "r = MatMul(q, t) s = Mul(r, half)")
        .replace("=> (y) {", f"=> (float[1, 2, 5, {dim}] y) <float half = {{0.5}}> {{"),
        scale=0.5,
    )
    assert fused(result)[1].head_dim == kernel
    assert graph_text.ops(result.model).count("Pad") == 3
    body = f"({INPUTS}) => {OUT} {{ y = Attention (q, k, v) }}".replace("32]", f"{dim}]")
    assert fused(check_fused(body, opset=23, scale=dim**-0.5))[1].head_dim == kernel


def test_filled_up_heads_that_lie_in_the_middle() -> None:
    body = """(float[2, 5, 3, 48] q, float[2, 7, 3, 48] k, float[2, 7, 3, 48] v, float[5, 7] mask)
        => (float[2, 5, 3, 48] y) {
        s = Einsum <equation = "aecd,abcd->acbe"> (k, q)
        m = Add(s, mask)
        p = Softmax <axis = -1> (m)
        y = Einsum <equation = "acbe,aecd->abcd"> (p, v) }"""
    check_fused(body, "FusedAttentionBias", scale=1.0)


def test_onnx_attention_that_hides_its_heads() -> None:
    body = "(float[2, 5, 64] q, float[2, 7, 64] k, float[2, 7, 64] v) => (float[2, 5, 64] y) { y = Attention(q, k, v) }"
    assert "how many heads" in fuse(body, opset=23).notes[0]
    unknown = "(float[2, 5, 64] q, float k, float[2, 7, 64] v) => (float[2, 5, 64] y) { y = Attention(q, k, v) }"
    assert "left alone" in fuse(unknown, opset=23).notes[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = MatMul(q, t) z = Mul(s, q0) p = Softmax <axis = -1> (z) y = MatMul(p, v)", "is not one constant number"),
        ("s = MatMul(q, t) z = Tanh(s) p = Softmax <axis = -1> (z) y = MatMul(p, v)", 'Tanh "-> z" stands between'),
        ("s = MatMul(q, t) p = Softmax <axis = 2> (s) y = MatMul(p, v)", "runs along axis 2"),
        ("p = Softmax <axis = -1> (w) y = MatMul(p, v)", 'no product of q and k leads to "w"'),
        ("s = MatMul(q, t) z = Where(show, s, half) p = Softmax <axis = -1> (z) y = MatMul(p, v)", "a number below"),
        ("s = MatMul(q, t) z = Add(s, one) p = Softmax <axis = -1> (z) y = MatMul(p, v)", "the same for all keys"),
        ("s = MatMul(q, t) p = Softmax <axis = -1> (s) x = Abs(p) y0 = MatMul(p, v) y = Add(y0, x0)", "elsewhere"),
        ("s = MatMul(q, t) n = Neg(c) z = Mul(s, n) p = Softmax <axis = -1> (z) y = MatMul(p, v)", "positive, finite"),
        ("s = MatMul(q0, t) p = Softmax <axis = -1> (s) y = MatMul(p, v)", "one would be broadcast"),
        ("s = MatMul(q1, t) p = Softmax <axis = -1> (s) y = MatMul(p, v)", "q has 3 dimensions and k has 4"),
        ('s = Einsum <equation = "abcd,abed->abe"> (q, k) p = Softmax <axis = -1> (s) y = MatMul(p, v)', "Einsum"),
        ('s = Einsum <equation = "...d,...d"> (q, k) p = Softmax <axis = -1> (s) y = MatMul(p, v)', "Einsum"),
        ('s = MatMul(q, t) p = Softmax <axis = -1> (s) y = Einsum <equation = "abij,abjd->aid"> (p, v)', "Einsum"),
        ("s = MatMul(q, t) p = Softmax <axis = -1> (s) y = MatMul(w1, p)", "are not the left factor"),
    ],
)
def test_what_is_left_alone_and_why(body: str, reason: str) -> None:
    text = f"""({INPUTS}, float[1, 2, 5, 32] q0, float[2, 5, 32] q1, float[2, 2, 5, 7] w, float[2, 2, 5, 5] w1,
        bool[5, 7] show, float[2, 2, 5, 32] x0) => (y) <float c = {{1}}, float half = {{0.5}}, float[1] one = {{1}}> {{
        {TRANSPOSED} {body} }}"""
    model = graph_text.model(text)
    result = run(model, [FuseAttention()])
    assert not result.changed
    assert result.model is model
    assert "left alone" in result.notes[0]
    assert reason in result.notes[0]


def shaped(q: str, k: str, v: str, kind: str = "float") -> str:
    return f"""({kind}[{q}] q, {kind}[{k}] k, {kind}[{v}] v) => (y) {{
        {TRANSPOSED} s = MatMul(q, t) p = Softmax <axis = -1> (s) y = MatMul(p, v) }}"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (shaped("1, 2, 5, 40", "1, 2, 7, 40", "1, 2, 7, 40"), "No attention kernel has head dimension 40"),
        (shaped("1, 2, 5, 160", "1, 2, 7, 160", "1, 2, 7, 160"), "No attention kernel has head dimension 160"),
        (shaped("1, 2, 5, d", "1, 2, 7, d", "1, 2, 7, d"), "the head dimension is not static"),
        (shaped("1, 2, 5, 32", "1, 2, 7, 32", "1, 2, 7, 64"), "the head dimensions 32, 64"),
        (shaped("1, 2, 5, 32", "1, 2, 7, 32", "1, 1, 7, 32"), "the heads of k and v is 2 and 1"),
        (shaped("n, 2, 5, 32", "1, 2, 7, 32", "1, 2, 7, 32"), "the batch of q and k is n and 1"),
        (shaped("1, h, 5, 32", "1, 2, 7, 32", "1, 2, 7, 32"), "q has h heads and k has 2"),
        (shaped("1, 2, 5, 32", "1, 2, 7, 32", "1, 2, 7, 32", "double"), "q, k and v are float64"),
        (shaped("1, 1, 2, 5, 32", "1, 1, 2, 32, 7", "1, 1, 2, 7, 32").replace(TRANSPOSED, "t = Abs(k)"), "5 dimen"),
    ],
)
def test_shapes_that_no_kernel_takes(body: str, reason: str) -> None:
    result = fuse(body)
    assert not result.changed
    assert reason in result.notes[0]


def test_old_opsets_are_left_alone_and_axes_of_old_softmaxes_are_known() -> None:
    body = shaped("1, 2, 5, 32", "1, 2, 7, 32", "1, 2, 7, 32")
    assert "the model has opset 12, and 13 is needed" in fuse(body, opset=12).notes[0]


def test_free_sizes() -> None:
    body = shaped("batch, 2, l, 32", "batch, 2, m, 32", "batch, 2, m, 32")
    result = fuse(body)
    assert result.notes == ("fuse-attention: 1 of 1 attentions fused",)
    assert_same(graph_text.model(body), result.model)


def test_bodies_and_softmaxes_of_classifiers_are_left_alone() -> None:
    assert fuse("(float[2, 5] x) => (float[2, 5] y) { y = Softmax <axis = -1> (x) }").notes == ()
    body = f"""(bool c, {INPUTS}) => {OUT} {{
        y = If (c) <then_branch = a () => (float[2, 2, 5, 32] r) {{
            t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, t) p = Softmax <axis = -1> (s) r = MatMul(p, v) }},
            else_branch = b () => (float[2, 2, 5, 32] e) {{ e = Identity(q) }}> }}"""
    result = fuse(body)
    assert not result.changed
    assert result.notes == ("fuse-attention: 1 attentions in bodies of If, Loop or Scan left alone",)


def test_a_half_precision_graph_gives_what_a_kernel_takes() -> None:
    model = run(load(DEMO), [ToHalf(["Softmax"]), InferShapes()]).model
    result = run(model, [FuseAttention()])
    (node,) = (item for item in result.model.proto.graph.node if item.domain == "edgemm")
    assert walk.attribute(node, "dtype") == TensorProto.FLOAT16
    assert_same(model, result.model, 2e-2)


@pytest.mark.parametrize(("narrow", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2)])
def test_narrow_casts_around_the_node(narrow: str, tolerance: float) -> None:
    model = graph_text.model(KERAS)
    result = run(model, [FuseAttention(narrow)])  # type: ignore[arg-type]
    assert fused(result)[1].dtype == narrow
    assert graph_text.ops(result.model).count("Cast") == 5
    assert_same(model, result.model, tolerance)


def test_bfloat16_is_replaced_unchecked_with_a_note() -> None:
    result = fuse(shaped("1, 2, 5, 32", "1, 2, 7, 32", "1, 2, 7, 32", "bfloat16"))
    assert fused(result)[1].dtype == "bfloat16"
    assert "was not compared with what replaces it: onnxruntime does not compute in bfloat16" in result.notes[1]


def test_what_would_take_long_is_replaced_unchecked_with_a_note() -> None:
    result = fuse(shaped("1, 16, 2048, 32", "1, 16, 2048, 32", "1, 16, 2048, 32"))
    assert result.changed
    assert "1x16x2048x2048 scores take long" in result.notes[1]


def test_what_differs_on_random_numbers_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ops.attention_node

    def wrong(*args: str, **more: object) -> object:
        return node(args[0], args[0], args[2], *args[3:], **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "attention_node", wrong)
    result = fuse(shaped("1, 2, 7, 32", "1, 2, 7, 32", "1, 2, 7, 32"))
    assert not result.changed
    assert "on random numbers the fused node differs by" in result.notes[0]


def test_two_attentions_become_two_nodes_with_one_body() -> None:
    body = f"""({INPUTS}) => {OUT} {{
        {TRANSPOSED} s = MatMul(q, t) p = Softmax <axis = -1> (s) x = MatMul(p, v)
        s1 = MatMul(x, t) p1 = Softmax <axis = -1> (s1) y = MatMul(p1, v) }}"""
    result = fuse(body)
    assert result.notes == ("fuse-attention: 2 of 2 attentions fused",)
    assert [item.name for item in result.model.proto.functions] == ["FusedAttention"]
    assert_same(graph_text.model(body), result.model)


def test_a_missing_body_is_noticed() -> None:
    result = fuse(shaped("1, 2, 5, 32", "1, 2, 7, 32", "1, 2, 7, 32"))
    proto = result.model.copy_proto()
    del proto.functions[:]
    bare = result.model.with_proto(proto)
    with pytest.raises(ModelError, match="has no function body"):
        FuseAttention().ensures(result.model, bare)
