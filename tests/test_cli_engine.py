"""The commands around engines: check, inspect, cache, and the flags of a build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trt_graphs
from onnx import GraphProto, NodeProto, TensorProto, helper
from trt_double import double
from typer.testing import CliRunner

import edgemm
from edgemm import cache
from edgemm.cli.main import app
from edgemm.demo import folder
from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt import compiled, flavours, prepared
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.run.loaded import LoadedPlan
from edgemm.errors import EdgemmError, UsageError

ORIN = Gpu("Orin", "8.7", integrated=True)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, EdgemmError):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flavour:
    """A Jetson with its TensorRT."""
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    flavour = Flavour("tensorrt", "10.3.0", double("10.3"))
    monkeypatch.setattr(flavours, "installed", lambda: (flavour,))
    monkeypatch.setattr(flavours, "get", lambda name: flavour)
    monkeypatch.setattr(prepared, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(compiled, "find_gpu", lambda: ORIN)
    return flavour


def conv(tmp_path: Path) -> Path:
    (tmp_path / "conv.onnx").write_bytes(trt_graphs.conv(1))
    return tmp_path / "conv.onnx"


def test_check_takes_a_recipe() -> None:
    code, said = run("check", str(folder() / "recipe.toml"), "--engine", "tensorrt")
    assert (code, said.splitlines()[0]) == (
        0,
        "av: The model runs on tensorrt: 0 errors, 0 warnings, 0 notes; 74 nodes of 14 operators.",
    )
    _, as_json = run("check", str(folder() / "recipe.toml"), "--json")
    assert json.loads(as_json)["av"]["engine"] == "onnxruntime"


def test_check_of_a_recipe_fixes_what_the_recipe_fixes(tmp_path: Path) -> None:
    """A branch that is never taken is nobody's problem once its condition is fixed."""

    def branch(*nodes: NodeProto) -> GraphProto:
        return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node(
            "If",
            ["fast"],
            ["y"],
            then_branch=branch(helper.make_node("Add", ["z", "z"], ["b"])),
            else_branch=branch(
                helper.make_node("NonZero", ["z"], ["n"]), helper.make_node("Cast", ["n"], ["b"], to=TensorProto.FLOAT)
            ),
        )
    ]
    inputs = [("fast", TensorProto.BOOL, [1]), ("z", TensorProto.FLOAT, [1, 4])]
    (tmp_path / "m.onnx").write_bytes(trt_graphs.model(nodes, inputs, [("y", TensorProto.FLOAT, ["n", "m"])]))
    text = 'edgemm = 1\nname = "r"\n[models.m]\nfile = "m.onnx"\n'
    (tmp_path / "open.toml").write_text(text)
    (tmp_path / "fixed.toml").write_text(f"{text}inputs.fast = {{ value = 1 }}\n")
    code, said = run("check", str(tmp_path / "open.toml"), "--engine", "tensorrt-rtx")
    assert (code, "NonZero" in said) == (1, True)
    assert run("check", str(tmp_path / "fixed.toml"), "--engine", "tensorrt-rtx")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"), [(["0"], (0, False)), (["1", "strict"], (1, True)), (["strict", "0"], (0, True)), ([], None)]
)
def test_dla_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: tuple[int, bool] | None
) -> None:
    seen: list[object] = []

    def build(*arguments: object, **options: object) -> None:
        seen.append(options["dla"])
        raise UsageError("seen")

    monkeypatch.setattr(edgemm, "build", build, raising=False)
    flags = [part for word in words for part in ("--dla", word)]
    with pytest.raises(UsageError, match="seen"):
        run("build", "engine", str(conv(tmp_path)), "-o", str(tmp_path / "o.edgemm"), *flags)
    assert seen == [expected]


@pytest.mark.parametrize("words", [["strict"], ["0", "1"], ["gpu"], ["0", "gpu"]])
def test_a_wrong_dla_is_refused(tmp_path: Path, words: list[str]) -> None:
    flags = [part for word in words for part in ("--dla", word)]
    with pytest.raises(UsageError, match=r"expected one core's number, and perhaps strict"):
        run("build", "engine", str(conv(tmp_path)), "-o", str(tmp_path / "o.edgemm"), *flags)


def test_a_bundle_keeps_the_settings_that_it_was_built_with(tmp_path: Path) -> None:
    edgemm.build(conv(tmp_path), tmp_path / "o.edgemm")
    with pytest.raises(UsageError, match="DLA and workspace are settings that it was built with"):
        run("build", "engine", str(tmp_path / "o.edgemm"), "--dla", "0")


def test_on_the_board_the_plan_is_compiled_and_its_dla_layers_listed(tmp_path: Path, board: Flavour) -> None:
    board.module._dla_cores, board.module._dla_refuses = 2, ("Relu",)
    edgemm.build(conv(tmp_path), tmp_path / "o.edgemm", dla=(1, False))
    _, said = run("build", "engine", str(tmp_path / "o.edgemm"), "-q")
    assert said == ""
    _, said = run("build", "engine", str(tmp_path / "o.edgemm"))
    lines = said.splitlines()
    assert "conv, fp32: the plan was in the cache already" in lines
    assert "conv, fp32: 1 of 2 layers run on DLA core 1" in lines
    assert "conv, fp32: on the GPU: relu (ACTIVATION)" in lines
    _, listed = run("inspect", str(tmp_path / "o.edgemm"))
    assert "in: cache" in listed
    assert "layers on the DLA: 1 of 2" in listed


def test_inspect_shows_the_layers_and_asks_the_inspector(
    tmp_path: Path, board: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    edgemm.build(conv(tmp_path), tmp_path / "o.edgemm", target="orin-nano")
    _, said = run("inspect", str(tmp_path / "o.edgemm"), "--layers", "--json")
    (plan,) = json.loads(said)["plans"]
    assert plan["network"] == ["conv (CONVOLUTION) on the GPU", "relu (ACTIVATION) on the GPU"]
    assert plan["in"] == "bundle"
    assert plan["inspector"].startswith("waits for a GPU that the plan is for: Found no NVIDIA driver")
    monkeypatch.setattr(LoadedPlan, "__enter__", lambda self: self)
    monkeypatch.setattr(LoadedPlan, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(LoadedPlan, "layers", lambda self: [{"Name": "fused", "TacticName": "t"}])
    _, said = run("inspect", str(tmp_path / "o.edgemm"), "--layers", "--json")
    assert json.loads(said)["plans"][0]["inspector"] == [{"Name": "fused", "TacticName": "t"}]


def test_cache_knows_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    for kind in cache.KINDS:
        cache.folder(kind).mkdir(parents=True)
        (cache.folder(kind) / "kept.plan").write_bytes(b"x" * 1000)
        (cache.folder(kind) / "held.lock").write_bytes(b"")
    (cache.folder("models") / "digest").mkdir()
    (cache.folder("models") / "digest" / "m.onnx").write_bytes(b"x" * 500)
    _, said = run("cache", "list")
    assert "jit: 1 files, 0.0 MB (kernels that TensorRT for RTX compiled on the GPU)" in said
    assert "timings: 1 files" in said
    assert "models: 2 files" in said
    run("cache", "clear", "jit", "models")
    assert [kind for kind in cache.KINDS if cache.size(kind) == (0, 0)] == ["jit", "models"]
    assert cache.size("timings") == (1, 1000)
    _, said = run("cache", "clear")
    assert all(cache.size(kind) == (0, 0) for kind in cache.KINDS)
    assert (cache.folder("timings") / "held.lock").exists(), "a lock may be held by another process"
    with pytest.raises(UsageError, match='The cache keeps no "plan", expected some of: plans, timings'):
        run("cache", "clear", "plan")
