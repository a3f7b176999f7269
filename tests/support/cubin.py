"""What a cubin says about its kernels, read from the ELF file itself: no tool of the CUDA toolkit is needed.

The attributes of the `.nv.info` section are records: format, attribute, then 16 bits of value or size. Their numbers
are not in a public header, but readers of cubins agree on them (CuAssembler, cuda-gdb's ELF images), and a test
compares with ptxas -v.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_FORMAT_SIZED = 4
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
_INSTRUCTION_BYTES = 16
# Lower 12 bits of an instruction since sm_75 (HMMA.16816 and .1688).
_HMMA = 0x23C


@dataclass(frozen=True)
class Resources:
    """What one kernel takes."""

    registers: int
    stack_bytes: int
    """Of one thread; spilled registers live there."""
    static_shared_bytes: int
    tensor_instructions: int
    """HMMA instructions in its code."""


def resources(cubin: bytes) -> dict[str, Resources]:
    """The kernels of a cubin by name. Raises ValueError if it is not a 64-bit ELF file."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    sections = _sections(cubin)
    symbols = _symbols(sections)
    values: dict[tuple[int, int], int] = {}  # (attribute, symbol) -> value
    for attribute, payload in _records(sections[".nv.info"]):
        if attribute in (_FRAME_SIZE, _REGISTERS) and len(payload) == 8:
            symbol, value = struct.unpack("<II", payload)
            values[attribute, symbol] = value
    found = {}
    for name, code in sections.items():
        if not name.startswith(".text."):
            continue
        kernel = name.removeprefix(".text.")
        symbol = symbols.index(kernel)
        words = struct.unpack(f"<{len(code) // 4}I", code)
        found[kernel] = Resources(
            values[_REGISTERS, symbol],
            values.get((_FRAME_SIZE, symbol), 0),
            len(sections.get(f".nv.shared.{kernel}", b"")),
            sum(word & 0xFFF == _HMMA for word in words[:: _INSTRUCTION_BYTES // 4]),
        )
    return found


def _sections(elf: bytes) -> dict[str, bytes]:
    table, count, names_at = struct.unpack_from("<Q", elf, 0x28)[0], *struct.unpack_from("<HH", elf, 0x3C)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + 64 * i) for i in range(count)]
    strings = elf[headers[names_at][4] :]
    nobits = 8
    return {
        strings[name : strings.index(b"\0", name)].decode(): bytes(size) if kind == nobits else elf[at : at + size]
        for name, kind, _, _, at, size in headers
    }


def _symbols(sections: dict[str, bytes]) -> list[str]:
    strings = sections[".strtab"]
    names = [entry[0] for entry in struct.iter_unpack("<IBBHQQ", sections[".symtab"])]
    return [strings[at : strings.index(b"\0", at)].decode() for at in names]


def _records(info: bytes):
    at = 0
    while at < len(info):
        kind, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if kind == _FORMAT_SIZED:
            yield attribute, info[at : at + size]
            at += size
