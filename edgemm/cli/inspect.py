"""`edgemm inspect`: what a bundle or a model holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgemm.bundle import Bundle
    from edgemm.engine.tensorrt.plan import Plan
    from edgemm.graph.model import Model


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle or an ONNX model.", metavar="BUNDLE|MODEL")],
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Every layer of each plan, and what TensorRT's engine inspector says of it."),
    ] = False,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a bundle or a model holds: tensors, precisions and why, calibration, plans, sizes.

    The plans are those in the bundle and those that were compiled from it into the cache. The engine inspector needs
    the GPU that a plan is for.

    Examples:

      edgemm inspect demo.edgemm

      edgemm inspect demo.edgemm --layers --json
    """
    from edgemm import bundle

    if bundle.is_bundle(path):
        facts = _bundle_facts(bundle.open(path), layers)
    else:
        from edgemm.graph.model import load

        facts = _model_facts(load(path))
    if json_out:
        import json

        typer.echo(json.dumps(facts, indent=1))
    else:
        for line in _lines(facts):
            typer.echo(line)


def _bundle_facts(opened: Bundle, layers: bool) -> dict[str, Any]:
    manifest = opened.manifest
    models = {}
    for name, entry in opened.models.items():
        models[name] = {
            "inputs": [str(spec) for spec in entry.inputs],
            "outputs": [str(spec) for spec in entry.outputs],
            "state": [f"{pair.output} -> {pair.input}" for pair in entry.states],
            "precision": f"{entry.precision} ({entry.reason})",
            "variants": {
                precision: {
                    "bytes": sum(manifest.files[f].size for f in (variant.file, variant.data) if f),
                    "graph": variant.digest[:16],
                    **({"edgemm operators for TensorRT": ", ".join(variant.operators)} if variant.operators else {}),
                    **variant.scores,
                }
                for precision, variant in entry.variants.items()
            },
            "calibration": entry.ranges or "none",
        }
    return {
        "bundle": manifest.name,
        "sha256": opened.digest,
        "bytes": opened.path.stat().st_size,
        "built for": manifest.target,
        "built with": f"edgemm {manifest.edgemm}",
        "streams": {
            name: type(stream).__name__.removesuffix("Stream").lower() for name, stream in opened.recipe.streams.items()
        },
        "models": models,
        "plans": _plans(opened, layers),
        "kernels": [f"{kernel.source} for {kernel.arch}, by {kernel.compiler}" for kernel in manifest.kernels],
    }


def _plans(opened: Bundle, layers: bool) -> list[dict[str, Any]]:
    """The plans of the bundle, and those in the cache that were compiled from its graphs."""
    from collections import Counter

    from edgemm.engine.tensorrt.cache import PlanCache
    from edgemm.engine.tensorrt.compiled import graph_member
    from edgemm.engine.tensorrt.plan import read_plan

    owners = {
        graph_member(variant)[1]: name for name, entry in opened.models.items() for variant in entry.variants.values()
    }
    found = [("bundle", entry.model, read_plan(opened.read(entry.file))) for entry in opened.manifest.plans]
    kept = PlanCache()
    for entry in kept.list():
        plan = kept.get(entry.key) if entry.key.graph in owners else None
        if plan is not None:
            found.append(("cache", owners[entry.key.graph], plan))
    facts = []
    for place, model, plan in found:
        kinds = Counter(layer.kind for layer in plan.layers)
        on_dla = sum(layer.device == "DLA" for layer in plan.layers)
        facts.append(
            {
                "model": model,
                "in": place,
                **{name: value for name, value in vars(plan.key).items() if value},
                "bytes": len(plan.data),
                "compiled in": f"{plan.seconds:.1f} s",
                "layers before fusion": dict(kinds.most_common()),
                **({"layers on the DLA": f"{on_dla} of {len(plan.layers)}"} if plan.key.dla else {}),
                **(_layer_facts(plan) if layers else {}),
            }
        )
    return facts


def _layer_facts(plan: Plan) -> dict[str, Any]:
    network = [f"{layer.name} ({layer.kind}) on the {layer.device}" for layer in plan.layers]
    return {"network": network, "inspector": _inspected(plan)}


def _inspected(plan: Plan) -> list[dict[str, Any]] | str:
    """The engine inspector's layers, or why they wait."""
    from edgemm.engine.tensorrt.plugins.own import OwnPlugins
    from edgemm.engine.tensorrt.run.loaded import LoadedPlan
    from edgemm.errors import EdgemmError

    try:
        with LoadedPlan(plan, plugins=OwnPlugins() if plan.key.plugins else None) as loaded:
            return loaded.layers()
    except EdgemmError as error:
        return f"waits for a GPU that the plan is for: {error}"


def _model_facts(model: Model) -> dict[str, Any]:
    from collections import Counter

    ops = Counter(node.op_type for node in model.proto.graph.node)
    return {
        "model": str(model.path),
        "graph": model.digest,
        "opset": model.opset,
        "producer": f"{model.proto.producer_name} {model.proto.producer_version}".strip() or "unknown",
        "weights bytes": model.nbytes,
        "inputs": [str(spec) for spec in model.inputs],
        "outputs": [str(spec) for spec in model.outputs],
        "nodes": dict(ops.most_common()),
    }


def _lines(value: Any, indent: int = 0) -> list[str]:
    pad = "  " * indent
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                lines += [f"{pad}{key}:", *_lines(item, indent + 1)]
            else:
                lines.append(f"{pad}{key}: {item if item not in ({}, []) else 'none'}")
        return lines
    if isinstance(value, list):
        return [
            line for item in value for line in (_lines(item, indent) if isinstance(item, dict) else [f"{pad}{item}"])
        ]
    return [f"{pad}{value}"]
