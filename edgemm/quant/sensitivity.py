"""Which layers int8 hurts most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgemm.graph import Model
from edgemm.quant.operators import Form
from edgemm.quant.prepare import prepare
from edgemm.quant.qdq import insert_qdq, layer_macs, quantizable_nodes
from edgemm.quant.ranges import Ranges

Score = Callable[[Model], float]
"""Judges a model; higher is better. `Reference(...).compare(m).sqnr_db` is one, accuracy on labelled data another."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one layer does to the score."""

    node: str
    op: str
    score: float
    """Score of the model with this layer alone in int8 ("alone"), or with all but this one ("all-but")."""
    macs: int
    """Its multiply-accumulates in one run: what int8 would save."""


def sensitivity(
    model: Model,
    ranges: Ranges,
    score: Score,
    form: Form,
    *,
    mode: Literal["alone", "all-but"] = "alone",
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerSensitivity]:
    """Return every layer that can be int8, the most sensitive first.

    `alone` quantizes one layer at a time: the lowest score is the most sensitive. `all-but` leaves one layer at a time
    in float: the highest score is. `progress` is called with layers done and layers in all.
    """
    ops = quantizable_nodes(model, form)
    costs = layer_macs(prepare(model), ranges)
    nodes = list(ops)
    found = []
    for done, node in enumerate(nodes, 1):
        exclude = [name for name in nodes if (name != node) == (mode == "alone")]
        candidate = insert_qdq(model, ranges, form, exclude)
        found.append(LayerSensitivity(node, ops[node], score(candidate.model), costs[node]))
        if progress is not None:
            progress(done, len(nodes))
    return sorted(found, key=lambda item: item.score, reverse=mode == "all-but")
