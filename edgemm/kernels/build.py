"""Compile all of edgemm's CUDA kernels ahead of time: `edgemm build kernels`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import KernelError, UsageError
from edgemm.kernels.compile import compile_kernel, find_compiler, minimum_arch, sources

DEFAULT_ARCHES = (75, 80, 86, 87, 89, 90, 110, 120)
"""Turing to Blackwell, with Orin (87) and Thor (110)."""


_WANTED = "expected compute capabilities as numbers: 87 is Orin, 110 is Thor."


def parse_arches(words: Sequence[str]) -> tuple[int, ...]:
    """The architectures that words name, each once: "87", "sm_87", or several with commas between them.

    Raises UsageError for a word that is none.
    """
    found: dict[int, None] = {}
    for word in ",".join(words).split(","):
        digits = word.strip().removeprefix("sm_")
        if not (digits.isascii() and digits.isdigit()):
            raise UsageError(f"Found --arch {' '.join(words)!r}; {_WANTED}")
        found[int(digits)] = None
    return tuple(found)


@dataclass(frozen=True)
class BuiltKernel:
    """One cubin that has been written, or that the architecture cannot have."""

    source: str
    arch: int
    path: Path | None
    """None: the architecture lacks what the source needs."""
    size_bytes: int
    compiler: str


def build_kernels(
    arches: Sequence[int] = DEFAULT_ARCHES, output_dir: Path = Path("cubins"), *, cache_dir: Path | None = None
) -> Iterator[BuiltKernel]:
    """Compile every kernel for every architecture into `output_dir/sm_<arch>/<source>.cubin`, one at a time.

    Raises UsageError for an architecture that is no number like 87, KernelError if there is no compiler, or none for
    one of them; then nothing has been written.
    """
    wrong = [arch for arch in arches if not 50 <= arch <= 129]
    if wrong or not arches:
        raise UsageError(f"Found --arch {list(arches)}; {_WANTED}")
    chosen = {arch: find_compiler(arch) for arch in arches}
    for arch in arches:
        for source in sources():
            if arch < minimum_arch(source):
                yield BuiltKernel(source, arch, None, 0, str(chosen[arch]))
                continue
            binary = compile_kernel(source, arch, compiler=chosen[arch], cache_dir=cache_dir)
            target = output_dir / f"sm_{arch}" / f"{source}.cubin"
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(binary, target)
            except OSError as error:
                raise KernelError(f"Cannot write {target}: {error.strerror}. Name another --output folder.") from error
            yield BuiltKernel(source, arch, target, target.stat().st_size, str(chosen[arch]))
