"""edgemm: from a trained audio-visual ONNX model to measured, synchronised inference on an embedded GPU.

The four calls below do what the command line does:

    import edgemm

    edgemm.build("recipe.toml", "out.edgemm", calibration="samples/")
    for result in edgemm.run("out.edgemm", input="clip.mp4").results:
        print(result)
    print(edgemm.profile("out.edgemm", iterations=200).to_text())
    bundle = edgemm.open("out.edgemm")

Importing this package is cheap: it touches no GPU, no device and no heavy dependency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "build", "open", "profile", "run"]

if TYPE_CHECKING:
    from edgemm.builder import BuildReport, build
    from edgemm.bundle import Bundle, open
    from edgemm.profiler.profile import profile
    from edgemm.profiler.report import ProfileReport
    from edgemm.runner import run
    from edgemm.stream.results import Summary

    __all__ += ["BuildReport", "Bundle", "ProfileReport", "Summary"]

_HOMES = {
    "build": "edgemm.builder",
    "BuildReport": "edgemm.builder",
    "open": "edgemm.bundle",
    "Bundle": "edgemm.bundle",
    "profile": "edgemm.profiler.profile",
    "ProfileReport": "edgemm.profiler.report",
    "run": "edgemm.runner",
    "Summary": "edgemm.stream.results",
}


def __getattr__(name: str) -> Any:
    # The calls live beside their paths and are imported when first used (PEP 562).
    if name not in _HOMES:
        raise AttributeError(f'module "edgemm" has no attribute "{name}"')
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
