"""The import rules of the house, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edgemm"

# Who may import whom: each part of the package, and the parts it may import (itself always).
BASE = {"errors", "types", "options", "cache", "edgemm"}
LOW = {*BASE, "device", "kernels"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "options": {"errors"},
    "cache": set(),
    "device": BASE,
    "recipe": BASE,
    "bundle": {*BASE, "recipe"},
    "kernels": {*BASE, "device"},
    "frontend": LOW,
    "graph": LOW,
    "quant": {*LOW, "graph"},
    "engine": {*LOW, "graph", "quant", "bundle", "recipe"},
    "stream": {*BASE, "recipe"},
    "recipe_draft": BASE,
    "calibration_data": {*BASE, "recipe", "graph", "quant", "stream"},
    "builder": {*LOW, "recipe", "bundle", "graph", "quant", "engine", "calibration_data", "runner"},
    "session": {*LOW, "recipe", "bundle", "engine", "frontend", "stream"},
    "inputs": {*BASE, "recipe", "stream"},
    "rig": {*BASE, "stream"},
    "calibrate_sync": {*BASE, "stream", "rig"},
    "view": {*BASE, "recipe", "frontend", "stream"},
    "runner": {*BASE, "bundle", "engine", "stream", "rig", "inputs", "session"},
    "profiler": {*LOW, "recipe", "bundle", "engine", "stream", "inputs", "session", "runner"},
    "simulate": {*BASE, "bundle", "recipe", "runner", "engine", "stream", "inputs", "session", "profiler"},
    "demo": {*BASE, "recipe", "bundle", "engine", "stream", "builder", "runner", "profiler"},
}

# Where a vendor package may be imported. A trailing slash means everything below.
VENDORS = {
    "onnx": ("graph/", "quant/"),
    "onnx_ir": ("graph/",),
    "onnxscript": ("graph/",),
    "onnxruntime": ("engine/", "graph/"),
    "tensorrt": ("engine/tensorrt/",),
    "tensorrt_rtx": ("engine/tensorrt/",),
    "cuda": ("device/cuda_bindings.py", "kernels/"),
    "pycuda": ("device/pycuda.py", "kernels/"),
    "pyaudio": ("stream/sources/",),
    "av": ("stream/sources/",),
    "gi": ("stream/sources/",),
    "cv2": ("frontend/opencv.py",),
    "websockets": ("stream/sinks/server.py",),
    "paho": ("stream/sinks/mqtt.py",),
    "prometheus_client": ("stream/sinks/metrics.py",),
    "typer": ("cli/",),
    "rich": ("cli/", "stream/sinks/console.py"),
}

# A device that only runs needs neither the ONNX tools nor the builder.
NOT_FOR_RUNNING = ("builder", "quant", "graph")


def modules() -> Iterator[tuple[str, Path, str]]:
    """Every module: its path inside the package, its file and the part of the house it belongs to."""
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE).as_posix()
        part = inside.split("/")[0].removesuffix(".py")
        yield inside, file, "edgemm" if part == "__init__" else part


def imports(file: Path) -> Iterator[str]:
    """Every module name that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            if node.module == "edgemm":
                yield from (f"edgemm.{alias.name}" for alias in node.names if alias.name != "__version__")


def parts_imported(file: Path) -> set[str]:
    names = (name.split(".") for name in imports(file))
    return {name[1] for name in names if name[0] == "edgemm" and len(name) > 1}


@pytest.mark.parametrize(("inside", "file", "part"), list(modules()), ids=lambda v: v if isinstance(v, str) else "")
def test_who_imports_whom(inside: str, file: Path, part: str) -> None:
    if part in ("cli", "edgemm", "__main__"):
        return
    assert part in ALLOWED, f"{inside}: a new part of the house: give it a place in this table and in docs/design.md"
    forbidden = parts_imported(file) - ALLOWED[part] - {part}
    assert not forbidden, f"{inside} imports {forbidden}"


@pytest.mark.parametrize(("inside", "file", "part"), list(modules()), ids=lambda v: v if isinstance(v, str) else "")
def test_vendors_in_their_place(inside: str, file: Path, part: str) -> None:
    for name in imports(file):
        places = VENDORS.get(name.split(".")[0])
        assert places is None or any(inside.startswith(place) for place in places), f"{inside} imports {name}"


def test_what_runs_on_a_device_needs_no_builder() -> None:
    for inside, file, part in modules():
        if (
            part in ("runner", "session", "inputs", "stream", "frontend", "bundle", "recipe")
            or inside == "engine/load.py"
        ):
            assert not parts_imported(file) & set(NOT_FOR_RUNNING), inside


def loaded_by(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in result.stdout.split()}


HEAVY = {"onnx", "onnxruntime", "av", "cv2", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "pyaudio", "torch"}


def test_importing_edgemm_is_light() -> None:
    assert not loaded_by("import edgemm") & {*HEAVY, "numpy", "typer", "rich"}


def test_the_command_line_is_light() -> None:
    assert not loaded_by("import edgemm.cli.main") & {*HEAVY, "numpy"}


def test_run_imports_no_onnx() -> None:
    assert not loaded_by("import edgemm.runner") & {"onnx", "tensorrt", "tensorrt_rtx", "typer"}


def test_help_answers() -> None:
    result = subprocess.run([sys.executable, "-m", "edgemm", "--help"], capture_output=True, text=True, check=True)
    assert "build" in result.stdout
