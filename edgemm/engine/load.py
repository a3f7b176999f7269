"""From a bundle to an engine: which engine, which precision, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemm import cache
from edgemm.bundle import Bundle, Variant
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.engine.protocol import Engine
from edgemm.errors import UsageError

EngineName = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx"]
ENGINES: tuple[EngineName, ...] = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Choice:
    """An engine, not yet entered, with the precision it runs in and why it was taken."""

    engine: Engine
    precision: str
    reason: str


def choose(
    bundle: Bundle,
    model: str,
    *,
    engine: EngineName = "auto",
    precision: str = "auto",
    threads: int = 1,
    profile_layers: bool = False,
) -> Choice:
    """Choose the engine and the precision for one model of a bundle. Nothing is loaded until it is entered.

    Raises UsageError for a model or precision that the bundle does not hold, EngineError where an engine that was
    asked for by name cannot run here.
    """
    entry = bundle.models.get(model)
    if entry is None:
        raise UsageError(f'{bundle.path} holds no model "{model}", expected one of: {", ".join(bundle.models)}.')
    wanted = entry.precision if precision == "auto" else precision
    variant = entry.variants.get(wanted)
    if variant is None:
        raise UsageError(
            f'{bundle.path} holds "{model}" in {", ".join(entry.variants)}, not in {wanted}. '
            f"Build it so: edgemm build engine ... --precision {wanted}"
        )
    reason = entry.reason if precision == "auto" else "asked for"
    if engine not in ENGINES:
        raise UsageError(f'There is no engine "{engine}", expected one of: {", ".join(ENGINES)}.')
    loaded = OnnxRuntimeEngine(_graph(bundle, variant), entry.states, threads=threads, profile_layers=profile_layers)
    return Choice(loaded, wanted, reason)


def _graph(bundle: Bundle, variant: Variant) -> bytes | Path:
    """The graph in memory, or, with external data, unpacked once into the cache under its digest."""
    if variant.data is None:
        return bundle.read(variant.file)
    target = cache.folder("models") / variant.digest
    graph, data = target / Path(variant.file).name, target / Path(variant.data).name
    for member, file in ((variant.data, data), (variant.file, graph)):
        if not file.is_file() or file.stat().st_size != bundle.manifest.files[member].size:
            bundle.extract(member, target)
    return graph
