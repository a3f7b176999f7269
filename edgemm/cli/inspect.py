"""`edgemm inspect`: what a bundle or a model holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgemm.bundle import Bundle
    from edgemm.graph.model import Model


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle or an ONNX model.", metavar="BUNDLE|MODEL")],
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a bundle or a model holds: tensors, precisions and why, calibration, plans, sizes.

    Example:  edgemm inspect demo.edgemm
    """
    from edgemm import bundle

    if bundle.is_bundle(path):
        facts = _bundle_facts(bundle.open(path))
    else:
        from edgemm.graph.model import load

        facts = _model_facts(load(path))
    if json_out:
        import json

        typer.echo(json.dumps(facts, indent=1))
    else:
        for line in _lines(facts):
            typer.echo(line)


def _bundle_facts(opened: Bundle) -> dict[str, Any]:
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
        "plans": [{"model": plan.model, **plan.key} for plan in manifest.plans],
    }


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
