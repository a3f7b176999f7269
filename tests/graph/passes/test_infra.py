from __future__ import annotations

from dataclasses import dataclass

import graph_text
import pytest

from edgemm.errors import ModelError
from edgemm.graph import Model
from edgemm.graph.passes import PassResult, run

RELU = "(float[3] x) => (float[3] y) { y = Relu(x) }"


@dataclass
class Rename:
    """A pass that renames, and may break its word."""

    what: str = "node"
    name: str = "rename"
    refuses: bool = False
    lies: bool = False

    def requires(self, model: Model) -> None:
        if self.refuses:
            raise ModelError("not this model")

    def __call__(self, model: Model) -> PassResult:
        proto = model.copy_proto()
        if self.what == "node":
            proto.graph.node[0].name = "renamed"
        else:
            proto.graph.output[0].name = "z"
            proto.graph.node[0].output[0] = "z"
        return PassResult(model.with_proto(proto), True, ("done",))

    def ensures(self, before: Model, after: Model) -> None:
        if self.lies:
            raise ModelError("promise broken")


def test_passes_run_in_order_and_their_notes_carry_their_names() -> None:
    model = graph_text.model(RELU)
    result = run(model, [Rename(), Rename(name="again")])
    assert result.changed
    assert result.notes == ("rename: done", "again: done")
    assert result.model.proto.graph.node[0].name == "renamed"
    assert model.proto.graph.node[0].name == "", "the model given is untouched"


def test_no_pass_changes_nothing() -> None:
    model = graph_text.model(RELU)
    assert run(model, []) == PassResult(model, False, ())


def test_requires_and_ensures_are_checked() -> None:
    model = graph_text.model(RELU)
    with pytest.raises(ModelError, match="not this model"):
        run(model, [Rename(refuses=True)])
    with pytest.raises(ModelError, match="promise broken"):
        run(model, [Rename(lies=True)])


def test_names_of_outputs_must_survive() -> None:
    with pytest.raises(ModelError, match=r"rename turned the outputs \['y'\] into \['z'\]"):
        run(graph_text.model(RELU), [Rename(what="output")])
