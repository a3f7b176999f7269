"""Plans as values: keys, the file format, profiles from a recipe's dimensions."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemm.engine.tensorrt.plan import (
    BuildOptions,
    Plan,
    PlanKey,
    PlanLayer,
    PlanTensor,
    key_of,
    profiles_of,
    read_plan,
)
from edgemm.errors import EngineError, UsageError
from edgemm.types import TensorSpec

KEY = PlanKey("tensorrt", "10.3.0", "8.7", "Orin", "", "int8", "", "g" * 64, "o" * 64)
PLAN = Plan(
    key=KEY,
    data=b"machine code",
    io=(
        PlanTensor("x", True, "float32", (None, 3), (((1, 3), (2, 3), (4, 3)),)),
        PlanTensor("y", False, "float16", (1,)),
    ),
    layers=(PlanLayer("conv", "CONVOLUTION", "DLA"),),
    seconds=1.5,
    warnings=("mind the gap",),
)


def test_a_plan_survives_its_file() -> None:
    content = PLAN.to_bytes()
    assert read_plan(content) == PLAN
    assert key_of(content) == KEY


@given(st.data())
def test_one_changed_byte_anywhere_is_found(data: st.DataObject) -> None:
    content = bytearray(PLAN.to_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EngineError, match=r"compile|Compile|build it with"):
        read_plan(bytes(content))


@given(st.integers(0, len(PLAN.to_bytes()) - 1))
def test_a_plan_that_was_cut_off_anywhere_is_found(length: int) -> None:
    with pytest.raises(EngineError):
        read_plan(PLAN.to_bytes()[:length])


def test_a_foreign_file_is_named() -> None:
    with pytest.raises(EngineError, match=r"begins with b'ftrt.*edgemm did not compile is never loaded"):
        read_plan(b"ftrt" * 100)


def test_a_header_of_another_edgemm_is_refused() -> None:
    # A whole file with a right hash, whose key has a field that this version does not know.
    import hashlib
    import json

    for header in ([], {"key": {"new": 1}}, {"key": "text", "sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}):
        text = json.dumps(header).encode()
        content = b"edgemm plan 1\n" + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
        with pytest.raises(EngineError, match=r"[Cc]ompile"):
            read_plan(content)
        with pytest.raises(EngineError):
            key_of(content)


def test_every_field_of_a_key_counts() -> None:
    for field in fields(PlanKey):
        assert replace(KEY, **{field.name: "other"}).id != KEY.id
    assert KEY.sm == "sm_87"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimization_level": 6}, "optimization level 6; expected 0"),
        ({"dla_strict": True}, "DLA strict was asked without a DLA core"),
        ({"memory_pools": {"WORKSPACE": 0}}, "0 bytes for the memory pool WORKSPACE"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(**options)  # type: ignore[arg-type]


SPECS = (
    TensorSpec("audio", "float32", ("N", 40, "T")),
    TensorSpec("video", "float32", ("N", None)),
    TensorSpec("rate", "int64", (1,)),
)


def test_dims_become_profiles() -> None:
    (profile,) = profiles_of(SPECS, {"N": [1, 2, 4], "T": 100, "video_dim1": [8, 8, 16]})
    assert profile == {
        "audio": ((1, 40, 100), (2, 40, 100), (4, 40, 100)),
        "video": ((1, 8), (2, 8), (4, 16)),
    }


def test_two_ranges_are_two_profiles_and_others_repeat() -> None:
    one, two = profiles_of(SPECS, {"N": [1, 1, 1, 2, 8, 16], "T": 10, "video_dim1": 3})
    assert one["audio"] == ((1, 40, 10), (1, 40, 10), (1, 40, 10))
    assert two["audio"] == ((2, 40, 10), (8, 40, 10), (16, 40, 10))
    assert two["video"][2] == (16, 3)


def test_static_inputs_need_no_profile() -> None:
    assert profiles_of([TensorSpec("x", "float32", (1, 2))], {}) == ()


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ({"N": 1, "T": 1}, '"video_dim1" has no value'),
        ({"N": 1, "T": 1, "video_dim1": 1, "B": 1}, 'dims names "B".*there are: N, T, video_dim1'),
        ({"N": [1, 2], "T": 1, "video_dim1": 1}, '"N" has 2 numbers'),
        ({"N": [4, 2, 1], "T": 1, "video_dim1": 1}, "expected min <= opt <= max"),
    ],
)
def test_dims_that_do_not_fit(dims: dict[str, int | list[int]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        profiles_of(SPECS, dims)
