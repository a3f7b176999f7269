"""Run CUDA kernels on the CPU: compile a `.cu` with the host's C++ compiler against the emulator, and launch it.

    module = emulate.build(source_dir() / "log_mel.cu")
    emulate.launch(module, "edgemm_log_mel", params, grid=(frames,), block=(128,), shared_bytes=4096, buffers=[x, y])

The same `params` structure goes to a GPU. With a sanitizer the launch runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from edgemm import cache
from edgemm.errors import KernelError, UsageError
from edgemm.kernels.sources import source_dir
from edgemm.types import Array

Sanitizer = Literal["address", "undefined", "thread"]
BlockOrder = Literal["forward", "reversed", "shuffled"]

_BLOCK_ORDERS: Mapping[str, int] = MappingProxyType({"forward": 0, "reversed": 1, "shuffled": 2})
_SANITIZERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "address": ("-fsanitize=address", "-fno-omit-frame-pointer"),
        "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=all"),
        "thread": ("-fsanitize=thread",),
    }
)
_RUNTIME_DEFINES: Mapping[str | None, tuple[str, ...]] = MappingProxyType(
    {"address": ("-DCUDA_EMULATOR_ASAN",), "thread": ("-DCUDA_EMULATOR_TSAN",)}
)
# GCC's ThreadSanitizer misses stores of the form p[i] = f(x), and its UBSan misaligned loads at a constant offset:
# sanitizers want clang, the newest first.
_CLANGS = ("clang++-22", "clang++-19", "clang++-18", "clang++-17", "clang++-16", "clang++-15", "clang++-14", "clang++")
_RUN_TIMEOUT_S = 600
_MESSAGE_BYTES = 2048
_REPORT_LINES = 30


class LaunchError(KernelError):
    """The emulator or a sanitizer found the kernel at fault while it ran; `report` holds all it said."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class KernelInfo:
    """What a built library says about one of its kernels."""

    parameter_bytes: int
    max_threads: int


@dataclass(frozen=True)
class Statistics:
    """What a launch did, counted by the emulator."""

    switches: int
    barriers: int
    collectives: int
    ldmatrix: int
    """8x8 matrices loaded."""
    bank_conflicts: int
    """Shared memory passes that those loads took beyond one each."""
    async_bytes: int
    """Bytes that cp.async moved."""


@dataclass(frozen=True)
class EmulatedModule:
    """A `.cu` compiled for the CPU: a shared library, or with a sanitizer a program."""

    path: Path
    sanitizer: Sanitizer | None
    kernels: Mapping[str, KernelInfo] = field(repr=False)
    """By name; empty for a sanitizer's program, which checks names itself."""
    library: ctypes.CDLL | None = field(repr=False, compare=False)


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("block_order", ctypes.c_uint32),
        ("races", ctypes.c_uint32),
    )


class _Statistics(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in Statistics.__dataclass_fields__)


def compiler(sanitizer: Sanitizer | None = None) -> str:
    """The C++ compiler of a build: `CXX` if set, else clang for a sanitizer and g++ without, else the other.

    Raises KernelError if there is none.
    """
    named = os.environ.get("CXX")
    candidates = [named] if named else [*_CLANGS, "g++"] if sanitizer else ["g++", *_CLANGS, "c++"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise KernelError(
        f"Found no C++ compiler ({', '.join(candidates)}). The emulator compiles kernels on this machine: install g++, "
        "and clang for the sanitizers (apt install g++ clang), or set CXX."
    )


def build(
    source: Path,
    *,
    sanitizer: Sanitizer | None = None,
    defines: Mapping[str, str | int] = MappingProxyType({}),
    cache_dir: Path | None = None,
) -> EmulatedModule:
    """Compile the kernels of `source` for the CPU, or take the result of an earlier build from the cache.

    `defines` are preprocessor macros; the emulator's runtime sees those named CUDA_EMULATOR_*. The cache key is the
    text of the source and of all headers that it may include, the compiler's version, the flags and the CPU. Raises
    KernelError with the compiler's words if it fails.
    """
    if sanitizer is not None and sanitizer not in _SANITIZERS:
        raise UsageError(f"Found sanitizer {sanitizer!r}, expected None, {', '.join(_SANITIZERS)}.")
    if not source.is_file():
        raise KernelError(f"Found no CUDA source {source}. Give the path of a .cu file.")
    cxx = compiler(sanitizer)
    emulator = source_dir("emulator")
    includes = [f"-I{emulator}", f"-I{source.resolve().parent}", f"-I{source_dir()}"]
    # fused only where the source says fmaf: some kernels promise equal bits, and nvcc compiles those so too
    common = ["-std=c++17", "-fPIC", "-g1", "-ffp-contract=off", *_machine_flags()]
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    kernel_flags = [
        "-O1" if sanitizer else "-O2",
        *_SANITIZERS.get(sanitizer or "", ()),
        "-DEDGEMM_EMULATOR",
        *macros,
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
    ]
    own_macros = [macro for macro in macros if macro.startswith("-DCUDA_EMULATOR_")]
    runtime_flags = ["-O2", *_RUNTIME_DEFINES.get(sanitizer, ()), *own_macros]
    texts = sorted({*emulator.glob("*.*"), *source.parent.glob("*.cuh"), *source_dir().glob("*.cuh"), source})
    key = _digest(texts, [_version(cxx), platform.machine(), *common, *kernel_flags, *runtime_flags])
    folder = (cache_dir or cache.folder("emulator")) / f"{source.stem}-{key[:24]}"
    output = folder / ("program" if sanitizer else "library.so")
    if not output.exists():
        _make_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            parts = Path(temporary)
            _compile([cxx, *common, *kernel_flags, *includes, "-x", "c++", "-c", str(source), "-o", str(parts / "k.o")])
            _compile([cxx, *common, *runtime_flags, "-c", str(emulator / "runtime.cpp"), "-o", str(parts / "r.o")])
            link = [cxx, *_SANITIZERS.get(sanitizer or "", ()), str(parts / "k.o"), str(parts / "r.o")]
            if sanitizer:
                link += [*common, *runtime_flags, str(emulator / "runner.cpp")]
            else:
                link.append("-shared")
            _compile([*link, "-o", str(parts / output.name)])
            os.replace(parts / output.name, output)
    if sanitizer:
        return EmulatedModule(output, sanitizer, MappingProxyType({}), None)
    library = _load(str(output))
    return EmulatedModule(output, None, MappingProxyType(_kernels(library)), library)


def launch(
    module: EmulatedModule,
    kernel: str,
    params: ctypes.Structure,
    *,
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int = 0,
    buffers: Sequence[Array] = (),
    seed: int = 0,
    block_order: BlockOrder = "forward",
) -> Statistics:
    """Run `kernel` to its end, with `params` as its one argument.

    `grid` and `block` have one to three numbers, x first. Every pointer in `params` (each `c_void_p` field that is not
    null, also in nested structures and arrays) must point into one of `buffers`, arrays without gaps that the kernel
    reads and writes in place. `seed` 0 runs threads in order; any other draws the order between barriers.

    Raises LaunchError if the emulator or the sanitizer finds a fault, UsageError if the call itself is wrong.
    """
    if block_order not in _BLOCK_ORDERS:
        raise UsageError(f"Found block_order {block_order!r}, expected {', '.join(_BLOCK_ORDERS)}.")
    request = _Launch(_three(grid, "grid"), _three(block, "block"), shared_bytes, seed, _BLOCK_ORDERS[block_order], 0)
    relocations = _relocations(params, buffers)
    if module.library is None:
        return _launch_program(module, kernel, params, request, relocations, buffers)
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    statistics = _Statistics()
    failed = module.library.cuda_emulator_run(
        kernel.encode(),
        ctypes.byref(params),
        ctypes.c_size_t(ctypes.sizeof(params)),
        ctypes.byref(request),
        ctypes.byref(statistics),
        message,
        ctypes.c_size_t(_MESSAGE_BYTES),
    )
    if failed:
        text = message.value.decode()
        raise LaunchError(f"The emulator stopped {text}", text)
    return _statistics(statistics)


def _launch_program(
    module: EmulatedModule,
    kernel: str,
    params: ctypes.Structure,
    request: _Launch,
    relocations: Sequence[tuple[int, int, int]],
    buffers: Sequence[Array],
) -> Statistics:
    name = kernel.encode()
    parts = [struct.pack("<I", len(name)), name, bytes(request)]
    parts += [struct.pack("<I", ctypes.sizeof(params)), bytes(params), struct.pack("<I", len(relocations))]
    parts += [struct.pack("<IIQ", *relocation) for relocation in relocations]
    parts.append(struct.pack("<I", len(buffers)))
    for array in buffers:
        parts += [struct.pack("<Q", array.nbytes), ctypes.string_at(array.ctypes.data, array.nbytes)]
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    with tempfile.TemporaryDirectory(prefix="edgemm-emulator-") as temporary:
        asked, answered = Path(temporary) / "request", Path(temporary) / "result"
        asked.write_bytes(b"".join(parts))
        try:
            done = subprocess.run(
                [str(module.path), str(asked), str(answered)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_RUN_TIMEOUT_S,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"{kernel} did not end within {_RUN_TIMEOUT_S} s under the emulator.", "") from error
        if done.returncode == 2:
            raise KernelError(f"The emulator's program could not run {kernel}: {done.stderr.strip()}")
        if done.returncode == 3:
            raise LaunchError(f"The emulator stopped {done.stderr.strip()}", done.stderr)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip(" =")]
            first = next((line for line in lines if "Sanitizer" in line or "runtime error" in line), "no report")
            raise LaunchError(
                f"The {module.sanitizer} sanitizer stopped {kernel} (exit {done.returncode}): {first.strip()}",
                "\n".join(lines[:_REPORT_LINES]),
            )
        result = answered.read_bytes()
    at = ctypes.sizeof(_Statistics)
    statistics = _Statistics.from_buffer_copy(result[:at])
    for array in buffers:
        if array.flags.writeable:
            ctypes.memmove(array.ctypes.data, result[at : at + array.nbytes], array.nbytes)
        at += array.nbytes
    return _statistics(statistics)


def _statistics(counted: _Statistics) -> Statistics:
    return Statistics(*(int(getattr(counted, name)) for name in Statistics.__dataclass_fields__))


def _three(sizes: Sequence[int], what: str) -> Any:
    if not 1 <= len(sizes) <= 3 or any(size < 0 for size in sizes):
        raise UsageError(f"Found {what} {tuple(sizes)}, expected one to three numbers that are not negative.")
    return (ctypes.c_uint32 * 3)(*sizes, *[1] * (3 - len(sizes)))


def pointers(params: ctypes.Structure | ctypes.Array[Any], base: int = 0) -> Iterator[tuple[int, str, int]]:
    """Every pointer field of a parameter structure: (byte offset, name, address), null ones included."""
    for name, kind, offset, value in _members(params):
        if kind is ctypes.c_void_p:
            yield base + offset, name, value or 0
        elif issubclass(kind, (ctypes.Structure, ctypes.Array)):
            for at, inner, address in pointers(value, base + offset):
                yield at, f"{name}.{inner}", address


def _members(of: ctypes.Structure | ctypes.Array[Any]) -> Iterator[tuple[str, type[Any], int, Any]]:
    if isinstance(of, ctypes.Structure):
        for entry in of._fields_:
            yield entry[0], entry[1], getattr(type(of), entry[0]).offset, getattr(of, entry[0])
    else:
        kind = of._type_
        for i in range(len(of)):
            yield str(i), kind, i * ctypes.sizeof(kind), of[i]


def _relocations(params: ctypes.Structure, buffers: Sequence[Array]) -> list[tuple[int, int, int]]:
    """(offset in params, buffer, offset in it) of every pointer that is not null."""
    ranges = []
    for number, array in enumerate(buffers):
        if not _is_dense(array):
            raise UsageError(
                f"Buffer {number} has gaps: shape {array.shape}, strides {array.strides}. "
                "Hand over the array that it is a view of."
            )
        ranges.append((array.ctypes.data, array.nbytes))
    found = []
    for offset, name, address in pointers(params):
        if not address:
            continue
        # inside a buffer; else at the end of one, which an empty tensor's address may be
        inside = [i for i, (start, size) in enumerate(ranges) if start <= address < start + size]
        inside += [i for i, (start, size) in enumerate(ranges) if address == start + size]
        if not inside:
            raise UsageError(
                f"The pointer {name} of {type(params).__name__} lies in none of the {len(buffers)} buffers. "
                "Hand over every array that the kernel may touch."
            )
        found.append((offset, inside[0], address - ranges[inside[0]][0]))
    return found


def _is_dense(array: Array) -> bool:
    """True if the elements fill one piece of memory, in whatever order."""
    step = array.itemsize
    for stride, length in sorted(zip(array.strides, array.shape, strict=True)):
        if length > 1 and stride != step:
            return False
        step *= length
    return True


def _kernels(library: ctypes.CDLL) -> dict[str, KernelInfo]:
    library.cuda_emulator_kernel.restype = ctypes.c_char_p
    found: dict[str, KernelInfo] = {}
    size, threads = ctypes.c_size_t(), ctypes.c_uint()
    index = 0
    while name := library.cuda_emulator_kernel(ctypes.c_size_t(index), ctypes.byref(size), ctypes.byref(threads)):
        found[name.decode()] = KernelInfo(size.value, threads.value)
        index += 1
    return found


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise KernelError(f"{Path(command[0]).name} cannot compile the kernel: {' | '.join(errors[:5])}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(
            f"Cannot make {folder}: {error.strerror}. Set EDGEMM_CACHE to a folder you can write."
        ) from error


def _digest(files: Sequence[Path], words: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


@functools.cache
def _version(cxx: str) -> str:
    done = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split("\n", 1)[0]


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    """Vector instructions of x86-64-v3 where the CPU has them: a cached library must run where the cache is read."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ()
    return ("-march=x86-64-v3",) if {"avx2", "fma", "f16c", "bmi2", "movbe"} <= words else ()
