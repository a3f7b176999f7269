"""Rewrites of an ONNX graph: one file a pass, each saying what it requires and what it ensures."""

from edgemm.graph.passes.fix_dims import FixDims
from edgemm.graph.passes.fix_inputs import FixInputs
from edgemm.graph.passes.fold_constants import FoldConstants
from edgemm.graph.passes.front_end import PutInFrontEnd, TakeOutFrontEnd, find_front_end
from edgemm.graph.passes.fuse_attention import FuseAttention
from edgemm.graph.passes.half import ToHalf
from edgemm.graph.passes.infer_shapes import InferShapes
from edgemm.graph.passes.infra import Pass, PassResult, run
from edgemm.graph.passes.inline_functions import InlineFunctions
from edgemm.graph.passes.name_dims import NameDims
from edgemm.graph.passes.recognise_front_end import RecogniseFrontEnd
from edgemm.graph.passes.remove_dead import RemoveDead
from edgemm.graph.passes.take_branches import TakeBranches

__all__ = [
    "FixDims",
    "FixInputs",
    "FoldConstants",
    "FuseAttention",
    "InferShapes",
    "InlineFunctions",
    "NameDims",
    "Pass",
    "PassResult",
    "PutInFrontEnd",
    "RecogniseFrontEnd",
    "RemoveDead",
    "TakeBranches",
    "TakeOutFrontEnd",
    "ToHalf",
    "find_front_end",
    "run",
]
