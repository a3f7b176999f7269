"""The compile matrix, and what each kernel may take of a multiprocessor: `kernels/budget.json`.

More registers or a stack (which is where spilled registers go) mean fewer warps at a time; a kernel that lost its
tensor core instructions still gives the right numbers, slowly. Neither shows on a CPU, both show in the compiled code.

To take over the figures of this machine's compiler: EDGEMM_WRITE_BUDGET=1 pytest tests/kernels/test_budget.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import cubin
import pytest

from edgemm.kernels import attention
from edgemm.kernels.compile import compile_kernel, compilers, sources
from edgemm.kernels.sources import source_dir

BUDGET = source_dir().parent / "budget.json"
ARCHS = (75, 80, 86, 87, 89, 90, 110, 120)
GRANULE = 8
"""Registers are given to a warp in steps of 8 a thread, so a budget is a multiple of it."""
SHARED_WITHOUT_OPT_IN = 48 * 1024


def budget() -> dict[str, dict]:
    return json.loads(BUDGET.read_text())


def compiler_for(arch: int):
    for compiler in compilers():
        if arch in compiler.archs:
            return compiler
    pytest.skip(
        f"no CUDA compiler for sm_{arch} here: install the CUDA 13 toolkit (nvcc), or pip install nvidia-cuda-nvrtc"
    )


def write(name: str, source: str, arch: int, found: cubin.Resources) -> None:
    entries = budget() if BUDGET.exists() else {}
    entry = entries.setdefault(name, {"source": source, "tensor_cores": False, "registers": {}})
    entry["tensor_cores"] = found.tensor_instructions > 0
    entry["registers"][str(arch)] = -(-found.registers // GRANULE) * GRANULE
    entry["registers"] = dict(sorted(entry["registers"].items(), key=lambda item: int(item[0])))
    stacks = entry.setdefault("stack_bytes", {})  # 0 where not named
    stacks.pop(str(arch), None)
    if found.stack_bytes:
        stacks[str(arch)] = found.stack_bytes
    if not stacks:
        del entry["stack_bytes"]
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(entries.items()))
    BUDGET.write_text("{\n" + lines + "\n}\n")


@pytest.mark.parametrize("source", sources())
@pytest.mark.parametrize("arch", [arch if arch == 87 else pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHS])
def test_every_kernel_compiles_within_its_budget(arch, source, tmp_path):
    compiler = compiler_for(arch)
    kernels = cubin.resources(Path(compile_kernel(source, arch, compiler=compiler, cache_dir=tmp_path)).read_bytes())
    over = []
    for name, found in kernels.items():
        if os.environ.get("EDGEMM_WRITE_BUDGET"):
            write(name, source, arch, found)
        allowed = budget().get(name)
        assert allowed, f"{name} has no entry in {BUDGET.name}"
        registers, stack = allowed["registers"][str(arch)], allowed.get("stack_bytes", {}).get(str(arch), 0)
        if found.registers > registers:
            over.append(f"{name}: {found.registers} registers, {registers} allowed")
        if found.stack_bytes > stack:
            over.append(f"{name}: {found.stack_bytes} bytes of stack, {stack} allowed")
        if (found.tensor_instructions > 0) != allowed["tensor_cores"]:
            over.append(f"{name}: {found.tensor_instructions} tensor core instructions, {allowed['tensor_cores']=}")
    listed = {name for name, entry in budget().items() if entry["source"] == source and str(arch) in entry["registers"]}
    assert listed == set(kernels), f"the kernels of {source} on sm_{arch} are not those of {BUDGET.name}"
    assert not over, f"sm_{arch} with {compiler}: {'; '.join(over)}"


@pytest.mark.parametrize("head_dim", attention.HEAD_DIMS)
def test_attention_needs_no_opt_in_for_shared_memory(head_dim):
    assert attention.tile_shared_bytes(head_dim) <= SHARED_WITHOUT_OPT_IN
    assert attention.split_shared_bytes(head_dim) <= SHARED_WITHOUT_OPT_IN


def test_the_reader_of_cubins_agrees_with_ptxas(tmp_path):
    compiler = compiler_for(87)
    if compiler.kind != "nvcc":
        pytest.skip("needs ptxas to compare with: install the CUDA toolkit (nvcc)")
    output = tmp_path / "d32.cubin"
    command = [compiler.path, "-cubin", "-arch=sm_87", "-std=c++17", "-Xptxas", "-v", "-o", str(output)]
    done = subprocess.run(
        [*command, str(source_dir() / "attention_d32.cu")], capture_output=True, text=True, check=True
    )
    said = dict(re.findall(r"entry function '(\w+)'[\s\S]*?Used (\d+) registers", done.stderr))
    stacks = dict(re.findall(r"properties for (\w+)\s+(\d+) bytes stack frame", done.stderr))
    found = cubin.resources(output.read_bytes())
    assert {name: str(one.registers) for name, one in found.items()} == said
    assert {name: str(one.stack_bytes) for name, one in found.items()} == stacks
    # 64 keys by 32: 2 x 8 products with the queries, 4 x (4 + 1 for the sums) with the values
    assert found["edgemm_attention_f16_d32"].tensor_instructions == 36
    with pytest.raises(ValueError, match="not a 64-bit ELF file"):
        cubin.resources(b"\x7fELF\x01" + bytes(100))
