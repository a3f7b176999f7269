"""What TensorRT really said (texts of TensorRT for RTX 1.7) and what the user reads."""

from __future__ import annotations

import pytest

from edgemm.engine.tensorrt.problems import explain

MYELIN = "IBuilder::buildSerializedNetwork: Error Code 1: Myelin (["


@pytest.mark.parametrize(
    ("text", "node", "words"),
    [
        (
            MYELIN
            + "pass.cpp:337: check_turing_op_compatibility] Cannot compile operation 'node_of_c' for Turing (SM75): "
            "FP32 GEMM is not supported",
            "node_of_c",
            "no kernel for SM75",
        ),
        (
            MYELIN + "pass.cpp:337: check_turing_op_compatibility] Cannot compile operation "
            "'$$myelin$$(Unnamed Loop* 0)^node_of_Y_7' for Turing (SM75)",
            "node_of_Y_7",
            "fp16",
        ),
        (
            MYELIN + "pass.cpp:1500: run_passes] Cannot compile for target(s) sm80, because the model contains "
            "HW-specific datatypes: fp8",
            "",
            "the target has no arithmetic for its type fp8",
        ),
        (
            "[tacticSupply.cpp::getSupportedFormats::48] Error Code 2: Internal Error (Assertion !layerImpls.empty() "
            "failed. node_of_y_0 has no runners that implement it In getSupportedFormats",
            "",
            "no kernel that implements it",
        ),
        (
            "Invalid Node - node_of_y ITensor::getDimensions: Error Code 4: API Usage Error (node_of_y: "
            "ElementWiseOperation SUM must have same input types. But they are of types Float and Half",
            "node_of_y",
            "Insert a Cast",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (IConditionalOutputLayer "
            "node_of_y_OutputLayer: Must have inputs with equal ranks when condition is not a build-time constant",
            "",
            "different rank",
        ),
        ("UNSUPPORTED_NODE: false checkDynamicQuantizeLinear", "", "does not support this operator"),
        (
            "INVALID_NODE: Assertion failed: creator && getPluginCreatorVersion(creator): failed to load MatMulNBits "
            "plugin. importMatMulNBits",
            "",
            "no plugin for it is registered",
        ),
        ("MyelinCheckException: decompose_composite_ops.cpp:59: CHECK(compo", "", "Cast the attention's inputs"),
        ("UNSUPPORTED_NODE: convertOnnxWeights( importInitializers", "", "INT16 and FP8 E5M2 are not taken"),
        (
            "MyelinCheckException: bb.cpp:43: CHECK(append_to->parent() == this) failed",
            "",
            "internal error (bb.cpp:43)",
        ),
        ("Tactic Selection: no tactics to implement the operation within workspace limit", "", "Raise the WORKSPACE"),
    ],
)
def test_a_known_text_becomes_reason_and_remedy(text: str, node: str, words: str) -> None:
    problem = explain("build", text)
    assert problem.node == node
    assert words in str(problem)


def test_an_unknown_text_keeps_tensorrts_words() -> None:
    problem = explain("build", "IBuilder::buildSerializedNetwork: Error Code 9: Something new.\n  (really)")
    assert str(problem).startswith('the graph: TensorRT says "Something new. (really)". Search for it')


def test_the_node_that_the_parser_names_goes_before_the_text() -> None:
    problem = explain("parse", "Error (other: wrong)", "mine", "Conv")
    assert str(problem).startswith('node "mine" (Conv): ')
