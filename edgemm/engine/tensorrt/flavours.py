"""Which TensorRT is at hand: NVIDIA's data-centre and Jetson library, TensorRT for RTX, both or neither.

The two have nearly the same Python names in different modules. The rest of edgemm is handed a `Flavour` and asks it
for what it has: capabilities are probed by name, never assumed from a version number.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from edgemm.errors import EngineError, MissingExtraError, UsageError

Name = Literal["tensorrt", "tensorrt-rtx"]

MODULES: dict[Name, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS: dict[Name, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}

SYSTEM_FOLDERS = tuple(Path("/usr/lib").glob("python3*/dist-packages"))
"""Where JetPack's Debian package (python3-libnvinfer) puts the module; a virtual environment does not look there."""


@dataclass(frozen=True)
class Flavour:
    """One importable TensorRT: its name, version and Python module."""

    name: Name
    version: str
    module: ModuleType = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """Name and version in words, for messages."""
        return f"{'TensorRT for RTX' if self.name == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    def get(self, name: str) -> Any:
        """Return a public name of the module, or None if this version lacks it."""
        return getattr(self.module, name, None)

    def members(self, enum: str) -> tuple[str, ...]:
        """Return the names of an enumeration's values; empty if this version lacks the enumeration."""
        kind = self.get(enum)
        return tuple(getattr(kind, "__members__", ())) if kind is not None else ()

    def member(self, enum: str, name: str) -> Any:
        """Return one value of an enumeration by name. Raises EngineError, with the names there are, if it is absent."""
        if name not in self.members(enum):
            known = ", ".join(sorted(self.members(enum))) or "none"
            raise EngineError(
                f"{self.title} has no {enum} {name}; it has: {known}. Leave the option out, or use another version."
            )
        return getattr(self.get(enum), name)

    @property
    def builds_without_gpu(self) -> bool:
        """True if plans can be compiled for a named compute capability, with no GPU in the machine."""
        return hasattr(self.get("IBuilderConfig"), "set_compute_capability")


def installed() -> tuple[Flavour, ...]:
    """Return every TensorRT that can be imported here, TensorRT proper first."""
    found = []
    for name in get_args(Name):
        module = _import(name)
        if module is not None:
            found.append(_flavour(name, module))
    return tuple(found)


def get(name: str) -> Flavour:
    """Return the TensorRT called `name`.

    Raises UsageError for an unknown name, MissingExtraError if it is not installed, and EngineError with the remedy
    if it is installed where this Python cannot use it (a Jetson's own, seen from a virtual environment).
    """
    if name not in MODULES:
        raise UsageError(f'Found the engine name "{name}"; expected one of: {", ".join(MODULES)}.')
    known: Name = "tensorrt" if name == "tensorrt" else "tensorrt-rtx"
    module = _import(known)
    if module is not None:
        return _flavour(known, module)
    hint = hidden_hint() if known == "tensorrt" else None
    if hint is not None:
        raise EngineError(hint)
    raise MissingExtraError(f'The engine "{known}"', EXTRAS[known], MODULES[known])


def hidden_hint(folders: Iterable[Path] | None = None) -> str | None:
    """Say how to reach a system TensorRT which this Python cannot import, or return None if there is none."""
    places = [folder for folder in _system(folders) if (folder / "tensorrt" / "__init__.py").is_file()]
    if not places:
        return None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"JetPack's TensorRT is installed in {places[0]}, but this Python {here} cannot load it. Make the virtual "
        "environment with the system's Python: /usr/bin/python3 -m venv --system-site-packages VENV, and install "
        "edgemm in it."
    )


def _flavour(name: Name, module: ModuleType) -> Flavour:
    return Flavour(name, str(module.__version__), module)


def _import(name: Name) -> ModuleType | None:
    if name == "tensorrt" and "tensorrt" not in sys.modules and importlib.util.find_spec("tensorrt") is None:
        return _import_system()
    try:
        return _whole(importlib.import_module(MODULES[name]))
    except ImportError:
        # Absent, or its shared libraries are (the stub that `pip install tensorrt` leaves without network).
        return None


def _import_system(folders: Iterable[Path] | None = None) -> ModuleType | None:
    """Load the system's package by its own path, so that no other system package shadows the environment's."""
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in _system(folders):
        init = folder / "tensorrt" / "__init__.py"
        if folder.parent.name not in (here, "python3") or not init.is_file():
            continue
        spec = importlib.util.spec_from_file_location("tensorrt", init, submodule_search_locations=[str(init.parent)])
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules["tensorrt"] = module
        try:
            spec.loader.exec_module(module)
        except ImportError:
            del sys.modules["tensorrt"]
            continue
        return _whole(module)
    return None


def _whole(module: ModuleType) -> ModuleType | None:
    """Return the module if it is a TensorRT, None if it is an empty folder or another package of that name."""
    return module if hasattr(module, "__version__") and hasattr(module, "Runtime") else None


def _system(folders: Iterable[Path] | None) -> Sequence[Path]:
    return sorted(SYSTEM_FOLDERS if folders is None else folders, reverse=True)
