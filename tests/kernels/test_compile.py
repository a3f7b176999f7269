"""Compilers: what is found, what is cached, what is said when it cannot be; and cubins for every architecture."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cubin
import pytest
from require import required

from edgemm.cli.main import main
from edgemm.errors import KernelError, UsageError
from edgemm.kernels import compile as compilation
from edgemm.kernels.build import BuiltKernel, build_kernels
from edgemm.kernels.compile import (
    Compiler,
    compile_kernel,
    compilers,
    find_compiler,
    minimum_arch,
    nvcc,
    nvrtc,
    sources,
)

FAST = """
#include "edgemm_cuda.cuh"
struct Empty { int value; };
EDGEMM_KERNEL(nothing, Empty, 32) {}
"""


@pytest.fixture(scope="module")
def real() -> Compiler:
    """A compiler of this machine."""
    found = compilers()
    if not found:
        pytest.skip("needs a CUDA compiler: nvcc on PATH, or pip install nvidia-cuda-nvrtc-cu12")
    return found[0]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A kernel that compiles quickly."""
    path = tmp_path / "tiny.cu"
    path.write_text(FAST)
    return path


def program(folder: Path, text: str) -> str:
    """An executable shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a CUDA compiler."""
    for name in ("CUDA_HOME", "CUDA_PATH", "EDGEMM_NVRTC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compilation, "TOOLKIT", str(tmp_path / "none"))
    monkeypatch.setattr(compilation, "WHEELS", ())


# ---- finding ----


@pytest.mark.usefixtures("bare")
def test_no_compiler_at_all() -> None:
    assert compilers() == ()
    with pytest.raises(KernelError, match=r"neither nvcc in CUDA_HOME or PATH, nor an NVRTC library. Install .* pip"):
        find_compiler(87)


@pytest.mark.usefixtures("bare")
def test_nvcc_of_cuda_home_comes_before_that_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = 'case "$1" in --version) echo "Cuda compilation tools, release {}, V1" ;; *) echo sm_{} ;; esac'
    on_path = program(tmp_path, answer.format("12.6", 87))
    assert [str(found) for found in compilers()] == ["nvcc 12.6"]
    assert find_compiler(87).path == on_path
    program(tmp_path / "home" / "bin", answer.format("13.0", 110))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert [str(found) for found in compilers()] == ["nvcc 13.0", "nvcc 12.6"]
    assert find_compiler().version == (13, 0)
    assert find_compiler(87).version == (12, 6)
    with pytest.raises(KernelError, match=r"compiles for sm_72 \(found nvcc 13.0: sm_110; nvcc 12.6: sm_87\)"):
        find_compiler(72)


@pytest.mark.parametrize(
    ("text", "words"), [("echo hello", "does not answer like nvcc: 'hello'"), ("exit 3", "does not run: .*status 3")]
)
def test_a_program_that_is_not_nvcc(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        nvcc(program(tmp_path, text))


def test_a_library_that_is_not_nvrtc(tmp_path: Path) -> None:
    path = tmp_path / "libnvrtc.so.12"
    path.write_text("not a library")
    with pytest.raises(KernelError, match="does not load: .* Install the CUDA toolkit"):
        nvrtc(str(path))


@pytest.mark.usefixtures("bare")
def test_the_library_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMM_NVRTC", str(tmp_path / "libnvrtc.so.12"))
    with pytest.raises(KernelError, match=r"libnvrtc.so.12 does not load"):
        compilers()


def test_nvrtc_of_a_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        tmp_path / name for name in ("libnvrtc.so.12", "libnvrtc-builtins.so.12.6", "libnvrtc.alt.so.13", "METADATA")
    ]
    for path in found:
        path.touch()
    files = [SimpleNamespace(name=path.name, locate=lambda path=path: path) for path in found]

    def of(name: str) -> Sequence[Any]:
        if name != "nvidia-cuda-nvrtc-cu12":
            raise compilation.importlib.metadata.PackageNotFoundError(name)
        return files

    monkeypatch.delenv("EDGEMM_NVRTC", raising=False)
    monkeypatch.setattr(compilation.importlib.metadata, "files", of)
    monkeypatch.setattr(compilation, "TOOLKIT", str(tmp_path / "none"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(compilation, "nvrtc", lambda path: Compiler("nvrtc", path, (12, 6), (87,)))
    libraries = [compiler.path for compiler in compilers() if compiler.kind == "nvrtc"]
    assert libraries == [str(tmp_path / "libnvrtc.so.12")]


# ---- compiling ----


def test_a_cubin_is_made_once(tiny: Path, tmp_path: Path, real: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = compile_kernel(tiny, 87, compiler=real, cache_dir=tmp_path / "cache")
    assert cubin.read_bytes().startswith(b"\x7fELF")
    assert [path.name for path in cubin.parent.iterdir()] == [cubin.name]  # nothing half-made is left
    monkeypatch.setattr(compilation, "_run_nvcc", lambda *_: pytest.fail("compiled again"))
    assert compile_kernel(tiny, 87, compiler=real, cache_dir=tmp_path / "cache") == cubin


def test_what_makes_a_new_cubin(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_run_nvcc", lambda *_: b"binary")
    compiler = Compiler("nvcc", "nvcc", (13, 0), (75, 87))
    newer = Compiler("nvcc", "nvcc", (13, 1), (75, 87))

    def made(using: Compiler = compiler, arch: int = 87) -> Path:
        return compile_kernel(tiny, arch, compiler=using, cache_dir=tmp_path / "cache")

    first = made()
    others = {made(newer), made(arch=75)}
    (tmp_path / "header.cuh").write_text("// a header")
    others.add(made())
    tiny.write_text(FAST + "// changed")
    others.add(made())
    monkeypatch.setattr(compilation, "FLAGS", {"tiny": ("--fmad=false",)})
    others.add(made())
    assert len(others | {first}) == 6


def test_a_kernel_that_does_not_compile(tmp_path: Path, real: Compiler) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text(FAST.replace("{}", "{ int x = undefined_name; }"))
    with pytest.raises(KernelError, match=r"cannot compile broken.cu for sm_87: .*undefined_name"):
        compile_kernel(broken, 87, compiler=real, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("arch", "hint"), [(72, "Volta ended with 12.9"), (87, "12.6 for JetPack 6"), (110, "CUDA 13.0"), (86, "CUDA 11.8")]
)
def test_an_architecture_that_the_compiler_lacks(arch: int, hint: str) -> None:
    compiler = Compiler("nvrtc", "libnvrtc.so.12", (12, 6), (90,))
    with pytest.raises(KernelError, match=f"nvrtc 12.6 does not compile for sm_{arch}; it knows sm_90. .*{hint}"):
        compile_kernel("log_mel", arch, compiler=compiler)


def test_an_architecture_that_a_kernel_needs_more_of() -> None:
    assert minimum_arch("attention_d64") == 75
    assert minimum_arch("log_mel") == 70
    with pytest.raises(KernelError, match="attention_d64.cu needs sm_75 or newer, for the tensor cores; found sm_72"):
        compile_kernel("attention_d64", 72, compiler=Compiler("nvcc", "nvcc", (12, 6), (72,)))


def test_no_such_source() -> None:
    with pytest.raises(KernelError, match=r"no CUDA source fft.cu; expected one of .*log_mel"):
        compile_kernel("fft", 87)


def test_a_cache_that_cannot_be_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_run_nvcc", lambda *_: b"binary")
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match="Cannot write .* Set EDGEMM_CACHE to a folder you can write"):
        compile_kernel(tiny, 87, compiler=Compiler("nvcc", "nvcc", (13, 0), (87,)), cache_dir=tmp_path / "file")


def nvrtcs() -> list[str]:
    """NVRTC libraries to test with: `EDGEMM_TEST_NVRTC`, separated by colons, else those that are installed."""
    named = os.environ.get("EDGEMM_TEST_NVRTC")
    return named.split(":") if named else list(compilation._nvrtc_paths())


def test_nvrtc_compiles_and_explains(tiny: Path, tmp_path: Path) -> None:
    libraries = nvrtcs()
    if not libraries:
        lacks_nvrtc("NVRTC: pip install nvidia-cuda-nvrtc-cu12, or set EDGEMM_TEST_NVRTC")
    for library in libraries:
        compiler = nvrtc(library)
        assert compile_kernel(tiny, 87, compiler=compiler, cache_dir=tmp_path).read_bytes().startswith(b"\x7fELF")
        broken = tmp_path / "broken.cu"
        broken.write_text(FAST.replace("{}", "{ int x = undefined_name; }"))
        with pytest.raises(KernelError, match=r"nvrtc .* cannot compile broken.cu for sm_87: .*undefined_name"):
            compile_kernel(broken, 87, compiler=compiler, cache_dir=tmp_path)


# ---- the matrix ----


@pytest.mark.slow
@pytest.mark.parametrize("source", sources())
@pytest.mark.parametrize("arch", [72, 87, 110])
def test_nvrtc_compiles_for(source: str, arch: int, tmp_path: Path) -> None:
    # One compiler each: nvcc 13.0 has been everywhere (test_budget.py). 12.6 is JetPack 6's, 13.0 is JetPack 7's.
    able = [one for one in map(nvrtc, nvrtcs()) if arch in one.archs and (arch != 87 or one.version < (13, 0))]
    if not able:
        lacks_nvrtc(f"an NVRTC that knows sm_{arch}: pip install nvidia-cuda-nvrtc-cu12==12.6.* or nvidia-cuda-nvrtc")
    if arch < minimum_arch(source):
        with pytest.raises(KernelError, match="needs sm_75 or newer, for the tensor cores; found sm_72"):
            compile_kernel(source, arch, compiler=able[0], cache_dir=tmp_path)
        return
    compiler = max(able, key=lambda one: one.version)
    kernels = cubin.resources(compile_kernel(source, arch, compiler=compiler, cache_dir=tmp_path).read_bytes())
    assert kernels
    if source.startswith("attention_d"):
        assert all(found.tensor_instructions for found in kernels.values())
    spilled = {name: found.stack_bytes for name, found in kernels.items() if found.stack_bytes}
    assert not spilled, f"{compiler} for sm_{arch}"


def lacks_nvrtc(what: str) -> None:
    """Skip, or fail where CI installs every NVRTC."""
    if required("nvrtc"):
        pytest.fail(f"needs {what}", pytrace=False)
    pytest.skip(f"needs {what}")


@pytest.mark.slow
def test_the_compilers_of_both_jetpacks_are_tried() -> None:
    versions = {nvrtc(path).version for path in nvrtcs()}
    if not {(12, 6), (13, 0)} <= versions:
        lacks_nvrtc(f"NVRTC 12.6 (JetPack 6) and 13.0 (JetPack 7) in EDGEMM_TEST_NVRTC; found {sorted(versions)}")


# ---- edgemm build kernels ----


def test_build_kernels_writes_a_folder_for_each_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_run_nvcc", lambda _, path, arch, *rest: f"{path.stem} {arch}".encode())
    able = Compiler("nvcc", "nvcc", (12, 6), (72, 87))
    monkeypatch.setattr(compilation, "compilers", lambda: (able,))
    built = list(build_kernels([72, 87], tmp_path / "out", cache_dir=tmp_path / "cache"))
    assert {kernel.source for kernel in built} == set(sources())
    for kernel in built:
        if kernel.path is None:
            assert kernel.arch == 72
            assert kernel.source.startswith("attention_d")
        else:
            assert kernel.path == tmp_path / "out" / f"sm_{kernel.arch}" / f"{kernel.source}.cubin"
            assert kernel.path.read_text() == f"{kernel.source} {kernel.arch}"
    assert BuiltKernel("log_mel", 87, tmp_path / "out" / "sm_87" / "log_mel.cubin", 10, "nvcc 12.6") in built


@pytest.mark.parametrize("arches", [[], [8], [87, 1000]])
def test_build_kernels_wants_numbers_like_87(arches: list[int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected compute capabilities as numbers: 87 is Orin, 110 is Thor"):
        list(build_kernels(arches, tmp_path))


@pytest.mark.parametrize(
    "words",
    [["--arch", "87", "110"], ["--arch", "87,110"], ["--arch", "87", "--arch", "sm_110"], ["--arch=87", "110,87"]],
)
def test_the_command_takes_several_architectures(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def build(arches: Sequence[int], output: Path) -> Iterator[BuiltKernel]:
        asked.extend(arches)
        yield BuiltKernel("log_mel", 87, output / "log_mel.cubin", 10, "nvcc 12.6")

    monkeypatch.setattr("edgemm.kernels.build.build_kernels", build)
    monkeypatch.setattr("sys.argv", ["edgemm", "build", "kernels", "-o", str(tmp_path), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert asked == [87, 110]
    assert "log_mel.cubin  10 bytes, by nvcc 12.6" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["orin"], ["87", "x"], ["87,"], ["8.7"]])
def test_the_command_wants_numbers(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["edgemm", "build", "kernels", "--arch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert f"Found --arch '{' '.join(words)}'; expected compute capabilities as numbers" in capsys.readouterr().err


def test_build_kernels_writes_nothing_if_an_architecture_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "compilers", lambda: (Compiler("nvcc", "nvcc", (13, 0), (87,)),))
    with pytest.raises(KernelError, match="No compiler here compiles for sm_72"):
        list(build_kernels([87, 72], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_build_kernels_into_what_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_run_nvcc", lambda *_: b"binary")
    monkeypatch.setattr(compilation, "compilers", lambda: (Compiler("nvcc", "nvcc", (13, 0), (87,)),))
    (tmp_path / "out").touch()
    with pytest.raises(KernelError, match="Cannot write .* Name another --output folder"):
        list(build_kernels([87], tmp_path / "out", cache_dir=tmp_path / "cache"))
