"""Compile a `.cu` to a cubin with nvcc or NVRTC, once: results are cached by source, compiler, flags and architecture.

nvcc is a program of the CUDA toolkit; NVRTC is the same compiler as a library, in wheels that need no driver
(`nvidia-cuda-nvrtc-cu12`, `nvidia-cuda-nvrtc`). A driver loads cubins of its own and of older toolkits: JetPack 6 wants
CUDA 12.6, JetPack 7 wants 13.0.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from edgemm import cache
from edgemm.errors import KernelError
from edgemm.kernels.sources import source_dir

FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # Equal bits between kernels, and between device and emulator: fused only where the source says fmaf.
        "log_mel": ("--fmad=false",),
        "frame_prep": ("--fmad=false",),
    }
)
"""What a source needs beyond the common flags."""

TOOLKIT = "/usr/local/cuda"
"""Where a CUDA toolkit is if nothing names another place: a Jetson's is not on PATH."""

WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc-cu11")
"""Python packages that hold NVRTC."""

Form = Literal["cubin", "ptx"]
_VIRTUAL: Mapping[Form, str] = MappingProxyType({"cubin": "sm", "ptx": "compute"})
_COMMON = ("-std=c++17",)
_INSTALL = (
    "Install the CUDA toolkit (nvcc), or the compiler as a library: "
    'pip install "edgemm[kernels]" (nvidia-cuda-nvrtc-cu12; for CUDA 13: nvidia-cuda-nvrtc).'
)


@dataclass(frozen=True)
class Compiler:
    """A CUDA compiler of this machine."""

    kind: Literal["nvcc", "nvrtc"]
    path: str
    """The program, or the library."""
    version: tuple[int, int]
    archs: tuple[int, ...]
    """The compute capabilities it compiles for: 87 is sm_87."""

    def __str__(self) -> str:
        return f"{self.kind} {self.version[0]}.{self.version[1]}"


def sources() -> tuple[str, ...]:
    """The names of the CUDA sources that edgemm has."""
    return tuple(sorted(path.stem for path in source_dir().glob("*.cu")))


def minimum_arch(source: str) -> int:
    """The oldest compute capability that a source can be compiled for."""
    return 75 if source.startswith("attention_d") else 70


def compilers() -> tuple[Compiler, ...]:
    """The compilers found: nvcc of `CUDA_HOME` and PATH first, then every NVRTC, the newest first."""
    found = [nvcc(path) for path in _nvcc_paths()]
    libraries = [nvrtc(path) for path in _nvrtc_paths()]
    libraries.sort(key=lambda compiler: compiler.version, reverse=True)
    return (*found, *libraries)


def find_compiler(arch: int | None = None) -> Compiler:
    """The first compiler found that compiles for `arch`. Raises KernelError if there is none, or none that can."""
    found = compilers()
    if not found:
        raise KernelError(
            f"Found no CUDA compiler: neither nvcc in CUDA_HOME or PATH, nor an NVRTC library. {_INSTALL}"
        )
    for compiler in found:
        if arch is None or arch in compiler.archs:
            return compiler
    have = "; ".join(f"{compiler}: {_words(compiler.archs)}" for compiler in found)
    raise KernelError(f"No compiler here compiles for sm_{arch} (found {have}). {_INSTALL}")


def compile_kernel(
    source: str | Path,
    arch: int,
    *,
    compiler: Compiler | None = None,
    cache_dir: Path | None = None,
    form: Form = "cubin",
) -> Path:
    """The cubin of a source (a name of `sources()` or the path of a `.cu`) for sm_`arch`, from the cache or new.

    With `form="ptx"` it is PTX, which a driver compiles for `arch` or a newer device.

    The cache key is the text of the source and of every header beside it, the compiler with its version, the flags
    and the architecture. A cubin appears in the cache whole or not at all, whatever else runs. Raises KernelError
    with the compiler's words if it fails.
    """
    path = source if isinstance(source, Path) else source_dir() / f"{source}.cu"
    if not path.is_file():
        raise KernelError(f"Found no CUDA source {path.name}; expected one of {', '.join(sources())}.")
    if arch < minimum_arch(path.stem):
        raise KernelError(
            f"{path.name} needs sm_{minimum_arch(path.stem)} or newer, for the tensor cores; found sm_{arch}."
        )
    compiler = compiler or find_compiler(arch)
    if arch not in compiler.archs:
        raise KernelError(
            f"{compiler} does not compile for sm_{arch}; it knows {_words(compiler.archs)}. "
            f"Use a CUDA toolkit that does: {_hint(arch)}."
        )
    flags = (*_COMMON, *FLAGS.get(path.stem, ()))
    target = (
        cache_dir or cache.folder("kernels")
    ) / f"{path.stem}-sm_{arch}-{_key(path, arch, compiler, flags)}.{form}"
    if target.is_file():
        return target
    binary = (_run_nvcc if compiler.kind == "nvcc" else _run_nvrtc)(compiler, path, arch, flags, form)
    _write_atomically(target, binary)
    return target


def nvcc(path: str) -> Compiler:
    """The compiler of an `nvcc` program. Raises KernelError if it does not run."""
    text = _output([path, "--version"])
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        raise KernelError(f"{path} does not answer like nvcc: {text.strip()[:100]!r}. Set CUDA_HOME to a CUDA toolkit.")
    archs = tuple(sorted(int(arch) for arch in re.findall(r"sm_(\d+)\b", _output([path, "--list-gpu-code"]))))
    return Compiler("nvcc", path, (int(match[1]), int(match[2])), archs)


def nvrtc(path: str) -> Compiler:
    """The compiler of an NVRTC library. Raises KernelError if it does not load."""
    library = _load(path)
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    archs = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(archs))
    return Compiler("nvrtc", path, (major.value, minor.value), tuple(archs))


def _nvcc_paths() -> Iterator[str]:
    seen: set[str] = set()
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    candidates += [shutil.which("nvcc") or "", f"{TOOLKIT}/bin/nvcc"]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK) and os.path.realpath(candidate) not in seen:
            seen.add(os.path.realpath(candidate))
            yield candidate


def _nvrtc_paths() -> Iterator[str]:
    """NVRTC libraries: `EDGEMM_NVRTC`, those of NVIDIA's wheels, those of a toolkit."""
    named = os.environ.get("EDGEMM_NVRTC")
    if named:
        yield named
        return
    pattern = re.compile(r"^libnvrtc\.so\.\d+(\.\d+)*$")
    seen: set[str] = set()
    for name in WHEELS:
        try:
            files = importlib.metadata.files(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.update(str(file.locate()) for file in files if pattern.match(file.name))
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT):
        if home:
            seen.update(os.path.realpath(path) for path in glob.glob(f"{glob.escape(home)}/lib*/libnvrtc.so.[0-9]*"))
    yield from sorted(path for path in seen if os.path.isfile(path))


def _run_nvcc(compiler: Compiler, source: Path, arch: int, flags: Sequence[str], form: Form) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgemm-nvcc-") as temporary:
        output = Path(temporary) / f"kernel.{form}"
        command = [compiler.path, f"-{form}", f"-arch={_VIRTUAL[form]}_{arch}", *flags, f"-I{source_dir()}"]
        done = subprocess.run(
            [*command, "-o", str(output), str(source)], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode or not output.is_file():
            raise KernelError(_failure(compiler, source, arch, done.stderr or done.stdout))
        return output.read_bytes()


def _run_nvrtc(compiler: Compiler, source: Path, arch: int, flags: Sequence[str], form: Form) -> bytes:
    library = _load(compiler.path)
    program = ctypes.c_void_p()
    created = library.nvrtcCreateProgram(
        ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None
    )
    _check(library, created)
    try:
        words = [
            f"--gpu-architecture={_VIRTUAL[form]}_{arch}",
            *flags,
            f"-I{source_dir()}",
            f"-I{source.resolve().parent}",
        ]
        options = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
        if library.nvrtcCompileProgram(program, len(words), options):
            raise KernelError(_failure(compiler, source, arch, _nvrtc_bytes(library, program, "ProgramLog").decode()))
        return _nvrtc_bytes(library, program, form.upper()).rstrip(b"\0" if form == "ptx" else b"")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc_bytes(library: Any, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, text))
    return text.raw if what == "CUBIN" else text.value


def _check(library: Any, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise KernelError(f"NVRTC failed: {library.nvrtcGetErrorString(status).decode()}.")


def _failure(compiler: Compiler, source: Path, arch: int, text: str) -> str:
    errors = [line.strip() for line in text.splitlines() if "error" in line.lower()] or text.strip().splitlines()
    return f"{compiler} cannot compile {source.name} for sm_{arch}: {' | '.join(errors[:5])}"


@functools.cache
def _load(path: str) -> Any:
    try:
        # NVRTC opens its builtins by name, which finds them only if they are loaded or on the library path
        for builtins in glob.glob(f"{glob.escape(os.path.dirname(path))}/libnvrtc-builtins.so.[0-9]*"):
            ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(path)
    except OSError as error:
        raise KernelError(f"The NVRTC library {path} does not load: {error}. {_INSTALL}") from error


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise KernelError(f"{command[0]} does not run: {error}. Set CUDA_HOME to a CUDA toolkit.") from error


def _key(source: Path, arch: int, compiler: Compiler, flags: Sequence[str]) -> str:
    words = (str(arch), compiler.kind, str(compiler.version), *flags)
    digest = hashlib.sha256("\0".join(words).encode())
    headers = {path.name: path for folder in (source_dir(), source.parent) for path in folder.glob("*.cuh")}
    for file in (source, *(headers[name] for name in sorted(headers))):
        digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:24]


def _write_atomically(target: Path, binary: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(binary)
        os.replace(file.name, target)
    except OSError as error:
        raise KernelError(
            f"Cannot write {target}: {error.strerror}. Set EDGEMM_CACHE to a folder you can write."
        ) from error


def _words(archs: Sequence[int]) -> str:
    return ", ".join(f"sm_{arch}" for arch in archs) or "no architecture"


def _hint(arch: int) -> str:
    if arch < 75:
        return "CUDA 12 or older (Volta ended with 12.9)"
    if arch == 87:
        return "CUDA 11.4 or newer (12.6 for JetPack 6)"
    return "CUDA 13.0 or newer" if arch > 100 else "CUDA 11.8 or newer"
