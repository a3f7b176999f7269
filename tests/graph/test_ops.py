"""edgemm's operators: their ONNX bodies on onnxruntime against the float64 references of the kernels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgemm.errors import ModelError, UsageError
from edgemm.graph import ops
from edgemm.kernels.attention import AttentionOptions, attention_reference
from edgemm.kernels.log_mel import log_mel_reference, mfcc_reference
from edgemm.options import LogMelOptions, MfccOptions

ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def model_of(*nodes: onnx.NodeProto, **shapes: tuple[str, list[int | str]]) -> onnx.ModelProto:
    """A model of these nodes: `shapes` names its inputs; its one output is "out"."""
    kind = next(iter(shapes.values()))[0]
    rank = 4 if any(node.op_type.startswith("Fused") for node in nodes) else 3
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, ELEMENT[dtype], shape) for name, (dtype, shape) in shapes.items()],
        [helper.make_tensor_value_info("out", ELEMENT[kind], [f"out_{axis}" for axis in range(rank)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    ops.add_bodies(model)
    return model


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


LOG_MELS = [
    LogMelOptions(),
    LogMelOptions(
        n_mels=40, window="hann", window_periodic=True, edges="reflect", mel_scale="slaney", mel_norm="slaney"
    ),
    LogMelOptions(n_mels=64, edges="zero", mel_scale="htk", power=1, log="db", preemphasis=0.0, remove_dc=False),
    LogMelOptions(n_mels=23, fft_size=1024, window_samples=800, hop_samples=320, scale=32768.0, log="none"),
    LogMelOptions(log="log10", mean=-4.0, std=4.0, high_hz=-400.0),
]


@pytest.mark.parametrize("options", LOG_MELS, ids=range(len(LOG_MELS)))
def test_log_mel_agrees_with_the_reference(options: LogMelOptions) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4000)).astype(np.float32)
    model = model_of(ops.log_mel_node("x", "out", options), x=("float32", ["B", "T"]))
    got = run(model, x=samples)
    expected = np.stack([log_mel_reference(row, options) for row in samples])
    assert got.shape == expected.shape
    # float32 sums of up to 1024 products: about 1e-6 of the largest value before the logarithm
    tolerance = 1e-5 * np.abs(expected).max() if options.log == "none" else 2e-4 * abs(1 / options.std) * 10
    np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("deltas", [0, 1, 2])
def test_mfcc_agrees_with_the_reference(deltas: int) -> None:
    options = MfccOptions(deltas=deltas)  # type: ignore[arg-type]
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (1, 3000)).astype(np.float32)
    got = run(model_of(ops.mfcc_node("x", "out", options), x=("float32", [1, 3000])), x=samples)
    expected = mfcc_reference(samples[0], options)[None]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=5e-3, rtol=0)  # 22 liftered coefficients of 2e-4 each


@st.composite
def attentions(draw: st.DrawFn) -> tuple[AttentionOptions, int, int, int, int, int, bool]:
    options = AttentionOptions(
        head_dim=draw(st.sampled_from([32, 64])),
        dtype=draw(st.sampled_from(["float16", "bfloat16"])),
        scale=draw(st.sampled_from([None, 0.05])),
        causal=draw(st.booleans()),
        window=draw(st.sampled_from([(None, None), (2, 2), (0, None)])),
        queries_at=draw(st.sampled_from(["start", "end"])),
    )
    kv_heads = draw(st.integers(1, 2))
    group = draw(st.integers(1, 2))
    sizes = draw(st.integers(1, 2)), kv_heads * group, kv_heads, draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return (options, *sizes, draw(st.booleans()))


@given(attentions())
@settings(max_examples=40)
def test_attention_agrees_with_the_reference(case: tuple[AttentionOptions, int, int, int, int, int, bool]) -> None:
    options, batch, heads, kv_heads, q_len, kv_len, biased = case
    kind = np.dtype(np.float16) if options.dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(7)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(kind)

    q, k, v = (
        draw(batch, heads, q_len, options.head_dim),
        draw(batch, kv_heads, kv_len, options.head_dim),
        draw(batch, kv_heads, kv_len, options.head_dim),
    )
    feeds = {"q": q, "k": k, "v": v}
    bias = None
    if biased:
        feeds["bias"] = bias = draw(1, heads, 1, kv_len)
    # onnxruntime's Python feeds no bfloat16: float32 outside, the narrow type inside, which float32 holds exactly.
    narrow = ELEMENT[options.dtype]
    nodes = [
        *(helper.make_node("Cast", [name], [f"{name}_n"], to=narrow) for name in feeds),
        ops.attention_node("q_n", "k_n", "v_n", "out_n", options, bias="bias_n" if biased else None),
        helper.make_node("Cast", ["out_n"], ["out"], to=TensorProto.FLOAT),
    ]
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    model = model_of(*nodes, **{name: ("float32", list(array.shape)) for name, array in feeds.items()})
    got = run(model, **feeds).astype(np.float64)
    expected, _ = attention_reference(
        q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), options,
        bias=None if bias is None else bias.astype(np.float64),
    )  # fmt: skip
    epsilon = 2.0**-10 if options.dtype == "float16" else 2.0**-7
    np.testing.assert_allclose(got, expected, atol=4 * epsilon, rtol=2 * epsilon)


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    options = AttentionOptions(head_dim=32, window=(0, 0), queries_at="start")
    q = np.ones((1, 1, 4, 32), np.float16)
    k = v = np.ones((1, 1, 2, 32), np.float16)
    node = ops.attention_node("q", "k", "v", "out", options)
    feeds = {"q": q, "k": k, "v": v}
    got = run(model_of(node, **{name: ("float16", list(a.shape)) for name, a in feeds.items()}), **feeds)
    assert got[0, 0, :, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("node", "options"),
    [
        (ops.log_mel_node("x", "y", LOG_MELS[1]), LOG_MELS[1]),
        (ops.mfcc_node("x", "y", MfccOptions(deltas=2)), MfccOptions(deltas=2)),
        (
            ops.attention_node(
                "q", "k", "v", "y", AttentionOptions(64, scale=0.5, window=(3, None), queries_at="start")
            ),
            AttentionOptions(64, scale=0.5, window=(3, None), queries_at="start"),
        ),
    ],
)
def test_options_come_back_from_a_node(node: onnx.NodeProto, options: object) -> None:
    assert ops.options_of(node) == options


def test_a_node_without_its_options_is_an_error() -> None:
    node = helper.make_node("LogMel", ["x"], ["y"], name="mel", domain="edgemm", options='{"rate": 1}')
    with pytest.raises(ModelError, match=r'Node "mel" \(LogMel\) has options that this edgemm does not know'):
        ops.options_of(node)
    with pytest.raises(ModelError):
        ops.options_of(helper.make_node("FusedAttention", ["q", "k", "v"], ["y"], domain="edgemm"))
    with pytest.raises(UsageError):
        ops.log_mel_node("x", "y", LogMelOptions(n_mels=0))


def test_one_body_serves_equal_nodes_and_different_ones_are_refused() -> None:
    first = ops.log_mel_node("x", "a", LogMelOptions(), "first")
    add = helper.make_node("Add", ["a", "b"], ["out"])
    twice = model_of(first, ops.log_mel_node("x", "b", LogMelOptions(), "second"), add, x=("float32", [1, 800]))
    assert [function.name for function in twice.functions] == ["LogMel"]
    x = np.random.default_rng(0).standard_normal((1, 800)).astype(np.float32)
    one = run(model_of(ops.log_mel_node("x", "out", LogMelOptions()), x=("float32", [1, 800])), x=x)
    np.testing.assert_array_equal(run(twice, x=x), one + one)
    with pytest.raises(ModelError, match='"first" and "second" are both LogMel with different options'):
        model_of(first, ops.log_mel_node("x", "b", LogMelOptions(floor=1.0), "second"), add, x=("float32", [1, 800]))


def test_attention_in_float32_has_a_body_only() -> None:
    node = ops.attention_node("q", "k", "v", "out", AttentionOptions(32), name="wide")
    next(item for item in node.attribute if item.name == "dtype").i = TensorProto.FLOAT
    model = model_of(node, **dict.fromkeys("qkv", ("float32", [1, 1, 4, 32])))
    with pytest.raises(ModelError, match=r'"wide" \(FusedAttention\) computes in float32'):
        ops.without_bodies(model)
    assert ops.operators_of(model) == ops.kernel_options(model) == ()
    assert len(ops.without_bodies(model, ()).functions) == 1


def test_bodies_come_and_go() -> None:
    model = model_of(ops.log_mel_node("x", "out", LogMelOptions()), x=("float32", [1, 800]))
    assert ops.operators_of(model) == ("LogMel",)
    assert ops.kernel_options(model) == (LogMelOptions(),)
    bare = ops.without_bodies(model)
    assert len(bare.functions) == 0
    assert len(model.functions) == 1
    ops.add_bodies(bare)
    assert bare.functions[0] == model.functions[0]
    plain = helper.make_model(helper.make_graph([], "g", [], []))
    ops.add_bodies(plain)
    assert ops.operators_of(plain) == ()
    assert [item.domain for item in plain.opset_import] == [""]
