from __future__ import annotations

import os
from pathlib import Path

import graph_text
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgemm.errors import ModelError
from edgemm.graph import Model, check, from_bytes, from_proto, load
from edgemm.graph import model as model_module
from edgemm.types import TensorSpec

MATMUL = "(float[batch, 200] x) => (float[batch, 200] y) { y = MatMul(x, w) }"


def matmul(seed: int = 0, width: int = 200) -> onnx.ModelProto:
    proto = graph_text.proto(MATMUL.replace("200", str(width)))
    values = np.random.default_rng(seed).standard_normal((width, width)).astype(np.float32)
    proto.graph.initializer.append(graph_text.weight("w", values))
    return proto


def save_external(proto: onnx.ModelProto, folder: Path, location: str = "w.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def set_entry(path: Path, key: str, value: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    entry = next((item for item in entries if item.key == key), None) or entries.add(key=key)
    entry.value = value
    path.write_bytes(proto.SerializeToString())


# What is not a whole ONNX model


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file .*nowhere\.onnx"):
        load(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file; run the tests as a user to see this one")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(matmul().SerializeToString())
    file.chmod(0)
    with pytest.raises(ModelError, match="Cannot read"):
        load(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"PK\x03\x04 a zip", "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x08\x08", "no ONNX graph"),
    ],
)
def test_what_is_no_onnx_file_is_refused_with_words(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        load(file)


@settings(max_examples=60)
@given(share=st.floats(0.0, 0.999))
def test_a_truncated_file_is_refused_wherever_it_ends(share: float) -> None:
    data = matmul(width=6).SerializeToString()
    with pytest.raises(ModelError, match=r"cut off|empty file|no ONNX graph"):
        from_bytes(data[: int(share * len(data))])


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_escape_as_another_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        from_bytes(data)


@pytest.mark.parametrize("opset", [9, 10])
def test_an_old_opset_says_how_to_convert(opset: int) -> None:
    with pytest.raises(ModelError, match=rf"opset {opset}; edgemm reads 11 to 23.*convert_version"):
        graph_text.model("(float[3] x) => (float[3] y) { y = Relu(x) }", opset=opset)


def test_a_new_opset_says_what_to_export() -> None:
    with pytest.raises(ModelError, match=r"opset 24.*opset_version=23"):
        graph_text.model("(float[3] x) => (float[3] y) { y = Relu(x) }", opset=24)


@pytest.mark.parametrize("opset", [7, 9, 24, 26])
def test_any_opset_is_taken_to_be_checked(opset: int, tmp_path: Path) -> None:
    proto = graph_text.proto("(float[3] x) => (float[3] y) { y = Relu(x) }", opset=opset)
    onnx.save(proto, tmp_path / "m.onnx")
    for model in (from_proto(proto, any_opset=True), load(tmp_path / "m.onnx", any_opset=True)):
        report = check(model, "tensorrt")
        assert (report.ok, report.findings[0].severity) == (True, "warning")
        assert report.findings[0].reason == f"The model is written for opset {opset}; edgemm builds from 11 to 23."


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 23])
def test_opsets_11_to_23_load(opset: int) -> None:
    assert graph_text.model("(float[3] x) => (float[3] y) { y = Relu(x) }", opset=opset).opset == opset


def test_onnx_operators_without_a_version_are_refused() -> None:
    proto = graph_text.proto("(float[3] x) => (float[3] y) { y = Relu(x) }")
    proto.opset_import[0].domain = "custom"
    with pytest.raises(ModelError, match="names no version"):
        from_proto(proto)
    proto.graph.node[0].domain = "custom"
    assert from_proto(proto).opset == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(float[3] x) => (float[3] y) { y = Relu(z) }", 'reads "z", which no node'),
        ("(float[3] x) => (float[3] y) { y = Relu(x) y = Abs(x) }", '"y" is made twice'),
        ("(float[3] x) => (float[3] z) { y = Relu(x) }", 'promises an output "z"'),
        ("(float[3] x) => () { y = Relu(x) }", "no output"),
        ("(float[3] x) => (float[3] y) { a = Relu(b) b = Relu(a) y = Add(a, x) }", "cycle"),
    ],
)
def test_a_graph_that_is_not_whole_is_refused(body: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        graph_text.model(body)


# Inputs, outputs, order


def test_inputs_carry_names_numbers_and_unknowns() -> None:
    model = graph_text.model("(float[batch, 3, ?] x, int64 n) => (float16[batch] y) { y = Op(x, n) }")
    assert model.inputs == (TensorSpec("x", "float32", ("batch", 3, None)), TensorSpec("n", "int64", ()))
    assert model.outputs == (TensorSpec("y", "float16", ("batch",)),)


def test_question_marks_and_negative_sizes_are_unknown_dimensions() -> None:
    proto = graph_text.proto("(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "?"
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    assert from_proto(proto).inputs[0].shape == (None, None)


def test_initializers_are_no_inputs_even_if_listed() -> None:
    proto = matmul()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [200, 200]))
    model = from_proto(proto)
    assert [spec.name for spec in model.inputs] == ["x"]
    assert model.digest == from_proto(matmul()).digest
    assert len(proto.graph.input) == 2, "the caller's proto is not touched"


def test_sequences_are_refused_as_inputs_with_words() -> None:
    model = graph_text.model("(seq(float[3]) x) => (int64 y) { y = SequenceLength(x) }")
    with pytest.raises(ModelError, match='"x" is a sequence'):
        _ = model.inputs


def test_an_output_without_a_shape_asks_for_inference() -> None:
    proto = graph_text.proto("(float[3] x) => (float[3] y) { y = Relu(x) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="shape inference"):
        _ = from_proto(proto).outputs


def test_nodes_are_brought_into_order() -> None:
    model = graph_text.model("(float[3] x) => (float[3] y) { y = Relu(b) b = Abs(a) a = Neg(x) }")
    assert graph_text.ops(model) == ["Neg", "Abs", "Relu"]


def test_subgraphs_may_capture_outer_values_but_not_unknown_ones() -> None:
    body = """(bool c, float[3] x) => (float[3] y) {
        y = If (c) <then_branch = t () => (float[3] a) { a = Relu(x) },
                    else_branch = e () => (float[3] b) { b = Neg(%s) }>
    }"""
    assert graph_text.model(body % "x").inputs[1].name == "x"
    with pytest.raises(ModelError, match='reads "q"'):
        graph_text.model(body % "q")


def test_a_local_function_is_loaded() -> None:
    model = graph_text.model(
        "(float[3] x) => (float[3] y) { y = mine.Twice(x) }",
        domains=', "mine" : 1',
        functions='<domain: "mine", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, a) }',
    )
    assert [function.name for function in model.proto.functions] == ["Twice"]


def test_a_function_that_calls_itself_is_refused() -> None:
    functions = "".join(
        f'<domain: "mine", opset_import: ["" : 17, "mine" : 1]> {name} (a) => (b) {{ b = mine.{inner}(a) }}'
        for name, inner in (("F", "G"), ("G", "F"))
    )
    with pytest.raises(ModelError, match=r'"mine\.F" calls itself'):
        graph_text.model("(float[3] x) => (float[3] y) { y = mine.F(x) }", domains=', "mine" : 1', functions=functions)


# Digest


def test_the_digest_is_blind_to_how_the_file_is_written() -> None:
    model = from_proto(matmul())
    proto = matmul()
    proto.doc_string = proto.producer_name = "someone"
    proto.graph.node[0].name = "renamed"
    proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 200]))
    raw = proto.graph.initializer[0]
    values = numpy_helper.to_array(raw)
    raw.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel()))
    assert from_proto(proto).digest == model.digest
    assert from_bytes(model.to_bytes()).digest == model.digest


def test_the_digest_sees_every_change_of_what_is_computed() -> None:
    text = "(float[2] x) => (float[2] y) { y = LeakyRelu <alpha: float = 0.5> (x) }"
    variants = [
        text,
        text.replace("0.5", "0.25"),
        text.replace("[2]", "[3]"),
        text.replace("LeakyRelu", "Elu"),
        text.replace("y", "z"),
        text.replace("(x) }", "(x) q = Abs(y) }"),
    ]
    digests = {graph_text.model(variant).digest for variant in variants}
    digests.add(graph_text.model(text, opset=16).digest)
    digests.update(from_proto(matmul(seed)).digest for seed in (1, 2))
    assert len(digests) == len(variants) + 3


def test_the_digest_covers_subgraphs_functions_strings_and_sparse_tensors() -> None:
    body = """(bool c, float[3] x) => (float[3] y) {
        y = If (c) <then_branch = t () => (float[3] a) <float s = {%s}> { a = Mul(x, s) },
                    else_branch = e () => (float[3] b) { b = mine.F <k: float = %s> (x) }>
    }"""
    function = '<domain: "mine", opset_import: ["" : 17]> F <k> (a) => (b) { b = Elu <alpha: float = @k> (%s) }'

    def digest(scale: str, k: str, last: str) -> str:
        return graph_text.model(body % (scale, k), domains=', "mine" : 1', functions=function % last).digest

    assert len({digest("1", "1", "a"), digest("2", "1", "a"), digest("1", "2", "a")}) == 3
    assert digest("1", "1", "a") == digest("1", "1", "a")

    def with_tensor(tensor: onnx.TensorProto) -> str:
        node = helper.make_node("Constant", [], ["c"], value=tensor)
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("c", tensor.data_type, [1])])
        return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).digest

    assert with_tensor(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])) != with_tensor(
        helper.make_tensor("t", TensorProto.STRING, [1], [b"b"])
    )

    def with_sparse(value: float) -> str:
        sparse = helper.make_sparse_tensor(
            helper.make_tensor("s", TensorProto.FLOAT, [1], [value]),
            helper.make_tensor("i", TensorProto.INT64, [1], [2]),
            [3],
        )
        proto = graph_text.proto("(float[3] x) => (float[3] y) { y = Add(x, x) }")
        proto.graph.sparse_initializer.append(sparse)
        return from_proto(proto).digest

    assert with_sparse(1.0) != with_sparse(2.0)


# External data


def test_external_data_is_read_into_memory(tmp_path: Path) -> None:
    model = load(save_external(matmul(), tmp_path))
    assert model.folder is None
    assert model.digest == from_proto(matmul()).digest


def test_external_data_in_a_subfolder_is_read(tmp_path: Path) -> None:
    path = save_external(matmul(), tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "weights" / "w.bin")
    set_entry(path, "location", "weights/w.bin")
    assert load(path).digest == from_proto(matmul()).digest


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "..\\w.bin"])
def test_external_data_may_not_leave_the_folder(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = save_external(matmul(), inside)
    (tmp_path / "w.bin").write_bytes(bytes(160000))
    set_entry(path, "location", location)
    with pytest.raises(ModelError, match="relative path inside the model's folder"):
        load(path)


def test_external_data_may_not_leave_the_folder_through_a_link(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = save_external(matmul(), inside)
    (inside / "w.bin").rename(tmp_path / "w.bin")
    (inside / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="a link that leads out of"):
        load(path)


def test_a_link_within_the_folder_is_fine(tmp_path: Path) -> None:
    path = save_external(matmul(), tmp_path)
    (tmp_path / "w.bin").rename(tmp_path / "real.bin")
    (tmp_path / "w.bin").symlink_to("real.bin")
    assert load(path).digest == from_proto(matmul()).digest


def test_missing_and_short_external_data_are_refused(tmp_path: Path) -> None:
    path = save_external(matmul(), tmp_path)
    with (tmp_path / "w.bin").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(ModelError, match=r"needs 160000 bytes .*the file has 1000\. .*cut off"):
        load(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="is not a file in"):
        load(path)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("length", "8"), ("offset", "soon")])
def test_nonsense_in_the_external_reference_is_refused(tmp_path: Path, key: str, value: str) -> None:
    path = save_external(matmul(), tmp_path)
    set_entry(path, key, value)
    with pytest.raises(ModelError, match=r"needs 160000 bytes|not a number"):
        load(path)


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    proto = onnx.load(save_external(matmul(), tmp_path), load_external_data=False)
    with pytest.raises(ModelError, match="came without a folder"):
        from_proto(proto)
    assert from_proto(proto, folder=tmp_path).digest == from_proto(matmul()).digest
    lazy = Model(proto)
    with pytest.raises(ModelError, match="came without a folder"):
        _ = lazy.digest


# Saving


def test_save_and_load_give_the_same_model_and_bytes(tmp_path: Path) -> None:
    model = from_proto(matmul())
    (file,) = model.save(tmp_path / "m.onnx")
    again = load(file)
    assert again.digest == model.digest
    assert again.to_bytes() == model.to_bytes() == file.read_bytes()


def test_save_says_when_the_disk_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot write"):
        from_proto(matmul()).save(tmp_path / "no" / "such" / "m.onnx")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat 100 kB as the largest file, so that the way of the giants is walked by a small model."""
    monkeypatch.setattr(model_module, "PROTO_LIMIT", model_module._HEADROOM + 100_000)
    monkeypatch.setattr(model_module, "_INLINE_LIMIT", 100_000)


@pytest.mark.usefixtures("small_limits")
def test_a_large_model_goes_to_two_files_and_stays_there(tmp_path: Path) -> None:
    model = from_proto(matmul())
    with pytest.raises(ModelError, match="one ONNX file holds at most 2 GB"):
        model.to_bytes()
    files = model.save(tmp_path / "m.onnx")
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert files[0].stat().st_size < 1000

    again = load(files[0])
    assert again.folder == tmp_path
    assert again.digest == model.digest
    stored = again.proto.graph.initializer[0]
    np.testing.assert_array_equal(again.array(stored), numpy_helper.to_array(matmul().graph.initializer[0]))

    (tmp_path / "copy").mkdir()
    copied = load(again.save(tmp_path / "copy" / "m.onnx")[0])
    assert copied.digest == model.digest
    assert not any(tensor.HasField("raw_data") for tensor in again.skeleton().graph.initializer)


@pytest.mark.usefixtures("small_limits")
def test_a_data_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    lazy = load(from_proto(matmul()).save(tmp_path / "m.onnx")[0])
    (tmp_path / "m.onnx.data").write_bytes(bytes(10))
    with pytest.raises(ModelError, match="cut off"):
        _ = lazy.digest


@pytest.mark.usefixtures("small_limits")
def test_large_constants_outside_the_main_graph_are_refused_with_words(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["c"], value=matmul().graph.initializer[0])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("c", 1, [200, 200])])
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    with pytest.raises(ModelError, match="inside subgraphs or Constant nodes"):
        model.save(tmp_path / "m.onnx")


def test_a_lazily_loaded_model_becomes_one_file_if_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_external(matmul(), tmp_path)
    monkeypatch.setattr(model_module, "_INLINE_LIMIT", 100_000)
    lazy = load(path)
    assert lazy.folder == tmp_path
    assert from_bytes(lazy.to_bytes()).digest == lazy.digest


@pytest.mark.slow
def test_a_model_of_more_than_2_gb_loads_saves_and_runs(tmp_path: Path) -> None:
    # A sparse file: 2.2 GB of zeros that take no disk; one row holds numbers.
    rows, width = 550, 1_000_000
    proto = graph_text.proto(f"(int64[1] i) => (float[1, {width}] y) {{ y = Gather(w, i) }}")
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[rows, width])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(rows * width * 4)
        stream.seek(7 * width * 4)
        stream.write(np.arange(width, dtype=np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())

    model = load(tmp_path / "m.onnx")
    assert model.nbytes > 2**31
    assert model.folder == tmp_path
    with pytest.raises(ModelError, match=r"2\.2 GB"):
        model.to_bytes()
    (tmp_path / "out").mkdir()
    again = load(model.save(tmp_path / "out" / "m.onnx")[0])
    assert again.digest == model.digest

    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "m.onnx"), providers=["CPUExecutionProvider"])
    (row,) = session.run(None, {"i": np.array([7])})
    np.testing.assert_array_equal(row[0], np.arange(width, dtype=np.float32))
