"""`edgemm doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    state: Literal["ok", "missing", "problem"]
    found: str
    remedy: str = ""


def doctor(json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what edgemm finds on this machine, and what to install for what is missing.

    Exit code 1 if something needed to run at all is broken.

    Example:  edgemm doctor
    """
    findings = list(examine())
    if json_out:
        import json

        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            typer.echo(f"{finding.state:8} {finding.what:18} {finding.found}")
            if finding.remedy:
                typer.echo(f"{'':8} {'':18} -> {finding.remedy}")
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Look at Python, the libraries, the GPU, TensorRT, the compiler, sound and cameras. Opens no device."""
    import platform
    from importlib.util import find_spec

    yield Finding("python", "ok", f"{platform.python_version()}, {platform.machine()}, {platform.platform()}")
    for name in ("numpy", "onnx", "onnxruntime", "av", "opencv-python-headless", "msgspec"):
        version = _version(name)
        if version or (name == "opencv-python-headless" and find_spec("cv2")):
            yield Finding(name, "ok", version or "another build of OpenCV")
        else:
            yield Finding(name, "problem", "not installed", "pip install -U edgemm")
    yield _board()
    yield _driver()
    yield from _tensorrt()
    nvcc = shutil.which("nvcc")
    nvrtc = _version("nvidia-cuda-nvrtc-cu12") or _version("nvidia-cuda-nvrtc")
    if nvcc or nvrtc:
        yield Finding("CUDA compiler", "ok", nvcc or f"NVRTC {nvrtc}")
    else:
        yield Finding("CUDA compiler", "missing", "no nvcc, no NVRTC", 'pip install "edgemm[kernels]"')
    cameras = sorted(Path("/dev").glob("video*"))
    yield Finding("cameras", "ok" if cameras else "missing", ", ".join(map(str, cameras)) or "no /dev/video*")
    sound = Path("/proc/asound/cards")
    cards = [line for line in (sound.read_text().splitlines() if sound.exists() else []) if "[" in line]
    yield Finding("sound cards", "ok" if cards else "missing", "; ".join(c.strip() for c in cards) or "none")
    from edgemm import cache

    yield Finding("cache", "ok", str(cache.folder("plans").parent))


def _board() -> Finding:
    model = Path("/proc/device-tree/model")
    release = Path("/etc/nv_tegra_release")
    if not model.exists() or not release.exists():
        return Finding("Jetson", "missing", "this is no Jetson")
    name = model.read_text(errors="replace").strip("\0\n ")
    line = release.read_text(errors="replace").splitlines()
    return Finding("Jetson", "ok", f"{name}, L4T {line[0].lstrip('# ') if line else 'unknown'}")


def _driver() -> Finding:
    for path in (Path("/proc/driver/nvidia/version"), Path("/sys/module/nvidia/version")):
        if path.exists():
            return Finding("NVIDIA driver", "ok", path.read_text(errors="replace").splitlines()[0].strip())
    if Path("/etc/nv_tegra_release").exists():
        return Finding("NVIDIA driver", "ok", "Jetson's own")
    return Finding("NVIDIA driver", "missing", "none: models run on onnxruntime on the CPU")


def _tensorrt() -> Iterator[Finding]:
    from importlib.util import find_spec

    for module, label, extra in (("tensorrt", "TensorRT", "tensorrt"), ("tensorrt_rtx", "TensorRT for RTX", "rtx")):
        if find_spec(module):
            yield Finding(label, "ok", _version(module) or _version(f"{module}_cu13".replace("_", "-")) or "installed")
            continue
        system = sorted(Path("/usr/lib").glob(f"python3*/dist-packages/{module}"))
        if system and sys.prefix != sys.base_prefix:
            yield Finding(
                label,
                "missing",
                f"hidden from this venv: it is in {system[0].parent}",
                "make the venv with --system-site-packages",
            )
        else:
            yield Finding(label, "missing", "not installed", f'pip install "edgemm[{extra}]"')


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
