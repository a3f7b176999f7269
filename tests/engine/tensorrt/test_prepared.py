"""What is made on a PC for a device: kernels by a fitting compiler, plans where this TensorRT compiles them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trt_graphs
from onnx import ModelProto, TensorProto
from trt_double import Double, double

import edgemm
from edgemm import bundle
from edgemm.bundle import Bundle
from edgemm.engine import load, targets
from edgemm.engine.gpu import Gpu
from edgemm.engine.tensorrt import compiled, flavours, prepared
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.errors import EngineError, KernelError
from edgemm.graph import ops
from edgemm.kernels.compile import Compiler, compilers
from edgemm.options import LogMelOptions

ORIN = Gpu("Orin", "8.7", integrated=True)


def sound_model(folder: Path, extra: str = "") -> Path:
    """A recipe for a model that is one LogMel node."""
    node = ops.log_mel_node("x", "y", LogMelOptions(), "node")
    proto = ModelProto.FromString(
        trt_graphs.model([node], [("x", TensorProto.FLOAT, [1, 1600])], [("y", TensorProto.FLOAT, [1, 8, 80])])
    )
    ops.add_bodies(proto)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    recipe = folder / "recipe.toml"
    recipe.write_text(f'edgemm = 1\nname = "r"\nprecision = "fp32"\n[models.m]\nfile = "m.onnx"\n{extra}\n')
    return recipe


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Stand-ins for the compilers: nvcc 13.0 and NVRTC 12.6. Returns what they were asked for."""
    calls: list[tuple[str, int, str]] = []

    def compile_kernel(source: str, arch: int, *, compiler: Compiler) -> Path:
        calls.append((source, arch, str(compiler)))
        path = tmp_path / f"{source}-{arch}"
        path.write_bytes(b"cubin of " + source.encode())
        return path

    have = (Compiler("nvcc", "nvcc", (13, 0), (87, 110)), Compiler("nvrtc", "lib", (12, 6), (75, 87)))
    monkeypatch.setattr(prepared, "compilers", lambda: have)
    monkeypatch.setattr(prepared, "compile_kernel", compile_kernel)
    return calls


def build(source: Path, target: str) -> tuple[Bundle, list[str]]:
    report = edgemm.build(source, source.with_name("o.edgemm"), target=target)
    return bundle.open(source.with_name("o.edgemm")), list(report.plans)


def test_the_kernels_of_a_jetson_come_from_a_compiler_that_its_driver_knows(
    tmp_path: Path, asked: list[tuple[str, int, str]]
) -> None:
    opened, said = build(sound_model(tmp_path), "orin-nano")
    assert asked == [("log_mel", 87, "nvrtc 12.6")]
    (kernel,) = opened.manifest.kernels
    assert (kernel.source, kernel.arch, kernel.compiler) == ("log_mel", "sm_87", "nvrtc 12.6")
    assert opened.read(kernel.file) == b"cubin of log_mel"
    assert "kernel log_mel: compiled for sm_87 by nvrtc 12.6, 0 kB" in said
    assert any("the plan will be compiled on Jetson Orin Nano 8GB" in line for line in said)
    opened, _ = build(sound_model(tmp_path), "thor")
    assert asked[1:] == [("log_mel", 110, "nvcc 13.0")]


@pytest.mark.slow
def test_a_real_compiler_makes_a_real_kernel(tmp_path: Path) -> None:
    if not any(110 in compiler.archs and compiler.version <= (13, 0) for compiler in compilers()):
        pytest.skip("no CUDA compiler up to 13.0 for sm_110: install the CUDA toolkit 13.0")
    opened, said = build(sound_model(tmp_path), "thor")
    (kernel,) = opened.manifest.kernels
    binary = opened.read(kernel.file)
    assert binary[:4] == b"\x7fELF"
    assert b"edgemm_log_mel" in binary
    assert any(line.startswith("kernel log_mel: compiled for sm_110 by") for line in said)


def test_without_a_fitting_compiler_the_device_compiles_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "compilers", lambda: (Compiler("nvcc", "nvcc", (13, 0), (87,)),))
    opened, said = build(sound_model(tmp_path), "orin-nano")
    assert opened.manifest.kernels == []
    assert said[0] == (
        "kernels log_mel: not compiled here, but on the device when they are needed: a driver takes kernels of its own "
        "CUDA or an older one, and of CUDA 12.6 or older there is no compiler for sm_87 here (found: nvcc 13.0). "
        'Install one: pip install "nvidia-cuda-nvrtc-cu12==12.6.*".'
    )


def test_a_kernel_that_does_not_compile_is_left_to_the_device(
    tmp_path: Path, asked: list[tuple[str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, arch: int, *, compiler: Compiler) -> Path:
        raise KernelError("nvrtc 12.6 cannot compile log_mel.cu")

    monkeypatch.setattr(prepared, "compile_kernel", fail)
    opened, said = build(sound_model(tmp_path), "orin-nano")
    assert opened.manifest.kernels == []
    assert "not compiled here, but on the device when they are needed: nvrtc 12.6 cannot compile" in said[0]


def test_a_recipe_that_wants_bodies_brings_no_kernels(tmp_path: Path, asked: list[tuple[str, int, str]]) -> None:
    opened, _ = build(sound_model(tmp_path, "[tensorrt]\nplugins = false"), "orin-nano")
    assert asked == []
    assert opened.manifest.kernels == []
    assert opened.models["m"].variants["fp32"].operators == ["LogMel"]


def test_kernels_of_other_sources_are_not_taken(tmp_path: Path, asked: list[tuple[str, int, str]]) -> None:
    opened, _ = build(sound_model(tmp_path), "orin-nano")
    digest = OwnPlugins().digest
    assert compiled.cubins_of(opened, "sm_87", digest) == {"log_mel": b"cubin of log_mel"}
    assert compiled.cubins_of(opened, "sm_87", "another") == {}
    assert compiled.cubins_of(opened, "sm_110", digest) == {}


def board(monkeypatch: pytest.MonkeyPatch, version: str = "10.3") -> Double:
    """A Jetson with its TensorRT: the bundle is built on the board itself."""
    module = double(version)
    flavour = Flavour("tensorrt", f"{version}.0", module)
    monkeypatch.setattr(flavours, "installed", lambda: (flavour,))
    monkeypatch.setattr(prepared, "find_gpu", lambda: ORIN)
    return module


def test_every_layer_that_a_dla_leaves_to_the_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = board(monkeypatch)
    module._dla_cores, module._dla_refuses = 1, ("Relu",)
    (tmp_path / "conv.onnx").write_bytes(trt_graphs.conv(1))
    report = edgemm.build(tmp_path / "conv.onnx", tmp_path / "o.edgemm", target="orin-nx-8gb", dla=(0, False))
    assert "conv, fp32: 1 of 2 layers run on DLA core 0" in report.plans
    assert "conv, fp32: on the GPU: relu (ACTIVATION)" in report.plans
    assert bundle.open(tmp_path / "o.edgemm").manifest.plans[0].key["dla"] == "0"


def test_a_strict_dla_refuses_what_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = board(monkeypatch)
    module._dla_cores, module._dla_refuses = 1, ("Relu",)
    (tmp_path / "conv.onnx").write_bytes(trt_graphs.conv(1))
    report = edgemm.build(tmp_path / "conv.onnx", tmp_path / "o.edgemm", target="orin-nx-8gb", dla=(0, True))
    (line,) = report.plans
    assert "no plan: 1 of 2 layers cannot run on the DLA: relu (ACTIVATION). Leave --dla strict out" in line


def test_what_the_plugin_build_refuses_is_compiled_from_the_bodies(
    tmp_path: Path, asked: list[tuple[str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    board(monkeypatch)

    def refuse(self: OwnPlugins, flavour: Flavour) -> None:
        raise EngineError("refused the plugin")

    monkeypatch.setattr(OwnPlugins, "register", refuse)
    opened, said = build(sound_model(tmp_path), "orin-nano")
    assert "m, fp32: no plan with edgemm's kernels: refused the plugin" in said
    assert [entry.key["plugins"] for entry in opened.manifest.plans] == [""]


def test_options_are_a_models_own_where_it_has_them(tmp_path: Path) -> None:
    source = sound_model(tmp_path, "[models.m.tensorrt]\nrefit = true\n[tensorrt]\nsparsity = true")
    opened, _ = build(source, "cpu")
    options = compiled.options_for(opened.recipe, "m", opened.models["m"])
    assert (options.refit, options.sparsity) == (True, True)
    assert options != compiled.options_for(replace_recipe(opened), "m", opened.models["m"]), (
        "another set of options is another plan"
    )


def replace_recipe(opened: Bundle) -> edgemm.recipe.Recipe:  # type: ignore[name-defined]
    import msgspec

    model = msgspec.structs.replace(opened.recipe.models["m"], tensorrt=None)
    return msgspec.structs.replace(opened.recipe, models={"m": model})


def test_on_the_board_a_stripped_plan_with_plugins_is_filled_from_a_graph_without_bodies(
    tmp_path: Path, asked: list[tuple[str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    opened, _ = build(sound_model(tmp_path, "[tensorrt]\nstrip_weights = true"), "orin-nano")
    flavour = Flavour("tensorrt", "10.3.0", double("10.3"))
    said: list[str] = []
    found = compiled.plan_for_device(opened, "m", "fp32", flavour, gpu=ORIN, tell=said.append)
    assert found.plugins is not None
    assert found.plan.key.plugins == found.plugins.digest
    assert found.weights is not None
    assert len(ModelProto.FromString(found.weights).functions) == 0
    assert said[0] == "m: compiling the fp32 plan for Orin; this is done once"


def test_the_engine_of_a_bundle_gets_the_plugins(
    tmp_path: Path, asked: list[tuple[str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    opened, _ = build(sound_model(tmp_path), "orin-nano")
    flavour = Flavour("tensorrt", "10.3.0", double("10.3"))
    monkeypatch.setattr(flavours, "get", lambda name: flavour)
    monkeypatch.setattr("edgemm.engine.gpu.find_gpu", lambda index=0: ORIN)
    given: list[object] = []

    class Engine:
        def __init__(self, plan: object, states: object, **options: object) -> None:
            given.append(options["plugins"])

    monkeypatch.setattr("edgemm.engine.tensorrt.run.engine.TensorRTEngine", Engine)
    load.choose(opened, "m", engine="tensorrt")
    assert isinstance(given[0], OwnPlugins)


def test_a_target_without_tensorrt_gets_nothing(tmp_path: Path) -> None:
    made = prepared.prepare(
        bundle_recipe(tmp_path), {}, {}, targets.get("agx-xavier"), lambda message: pytest.fail("nothing to do")
    )
    assert made.said == ["Jetson AGX Xavier has no TensorRT that edgemm builds for: it runs on onnxruntime there"]


def bundle_recipe(tmp_path: Path) -> edgemm.recipe.Recipe:  # type: ignore[name-defined]
    return build(sound_model(tmp_path), "cpu")[0].recipe


def test_large_graphs_are_stripped_beside_their_data(tmp_path: Path) -> None:
    sound_model(tmp_path)
    plugged = compiled._without_bodies(tmp_path / "m.onnx", ["LogMel"])
    assert plugged == tmp_path / "m.plugins.onnx"
    assert len(ModelProto.FromString(plugged.read_bytes()).functions) == 0


def test_the_digest_says_how_the_plugins_are_built() -> None:
    assert OwnPlugins().digest == OwnPlugins(cubins={"log_mel": b"x"}).digest
    assert OwnPlugins().digest != OwnPlugins(ahead_of_time=True).digest
    assert replace(ORIN).name == "Orin"
