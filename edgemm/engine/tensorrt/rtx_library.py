"""Let TensorRT for RTX find its own library under the name by which it asks for it.

While it imports a plugin node, the parser of `tensorrt-rtx-cu13` 1.7 opens "libtensorrt_rtx.so"; the wheel ships only
"libtensorrt_rtx.so.1", and the process is aborted ("terminate called without an active exception"). The dynamic linker
takes an object that is loaded already if its SONAME is the name asked for. So an object is loaded that has that SONAME,
holds nothing, and needs "libtensorrt_rtx.so.1": symbols are then found there. No file of the wheel is touched, and no
compiler is needed: the object is written here (System V ABI, chapters 4 and 5).
"""

from __future__ import annotations

import ctypes
import platform
import struct
import tempfile
from pathlib import Path

from edgemm.errors import EngineError

UNVERSIONED = "libtensorrt_rtx.so"

_MACHINES = {"x86_64": 62, "aarch64": 183}
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 1, 5, 6, 10, 11, 14
_PT_LOAD, _PT_DYNAMIC = 1, 2
_READ_WRITE = 6
_HEADER_BYTES, _SEGMENT_BYTES, _SYMBOL_BYTES = 64, 56, 24
_ALIGNMENT = 0x10000
"""The largest page that Linux on Arm uses."""


def provide_library(versioned: str = "libtensorrt_rtx.so.1") -> None:
    """Make `dlopen("libtensorrt_rtx.so")` find the library `versioned`, which must be loaded already.

    Does nothing if that name is found anyhow. Raises EngineError if it cannot be done.
    """
    try:
        ctypes.CDLL(UNVERSIONED)
        return
    except OSError:
        pass
    with tempfile.TemporaryDirectory(prefix="edgemm-rtx-") as folder:
        file = Path(folder) / UNVERSIONED
        file.write_bytes(empty_library(UNVERSIONED, versioned, platform.machine()))
        try:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(UNVERSIONED)
        except OSError as error:
            raise EngineError(
                f"TensorRT for RTX would not find its library under the name {UNVERSIONED}: {error}. "
                f"Put a link of that name to {versioned} into a folder of LD_LIBRARY_PATH."
            ) from error


def empty_library(soname: str, needed: str, machine: str) -> bytes:
    """Return an ELF64 shared object without code: its name, and the one library that it needs.

    Raises EngineError for a machine other than x86_64 and aarch64.
    """
    if machine not in _MACHINES:
        raise EngineError(f"Found the machine {machine}; plugins for TensorRT for RTX need x86_64 or aarch64.")
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    symbols_at = _HEADER_BYTES + 2 * _SEGMENT_BYTES
    dynamic_at = symbols_at + _SYMBOL_BYTES  # one symbol, the undefined one
    entries = [
        (_DT_SONAME, 1),
        (_DT_NEEDED, len(soname) + 2),
        (_DT_SYMTAB, symbols_at),
        (_DT_SYMENT, _SYMBOL_BYTES),
        (_DT_STRSZ, len(strings)),
    ]
    strings_at = dynamic_at + 16 * (len(entries) + 2)
    entries += [(_DT_STRTAB, strings_at), (_DT_NULL, 0)]
    size = strings_at + len(strings)

    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bits, little-endian, version 1
    shared_object = 3
    header = struct.pack(
        "<HHIQQQIHHHHHH",
        *(shared_object, _MACHINES[machine], 1, 0, _HEADER_BYTES, 0, 0),
        *(_HEADER_BYTES, _SEGMENT_BYTES, 2, 0, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", _PT_LOAD, _READ_WRITE, 0, 0, 0, size, size, _ALIGNMENT)
    length = 16 * len(entries)
    dynamic = struct.pack("<IIQQQQQQ", _PT_DYNAMIC, _READ_WRITE, dynamic_at, dynamic_at, dynamic_at, length, length, 8)
    table = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    return identity + header + load + dynamic + bytes(_SYMBOL_BYTES) + table + strings
