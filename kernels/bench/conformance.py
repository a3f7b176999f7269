"""Each PTX primitive and warp collective, device against emulator: the same kernels, the same input, the same bits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import Part

from edgemm.device import Device
from edgemm.errors import EdgemmError
from edgemm.kernels import emulate
from edgemm.kernels.compile import compile_kernel
from edgemm.types import Array

SOURCE = Path(__file__).resolve().parents[2] / "tests" / "kernels" / "emulator_kernels.cu"


class InOut(ctypes.Structure):
    """The parameters of emulator_kernels.cu."""

    _fields_ = (("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("n", ctypes.c_int), ("mode", ctypes.c_int))


@dataclass(frozen=True)
class Primitive:
    """A launch whose output must be the same on both sides."""

    name: str
    kernel: str
    given: Array
    out: Array
    block: int
    shared_bytes: int = 0
    n: int = 0
    mode: int = 0
    tolerance: float = 0.0
    """Where the device may round otherwise: tensor cores add products in an order of their own."""


def primitives() -> list[Primitive]:
    """What the kernels are made of."""
    random = np.random.default_rng(0)
    ints = random.integers(-100, 100, 64).astype(np.int32)
    halves = random.standard_normal(384).astype(np.float16)
    bfloats = (random.standard_normal(384).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    every = np.arange(1 << 16, dtype=np.uint16)
    floats = random.standard_normal(4096).astype(np.float32) * np.logspace(-9, 6, 4096).astype(np.float32)
    product = np.zeros((16, 8), np.float32)
    return [
        Primitive("barrier and shared memory", "reverse_block", floats[:256], np.zeros(256, np.float32), 256, 1024),
        Primitive("shuffles, votes, reductions", "warp_collectives", ints, np.zeros(12 * 64, np.int32), 64),
        Primitive("votes of a block", "block_votes", ints, np.zeros(64, np.int32), 64),
        Primitive("ldmatrix, plain and transposed", "load_matrix", every[:256], np.zeros(256, np.uint32), 32, 512, n=8),
        Primitive("mma m16n8k16, fp16", "matrix_product", halves, product, 32, 768, mode=0, tolerance=2e-6),
        Primitive("mma m16n8k16, bfloat16", "matrix_product", bfloats, product, 32, 768, mode=1, tolerance=2e-6),
        Primitive("cp.async", "copy_async", floats[:256], np.zeros(256, np.float32), 32, 1024, mode=0),
        Primitive("cp.async, nothing there", "copy_async", floats[:256], np.zeros(256, np.float32), 32, 1024, mode=2),
        Primitive("fp16 to float", "convert", every, np.zeros(1 << 16, np.float32), 256, n=1 << 16, mode=0),
        Primitive("bfloat16 to float", "convert", every, np.zeros(1 << 16, np.float32), 256, n=1 << 16, mode=1),
        Primitive("float to fp16", "convert", floats, np.zeros(4096, np.uint16), 256, n=4096, mode=2),
        Primitive("float to bfloat16", "convert", floats, np.zeros(4096, np.uint16), 256, n=4096, mode=3),
    ]


def run(device: Device, part: Part) -> None:
    """Put (primitive, "same" or what differs) of each into the part's proofs."""
    for name, result in compare(device):
        part.proofs[f"primitive: {name}"] = result
        if result != "same":
            part.failed.append(f"{name}: {result}")


def compare(device: Device) -> list[tuple[str, str]]:
    """(primitive, "same" or what differs) of each."""
    emulated = emulate.build(SOURCE)
    module = device.load_module(compile_kernel(SOURCE, device.arch).read_bytes())
    results = []
    for primitive in primitives():
        expected = primitive.out.copy()
        params = InOut(primitive.given.ctypes.data, expected.ctypes.data, primitive.n, primitive.mode)
        emulate.launch(
            emulated,
            primitive.kernel,
            params,
            grid=(1,),
            block=(primitive.block,),
            shared_bytes=primitive.shared_bytes,
            buffers=[primitive.given, expected],
        )
        given, out = device.upload(primitive.given), device.upload(primitive.out)
        try:
            module.launch(
                primitive.kernel,
                InOut(given.pointer, out.pointer, primitive.n, primitive.mode),
                grid=(1,),
                block=(primitive.block,),
                shared_bytes=primitive.shared_bytes,
            )
            results.append((primitive.name, difference(out.download(), expected, primitive.tolerance)))
        except EdgemmError as error:
            results.append((primitive.name, str(error)))
        given.close()
        out.close()
    return results


def difference(found: Array, expected: Array, tolerance: float) -> str:
    """ "same", or how many elements differ and by how much; a NaN equals any NaN."""
    if found.dtype == np.float32:
        far = ~(np.isclose(found, expected, rtol=0, atol=tolerance, equal_nan=True))
    else:
        far = found != expected
    if not far.any():
        return "same"
    first = np.flatnonzero(far.ravel())[0]
    return f"{far.sum()} of {far.size} differ; element {first}: {found.ravel()[first]}, not {expected.ravel()[first]}"
