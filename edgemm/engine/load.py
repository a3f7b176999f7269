"""From a bundle to an engine: which engine, which precision, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemm.bundle import Bundle, Variant
from edgemm.engine.onnxruntime import OnnxRuntimeEngine
from edgemm.engine.protocol import Engine
from edgemm.errors import EngineError, UsageError

EngineName = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx"]
ENGINES: tuple[EngineName, ...] = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Choice:
    """An engine, not yet entered, with the precision it runs in and why it was taken."""

    engine: Engine
    precision: str
    reason: str
    """Why this precision."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: where the plan came from, why another did not serve."""


def choose(
    bundle: Bundle,
    model: str,
    *,
    engine: EngineName = "auto",
    precision: str = "auto",
    threads: int = 1,
    profile_layers: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Choice:
    """Choose the engine and the precision for one model of a bundle. Nothing is loaded until it is entered.

    "auto" takes TensorRT where there is one and a GPU, compiling the plan if need be, and onnxruntime elsewhere; if
    TensorRT then refuses, the engine's `fallback` says why. Raises UsageError for a model or precision that the
    bundle does not hold, EngineError where an engine that was asked for by name cannot run here.
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
    fallback = None
    if engine != "onnxruntime":
        try:
            loaded = _tensorrt(bundle, model, wanted, engine, profile_layers, tell)
        except EngineError as error:
            if engine != "auto":
                raise
            fallback = f"not on TensorRT: {error}"
        else:
            if loaded is not None:
                return Choice(loaded[0], wanted, reason, notes=loaded[1])
    if fallback is not None and tell is not None:
        tell(f"{model}: runs on onnxruntime, {fallback}")
    on_cpu = OnnxRuntimeEngine(
        _graph(bundle, variant),
        entry.states,
        threads=threads,
        profile_layers=profile_layers,
        fp8=wanted == "fp8",
        fallback=fallback,
    )
    return Choice(on_cpu, wanted, reason)


def _tensorrt(
    bundle: Bundle,
    model: str,
    precision: str,
    engine: EngineName,
    profile_layers: bool,
    tell: Callable[[str], None] | None,
) -> tuple[Engine, tuple[str, ...]] | None:
    """A TensorRT engine, or None if "auto" finds no TensorRT or no GPU. Raises EngineError, MissingExtraError."""
    from edgemm.engine.gpu import find_gpu
    from edgemm.engine.tensorrt import compiled
    from edgemm.engine.tensorrt.run.engine import TensorRTEngine

    flavour = compiled.flavour_for(engine)
    gpu = find_gpu() if flavour is not None else None
    if flavour is None or (gpu is None and engine == "auto"):
        return None
    found = compiled.plan_for_device(bundle, model, precision, flavour, gpu=gpu, tell=tell)
    states = bundle.models[model].states
    loaded = TensorRTEngine(
        found.plan,
        states,
        flavour=flavour,
        profile_layers=profile_layers,
        weights=found.weights,
        plugins=found.plugins,
    )
    return loaded, found.notes


def _graph(bundle: Bundle, variant: Variant) -> bytes | Path:
    """The graph in memory, or, with external data, unpacked once into the cache under its digest."""
    if variant.data is None:
        return bundle.read(variant.file)
    from edgemm.engine.tensorrt.compiled import extracted

    return extracted(bundle, variant.file, variant.data, variant.digest)
