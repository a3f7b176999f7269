"""edgemm's operators through `edgemm build engine`, with the real TensorRT for RTX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trt_graphs
from onnx import ModelProto, TensorProto
from require import require
from typer.testing import CliRunner

import edgemm
from edgemm import bundle
from edgemm.bundle import Bundle
from edgemm.cli.main import app
from edgemm.demo import folder
from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt import compiled, flavours, prepared
from edgemm.engine.tensorrt.plan import Plan, read_plan
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.errors import KernelError
from edgemm.graph import ops
from edgemm.kernels.attention import AttentionOptions
from edgemm.kernels.compile import Compiler
from edgemm.options import LogMelOptions, MfccOptions

require("tensorrt_rtx", "rtx")

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "8.6")
SOUND = [("x", FLOAT, [1, 16000])]
OPERATORS = {
    "LogMel": (ops.log_mel_node("x", "y", LogMelOptions(), "node"), SOUND, (FLOAT, [1, 98, 80]), "log_mel"),
    "MFCC": (ops.mfcc_node("x", "y", MfccOptions(), "node"), SOUND, (FLOAT, [1, 98, 13]), "log_mel"),
    "FusedAttention": (
        ops.attention_node("q", "k", "v", "y", AttentionOptions(64, causal=True), name="node"),
        [(name, HALF, [1, 4, 16, 64]) for name in "qkv"],
        (HALF, [1, 4, 16, 64]),
        "attention_d64",
    ),
    "FusedAttentionBias": (
        ops.attention_node("q", "k", "v", "y", AttentionOptions(32), bias="b", name="node"),
        [(name, HALF, [1, 4, 16, 32]) for name in "qkv"] + [("b", HALF, [1, 4, 16, 16])],
        (HALF, [1, 4, 16, 32]),
        "attention_d32",
    ),
}


@pytest.fixture(autouse=True)
def quick_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for cubins: compiling them takes long, and tests/kernels does it."""

    def compile_kernel(source: str, arch: int, *, compiler: Compiler) -> Path:
        path = tmp_path / f"{source}-{arch}"
        path.write_bytes(b"cubin")
        return path

    monkeypatch.setattr(prepared, "compilers", lambda: (Compiler("nvcc", "nvcc", (12, 6), (86, 87)),))
    monkeypatch.setattr(prepared, "compile_kernel", compile_kernel)


def write_model(op: str, path: Path) -> Path:
    node, inputs, (kind, shape), _ = OPERATORS[op]
    proto = ModelProto.FromString(trt_graphs.model([node], inputs, [("y", kind, shape)]))  # type: ignore[arg-type]
    ops.add_bodies(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def build(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["build", "engine", *arguments, "--precision", "fp32", "--target", "rtx-sm86"])
    assert result.exit_code == 0, result.output
    return result.output


def plan_of(opened: Bundle) -> Plan:
    return read_plan(opened.read(opened.manifest.plans[0].file))


def kinds(plan: Plan) -> list[str]:
    return [layer.kind for layer in plan.layers]


@pytest.mark.parametrize("op", list(OPERATORS))
def test_a_bundle_brings_a_plan_with_the_plugin(op: str, tmp_path: Path) -> None:
    model = write_model(op, tmp_path / "model.onnx")
    said = build(str(model), "-o", str(tmp_path / "o.edgemm"))
    opened = bundle.open(tmp_path / "o.edgemm")
    variant = opened.models["model"].variants["fp32"]
    plan = plan_of(opened)
    assert variant.operators == [op]
    assert kinds(plan) == ["PLUGIN_V3"]
    assert plan.key.plugins == OwnPlugins().digest
    assert "1 of its layers edgemm's own kernels" in said
    # Whoever has no plugins runs the same graph from its body.
    assert [item.name for item in ModelProto.FromString(opened.read(variant.file)).functions] == [op]
    source = OPERATORS[op][3]
    assert [(kernel.source, kernel.arch) for kernel in opened.manifest.kernels] == [(source, "sm_86")]
    assert f"kernel {source}: compiled for sm_86 by" in said


@pytest.mark.parametrize("op", list(OPERATORS))
def test_without_plugins_the_plan_is_another_one(op: str, tmp_path: Path) -> None:
    write_model(op, tmp_path / "model.onnx")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'edgemm = 1\nname = "r"\n[models.model]\nfile = "model.onnx"\n[models.model.tensorrt]\nplugins = false\n'
    )
    said = build(str(recipe), "-o", str(tmp_path / "o.edgemm"))
    plan = plan_of(bundle.open(tmp_path / "o.edgemm"))
    assert "PLUGIN_V3" not in kinds(plan)
    assert plan.key.plugins == ""
    assert "own kernels" not in said
    assert "kernel " not in said


def test_a_graph_without_bodies_is_refused_where_no_plugin_is_registered(tmp_path: Path) -> None:
    """In a process of its own: TensorRT's registry forgets no plugin."""
    model = write_model("FusedAttention", tmp_path / "model.onnx")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgemm.engine import targets\n"
        "from edgemm.engine.tensorrt import compiled, flavours\n"
        "from edgemm.engine.tensorrt.plan import BuildOptions\n"
        "from edgemm.engine.tensorrt.plugins.own import OwnPlugins\n"
        "from edgemm.engine.tensorrt.rtx_library import provide_library\n"
        "from edgemm.errors import EngineError\n"
        "from edgemm.graph.ops import strip_bodies\n"
        "stripped = strip_bodies(Path(sys.argv[1]).read_bytes())\n"
        "flavour, target = flavours.get('tensorrt-rtx'), targets.get('rtx-sm86')\n"
        "provide_library()\n"
        "arguments = (flavour, target, stripped, 'g', 'fp16', BuildOptions())\n"
        "try: compiled.compile_for(*arguments); print('compiled')\n"
        "except EngineError as error: print(error)\n"
        "plan = compiled.compile_for(*arguments, operators=['FusedAttention'], plugins=OwnPlugins())\n"
        "print([layer.kind for layer in plan.layers])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    refusal, plugged = ran.stdout.splitlines()
    assert 'node "node" (FusedAttention): TensorRT has no operator of this name' in refusal, ran.stderr
    assert plugged == "['PLUGIN_V3']"


def test_on_the_device_the_kernels_of_the_bundle_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(str(write_model("LogMel", tmp_path / "model.onnx")), "-o", str(tmp_path / "o.edgemm"))
    opened = bundle.open(tmp_path / "o.edgemm")
    monkeypatch.setattr(compiled, "find_compiler", lambda arch: pytest.fail("there is nothing to compile"))
    flavour = flavours.get("tensorrt-rtx")
    found = compiled.plan_for_device(opened, "model", "fp32", flavour, gpu=RTX_3090)
    assert found.origin == "bundle"
    assert found.notes == ()
    assert found.plugins is not None
    assert found.plugins.digest == found.plan.key.plugins


def test_a_device_without_kernels_runs_the_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    build(str(write_model("LogMel", tmp_path / "model.onnx")), "-o", str(tmp_path / "o.edgemm"))

    def no_compiler(arch: int) -> None:
        raise KernelError("Found no CUDA compiler.")

    monkeypatch.setattr(compiled, "find_compiler", no_compiler)
    opened = bundle.open(tmp_path / "o.edgemm")
    ada = Gpu("NVIDIA GeForce RTX 4090", "8.9")
    found = compiled.plan_for_device(opened, "model", "fp32", flavours.get("tensorrt-rtx"), gpu=ada)
    assert found.origin == "built"
    assert found.plugins is None
    assert "PLUGIN_V3" not in kinds(found.plan)
    assert found.notes[0] == "LogMel run from their ONNX bodies, not from edgemm's kernels: Found no CUDA compiler."


def test_what_the_recipe_fuses_is_in_the_plan_and_in_the_report(tmp_path: Path) -> None:
    source = (folder() / "recipe.toml").read_text().replace("time_axis = 1\n", "time_axis = 1\nin_graph = true\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(source + "\n[tensorrt]\nfuse_attention = true\n")
    (tmp_path / "av_digits.onnx").write_bytes((folder() / "av_digits.onnx").read_bytes())
    (tmp_path / "calibration").symlink_to(folder() / "calibration")
    report = edgemm.build(recipe, tmp_path / "o.edgemm", precision="fp16", target="rtx-sm86")
    opened = bundle.open(tmp_path / "o.edgemm")
    variants = opened.models["av"].variants
    assert variants["fp16"].operators == ["FusedAttention", "LogMel"]
    assert variants["fp32"].operators == ["LogMel"]
    fp16 = next(p for p in opened.manifest.plans if p.key["precision"] == "fp16")
    assert kinds(read_plan(opened.read(fp16.file))).count("PLUGIN_V3") == 2
    notes = "\n".join(report.models[0].notes)
    assert "fuse-attention: 1 of 1 attentions fused" in notes
    assert "agreement with float 1.0000 before, 1.0000 after" in notes
    assert "put-in-front-end: audio takes 16240 samples instead of 100 frames" in notes
    assert {kernel.source for kernel in opened.manifest.kernels} == {"attention_d32", "log_mel"}
